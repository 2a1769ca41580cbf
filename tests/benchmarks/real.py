"""A bundle's weights on real scans: what they make of each case in a folder, beside what was acquired.

    python tests/benchmarks/real.py --root SCANS --bundle bundles/agi_net --out OUT --exclude "*.mha" "*.dcm"
    python tests/benchmarks/real.py --root SCANS --bundle bundles/pmm_synth --out OUT --spacing 1 \\
        --task T1,T2:FLAIR --task T1,FLAIR:T2 --exclude "*.mha" --choose "label=*seg*"

SCANS holds a folder a person, as `python -m monai_ext index` reads them; a person with two files of one contrast, or
with a file that it cannot read, is named and left out unless --exclude and --choose say which to take. Contrasts on
grids of their own are moved onto the first one's, rigidly. OUT gets figures.csv, figures.json, table.md and
montage.png, which shows what was scanned: keep it where the scans may be kept. A T1C has a row more, without what the
agent lights up. Nothing is fitted or tuned on a case but
what a figure's name says (`likeness.py`). Torch runs the network, for what another engine makes hangs on the machine.
With --record the means over cases go into the JSON beside the weights: `synthesise` chooses between methods by them.
With --card PAGE the table, and the weights' SHA-256, take the place of those that a model card has.
"""

import argparse
import csv
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from likeness import Case, Image, figures, scaled, white_matched

from monai_ext.data.choosing import Choices
from monai_ext.data.datalist import Subject, SubjectError, report_failures
from monai_ext.data.layouts import index
from monai_ext.data.masks import otsu_brain
from monai_ext.data.montage import montage
from monai_ext.data.prepare import prepare_one
from monai_ext.data.prepared import prepared_subject
from monai_ext.data.presets import Preset
from monai_ext.data.volumes import Volume, read_volume, write_volume
from monai_ext.files import absolute, read_json, sha256, write_json
from monai_ext.modalities import MODALITIES, canonical
from monai_ext.synthesis.bundle import BundleSynthesiser

TASKS = (  # of weights that make any contrast from any others
    "T1,T2:FLAIR",
    "T1,FLAIR:T2",
    "T2,FLAIR:T1",
    "T1,T2,FLAIR:T1C",
    "T1:T2",
    "T2:T1",
    "DWI:ADC",
    "ADC:DWI",
    "FLAIR,ADC:DWI",
)
TITLES = (
    "psnr",
    "psnr_white_matched",
    "psnr_fitted",
    "psnr_shaded",
    "psnr_linear_mix",
    "psnr_quadratic_mix",
    "psnr_quadratic_mix_shaded",
    "psnr_quadratic_mix_with_made",
    "ssim_fitted",
)
UNENHANCED = "unenhanced"  # of a T1C, less what the agent lights up, which no source shows
SHIFT = 20  # pixels
SKULL = 1.5  # a head is at least so many times as large as the brain that is cut out of it
HEADS = (
    "as made",
    "white matched",
    "fitted",
    "shaded",
    "linear mix",
    "quadratic",
    "quadratic, shaded",
    "quadratic with ours",
    "SSIM",
)


