"""A pool of phantoms on disk, in the form that `prepare` writes: made once, or renewed while training reads it."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from monai_ext import __version__
from monai_ext.data.datalist import Datalist, Subject, write_datalist
from monai_ext.data.phantoms.acquisition import Grid
from monai_ext.data.phantoms.drawing import draw_subject
from monai_ext.data.phantoms.protocols import USUAL, Echoes
from monai_ext.data.phantoms.rendering import Rendered, render, scaled
from monai_ext.data.phantoms.template import anatomy_by_lot
from monai_ext.data.phantoms.workers import Each
from monai_ext.data.volumes import Volume, write_volume
from monai_ext.files import absolute, read_json, write_json

SLOPE = 1 / 65535
DATASET = "phantoms"
SIDECAR = "phantom.json"
RECIPE = "recipe.json"
FIRST_FIXED = 1_000_000_000  # the number of the first subject for validation: training does not get there


@dataclass(frozen=True)
class Recipe:
    """What a pool's subjects are made of. Subject `number` of a seed is the same always.

    `anatomies` are label maps, the MNI152 template where there are none. `canvases` are voxels in the slice: a slot
    keeps one of them, whatever subject is in it, because a reader that goes on while slots are renewed knows their
    sizes. `skull` and `echoes` are as of `draw_subject`.
    """

    anatomies: tuple[Path, ...]
    contrasts: tuple[str, ...]
    spacing: tuple[float, float, float] = (2.0, 2.0, 2.0)
    canvases: tuple[tuple[int, int], ...] = ((96, 112),)
    depth: int = 80
    masks: tuple[Path, ...] = ()
    seed: int = 0
    skull: bool | None = None
    echoes: Echoes = USUAL

    def make(self, number: int, *, slot: int = 0, device: torch.device | str = "cpu") -> "Made":
        """Make one subject, on the canvas of a slot.

        Args:
            number: which, from 0 up: with the recipe's seed it decides all that is drawn.
            slot: the place in the pool; slots take the canvases in turn.
            device: where it is rendered.

        Returns:
            Its images, targets and masks on the device, its grid, and what was drawn, for its sidecar.
        """
        rng = np.random.default_rng([self.seed, number])
        anatomy = anatomy_by_lot(rng, self.anatomies, spacing=self.spacing)
        grid = Grid((*self.canvases[slot % len(self.canvases)], self.depth), self.spacing)
        drawn = draw_subject(
            rng, anatomy, grid=grid, contrasts=self.contrasts, masks=self.masks, skull=self.skull, echoes=self.echoes
        )
        return Made(render(drawn, device=device), grid, {"number": number, "seed": self.seed, **drawn.facts})

    @property
    def facts(self) -> dict[str, Any]:
        """What makes its subjects others than another recipe's, for the pool's own JSON; of files, their names."""
        return {
            "anatomies": [path.name for path in self.anatomies],
            "contrasts": list(self.contrasts),
            "spacing": list(self.spacing),
            "canvases": [list(canvas) for canvas in self.canvases],
            "depth": self.depth,
            "masks": len(self.masks),
            "seed": self.seed,
            "skull": self.skull,
            "flair_echo": self.echoes.flair,
            "t2_echo": self.echoes.t2,
        }

    @property
    def bytes_each(self) -> int:
        """What a subject takes on disk: two images of 16 bits a contrast and three masks, on the largest canvas."""
        voxels = max(i * j for i, j in self.canvases) * self.depth
        return voxels * (4 * len(self.contrasts) + 3)


class Made(NamedTuple):
    """A rendered subject, its grid, and what was drawn."""

    rendered: Rendered
    grid: Grid
    facts: Mapping[str, Any]


def write_subject(folder: Path, subject: Made) -> None:
    """Write a prepared subject's folder: an image and a target a contrast, the masks, and the sidecar last.

    Args:
        folder: must not be there yet.
        subject: of `Recipe.make`.

    Raises:
        FileExistsError: the folder is there.
    """
    rendered, grid, facts = subject
    folder.mkdir(parents=True)
    affine = np.diag([*grid.spacing, 1.0])
    affine[:3, 3] = [grid.positions(axis)[0] for axis in range(3)]

    def put(name: str, image: torch.Tensor, **options: Any) -> None:
        array = np.ascontiguousarray(image.cpu().numpy())
        write_volume(folder / f"{name}.nii", Volume(array.astype(np.float32), affine), **options)

    for name, image in rendered.images.items():
        put(name, scaled(image, rendered.foreground), dtype=np.uint16, slope=SLOPE)
        put(f"{name}_target", rendered.targets[name], dtype=np.uint16, slope=SLOPE)
    for name in ("brain", "lesion"):
        put(name, getattr(rendered, name), dtype=np.uint8)
    put("mask", rendered.foreground, dtype=np.uint8)
    write_json(folder / SIDECAR, {"software": f"monai_ext {__version__}", **facts})


def subject_of(folder: Path, contrasts: Sequence[str]) -> Subject:
    """Say what a datalist says of a folder that `write_subject` filled; no file is looked at.

    Args:
        folder: whose name is the subject's.
        contrasts: those of the recipe.

    Returns:
        The subject, with its images, targets and masks.
    """
    return Subject(
        subject=folder.name,
        dataset=DATASET,
        images={name: folder / f"{name}.nii" for name in contrasts},
        targets={name: folder / f"{name}_target.nii" for name in contrasts},
        masks={name: folder / f"{name}.nii" for name in ("brain", "lesion")},
    )


def fill(
    pool: Path, recipe: Recipe, *, size: int, validation: int = 0, device: torch.device | str = "cpu", each: Each = map
) -> Iterator[str]:
    """Make the slots of a pool that are not there yet; the datalist lists what is there at every moment.

    Args:
        pool: its folder.
        recipe: what subjects are made of.
        size: training slots.
        validation: subjects beside them, which never change.
        device: where they are rendered.
        each: a map; that of `workers` makes several at once.

    Returns:
        The name of each slot, when it is made.

    Raises:
        ValueError: the pool holds subjects of another recipe, or too little room is left on the disk.
    """
    pool = absolute(pool)
    pool.mkdir(parents=True, exist_ok=True)
    _refuse_another(pool, recipe)
    slots = [f"v{n:03d}" for n in range(validation)] + [f"s{n:03d}" for n in range(size)]
    filled = {slot for slot in slots if (pool / slot / SIDECAR).exists()}
    check_room(pool, recipe, subjects=len(slots) - len(filled) + 1)
    write_json(pool / RECIPE, recipe.facts)
    _list(pool, recipe, sorted(filled))
    wanted = ((slot, int(slot[1:]) + (FIRST_FIXED if slot[0] == "v" else 0)) for slot in slots if slot not in filled)
    for slot in each(partial(_put, pool, recipe, device), wanted):
        filled.add(slot)
        _list(pool, recipe, sorted(filled))
        yield slot


def stream(
    pool: Path, recipe: Recipe, *, size: int, device: torch.device | str = "cpu", each: Each = map
) -> Iterator[str]:
    """Renew the oldest training slot of a filled pool, on and on.

    Args:
        pool, recipe, size, device, each: as of `fill`.

    Returns:
        The name of each slot, when it is renewed.
    """
    pool = absolute(pool)

    def oldest() -> Iterator[tuple[str, int]]:
        ages = {slot: _number(pool / slot) for slot in (f"s{n:03d}" for n in range(size))}
        while True:
            slot = min(ages, key=lambda name: ages[name])
            ages[slot] = max(ages.values()) + 1
            check_room(pool, recipe, subjects=1)
            yield slot, ages[slot]

    yield from each(partial(_put, pool, recipe, device), oldest())


def _refuse_another(pool: Path, recipe: Recipe) -> None:
    """A pool goes on as it was begun: subjects of two recipes would be mixed, and its validation stay the first's."""
    path, facts = pool / RECIPE, recipe.facts
    if path.exists():
        try:
            before = read_json(path)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; remove the pool, or this file if you know its recipe") from error
        other = [name for name, value in facts.items() if not isinstance(before, dict) or before.get(name) != value]
        if other:
            raise ValueError(
                f"{pool} holds phantoms of another recipe ({', '.join(other)}): give what they were made with, or "
                "another folder"
            )


