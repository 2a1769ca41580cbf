"""Blocks of prepared volumes as training items for 3D networks, read where they lie like the slices."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_ext.data.batching import Draw, Kind
from monai_ext.data.datalist import Subject
from monai_ext.data.slice_files import read_slices
from monai_ext.data.slices import SliceDataset, faults_of


class PatchDataset(SliceDataset):
    """Patches of prepared volumes: items as `SliceDataset` has them, "sources" (M, I, J, K) and "target" (K, I, J,
    K).

    Where in the plane a patch lies, and how far from its slice, is drawn anew by a `Draw`'s seed, by the item's number
    without one. A volume smaller than a patch is padded with zeros. "slice" is the patch's first slice, which may be
    negative.

    Args:
        data: prepared subjects.
        sources, target: contrasts, the channels of "sources" and of "target".
        patch_size: voxels along i, j and k.
        per_subject: patches a subject and epoch, around slices spread evenly over those that `slices` chooses.
        slices: a rule, see `SliceDataset`.
        transform: a MONAI dictionary transform over "sources" and "target".

    Raises:
        ValueError: a size or a number below 1, or what `SliceDataset` refuses.
        SubjectError: a subject that cannot serve.
    """

    def __init__(
        self,
        data: Sequence[Subject],
        *,
        sources: Sequence[str],
        target: Sequence[str],
        patch_size: Sequence[int],
        per_subject: int = 8,
        slices: str | Sequence[Any] = "nonempty",
        transform: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        if len(patch_size) != 3 or min(patch_size) < 1:
            raise ValueError(f"patch_size must be three numbers of at least 1, got {list(patch_size)}")
        if per_subject < 1:
            raise ValueError(f"per_subject must be at least 1, got {per_subject}")
        super().__init__(data, sources=sources, target=target, slices=slices, transform=transform)
        self.patch_size = tuple(patch_size)
        chosen = []
        for number in range(len(self._rows)):
            places = np.flatnonzero(self._row_of == number)
            spread = np.linspace(0, len(places) - 1, per_subject + 2)[1:-1]
            chosen.append(places[np.rint(spread).astype(int)])
        self._slice_of, self._row_of = self._slice_of[np.concatenate(chosen)], self._row_of[np.concatenate(chosen)]

    @property
    def kinds(self) -> list[Kind]:
        """As of `SliceDataset`, but every patch has one size."""
        i, j, _ = self.patch_size
        return [kind._replace(size=(i, j)) for kind in super().kinds]

    def __getitem__(self, key: int | Draw) -> dict[str, Any]:
        draw = key if isinstance(key, Draw) else None
        index, seed = (key.sample, key.seed) if isinstance(key, Draw) else (key, key)
        rng = np.random.default_rng(seed)
        row, centre = self._rows[self._row_of[index]], int(self._slice_of[index])
        depth = self.patch_size[2]
        corner = [_draw(whole, part, rng) for whole, part in zip(row.kind.size, self.patch_size, strict=False)]
        first = centre - int(rng.integers(depth))
        # Slices beyond the volume hold nothing: the patch goes there only if the volume has too few.
        first = int(np.clip(first, min(0, row.depth - depth), max(0, row.depth - depth)))
        blocks = {
            path: self._block(row.name, Path(path), corner, first, row.depth)
            for path in (*row.sources, *row.targets)
            if path is not None
        }
        item = {
            "sources": torch.from_numpy(np.stack([blocks[path] for path in row.sources if path is not None])),
            "target": torch.from_numpy(np.stack([blocks[path] for path in row.targets if path is not None])),
            "subject": row.name,
            "slice": first,
            "dataset": row.kind.dataset,
            "available": torch.tensor(row.kind.available),
        }
        return self._transformed(item, draw, row.kind.available)

    def _block(self, subject: str, path: Path, corner: Sequence[int], first: int, depth: int) -> np.ndarray:
        block = np.zeros(self.patch_size, dtype=np.float32)
        low, high = max(first, 0), min(first + self.patch_size[2], depth)
        with faults_of(subject, path, where=f"slices {low} to {high - 1}: "):
            images = read_slices(path, low, high).transpose(1, 2, 0)
        inside = images[tuple(slice(max(c, 0), max(c, 0) + n) for c, n in zip(corner, self.patch_size, strict=False))]
        start = [max(-c, 0) for c in (*corner, first)]
        block[tuple(slice(s, s + n) for s, n in zip(start, inside.shape, strict=True))] = inside
        return block


def _draw(whole: int, part: int, rng: np.random.Generator) -> int:
    """Where a part begins in the whole; one that is larger has the whole in its middle."""
    return int(rng.integers(whole - part + 1)) if whole >= part else -((part - whole) // 2)