def main() -> int:
    args = _arguments()
    if args.card:
        on_card(args.card.read_text(encoding="utf-8"), [], weights="0" * 64)  # not after all the work
    out: Path = absolute(args.out)
    found = index(args.root, choices=Choices(args.choose), exclude=args.exclude)
    failures = list(found.failures)
    makes = BundleSynthesiser(
        args.bundle, weights=args.weights, engine="torch"
    )  # whose figures do not hang on a machine
    rows: list[dict[str, Any]] = []
    pictures: list[list[Image]] = []
    titles: list[list[str]] = []
    folder = out / f"cases_{args.spacing:g}mm"
    for subject in found.subjects:
        try:
            tasks = _possible(_tasks(makes, args.task), subject, makes)
            if not tasks or (args.case and subject.name not in args.case):
                continue
            case = read_case(subject, folder, root=args.root, spacing=args.spacing)
            if args.thick:
                case = _thick(case, folder, count=max(round(args.thick / args.spacing), 1))
            for sources, target in tasks:
                made = _made(makes, case, folder, sources=sources, target=target)
                what: dict[str, Any] = {
                    "case": case.name,
                    "task": f"{','.join(sources)}:{target}",
                    "spacing": args.spacing,
                    "slices": case.spacing[2],
                    "kind": "head" if case.skull else "brain",
                }
                row = what | figures(made, case, sources=sources, target=target)
                if args.canvas:
                    again = _made(makes, case, folder, sources=sources, target=target, wider=True)
                    there = figures(again, case, sources=sources, target=target)["psnr_fitted"]
                    row["wider_canvas_gains"] = there - row["psnr_fitted"]
                rows.append(row)
                _tell(rows)
                if target == "T1C" and "T1" in case.images:
                    calm = figures(made, replace(case, brain=case.unenhanced), sources=sources, target=target)
                    rows.append({**what, **calm, "task": f"{row['task']} {UNENHANCED}"})
                    _tell(rows)
                for k in _slices(case):
                    shown = [*(case.images[name] for name in sources), white_matched(made, case, target=target)]
                    shown.append(case.images[target])
                    pictures.append([np.rot90(np.where(case.brain, one, 0)[:, :, k]) for one in shown])
                    titles.append([*sources, f"{target} made", f"{target} real"])
        except SubjectError as fault:
            failures.append(fault)
    if not rows:
        raise SystemExit(f"{args.root} has no case with a task of these weights, and its target to compare with")
    _write(rows, out, about={"weights_sha256": sha256(makes.weights), "bundle": makes.bundle_root.name})
    if args.record:
        _record(rows, makes.weights.with_suffix(".json"))
    if args.card:
        page = on_card(args.card.read_text(encoding="utf-8"), rows, weights=sha256(makes.weights))
        args.card.write_text(page, encoding="utf-8")
    print(montage(pictures, titles=titles, path=out / "montage.png", white=1.0))
    return report_failures(failures, total=len(found.subjects) + len(found.failures), what="looked at")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--root", type=Path, required=True, help="the folder with a folder a person")
    add("--bundle", type=Path, required=True, help="the bundle's folder, or the archive that ckpt_export wrote")
    add("--weights", type=Path, help="others than the bundle's own")
    add("--out", type=Path, required=True, help="where figures and pictures go")
    add("--spacing", type=float, default=2.0, help="of the cases' voxels, in mm (default: 2)")
    add("--task", action="append", default=[], help="sources:target, as T1,T2:FLAIR, for weights of any contrasts")
    add("--thick", type=float, metavar="MM", help="slices are averaged to this thickness first, the truth's too")
    add("--canvas", action="store_true", help="each head again on a canvas 30%% larger, 20 pixels off its middle")
    add("--record", action="store_true", help="write the means into the JSON beside the weights")
    add("--card", type=Path, metavar="PAGE", help="put the table into this model card, in place of the one there")
    add("--case", nargs="+", default=[], help="these alone")
    add("--choose", nargs="+", action="extend", default=[], metavar="CONTRAST=PATTERN", help="as of index")
    add("--exclude", nargs="+", action="extend", default=[], metavar="PATTERN", help="as of index")
    return parser.parse_args()


def _tasks(makes: BundleSynthesiser, asked: Sequence[str]) -> list[tuple[tuple[str, ...], str]]:
    """(sources, target) each: the one that the weights know, or of those that may be asked for."""
    if not makes.takes_any:
        return [(makes.contrasts, target) for target in makes.targets]
    tasks = []
    for text in asked or TASKS:
        sources, _, target = text.partition(":")
        tasks.append((tuple(canonical(name) for name in sources.split(",")), canonical(target)))
    return tasks


