"""Whether two scans show one head, and how far apart their headers put it: by their edges, whatever their contrasts.

Where one tissue ends and another begins is the same in every contrast; how bright each is, is not. So the directions
of the edges are compared (normalised gradients, Haber and Modersitzki 2006), at every shift at once by Fourier
transform.
"""

from dataclasses import dataclass
from typing import Any

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
    """How much of the edges of two images is the same: 1 all of them, 0 no more than chance.

    Attributes:
        here: where the headers put them.
        best: after `shift`, mm along RAS from where the headers put the second image to where it fits the first.
        mirrored: the same as `best`, of the second's mirror image.
    """

    here: float
    best: float
    mirrored: float
    shift: tuple[float, float, float]

    @property
    def apart(self) -> float:
        """mm."""
        return float(np.linalg.norm(self.shift))


def alike(first: Glance, second: Glance) -> Alike:
    """Compare two glances.

    One head is its own mirror image only as far as heads are symmetric, and another head is as alike mirrored as it is
    unmirrored: so `best - mirrored` tells heads apart, and below 0 it tells that one of two scans is mirrored.

    Args:
        first, second: of `glance`, each where its header puts it.

    Returns:
        How alike their edges are where the headers put them, after the best shift, and mirrored; and that shift.
    """
    a, b = _edges(first), _edges(second)
    shape = tuple(fft.next_fast_len(n + m, real=True) for n, m in zip(a.power.shape, b.power.shape, strict=True))
    of_first = a.transformed(shape)
    likeness = _likeness(a, b, of_first, shape)
    mirrored = float(_likeness(a, _mirrored(b), of_first, shape).max())
    # at index s, the second's cube 0 lies on the first's cube s (negative ones are at the end)
    where = np.array(np.unravel_index(np.argmax(likeness), shape))
    signed = np.where(where >= np.array(a.power.shape), where - np.array(shape), where)
    peak = signed + [_summit(likeness, where, axis) for axis in range(3)]
    offset = (b.start - a.start) / STEP
    headers = ndimage.map_coordinates(likeness, (offset % np.array(shape))[:, None], order=1, mode="grid-wrap")
    x, y, z = (float(v) for v in (peak - offset) * STEP)
    inside = (offset > -np.array(b.power.shape)).all() and (offset < a.power.shape).all()
    return Alike(float(headers[0]) if inside else 0.0, float(likeness.max()), mirrored, (x, y, z))


def _likeness(a: "_Edges", b: "_Edges", of_first: list[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """At every shift, the cosine between the edges of what both images show."""
    of_second = b.transformed(shape)
    same = sum(w * x * np.conj(y) for w, x, y in zip(_WEIGHTS, of_first[:6], of_second[:6], strict=True))
    numerator = fft.irfftn(same, shape)
    of_a = np.maximum(fft.irfftn(of_first[6] * np.conj(of_second[7]), shape), 0)
    of_b = np.maximum(fft.irfftn(of_first[7] * np.conj(of_second[6]), shape), 0)
    enough = (of_a > LEAST_OVERLAP * a.power.sum()) & (of_b > LEAST_OVERLAP * b.power.sum())
    return np.where(enough, numerator / np.sqrt(np.maximum(of_a * of_b, 1e-9)), 0)


@dataclass(frozen=True)
class _Edges:
    tensor: NDArray[np.float32]  # (6, I, J, K): n n' without its trace
    power: NDArray[np.float32]
    start: NDArray[np.float64]  # where cube 0 lies, mm

    def transformed(self, shape: tuple[int, ...]) -> list[Any]:
        """Fourier transforms of the tensor's six elements, of the power, and of where the image is."""
        return [fft.rfftn(part, shape) for part in (*self.tensor, self.power, np.ones_like(self.power))]


def _edges(glance: Glance) -> _Edges:
    filled = [np.flatnonzero(glance.head.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    first = np.array([max(line[0] - MARGIN, 0) for line in filled])
    last = [min(line[-1] + MARGIN + 1, n) for line, n in zip(filled, glance.head.shape, strict=True)]
    box = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    image = ndimage.gaussian_filter(np.minimum(glance.array[box], 1), 0.6)
    gradient = np.stack(np.gradient(image) if min(image.shape) > 1 else [np.zeros_like(image)] * 3)
    gradient *= ndimage.binary_dilation(glance.head[box])
    normal = gradient / np.sqrt((gradient**2).sum(axis=0) + FAINT**2)
    squared = (normal**2).sum(axis=0)
    tensor = np.stack([normal[i] * normal[j] - (squared / 3 if i == j else 0) for i, j in _PAIRS])
    power = sum(w * part**2 for w, part in zip(_WEIGHTS, tensor, strict=True))
    start = glance.affine[:3, 3] + STEP * first
    return _Edges(tensor, power, start)


def _mirrored(edges: _Edges) -> _Edges:
    signs = np.array([-1 if (i == 0) != (j == 0) else 1 for i, j in _PAIRS], dtype=np.float32)
    return _Edges(edges.tensor[:, ::-1] * signs[:, None, None, None], edges.power[::-1], edges.start)


def _summit(values: NDArray[np.float32], where: NDArray[np.int_], axis: int) -> float:
    """The parabola's top through a maximum and its neighbours, in voxels from it."""
    line = np.moveaxis(values, axis, 0)[(slice(None), *np.delete(where, axis))]
    before, top, after = (float(line[(where[axis] + step) % len(line)]) for step in (-1, 0, 1))
    bend = before - 2 * top + after
    return float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5)) if bend < 0 else 0.0
