"""Random shapes: smooth noise, diffeomorphic warps of the template, and rigid motion of a head."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from monai_ext.data.anatomy import CENTRE, Maps, Template, grid_points

CONTROL = 6.0  # mm between the control points of a warp
START, SHAPE = np.array([-108.0, -144.0, -120.0]), (37, 45, 42)  # the control points' box, in MNI mm
LEAST_VOLUME = 0.15  # a warp shrinks no point to less than this share of its volume


def smooth_noise(rng: np.random.Generator, *, shape: tuple[int, ...], fwhm: float) -> np.ndarray:
    """Gaussian noise, correlated over `fwhm` grid steps, mean 0 and standard deviation 1."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), fwhm / 2.355, mode="wrap")
    return (noise - noise.mean()) / noise.std()


def noise_maps(rng: np.random.Generator, *, fwhms: tuple[float, ...], spacing: float = 4.0) -> Maps:
    """One channel of noise over the whole head for each correlation length (mm)."""
    shape = tuple(int(np.ceil((size - 1) * CONTROL / spacing)) + 1 for size in SHAPE)
    fields = [smooth_noise(rng, shape=shape, fwhm=fwhm / spacing) for fwhm in fwhms]
    return Maps(torch.from_numpy(np.stack(fields)), START, spacing)


@dataclass(frozen=True)
class Warp:
    """Where a subject's points lie in the template: x -> A (x + u(x) - CENTRE) + CENTRE."""

    displacement: Maps  # u, in mm
    linear: np.ndarray  # A: a flip, scales and a slight shear

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """World points (..., 3) of the subject -> template points (..., 3)."""
        moved = points + np.moveaxis(self.displacement.at(points, padding="border"), 0, -1)
        moved -= CENTRE.astype(np.float32)
        return apply_matrix(self.linear, moved) + CENTRE.astype(np.float32)


def apply_matrix(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """A 3x3 or 4x4 matrix on points (..., 3); not by BLAS, whose last bit depends on the number of threads."""
    moved = np.einsum("ab,...b->...a", matrix[:3, :3].astype(np.float32), points)
    return moved + matrix[:3, 3].astype(np.float32) if matrix.shape == (4, 4) else moved


def random_warp(
    rng: np.random.Generator,
    template: Template,
    *,
    strength: float = 1.0,
    ventricles: float = 0.0,
    masses: tuple[tuple[np.ndarray, float, float], ...] = (),
) -> Warp:
    """Fold-sized and lobe-sized variation, wider ventricles, and a push outwards by each mass.

    `ventricles` is their growth in mm; a mass is (centre, radius, push), all in mm.
    """
    points = grid_points(SHAPE, START, CONTROL)
    velocity = np.zeros((*SHAPE, 3), dtype=np.float32)
    for fwhm, millimetres in ((90.0, 2.8), (28.0, 1.5), (15.0, 0.9)):
        for axis in range(3):
            velocity[..., axis] += strength * millimetres * smooth_noise(rng, shape=SHAPE, fwhm=fwhm / CONTROL)
    if ventricles:
        filled = template.guide.at(points)[1]
        hill = ndimage.gaussian_filter(filled, 1.3)
        slope = np.stack(np.gradient(hill), axis=-1)
        velocity += ventricles * slope / np.abs(slope).max()  # up the hill: pulls the ventricle's wall outwards
    for centre, radius, push in masses:
        away = points - centre.astype(np.float32)
        distance = np.maximum(np.linalg.norm(away, axis=-1, keepdims=True), 1e-3)
        velocity -= push * away / distance * np.exp(-0.5 * (distance / radius - 1) ** 2) * (distance > CONTROL / 2)
    flip = np.diag([rng.choice([-1.0, 1.0]), 1.0, 1.0])
    shear = np.eye(3) + 0.012 * strength * np.triu(rng.standard_normal((3, 3)), 1)
    scale = rng.normal(1.0, 0.03 * strength) * np.exp(rng.normal(0, 0.012 * strength, 3))
    return Warp(Maps(_integrate(velocity), START, CONTROL), flip @ shear @ np.diag(1 / scale))


def _integrate(velocity: np.ndarray) -> torch.Tensor:
    """The flow of a stationary velocity after unit time, by scaling and squaring: (3, I, J, K) in mm."""
    points = grid_points(SHAPE, START, CONTROL)
    while True:
        flow = velocity / 2**6
        for _ in range(6):
            step = Maps(torch.from_numpy(np.moveaxis(flow, -1, 0).copy()), START, CONTROL)
            flow = flow + np.moveaxis(step.at(points + flow, padding="border"), 0, -1)
        if jacobian(flow).min() > LEAST_VOLUME:
            return torch.from_numpy(np.moveaxis(flow, -1, 0).copy())
        velocity = 0.85 * velocity  # the lattice is too coarse for this much: less of it is still a warp


def jacobian(displacement: np.ndarray) -> np.ndarray:
    """The determinant of x -> x + u(x) over each lattice cell, by forward differences; u is (I, J, K, 3)."""
    gradient = [
        np.diff(displacement, axis=a)[tuple(slice(None) if b == a else slice(-1) for b in range(3))] / CONTROL
        for a in range(3)
    ]
    return np.linalg.det(np.stack(gradient, axis=-1) + np.eye(3, dtype=np.float32))


def random_rigid(rng: np.random.Generator, *, millimetres: float, degrees: float) -> np.ndarray:
    """A 4x4 matrix in RAS mm: a turn of up to `degrees` about CENTRE, then a shift of up to `millimetres`."""
    axis, direction = (v / np.linalg.norm(v) for v in rng.standard_normal((2, 3)))
    angle, length = np.deg2rad(degrees * rng.uniform()), millimetres * rng.uniform()
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    rotation = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross  # Rodrigues
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = CENTRE - rotation @ CENTRE + length * direction
    return matrix