def _possible(
    tasks: Sequence[tuple[tuple[str, ...], str]], subject: Subject, makes: BundleSynthesiser
) -> list[tuple[tuple[str, ...], str]]:
    known = {*makes.contrasts, *makes.targets}
    return [(s, t) for s, t in tasks if {*s, t} <= set(subject.images) and {*s, t} <= known]


def read_case(subject: Subject, folder: Path, *, root: Path, spacing: float) -> Case:
    """The subject on one grid of `spacing`, prepared once; the brain is all there is, or cut out of a head."""
    reference = tuple(name for name in MODALITIES if name in subject.images)
    grids = [read_volume(path) for path in subject.images.values()]
    apart = any(one.shape != grids[0].shape or not np.allclose(one.affine, grids[0].affine, atol=0.01) for one in grids)
    preset = Preset(reference=reference, spacing=(spacing,) * 3, register="rigid" if apart else "none")
    end = prepare_one(subject, out=folder, root=absolute(root), preset=preset, qc=False)
    if end.failure is not None:
        raise end.failure
    there = prepared_subject(subject, folder / subject.name)
    volumes = {name: read_volume(path) for name, path in there.images.items()}
    seen = read_volume(folder / subject.name / "mask.nii").array > 0
    brains = [otsu_brain(volume) for volume in volumes.values()]
    skull = bool(seen.sum() > SKULL * brains[0].sum())
    if skull:
        seen = np.logical_and.reduce(brains)
    lesion = None
    if there.label is not None:
        lesion = (read_volume(there.label, allow_constant=True).array > 0) & seen
    images = {name: scaled(volume.array, seen) for name, volume in volumes.items()}
    lesion = lesion if lesion is not None and lesion.any() else None
    return Case(subject.name, images, seen, lesion, (spacing,) * 3, skull=skull)


def _thick(case: Case, folder: Path, *, count: int) -> Case:
    """The case with so many slices averaged to one; its files are written beside the others."""
    whole = case.brain.shape[2] // count * count
    name = f"{case.name}_{count * case.spacing[2]:g}mm"

    def averaged(image: Image) -> Image:
        return image[:, :, :whole].reshape(*image.shape[:2], -1, count).mean(axis=3)

    (folder / name).mkdir(exist_ok=True)
    for contrast in case.images:
        volume = read_volume(folder / case.name / f"{contrast}.nii")
        affine = volume.affine @ np.diag([1, 1, count, 1])
        affine[:3, 3] += volume.affine[:3, 2] * (count - 1) / 2
        write_volume(folder / name / f"{contrast}.nii", Volume(averaged(volume.array), affine))
    lesion = None if case.lesion is None else averaged(case.lesion.astype(np.float32)) > 0.5
    return replace(
        case,
        name=name,
        images={contrast: averaged(image) for contrast, image in case.images.items()},
        brain=averaged(case.brain.astype(np.float32)) > 0.5,
        lesion=lesion if lesion is not None and lesion.any() else None,
        spacing=(*case.spacing[:2], count * case.spacing[2]),
    )


def _made(
    makes: BundleSynthesiser, case: Case, folder: Path, *, sources: Sequence[str], target: str, wider: bool = False
) -> Image:
    """As a user's inference makes it of the case's files; `wider`, of copies with more background round them."""
    images = {name: folder / case.name / f"{name}.nii" for name in sources}
    asked = {"target": [target]} if makes.takes_any else {}
    around = [(0, 0)] * 3
    with tempfile.TemporaryDirectory() as made:
        if wider:
            around = [_off_middle(side) for side in case.brain.shape[:2]] + [(0, 0)]
            for name, path in images.items():
                volume = read_volume(path)
                images[name] = Path(made) / path.name
                write_volume(images[name], Volume(np.pad(volume.array, around), volume.affine))
        result = read_volume(makes(images, made, subject=case.name, trust_names=True, **asked)[target]).array
    return result[
        tuple(slice(before, before + side) for (before, _), side in zip(around, case.brain.shape, strict=True))
    ]


