"""The report's page, from its first screen to its licences, in a fixed order."""

from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from html import escape
from typing import Any

from tqdm import tqdm

from monai_ext import __version__
from monai_ext.data.perturbations import UNITS
from monai_ext.evaluation.protocol import REGIONS
from monai_ext.report import viewer as niivue_viewer
from monai_ext.report.cases import Shown, ShownCase, images_of, shown_cases
from monai_ext.report.charts import Line, curve_chart, key_mark, subject_chart
from monai_ext.report.first_screen import first_screen, title_of
from monai_ext.report.matrix import task_maps
from monai_ext.report.pictures import ERROR_TOP, gradient, middle_of, three_views
from monai_ext.report.runs import Comparison, Key, unharmed
from monai_ext.report.statistics import ALPHA, RESAMPLES, SEED, PairedTest, mean_interval
from monai_ext.report.tables import (
    LOOKS,
    REGION_NAMES,
    few_subjects,
    figures_table,
    has_kinds,
    heat_map,
    tests_of,
    tests_table,
)
from monai_ext.report.task_tests import task_tests

HARMS = {"translate": "displaced", "rotate": "turned", "motion": "with motion artefacts", "noise": "noisy"}
MOST_CASES = 18  # drawn: a page must stay one that a browser opens
CONTENTS = {
    "figures": "Figures", "tests": "Paired tests", "subjects": "Subject by subject", "robustness": "Robustness",
    "kinds": "By dataset and sources", "tasks": "Every task", "task-tests": "Tests over tasks",
    "cases": "Cases", "viewer": "Viewer", "how": "How this was made",
}  # fmt: skip
# no request leaves the page, whatever a script in it does; NiiVue reads its fonts and volumes from data URIs
POLICY = (
    "default-src 'none'; img-src data: blob:; font-src data:; connect-src data: blob:; worker-src blob:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)


def make_page(comparison: Comparison, *, chosen: Sequence[str] | None = None, viewer: bool = True) -> str:
    """One HTML document that needs no other file; the same input gives the same text but for the time in it."""
    tests = {target: tests_of(comparison, target) for target in comparison.targets}
    over_tasks = task_tests(comparison.runs)  # before anything is drawn: a fault of its files is told at once
    shown = shown_cases(comparison, chosen)
    cases, more = shown[:MOST_CASES], max(0, len(shown) - MOST_CASES)
    script = niivue_viewer.niivue() if viewer and cases else None
    volumes = niivue_viewer.Volumes()
    pictures = []
    for case in tqdm(cases, desc="drawing", unit="case", disable=not cases):
        images = images_of(case)
        pictures.append(_case(case, images))
        if script:
            volumes.add(case, images)
    sections = {
        "figures": _figures(comparison, tests),
        "tests": _tests(comparison, tests),
        "subjects": _subjects(comparison),
        "robustness": _robustness(comparison),
        "kinds": _kinds(comparison),
        "tasks": task_maps(comparison.runs),
        "task-tests": over_tasks,
        "cases": _cases(pictures, more),
        "viewer": _viewer(script, volumes) if viewer and cases else "",
        "how": _how(comparison),
    }
    filled = {name: body for name, body in sections.items() if body}
    links = "".join(f'<a href="#{name}">{CONTENTS[name]}</a>' for name in filled)
    bodies = "".join(f"<section id={name}><h2>{CONTENTS[name]}</h2>{body}</section>\n" for name, body in filled.items())
    title = title_of(comparison)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<style>{niivue_viewer.asset('style.css')}</style></head>\n<body>\n"
        f"<header>{first_screen(comparison, tests, title)}<nav>{links}</nav></header>\n"
        f"<main>{bodies}</main>\n<footer>{_footer(script is not None)}</footer>\n</body></html>\n"
    )


def _figures(comparison: Comparison, tests: dict[str, list[PairedTest]]) -> str:
    body = (
        f"<p class='soft small'>Intervals are percentile bootstraps over subjects ({RESAMPLES:,} resamples, seed "
        f"{SEED}). ↑ higher is better, ↓ lower is better. <span class=best>A mark</span> stands only where a method "
        f"is better than every other one by both paired tests at {ALPHA:g} after the correction. Stripes: how much "
        "rougher the error is from slice to slice than within a slice.</p>"
    )
    for target in comparison.targets:
        body += figures_table(comparison, target, tests[target])
        remark = few_subjects(len(comparison.subjects[target]), len(tests[target]))
        body += f"<p class=small>{remark}</p>" if remark else ""
    return body


def _tests(comparison: Comparison, tests: dict[str, list[PairedTest]]) -> str:
    if len(comparison.runs) < 2:
        return ""
    body = (
        "<p class='soft small'>Over subjects, two-sided. Holm’s correction is over all comparisons of a target, for "
        "each of the two tests; “better” is said only where both are below "
        f"{ALPHA:g}.</p>"
    )
    return body + "".join(tests_table(tests[target], target) for target in comparison.targets)


