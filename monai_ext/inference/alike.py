"""Whether two scans show one head, and how far apart their headers put it: by their edges, whatever their contrasts.

Where one tissue ends and another begins is the same in every contrast; how bright each is, is not. So the directions
of the edges are compared (normalised gradients, Haber and Modersitzki 2006), at every shift at once by Fourier
transform.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from monai_ext.inference.coarse import STEP, Glance

FAINT = 0.04  # an edge of so much, of the bright, a voxel counts half
LEAST_OVERLAP = 0.35  # of the smaller image's edges
_PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
_WEIGHTS = (1.0, 1.0, 1.0, 2.0, 2.0, 2.0)  # an off-diagonal element stands for two
MARGIN = 2  # cubes round the head that belong to its edges


@dataclass(frozen=True)
class Alike:
    """`here`: how alike where the headers put them; `best` after `shift` (mm along RAS, of the second on the first).

    1 is the same edges everywhere, 0 no more than chance.
    """

    here: float
    best: float
    shift: tuple[float, float, float]

    @property
    def apart(self) -> float:
        """mm."""
        return float(np.linalg.norm(self.shift))


def alike(first: Glance, second: Glance, *, mirrored: bool = False) -> Alike:
    """Compare two glances; with `mirrored` the second is first mirrored along left and right, about its middle."""
    a, b = _edges(first), _edges(second)
    if mirrored:
        b = _mirrored(b)
    shape = tuple(fft.next_fast_len(n + m, real=True) for n, m in zip(a.field.shape, b.field.shape, strict=True))
    numerator = sum(w * _correlated(x, y, shape) for w, x, y in zip(_WEIGHTS, a.tensor, b.tensor, strict=True))
    of_a = np.maximum(_correlated(a.power, b.field, shape), 0)
    of_b = np.maximum(_correlated(a.field, b.power, shape), 0)
    least = LEAST_OVERLAP * np.array([a.power.sum(), b.power.sum()])
    enough = (of_a > least[0]) & (of_b > least[1])
    likeness = np.where(enough, numerator / np.sqrt(np.maximum(of_a * of_b, 1e-9)), 0)
    # index s: the second's cube 0 lies on the first's cube s (negative ones are at the end)
    offset = (b.start - a.start) / STEP
    where = np.array(np.unravel_index(np.argmax(likeness), shape))
    signed = np.where(where >= np.array(a.field.shape), where - np.array(shape), where)
    peak = signed + [_summit(likeness, where, axis) for axis in range(3)]
    headers = ndimage.map_coordinates(likeness, (offset % np.array(shape))[:, None], order=1, mode="grid-wrap")
    x, y, z = (float(v) for v in (peak - offset) * STEP)
    return Alike(float(headers[0]), float(likeness.max()), (x, y, z))


@dataclass(frozen=True)
class _Edges:
    tensor: NDArray[np.float32]  # (6, I, J, K): n n' without its trace
    power: NDArray[np.float32]
    field: NDArray[np.float32]  # 1 where the image is
    start: NDArray[np.float64]  # where cube 0 lies, mm


def _edges(seen: Glance) -> _Edges:
    filled = [np.flatnonzero(seen.head.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    first = np.array([max(line[0] - MARGIN, 0) for line in filled])
    last = [min(line[-1] + MARGIN + 1, n) for line, n in zip(filled, seen.head.shape, strict=True)]
    box = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    image = ndimage.gaussian_filter(np.minimum(seen.array[box], 1), 0.6)
    gradient = np.stack(np.gradient(image) if min(image.shape) > 1 else [np.zeros_like(image)] * 3)
    gradient *= ndimage.binary_dilation(seen.head[box])
    normal = gradient / np.sqrt((gradient**2).sum(axis=0) + FAINT**2)
    squared = (normal**2).sum(axis=0)
    tensor = np.stack([normal[i] * normal[j] - (squared / 3 if i == j else 0) for i, j in _PAIRS])
    power = sum(w * part**2 for w, part in zip(_WEIGHTS, tensor, strict=True))
    start = seen.affine[:3, 3] + STEP * first
    return _Edges(tensor, power, np.ones_like(image), start)


def _mirrored(edges: _Edges) -> _Edges:
    signs = np.array([-1 if (i == 0) != (j == 0) else 1 for i, j in _PAIRS], dtype=np.float32)
    return _Edges(
        edges.tensor[:, ::-1] * signs[:, None, None, None], edges.power[::-1], edges.field, edges.start
    )  # fmt: skip


def _correlated(a: NDArray[np.float32], b: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """sum over x of a(x + s) b(x), for every s."""
    return fft.irfftn(fft.rfftn(a, shape) * np.conj(fft.rfftn(b, shape)), shape)


def _summit(values: NDArray[np.float32], where: NDArray[np.int_], axis: int) -> float:
    """The parabola's top through a maximum and its neighbours, in voxels from it."""
    line = np.moveaxis(values, axis, 0)[(slice(None), *np.delete(where, axis))]
    before, top, after = (float(line[(where[axis] + step) % len(line)]) for step in (-1, 0, 1))
    bend = before - 2 * top + after
    return float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5)) if bend < 0 else 0.0
