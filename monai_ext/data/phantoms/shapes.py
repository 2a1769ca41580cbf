"""Random shapes: smooth noise, smooth one-to-one deformations, poses of a head."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

CONTROL = 6.0  # mm between the control points of a deformation
BLOCK = 4  # voxels of an anatomy's map, of which one is looked at to know whether there is anything in it
LEAST_VOLUME = 0.15  # a deformation shrinks nothing to less than this share of its volume


def smooth_noise(rng: np.random.Generator, *, shape: tuple[int, ...], fwhm: float) -> NDArray[np.float32]:
    """Draw correlated Gaussian noise, mean 0 and standard deviation 1, which is periodic.

    Args:
        rng: of the noise.
        shape: of the grid, of any number of axes.
        fwhm: grid steps over which it is correlated.

    Returns:
        float32 of that shape.
    """
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), fwhm / 2.355, mode="wrap", truncate=3)
    return (noise - noise.mean()) / max(float(noise.std()), 1e-6)


def lattice_noise(rng: np.random.Generator, *, shape: tuple[int, ...], fwhm: float) -> Tensor:
    """Draw the noise of `smooth_noise` on a lattice that is as coarse as its correlation allows.

    Args:
        rng: of the noise.
        shape: the grid that `enlarged` brings it to.
        fwhm: steps of that grid over which it is correlated.

    Returns:
        float32 on the lattice, at least 4 points along each axis.
    """
    step = max(fwhm / 3, 1.0)
    coarse = tuple(max(int(np.ceil(n / step)) + 1, 4) for n in shape)
    return torch.from_numpy(smooth_noise(rng, shape=coarse, fwhm=fwhm / step))


def enlarged(field: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Bring a field from a coarse lattice to a grid over the same box, trilinear: corners lie on corners.

    Args:
        field: (I, J, K) or (C, I, J, K).
        shape: of the grid, three numbers.

    Returns:
        The same number of dimensions, the last three of that shape.
    """
    channels = field if field.ndim == 4 else field[None]
    fine = functional.interpolate(channels[None], size=shape, mode="trilinear", align_corners=True)[0]
    return fine if field.ndim == 4 else fine[0]


def posed(field: Tensor, shape: tuple[int, ...], *, pose: NDArray[np.float64] | None, spacing: float) -> Tensor:
    """Bring a field to a grid as `enlarged` does, moved by a rigid pose: what was at x is at M x, the border goes on.

    Args:
        field: (I, J, K) or (C, I, J, K), on a lattice over the grid's box.
        shape: of the grid, three numbers.
        pose: M, 4x4, in mm about the box's middle; None for none.
        spacing: of the grid in mm.

    Returns:
        The same number of dimensions, the last three of that shape.
    """
    if pose is None:
        return enlarged(field, shape)
    channels = field if field.ndim == 4 else field[None]
    back = rigid_points(np.linalg.inv(pose), shape, spacing=spacing, device=field.device)
    reach = torch.tensor([(n - 1) * spacing / 2 for n in shape], dtype=torch.float32, device=field.device)
    unit = (back / reach).flip(-1)[None]
    fine = functional.grid_sample(channels[None], unit, padding_mode="border", align_corners=True)[0]
    return fine if field.ndim == 4 else fine[0]


def rigid_points(
    matrix: NDArray[np.floating], shape: tuple[int, ...], *, spacing: float, device: torch.device
) -> Tensor:
    """Compute where a matrix takes each voxel of a grid.

    Args:
        matrix: 4x4, in mm about the grid's middle.
        shape: of the grid, three numbers.
        spacing: of the grid in mm.
        device: where the points are to be.

    Returns:
        (I, J, K, 3), mm about the grid's middle.
    """
    axes = [(torch.arange(n, dtype=torch.float32, device=device) - (n - 1) / 2) * spacing for n in shape]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    turn, shift = (torch.tensor(part, dtype=torch.float32, device=device) for part in (matrix[:3, :3], matrix[:3, 3]))
    return torch.einsum("ab,...b->...a", turn, points) + shift