def _subjects(comparison: Comparison) -> str:
    body = (
        "<p class='soft small'>A mark is a subject, the upright line the mean; from ten subjects on, boxes are the "
        "quartiles and the median, with whiskers to the last subject within 1.5 times their distance. "
        "Grey lines join the same subject.</p>"
    )
    charts: list[str] = []
    for target in comparison.targets:
        for metric in ("psnr", "ssim"):
            for region in REGIONS:
                groups = [(r.label, comparison.values(r, unharmed(target, region), metric)) for r in comparison.runs]
                title = f"{target}, {REGION_NAMES[region].lower()}: {LOOKS[metric].name}"
                charts.append(
                    subject_chart(groups, comparison.subjects[target], title=title, digits=LOOKS[metric].digits)
                )
    return body + f"<div class=charts>{''.join(charts)}</div>"


def _legend(comparison: Comparison) -> str:
    items = "".join(f"<li>{key_mark(i)}{escape(run.label)}</li>" for i, run in enumerate(comparison.runs))
    return f"<ul class=legend>{items}</ul>"


def _robustness(comparison: Comparison) -> str:
    if not comparison.perturbations:
        return ""
    body = (
        "<p class='soft small'>What becomes of the synthesis when one source is harmed: the mean over subjects in the "
        "brain, its 95% confidence interval as a band. The other sources and the truth stay as they are.</p>"
    )
    body += _legend(comparison)
    for entry in comparison.perturbations:
        kind, contrast = entry["kind"], entry["contrast"]
        harm = f"{contrast} {HARMS.get(kind, kind)}"
        charts = []
        for target in comparison.targets:
            for metric in ("psnr", "ssim"):
                lines = []
                for method, run in enumerate(comparison.runs):
                    keys = [Key(kind, contrast, level, target, "brain") for level in entry["levels"]]
                    present = [key for key in keys if key in run.scores]
                    means = [mean_interval(comparison.means(run, key, metric)) for key in present]
                    if present:
                        lines.append(Line(run.label, method, [key.level for key in present], means))
                title = f"{target}, {harm}: {LOOKS[metric].name}"
                across = f"{harm}, {entry.get('unit') or UNITS.get(kind, '')}"
                charts.append(curve_chart(lines, title=title, across=across, digits=LOOKS[metric].digits))
        spared = [run.label for run in comparison.runs if not any(k[:2] == (kind, contrast) for k in run.scores)]
        remark = f"<p class=small>Not evaluated so: {escape(', '.join(spared))}.</p>" if spared else ""
        body += f"<h3>{escape(harm)}</h3>{remark}<div class=charts>{''.join(charts)}</div>"
    return body


def _kinds(comparison: Comparison) -> str:
    if not has_kinds(comparison):
        return ""
    return "".join(heat_map(comparison, metric) for metric in ("psnr", "ssim"))


def _case(case: ShownCase, images: Sequence[Shown]) -> str:
    middle = middle_of(next(shown.volume for shown in images if shown.kind == "truth"))
    panels = []
    for shown in images:
        at = middle if all(i < size for i, size in zip(middle, shown.volume.array.shape, strict=True)) else None
        views = three_views(shown.volume, at or middle_of(shown.volume), is_error=shown.kind == "error")
        widest = max(view.width for view in views)
        drawn = "".join(
            f"<div class=view data-side={'A' if view.plane == 'sagittal' else 'R'}>"
            f'<img src="{view.source}" style="width:{100 * view.width / widest:.1f}%" '
            f'alt="{escape(shown.text)}, {view.plane}, {escape(case.subject)}"></div>'
            for view in views
        )
        panels.append(
            f"<figure class=panel><figcaption>{escape(shown.text)}</figcaption><div class=views>{drawn}</div></figure>"
        )
    roles = "; ".join(case.roles)
    if case.lacking:
        roles += f". No volumes of this subject were kept of {', '.join(case.lacking)}"
    return (
        f"<article class=case><h3>{escape(case.subject)}, {escape(case.target)}</h3>"
        f"<p class='soft small'>{escape(roles)}</p><div class=panels>{''.join(panels)}</div></article>"
    )


def _cases(pictures: Sequence[str], more: int) -> str:
    if not pictures:
        return "<p>The runs kept no volumes of these subjects. Evaluate with keep “three” or “all” to see them.</p>"
    remark = f"<p class=small>Shown are {len(pictures)} cases of {len(pictures) + more}.</p>" if more else ""
    return (
        "<p class='soft small'>Each method’s worst, median and best subject by PSNR in the brain, or the subjects that "
        "were asked for. Slices through the middle of the head: axial, coronal, sagittal; R is the patient’s right, "
        "A the front. Images are shown from 0 (black) to 1 (white), synthesis and truth alike. A 2D network works on "
        "axial slices: look for stripes in the two other planes.</p>"
        f"<div class=scale>Error 0 <i style='background:linear-gradient(90deg,{gradient()})'></i> {ERROR_TOP:g} of the "
        f"range and above, the same scale everywhere</div>{remark}{''.join(pictures)}"
    )


