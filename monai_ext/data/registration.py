"""Rigid registration of one contrast to another: ITK's Mattes mutual information, from coarse to fine.

The search starts where the headers put the two images and where the two heads' centres lie on each other; the
better end of the coarse search goes on. Same input, same output: a fixed seed draws the samples and one
thread sums them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy import ndimage

from monai_ext.data.masks import foreground
from monai_ext.data.resampling import isotropic
from monai_ext.data.volumes import LPS_TO_RAS, Volume

LEAST_EXTENT = 20.0  # mm: five slices of 4 mm, say
BINS = 32
RELAXATION = 0.6  # of the step, whenever the gradient turns back
ITERATIONS = 100  # a level; most end after ten to twenty by the length of the step
# ITK's world is measured in this many mm, about what a turn by one radian moves a brain's tissue: so a step of the
# optimizer is as long whether it turns or shifts, and no turn runs away once the shift is found.
UNIT = 60.0


@dataclass(frozen=True)
class Level:
    """One step from coarse to fine.

    Attributes:
        spacing: of the working grids, in mm.
        smoothing: of the images, in mm.
        first_step, last_step: of the search, in mm.
        share: of the voxels that are sampled.
    """

    spacing: float
    smoothing: float
    first_step: float
    last_step: float
    share: float


LEVELS = (
    Level(spacing=8.0, smoothing=0.0, first_step=4.0, last_step=0.1, share=1.0),
    Level(spacing=4.0, smoothing=0.0, first_step=2.0, last_step=0.05, share=0.5),
    Level(spacing=2.0, smoothing=1.0, first_step=1.0, last_step=0.005, share=0.25),
)


def register_rigid(reference: Volume, moving: Volume, *, seed: int = 1) -> NDArray[np.float64]:
    """Register one image to another rigidly, whatever their contrasts.

    Args:
        reference: what stays.
        moving: what is to lie on it.
        seed: draws the samples: the same one gives the same result.

    Returns:
        4 x 4, from a point of the reference's world (mm, RAS+) to the same tissue in moving's.

    Raises:
        ValueError: they show too little or could not be brought to overlap.
    """
    for volume in (reference, moving):
        extent = np.array(volume.shape) * volume.spacing
        if extent.min() < LEAST_EXTENT:
            sides = " x ".join(f"{side:.0f}" for side in extent)
            raise ValueError(f"the image covers {sides} mm, too little to register: {LEAST_EXTENT:.0f} mm is the least")
    centres = [_centre(volume) for volume in (reference, moving)]
    laid_on = np.subtract(centres[1], centres[0])
    starts = [_transform(centres[0], shift) for shift in (np.zeros(3), laid_on)]
    for level in LEVELS:
        fixed, mask = _fixed(reference, level.spacing)
        other = _image(_working(moving, level.spacing))
        ends = [_descend(fixed, mask, other, start, level=level, seed=seed) for start in starts]
        values = [value for value, _ in ends]
        if not np.isfinite(values).any():
            raise ValueError("the two images were not brought to overlap from any start")
        starts = [ends[int(np.nanargmin(values))][1]]
    return _matrix(starts[0])


def _descend(fixed: Any, mask: Any, moving: Any, start: Any, *, level: Level, seed: int) -> tuple[float, Any]:
    """From `start` to the nearest optimum: (the metric there, less is better; the transform)."""
    import itk  # slow to load, and only registration and few formats need it

    image = type(fixed)
    metric = itk.MattesMutualInformationImageToImageMetricv4[image, image].New()
    metric.SetNumberOfHistogramBins(BINS)
    metric.SetFixedImageMask(mask)
    metric.SetUseFixedImageGradientFilter(False)
    metric.SetUseMovingImageGradientFilter(False)
    metric.SetMaximumNumberOfWorkUnits(1)

    optimizer = itk.RegularStepGradientDescentOptimizerv4[itk.D].New()
    optimizer.SetLearningRate(level.first_step / UNIT)
    optimizer.SetMinimumStepLength(level.last_step / UNIT)
    optimizer.SetRelaxationFactor(RELAXATION)
    optimizer.SetNumberOfIterations(ITERATIONS)
    optimizer.SetNumberOfWorkUnits(1)

    transform = start.Clone()
    method = itk.ImageRegistrationMethodv4[image, image].New()
    method.SetFixedImage(fixed)
    method.SetMovingImage(moving)
    method.SetMetric(metric)
    method.SetOptimizer(optimizer)
    method.SetInitialTransform(transform)
    method.InPlaceOn()
    method.SetNumberOfLevels(1)
    method.SetShrinkFactorsPerLevel([1])
    method.SetSmoothingSigmasPerLevel([level.smoothing / UNIT])
    method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(True)
    method.SetMetricSamplingStrategy(itk.ImageRegistrationMethodv4Enums.MetricSamplingStrategy_REGULAR)
    method.SetMetricSamplingPercentage(level.share)
    method.MetricSamplingReinitializeSeed(seed)
    method.SetNumberOfWorkUnits(1)
    try:
        method.Update()
    except RuntimeError:  # ITK's way to say that too few samples fall into the moving image
        return np.nan, start
    # Few samples can share much by chance: information counts by the share of the samples that overlap.
    overlap = metric.GetNumberOfValidPoints() / max(1, metric.GetNumberOfDomainPoints())
    return optimizer.GetCurrentMetricValue() * overlap, transform


def _working(volume: Volume, spacing: float) -> Volume:
    """On cubes, without the brightest half percent of the head, which would empty the histogram's bins."""
    cubes = isotropic(volume, spacing)
    bright = cubes.array[cubes.array > cubes.array.mean()]
    return Volume(cubes.array.clip(0, np.percentile(bright, 99.5)), cubes.affine)


def _fixed(volume: Volume, spacing: float) -> tuple[Any, Any]:
    """The reference and the mask of its head, two voxels wider: its edge tells much, the air nothing."""
    import itk

    cubes = _working(volume, spacing)
    head = ndimage.binary_dilation(foreground(cubes), iterations=2)
    mask = itk.ImageMaskSpatialObject[3].New()
    mask.SetImage(_image(Volume(head.astype(np.uint8), cubes.affine)))
    mask.Update()
    return _image(cubes), mask


def _image(volume: Volume) -> Any:
    """An ITK image of the same voxels in the same place, in ITK's world (LPS)."""
    import itk

    affine = LPS_TO_RAS @ volume.affine
    image = itk.image_from_array(np.ascontiguousarray(volume.array.T))
    image.SetSpacing((volume.spacing / UNIT).tolist())
    image.SetOrigin((affine[:3, 3] / UNIT).tolist())
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(affine[:3, :3] / volume.spacing)))
    return image


def _centre(volume: Volume) -> NDArray[np.float64]:
    """The middle of the head in ITK's world."""
    cubes = isotropic(volume, LEVELS[0].spacing)
    return apply_affine(LPS_TO_RAS @ cubes.affine, np.argwhere(foreground(cubes)).mean(axis=0))


def _transform(centre: NDArray[np.float64], shift: NDArray[np.float64]) -> Any:
    import itk

    transform = itk.Euler3DTransform[itk.D].New()
    transform.SetCenter((centre / UNIT).tolist())
    transform.SetTranslation((shift / UNIT).tolist())
    return transform


def _matrix(transform: Any) -> NDArray[np.float64]:
    import itk

    matrix = np.eye(4)
    matrix[:3, :3] = itk.array_from_matrix(transform.GetMatrix())
    matrix[:3, 3] = np.array(transform.GetOffset()) * UNIT
    return LPS_TO_RAS @ matrix @ LPS_TO_RAS