def _off_middle(side: int) -> tuple[int, int]:
    """How many pixels more there are before and after."""
    more = max(round(0.3 * side), 2 * SHIFT)
    return more // 2 + SHIFT, more - more // 2 - SHIFT


def _slices(case: Case) -> list[int]:
    """Through the brain, and first through most of a lesion."""
    filled = np.flatnonzero(case.brain.any((0, 1)))
    chosen = [int(filled[round(len(filled) * part)]) for part in (0.35, 0.5, 0.65)]
    if case.lesion is not None:
        chosen[1] = int(case.lesion.sum((0, 1)).argmax())
    return chosen


def _tell(rows: Sequence[dict[str, Any]]) -> None:
    """The newest row, under a head with the first."""
    if len(rows) == 1:
        print(f"{'case':24} {'task':18} " + " ".join(f"{head:>13}" for head in HEADS) + "  lesion/white made, real")
    row = rows[-1]
    lesion = [f"{row[f'lesion_over_white_{what}']:.2f}" for what in ("made", "real") if "lesion_over_white_made" in row]
    numbers = " ".join(f"{row[name]:13.2f}" for name in TITLES)
    print(f"{row['case']:24} {row['task']:18} {numbers}  {', '.join(lesion)}", flush=True)


def _write(rows: Sequence[dict[str, Any]], out: Path, *, about: dict[str, Any]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with (out / "figures.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    (out / "table.md").write_text(_table(rows), encoding="utf-8")
    (out / "figures.json").write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n", encoding="utf-8")


def _record(rows: Sequence[dict[str, Any]], about: Path) -> None:
    """Task -> heads as scanned and brains without their skull -> cases, mean PSNR and SSIM after one linear fit."""
    quality: dict[str, dict[str, dict[str, float]]] = {}
    whole = [row for row in rows if not row["task"].endswith(UNENHANCED)]
    for task, kind in dict.fromkeys((row["task"], row["kind"]) for row in whole):
        those = [row for row in whole if (row["task"], row["kind"]) == (task, kind)]
        means = {name: float(np.mean([row[name] for row in those])) for name in ("psnr_fitted", "ssim_fitted")}
        quality.setdefault(task, {})[kind] = {
            "cases": len(those),
            "psnr_fitted": round(means["psnr_fitted"], 2),
            "ssim_fitted": round(means["ssim_fitted"], 3),
        }
    write_json(about, {**read_json(about), "quality": quality})


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """For a model card: dB, SSIM and HaarPSI after the fit, and lesion over white matter, made and real."""
    heads = ("case", "task", *HEADS[:-1], "SSIM", "HaarPSI", "lesion / white matter, made (real)")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [row["case"], row["task"].replace(":", " -> "), *(f"{row[name]:.1f}" for name in TITLES[:-1])]
        cells += [f"{row['ssim_fitted']:.2f}", f"{row['haarpsi_fitted']:.2f}"]
        made, real = (row.get(f"lesion_over_white_{what}") for what in ("made", "real"))
        cells.append("" if made is None else f"{made:.2f} ({real:.2f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def on_card(page: str, rows: Sequence[dict[str, Any]], *, weights: str) -> str:
    """Put the rows into a model card, and the SHA-256 of the weights that they are of.

    Args:
        page: what it says now.
        rows: of all cases.
        weights: their SHA-256, of which the page has the first 16 digits and three dots.

    Returns:
        What it says then.

    Raises:
        SystemExit: it has no such table, or more than one.
    """
    table = _table(rows)
    head = table.splitlines()[0]
    pattern = re.escape(head) + r"\n(?:\|.*\n)+"
    if len(re.findall(pattern, page)) != 1:
        raise SystemExit(f"--card: the page must have one table, with this head: {head}")
    page = re.sub(pattern, lambda _: table, page)
    return re.sub(r"sha256 `[0-9a-f]{16}\.\.\.`", f"sha256 `{weights[:16]}...`", page)


if __name__ == "__main__":
    raise SystemExit(main())