def _viewer(script: str | None, volumes: niivue_viewer.Volumes) -> str:
    if script is None:
        return (
            "<p>The viewer is not in this page: it needs NiiVue, which the package nilearn carries. "
            "Install it (<code>pip install 'monai-ext[phantom]'</code>) and make the report again.</p>"
        )
    remarks = "Volumes have 8 bits here."
    if volumes.halved:
        limit = f"{niivue_viewer.MOST_VOXELS / 1e6:g} million voxels"
        remarks += f" Those above {limit} are shown at half resolution or less (means of 2 × 2 × 2 voxels)."
    if volumes.left_out:
        size = f"{niivue_viewer.MOST_BYTES / 1e6:g} MB"
        remarks += f" Left out, to keep the page’s volumes below {size}: {escape(', '.join(volumes.left_out))}."
    options = "".join(
        f"<option value={index}>{escape(case['text'])}</option>" for index, case in enumerate(volumes.cases)
    )
    pane = (
        "<div class=pane><select aria-label='{side} image'></select><div class=stage><canvas tabindex=0></canvas>"
        "<span class=shown></span></div><div class=under>At the crosshair: <output></output></div></div>"
    )
    return (
        "<p class='soft small'>Click to move the crosshair, which both sides share; after a click the wheel goes "
        f"through slices; drag a box with the right button to set the window to what is in it. {remarks}</p>"
        f"<div class=controls><label>Subject <select id=case>{options}</select></label><label>Planes <select id=planes>"
        "<option value=sliceTypeMultiplanar>all three</option><option value=sliceTypeAxial>axial</option>"
        "<option value=sliceTypeCoronal>coronal</option><option value=sliceTypeSagittal>sagittal</option>"
        "</select></label></div><p role=status>Starting the viewer …</p>"
        f"<div class=panes>{pane.format(side='left')}{pane.format(side='right')}</div>"
        f"<script type='application/json' id='viewer-data'>{volumes.json()}</script>\n"
        f"<script>/*\n{niivue_viewer.LICENCE}\n*/\n{script}</script>\n"
        f"<script>{niivue_viewer.asset('viewer.js')}</script>"
    )


def _how(comparison: Comparison) -> str:
    protocol = comparison.runs[0].about["protocol"]
    rows = "".join(
        f"<tr><th scope=row>{escape(name)}</th><td class='left wrap'>{_words(value)}</td></tr>"
        for name, value in protocol.items()
    )
    body = (
        "<h3>Protocol</h3><div class=scroll><table class=wide><tbody>" + rows + "</tbody></table></div>"
        "<h3>Statistics</h3><p>The person is the unit, by the mean over the visits. Means and differences have "
        f"percentile bootstrap intervals over people: {RESAMPLES:,} resamples with the seed {SEED}. Methods are "
        "compared in pairs on the same subjects, by the paired t test and Wilcoxon’s signed-rank test, both two-sided; "
        "each test’s p values are "
        "corrected by Holm’s method over all pairs, figures and regions of a target.</p><h3>Runs</h3>"
    )
    for run in comparison.runs:
        keys = ("weights", "site", "datalist_sha256", "device", "amp", "software", "created", "failed", "perturbations")
        items = {"folder": run.folder.name, **{key: run.about[key] for key in keys if run.about.get(key) is not None}}
        rows = "".join(
            f"<tr><th scope=row>{escape(name)}</th><td class='left wrap'>{_words(value)}</td></tr>"
            for name, value in items.items()
        )
        body += (
            f"<details><summary>{escape(run.label)}</summary><div class=scroll><table class=wide><tbody>{rows}"
            "</tbody></table></div></details>"
        )
    return body


def _words(value: Any) -> str:
    """A record's value for people."""
    if isinstance(value, dict):
        return "<br>".join(f"<span class=soft>{escape(str(k))}:</span> {_words(v)}" for k, v in value.items())
    if isinstance(value, list):
        joiner: Callable[..., str] = "<br>".join if any(isinstance(entry, dict) for entry in value) else ", ".join
        return joiner(_words(entry) for entry in value) or "none"
    text = str(value)
    return f"<code>{escape(text)}</code>" if len(text) == 64 and " " not in text else escape(text)


def _footer(with_viewer: bool) -> str:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    licence = f"<details><summary>Licence of NiiVue</summary><pre>{escape(niivue_viewer.LICENCE)}</pre></details>"
    return (
        f"<p>Made by monai_ext {__version__} at <time datetime={now}>{now}</time>. This page loads nothing from "
        f"anywhere and sends nothing anywhere.</p>{licence if with_viewer else ''}"
    )
