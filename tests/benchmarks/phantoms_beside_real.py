"""Phantoms beside real scans: pictures on one grey scale, histograms, and grey levels as shares of white matter's.

python tests/benchmarks/phantoms_beside_real.py FOLDER --anatomy DIR --out PICTURES [--spacing 1] [--phantoms 4]

FOLDER has one folder a case, whose NIfTI files are named after their contrasts (T1.nii.gz, fla.nii.gz).
Prints a table and writes CASE.png; pictures of patients stay where their images may be.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy import ndimage

from monai_ext.data.datalist import Subject, SubjectError
from monai_ext.data.gridded import Gridded
from monai_ext.data.phantoms.anatomy import label_maps
from monai_ext.data.phantoms.pool import Recipe
from monai_ext.data.presets import Preset
from monai_ext.modalities import MODALITIES, canonical

Images = Mapping[str, np.ndarray]
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


def contrast_of(path: Path) -> str | None:
    for name in (path.name.split(".")[0], path.name.split(".")[0].split("_")[-1]):
        try:
            return canonical(name)
        except ValueError:
            continue
    return None


def real_case(folder: Path, spacing: float) -> tuple[Images, np.ndarray] | None:
    """The contrasts on one grid and the brain, None where the folder holds none."""
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*.nii*")):
        name = contrast_of(path)
        if name:
            files.setdefault(name, path)
    images = {name: files[name] for name in MODALITIES if name in files}
    for mask in ("zero", "otsu"):
        preset = Preset(spacing=(spacing, spacing, spacing), brain_mask=mask)
        try:
            gridded = Gridded(Subject(folder.name, "real", images), preset=preset, root=folder)
            return {name: gridded.image(name).array for name in images}, gridded.mask
        except (SubjectError, ValueError) as error:
            reason = error
    print(f"{folder.name}: {reason}")
    return None


def white_matter(images: Images, brain: np.ndarray) -> np.ndarray:
    """Bright on T1, dark on T2, deep; without the two, the most frequent grey value of the first contrast."""
    deep = ndimage.distance_transform_edt(ndimage.binary_fill_holes(brain)) > 4
    if "T1" in images and "T2" in images:
        t1, t2 = images["T1"], images["T2"]
        chosen = (t1 > np.percentile(t1[brain], 65)) & (t2 < np.percentile(t2[brain], 45)) & brain & deep
        return ndimage.binary_erosion(chosen) if ndimage.binary_erosion(chosen).sum() > 500 else chosen
    first = next(iter(images.values()))
    counts, edges = np.histogram(first[brain & deep], 60)
    peak = edges[counts.argmax()]
    return brain & deep & (np.abs(first - peak) < 0.1 * peak)


def levels(images: Images, brain: np.ndarray) -> dict[str, str]:
    """For each contrast: percentiles of the brain, and grey matter and fluid, as shares of white matter."""
    white = white_matter(images, brain)
    share = {name: image / max(float(np.median(image[white])), 1e-6) for name, image in images.items()}
    rows = {name: " ".join(f"{np.percentile(v[brain], p):5.2f}" for p in PERCENTILES) for name, v in share.items()}
    if "T1" in share and "T2" in share:
        grey = brain & (share["T1"] > 0.55) & (share["T1"] < 0.85) & (share["T2"] > 1.05) & (share["T2"] < 1.9)
        fluid = brain & (share["T2"] > 2.6) & (share["T1"] < 0.6)
        size = max(3, 2 * round(3.5 / 2) + 1)
        openness = ndimage.uniform_filter(fluid.astype(np.float32), size)
        for name, v in share.items():
            narrow, wide = openness < 0.3, openness >= 0.6
            parts = [grey, fluid & narrow, fluid & ~narrow & ~wide, fluid & wide]
            rows[name] += " | " + " ".join(f"{np.median(v[p]):5.2f}" if p.any() else "    -" for p in parts)
    return rows


def picture(path: Path, columns: Mapping[str, tuple[Images, np.ndarray]], contrasts: list[str]) -> None:
    """A row a contrast, white matter at one grey in all of them, then the histograms over the brain."""
    size = (2.4 * len(columns) + 3, 2.6 * len(contrasts))
    figure, axes = plt.subplots(len(contrasts), len(columns) + 1, figsize=size, squeeze=False)
    for row, name in zip(axes, contrasts, strict=True):
        for axis, (title, (images, brain)) in zip(row, columns.items(), strict=False):
            axis.axis("off")
            if name not in images:
                continue
            white = white_matter(images, brain)
            shown = images[name] / max(float(np.median(images[name][white])), 1e-6)
            place = np.flatnonzero(brain.any(axis=(0, 1)))
            k = int(place[0] + 0.62 * (place[-1] - place[0]))
            i, j = (np.flatnonzero(brain[:, :, k].any(axis=other)) for other in (1, 0))
            tile = shown[max(i[0] - 6, 0) : i[-1] + 7, max(j[0] - 6, 0) : j[-1] + 7, k]
            axis.imshow(np.rot90(tile), cmap="gray", vmin=0, vmax=4.2 if name in ("T2", "ADC") else 1.8)
            axis.set_title(f"{title} {name}", fontsize=7)
            counts, edges = np.histogram(shown[brain], 80, range=(0, 5 if name in ("T2", "ADC") else 2), density=True)
            row[-1].plot(edges[:-1], counts, label=title, lw=2 if title == "real" else 0.8)
        row[-1].legend(fontsize=5)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=75)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--anatomy", type=Path, required=True)
    parser.add_argument("--lesions", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--spacing", type=float, default=2.0)
    parser.add_argument("--phantoms", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    canvas = (round(192 / args.spacing), round(224 / args.spacing))
    recipe = Recipe(
        anatomies=tuple(label_maps(args.anatomy))[: args.phantoms],
        contrasts=MODALITIES,
        spacing=(args.spacing,) * 3,
        canvases=(canvas,),
        depth=round(160 / args.spacing),
        masks=tuple(label_maps(args.lesions)) if args.lesions else (),
        seed=args.seed,
        skull=False,
    )
    phantoms: dict[str, tuple[Images, np.ndarray]] = {}
    for number in range(args.phantoms):
        made = recipe.make(number)
        brain = (made.rendered.foreground & made.rendered.brain).numpy()
        phantoms[f"scan {number}"] = ({name: image.numpy() for name, image in made.rendered.images.items()}, brain)
        phantoms[f"target {number}"] = ({name: image.numpy() for name, image in made.rendered.targets.items()}, brain)
    print(f"of white matter: percentiles {PERCENTILES} of the brain | grey matter, fluid in narrow, middle, wide")
    everyone: dict[str, tuple[Images, np.ndarray]] = {}
    for folder in sorted(path for path in args.folder.iterdir() if path.is_dir()):
        case = real_case(folder, args.spacing)
        if case is None:
            continue
        everyone[folder.name] = case
        picture(args.out / f"{folder.name}.png", {"real": case, **phantoms}, list(case[0]))
    for name in MODALITIES:
        for title, (images, brain) in {**everyone, **phantoms}.items():
            if name in images:
                print(f"{name:6}{title:26}{levels(images, brain)[name]}")


if __name__ == "__main__":
    main()