def draw_rigid(
    rng: np.random.Generator, *, millimetres: float, degrees: float, centre: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Draw a rigid motion: a turn about `centre`, then a shift, each in any direction.

    Args:
        rng: of all that is drawn.
        millimetres: the largest shift.
        degrees: the largest turn.
        centre: (3,), mm, what the turn leaves where it is.

    Returns:
        4x4, in mm.
    """
    axis, direction = (v / np.linalg.norm(v) for v in rng.standard_normal((2, 3)))
    angle, length = np.deg2rad(degrees * rng.uniform()), millimetres * rng.uniform()
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    rotation = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross  # Rodrigues
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = centre - rotation @ centre + length * direction
    return matrix


def soft(level: NDArray[np.float32], width: float = 0.7) -> NDArray[np.float32]:
    """Turn a signed distance into a share: 1 well inside, 0 well outside, a logistic curve between.

    Args:
        level: mm inside, negative outside, of any shape.
        width: of the curve in mm: at `width` inside the share is 0.73.

    Returns:
        float32 of the same shape.
    """
    return (1 / (1 + np.exp(np.clip(level / -width, -30, 30)))).astype(np.float32)


@dataclass(frozen=True)
class Sampled:
    """Values where there is anything, the voxels of a grid that have them, in its order, and the grid's shape."""

    values: Tensor  # (C, N)
    where: Tensor  # (N,)
    shape: tuple[int, ...]

    def whole(self, values: Tensor, *, else_: float = 0.0) -> Tensor:
        """Put values back on the grid.

        Args:
            values: (N,) or (C, N), of these voxels.
            else_: what the others are.

        Returns:
            The same number of dimensions, the last of them the grid's three.
        """
        size = int(np.prod(self.shape))
        grid = values.new_full((*values.shape[:-1], size), else_)
        grid[..., self.where] = values
        return grid.reshape(*values.shape[:-1], *self.shape)

    def of(self, field: Tensor) -> Tensor:
        """Take these voxels of a grid.

        Args:
            field: of the grid's shape.

        Returns:
            (N,)
        """
        return field.reshape(-1)[self.where]


@dataclass(frozen=True)
class Mass:
    """What pushes its surroundings away: where, in mm of the anatomy about the brain's middle, how large, how far."""

    centre: NDArray[np.float64]
    radius: float
    push: float


@dataclass(frozen=True)
class Placement:
    """Where a subject's points lie in the anatomy: x -> linear (x + u(x) - shift), mm about both grids' middles.

    u is on a lattice that spans the canvas from corner voxel to corner voxel: (3, I, J, K), mm.
    """

    displacement: Tensor
    linear: NDArray[np.float64]
    shift: NDArray[np.float64]

    def sample(
        self,
        maps: Sequence[Tensor],
        *,
        centre: NDArray[np.float64],
        step: float,
        shape: tuple[int, ...],
        spacing: float,
        pose: NDArray[np.float64] | None = None,
    ) -> Sampled:
        """Resample maps of the anatomy onto the subject's canvas, trilinear; of a head's canvas most is air.

        Args:
            maps: (C, I, J, K) each, float32, of one grid; each is looked at where it has anything.
            centre: (3,), the brain's middle in voxels of the maps.
            step: of the maps in mm.
            shape: of the canvas, three numbers.
            spacing: of the canvas in mm.
            pose: M, a rigid 4x4 matrix in mm about the canvas's middle: what was at x is at M x; None for none.

        Returns:
            All their channels, on their device; all is 0 in voxels that are left out.
        """
        device = maps[0].device
        linear = torch.tensor(self.linear, dtype=torch.float32, device=device)
        u = posed(self.displacement.to(device), shape, pose=pose, spacing=spacing)
        where = torch.einsum("ab,b...->a...", linear, u)
        if pose is not None:
            back = rigid_points(np.linalg.inv(pose), shape, spacing=spacing, device=device)
            where += torch.einsum("ab,...b->a...", linear, back - torch.tensor(self.shift, device=device).float())
        else:
            for axis in range(3):
                along = torch.arange(shape[axis], dtype=torch.float32, device=device)
                along = (along - (shape[axis] - 1) / 2) * spacing - float(self.shift[axis])
                view = [3, 1, 1, 1]
                view[axis + 1] = shape[axis]
                where += (linear[:, axis, None] * along).reshape(view)
        voxels = where.reshape(3, -1).div_(step).add_(torch.tensor(centre, dtype=torch.float32, device=device)[:, None])
        shown = _shown(maps, voxels)
        near = torch.nonzero(shown)[:, 0]
        shown = shown[near]
        values = maps[0].new_zeros(sum(map(len, maps)), len(near))
        size = torch.tensor(maps[0].shape[1:], dtype=torch.float32, device=device)
        unit = (voxels[:, near].T * (2 / (size - 1)) - 1).flip(-1)
        first = 0
        for number, one in enumerate(maps):
            which = torch.nonzero(shown & 2**number)[:, 0]
            taken = functional.grid_sample(one[None], unit[which][None, None, None], align_corners=True)[0, :, 0, 0]
            values[first : first + len(one), which] = taken
            first += len(one)
        return Sampled(values, near, shape)


def _shown(maps: Sequence[Tensor], voxels: Tensor) -> Tensor:
    """(C, I, J, K) each, (3, N) -> (N,), bytes whose bit m says that maps m have something within a few voxels: it is
    set wherever a sample of them is not 0.
    """
    blocks = torch.zeros((), dtype=torch.uint8, device=voxels.device)
    for number, one in enumerate(maps):
        filled = functional.pad((one != 0).any(0).float(), (0, 1) * 3)
        around = functional.max_pool3d(filled[None], BLOCK + 1, BLOCK, ceil_mode=True)[0]  # its voxels, and the next
        blocks = blocks | (around > 0).to(torch.uint8) * 2**number
    flat = torch.zeros(voxels.shape[1], dtype=torch.int32, device=voxels.device)
    for along, count in zip(voxels, blocks.shape, strict=True):
        flat.mul_(count).add_((along / BLOCK).clamp_(0, count - 1).int())  # rounded down, as it is above 0
    return blocks.flatten().take(flat.long())


def draw_placement(
    rng: np.random.Generator,
    *,
    extent: NDArray[np.float64],
    masses: tuple[Mass, ...] = (),
    strength: float = 1.0,
    turn: float = 8.0,
    scale: tuple[float, float] = (0.92, 1.1),
    shift: NDArray[np.float64] | None = None,
) -> Placement:
    """Draw a pose and a deformation over a canvas of `extent` mm; in half of all cases left and right are exchanged.

    Args:
        rng: of all that is drawn.
        extent: (3,), of the canvas in mm.
        masses: what pushes its surroundings away, such as tumours.
        strength: of the deformation; 1 moves a fold by some millimetres.
        turn: the largest turn about each axis, degrees.
        scale: of the head, smallest and largest; each axis differs a little.
        shift: where the brain's middle is to be, mm from the canvas's.

    Returns:
        What `Placement.sample` needs; it is one to one.
    """
    turns = np.deg2rad(np.clip(rng.normal(0, turn / 2, 3), -turn, turn))
    flip = np.diag([rng.choice([-1.0, 1.0]), 1.0, 1.0])
    shear = np.eye(3) + 0.015 * strength * np.triu(rng.standard_normal((3, 3)), 1)
    size = np.exp(rng.uniform(*np.log(scale))) * np.exp(rng.normal(0, 0.025 * strength, 3))
    linear = flip @ shear @ np.diag(1 / size) @ _rotation(turns)
    moved = np.zeros(3) if shift is None else shift

    shape = tuple(int(np.ceil(length / CONTROL)) + 1 for length in extent)
    velocity = np.zeros((*shape, 3), dtype=np.float32)
    for fwhm, millimetres in ((90.0, 2.8), (28.0, 1.5), (14.0, 0.8)):
        for axis in range(3):
            velocity[..., axis] += strength * millimetres * smooth_noise(rng, shape=shape, fwhm=fwhm / CONTROL)
    axes = [np.linspace(-length / 2, length / 2, n) for length, n in zip(extent, shape, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).astype(np.float32)
    back = np.linalg.inv(linear)
    for mass in masses:
        away = points - (back @ mass.centre + moved).astype(np.float32)
        distance = np.maximum(np.linalg.norm(away, axis=-1, keepdims=True), 1e-3)
        bump = np.exp(-0.5 * (distance / mass.radius - 1) ** 2) * (distance > CONTROL / 2)
        velocity -= (mass.push * away / distance * bump).astype(np.float32)
    return Placement(torch.from_numpy(_integrated(velocity, extent)), linear, moved)


def _rotation(turns: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix = np.eye(3)
    for axis, angle in enumerate(turns):
        a, b = (n for n in range(3) if n != axis)
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def _integrated(velocity: NDArray[np.float32], extent: NDArray[np.float64]) -> NDArray[np.float32]:
    """The flow of a stationary velocity (I, J, K, 3) after unit time, by scaling and squaring: (3, I, J, K), mm."""
    shape = velocity.shape[:3]
    axes = [torch.linspace(-1, 1, n) for n in shape]
    base = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    to_unit = torch.tensor(2 / np.asarray(extent), dtype=torch.float32)
    while True:
        flow = torch.from_numpy(velocity / 2**6)
        for _ in range(6):
            grid = (base + flow * to_unit).flip(-1)[None]
            moved = functional.grid_sample(
                flow.permute(3, 0, 1, 2)[None], grid, padding_mode="border", align_corners=True
            )
            flow = flow + moved[0].permute(1, 2, 3, 0)
        result = flow.numpy()
        if jacobian(result, extent).min() > LEAST_VOLUME:
            return np.ascontiguousarray(np.moveaxis(result, -1, 0))
        velocity = 0.85 * velocity  # the lattice is too coarse for this much: less of it is still one to one


def jacobian(displacement: NDArray[np.float32], extent: NDArray[np.float64]) -> NDArray[np.float32]:
    """Compute the determinant of x -> x + u(x) over each lattice cell, by forward differences.

    Args:
        displacement: u, (I, J, K, 3), mm.
        extent: (3,), mm from the first to the last point along each axis.

    Returns:
        (I - 1, J - 1, K - 1); above 0 where the deformation folds nothing.
    """
    gradient = []
    for axis in range(3):
        step = extent[axis] / (displacement.shape[axis] - 1)
        inner = tuple(slice(None) if other == axis else slice(-1) for other in range(3))
        gradient.append(np.diff(displacement, axis=axis)[inner] / step)
    return np.linalg.det(np.stack(gradient, axis=-1) + np.eye(3, dtype=np.float32))
