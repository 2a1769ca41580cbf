"""Draw the picture of the README: FLAIR that shipped weights make of T1 and T2 of two phantoms, beside the truth.

    python tools/draw_synthesis.py --anatomy LABEL_MAPS --lesions MASKS --out docs/synthesis.png

The phantoms are of a seed that no training had: one head with its skull, one brain without.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from monai_ext.catalogue import find_bundle
from monai_ext.data.montage import montage
from monai_ext.data.phantoms.anatomy import label_maps
from monai_ext.data.phantoms.pool import Recipe, write_subject
from monai_ext.data.volumes import read_volume
from monai_ext.synthesis.bundle import BundleSynthesiser

SEED = 980_000
METHODS = {"agi_net": "FLAIR by AGI-Net", "fd_gan": "by FD-GAN"}
HEIGHT = 112  # pixels of each image


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--anatomy", type=Path, required=True, help="label maps, as of `phantom --anatomy`")
    parser.add_argument("--lesions", type=Path, required=True, help="masks, as of `phantom --lesions`")
    parser.add_argument("--out", type=Path, required=True, help="the PNG")
    args = parser.parse_args()
    makers = {title: BundleSynthesiser(find_bundle(name), engine="torch") for name, title in METHODS.items()}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, skull in enumerate((True, False)):
            recipe = Recipe(
                anatomies=tuple(label_maps(args.anatomy)),
                contrasts=("T1", "T2", "FLAIR"),
                masks=tuple(label_maps(args.lesions)),
                seed=SEED,
                skull=skull,
            )
            where = Path(folder) / str(number)
            write_subject(where, recipe.make(number))
            sources = {name: where / f"{name}.nii" for name in ("T1", "T2")}
            images = {name: read_volume(path).array for name, path in sources.items()}
            for title, maker in makers.items():
                made = maker(sources, where / title, subject="phantom", trust_names=True)
                images[title] = read_volume(made["FLAIR"]).array
            images["truth"] = read_volume(where / "FLAIR_target.nii").array
            lesion = read_volume(where / "lesion.nii", allow_constant=True).array > 0
            brain = read_volume(where / "brain.nii").array > 0
            shown = int((lesion if lesion.any() else brain).sum((0, 1)).argmax())
            rows.append([np.rot90(image[:, :, shown]) for image in images.values()])
    print(montage(rows, titles=list(images), path=args.out, height=HEIGHT))


if __name__ == "__main__":
    main()