def check_room(pool: Path, recipe: Recipe, *, subjects: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Args:
        pool: its folder, which must be there.
        recipe: what says how large a subject is.
        subjects: how many are to be written.

    Raises:
        ValueError: less is free than they need, with 5 % to spare.
    """
    free, needed = shutil.disk_usage(pool).free, int(1.05 * subjects * recipe.bytes_each)
    if free < needed:
        raise ValueError(
            f"{pool}: {subjects} subjects need {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free: "
            "make the pool smaller, its voxels larger, or choose another disk"
        )


def _put(pool: Path, recipe: Recipe, device: torch.device | str, wanted: tuple[str, int]) -> str:
    """A slot and a number: its subject, file by file, so that a name that a reader opens is there, and whole, always.

    The sidecar goes first and comes last: while it is away the slot holds files of two subjects, and a fill that
    finds it away after a kill makes the slot again. Gives the slot's name.
    """
    slot, number = wanted
    folder, making = pool / slot, pool / f".making-{slot}"
    shutil.rmtree(making, ignore_errors=True)
    write_subject(making, recipe.make(number, slot=int(slot[1:]), device=device))
    if not folder.exists():
        making.rename(folder)
        return slot
    (folder / SIDECAR).unlink(missing_ok=True)
    for file in sorted(making.iterdir(), key=lambda path: (path.name == SIDECAR, path.name)):
        file.replace(folder / file.name)
    making.rmdir()
    return slot


def _number(folder: Path) -> int:
    try:
        return int(json.loads((folder / SIDECAR).read_text(encoding="utf-8"))["number"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / SIDECAR}: no phantom of a pool: {error}; remove the folder") from error


def _list(pool: Path, recipe: Recipe, slots: Sequence[str]) -> None:
    splits = {
        split: [subject_of(pool / slot, recipe.contrasts) for slot in slots if slot[0] == letter]
        for split, letter in (("training", "s"), ("validation", "v"))
    }
    write_datalist(pool / "datalist.json", Datalist(DATASET, pool, splits))
