"""What is seen of scans: of every image below a folder whose name says its contrast, and of phantoms of unseen seeds.

python tests/benchmarks/looking.py FOLDER --anatomies LABEL_MAPS --phantoms 200
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from monai_ext.data.layouts import index
from monai_ext.data.phantoms.acquisition import Grid
from monai_ext.data.phantoms.anatomy import label_maps, read_anatomy
from monai_ext.data.phantoms.drawing import draw_subject
from monai_ext.data.phantoms.rendering import render
from monai_ext.data.volumes import Volume
from monai_ext.inference.checks import INTERCHANGED, Findings, look
from monai_ext.inference.recogniser import UPRIGHT
from monai_ext.modalities import MODALITIES

SEED = 990_000  # no training's


def phantoms(anatomies: Path, *, count: int) -> Iterator[tuple[str, dict[str, Volume]]]:
    """At 2 mm, half of them without their skulls."""
    maps, grid = label_maps(anatomies), Grid((96, 112, 80), (2.0, 2.0, 2.0))
    each = -(-count // len(maps))
    for person, path in enumerate(maps):
        anatomy = read_anatomy(path, 2.0)
        for number in range(min(each, count - person * each)):
            rng = np.random.default_rng([SEED, person, number])
            made = render(draw_subject(rng, anatomy, grid=grid, contrasts=MODALITIES))
            affine = np.diag([*grid.spacing, 1.0])
            yield f"{person}/{number}", {name: Volume(image.numpy(), affine) for name, image in made.images.items()}


class Score:
    """Counts over images, and what was seen wrongly."""

    def __init__(self) -> None:
        self.taken: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.together: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.refused: dict[str, int] = defaultdict(int)
        self.far = self.upright = self.images = self.subjects = 0

    def add(self, findings: Findings) -> None:
        self.subjects += 1
        shown = findings.shown()
        for name, one in findings.images.items():
            if one.seen is None:
                continue
            likeliest = max(one.seen.contrasts, key=one.seen.contrasts.__getitem__)
            for counts, seen in ((self.taken, likeliest), (self.together, shown[name][0])):
                counts[name][name if {seen, name} <= INTERCHANGED else seen] += 1
            self.images += 1
            self.far += one.seen.distance > 1
            self.upright += one.seen.pose == UPRIGHT
        for kind in {one.kind for one in findings.refusals()}:
            self.refused[kind] += 1

    def print(self) -> None:
        for how, taken in (("a person's scans together", self.together), ("each by itself", self.taken)):
            right = sum(counts[name] for name, counts in taken.items())
            share = f"{right} of {self.images} ({right / self.images:.1%})"
            print(f"contrast recognised, {how}: {share}, T1 and T1C counted as one")
            for name, counts in taken.items():
                print(f"  {name:>5}: " + ", ".join(f"{other} {n}" for other, n in counts.items()))
        print(f"upright seen: {self.upright} of {self.images}; beyond the distance of 1: {self.far}")
        print(f"subjects refused, of {self.subjects}: {dict(self.refused) or 'none'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--exclude", nargs="+", default=["*.dcm", "*.mha"], metavar="PATTERN", help="as of index")
    parser.add_argument("--anatomies", type=Path)
    parser.add_argument("--phantoms", type=int, default=200)
    args = parser.parse_args()

    score = Score()
    found = index(args.folder, exclude=args.exclude)
    for fault in found.failures:
        print(f"not looked at: {fault}")
    for subject in found.subjects:
        began = time.perf_counter()
        findings = look(subject.images)
        seconds = (time.perf_counter() - began) / len(subject.images)
        score.add(findings)
        print(f"{subject.name}, {seconds:.2f} s a file")
        for name, one in findings.images.items():
            if one.seen is None:
                continue
            shares = sorted(one.seen.contrasts.items(), key=lambda pair: -pair[1])[:2]
            skull = {True: "skull", False: "stripped", None: "skull?"}[one.skull]
            seen = ", ".join(f"{contrast} {share:.3f}" for contrast, share in shares)
            print(f"  {name:>5}: {seen}; {skull}; upright {one.seen.poses[UPRIGHT]:.3f}; {one.seen.distance:.2f} away")
        for pair in findings.pairs:
            print(f"  {' and '.join(pair.images)}: own likeness {pair.own:.2f}, {pair.likeness.apart:.1f} mm apart")
        for found in findings.found:
            print(f"  {found.severity}: {found.message}")
    score.print()
    if args.anatomies is None:
        return
    score, before, heads, told = Score(), None, 0, 0
    for _, images in phantoms(args.anatomies, count=args.phantoms):
        findings = look(images)
        score.add(findings)
        if before is not None:
            heads += 1
            told += any(one.kind == "other_head" for one in look({"T1": images["T1"], "T2": before}).refusals())
        before = images["T2"]
    print("\nphantoms")
    score.print()
    print(f"T2 of the next phantom refused as another head's: {told} of {heads}")


if __name__ == "__main__":
    main()
