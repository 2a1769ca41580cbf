"""The report's first screen: what was compared on what, by which protocol, and what came out, in words."""

from html import escape

from monai_ext.evaluation.protocol import REGIONS
from monai_ext.report.charts import key_mark
from monai_ext.report.runs import Comparison, Run, unharmed
from monai_ext.report.statistics import PairedTest, mean_interval, smallest_wilcoxon
from monai_ext.report.tables import REGION_NAMES, better, in_words, number, plural, sources, spread

NOT_CLINICAL = (
    "Images marked SYNTHETIC were computed by a neural network from other images. They were not acquired, can show "
    "what is not there and miss what is, and are not for clinical use."
)
MOST_SENTENCES = 6


def title_of(comparison: Comparison) -> str:
    made_from = sorted({sources(run) for run in comparison.runs}, key=lambda names: (len(names), names))
    what = f"{', '.join(comparison.targets)} from {' or '.join(made_from)}"
    names = [run.label for run in comparison.runs]
    return f"{what}: {(' against ' if len(names) == 2 else ', ').join(names)}"


def first_screen(comparison: Comparison, tests: dict[str, list[PairedTest]], title: str) -> str:
    first = comparison.runs[0].about
    protocol = first["protocol"]
    ssim = protocol.get("ssim", {})
    counts = []
    for target, names in comparison.subjects.items():
        slices = sum(comparison.runs[0].slices.get((name, target), 0) for name in names)
        counts.append(f"{escape(target)}: {plural(len(names), 'subject')}, {plural(slices, 'slice')}")
    span = " to ".join(f"{edge:g}" for edge in protocol.get("clipped_to", ()))
    measured = [
        f"data range {protocol.get('data_range', '?')}",
        f"synthesis clipped to {span}" if span else "not clipped",
        f"SSIM window {ssim.get('window', '?')} px, {ssim.get('weights', '?')}"
        + (f", sigma {ssim['sigma']}" if "sigma" in ssim else ""),
    ]
    regions = protocol.get("regions", {})
    facts = {
        "Data": f"{escape(_either(comparison, 'dataset'))}, {escape(_either(comparison, 'split'))} split, "
        f"datalist <code>{escape(' / '.join(name[:12] for name in _each(comparison, 'datalist_sha256')))}</code>",
        "Compared on": "; ".join(counts),
        "Protocol": escape(", ".join(measured)),
        **{f"Region “{REGION_NAMES[name]}”": escape(str(regions[name])) for name in REGIONS if name in regions},
        "Software": escape(" / ".join(dict.fromkeys(_versions(run) for run in comparison.runs))),
    }
    listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items())
    remarks = "".join(f"<p>{escape(line)}</p>" for line in comparison.remarks)
    return (
        f"<h1>{escape(title)}</h1><p class=soft>Synthesised MRI contrasts, measured against the truth</p>"
        f"<div class=warning><p>{NOT_CLINICAL}</p></div>{f'<div class=remarks>{remarks}</div>' if remarks else ''}"
        f"<ul class=findings>{_findings(comparison, tests)}</ul><dl class=facts>{listed}</dl>{_methods(comparison)}"
    )


def _either(comparison: Comparison, key: str) -> str:
    return " / ".join(_each(comparison, key))


def _each(comparison: Comparison, key: str) -> list[str]:
    return list(dict.fromkeys(str(run.about[key]) for run in comparison.runs))


def _versions(run: Run) -> str:
    return ", ".join(f"{name} {version}" for name, version in run.about["software"].items())


def _findings(comparison: Comparison, tests: dict[str, list[PairedTest]]) -> str:
    """In words, of the PSNR in the brain."""
    lines = []
    for target in comparison.targets:
        means = [
            (run.label, mean_interval(comparison.means(run, unharmed(target, "brain"), "psnr")))
            for run in comparison.runs
        ]
        intervals = [
            f"<b>{escape(name)}</b> {number(m.mean, 2)} dB{f' ({spread(m, 2)})' if spread(m, 2) else ''}"
            for name, m in means
        ]
        lines.append(f"PSNR of {escape(target)} in the brain, with 95% confidence intervals: {', '.join(intervals)}.")
        of_brain = [t for t in tests[target] if (t.region, t.metric) == ("brain", "psnr")]
        if len(comparison.targets) * len(of_brain) <= MOST_SENTENCES:  # of more, the table tells
            family = len(tests[target])
            lines += [
                in_words(test, family, smallest_wilcoxon(test.difference.n) * family)
                for test in of_brain
                if better(test)
            ]
    return "".join(f"<li>{line}</li>" for line in lines)


def _methods(comparison: Comparison) -> str:
    rows = []
    for method, run in enumerate(comparison.runs):
        about, weights = run.about, run.about["weights"]
        digest = str(weights.get("sha256") or "none")
        parameters = f"{about['parameters']:,}" if about.get("parameters") else "–"
        rows.append(
            f"<tr><th scope=row>{key_mark(method)}{escape(run.label)}</th>"
            f"<td class=left>{escape(sources(run))} → {escape(', '.join(about['target']))}</td>"
            f"<td class=left>{escape(' '.join(filter(None, (str(about['bundle']), str(about['version'])))))}</td>"
            f"<td>{parameters}</td><td class=left><code title={escape(digest, quote=True)}>{escape(digest[:12])}</code>"
            f"</td><td class=left>{escape(str(about.get('amp', '–')))}</td></tr>"
        )
    return (
        "<div class=scroll><table class=wide><thead><tr><th>Method</th><th class=left>Sources → target</th>"
        "<th class=left>Bundle and version</th><th>Parameters</th><th class=left>Weights’ sha256</th>"
        f"<th class=left>Precision</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
