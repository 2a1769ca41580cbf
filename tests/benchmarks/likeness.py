"""How like the real contrast a made one is, over a brain: as made, with its white matter matched, after one linear fit.

Beside it stand the best mixes of the sources, fitted on the truth itself: what their grey values say by themselves; and
one with what was made among them, for what that says beyond them. The real one is shaded by its coil, which no source
tells where each has a shading of its own: what was made and the mix are measured again, shaded alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, pad

from monai_ext.evaluation.metrics import compare_volumes

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]
RIM_MM = 4.0  # the outer part of a brain, a third of its voxels
LINES = 10  # fitted one after another, each without what the one before left above it
AROUND = 8  # voxels of a brain's surroundings that windows reach into
C, ALPHA, SCALES = 30.0, 4.2, 3  # HaarPSI's own


@dataclass(frozen=True)
class Case:
    """One person's contrasts on one grid, each 1 at the brain's 99.5th percentile, the brain, and where a lesion is."""

    name: str
    images: Mapping[str, Image]
    brain: Mask
    lesion: Mask | None
    spacing: tuple[float, float, float]
    skull: bool = False  # a whole head was scanned

    def cut(self, box: tuple[slice, ...]) -> "Case":
        """What lies in the box."""
        images = {name: image[box] for name, image in self.images.items()}
        lesion = None if self.lesion is None else self.lesion[box]
        return replace(self, images=images, brain=self.brain[box], lesion=lesion)

    @property
    def white_matter(self) -> Mask:
        """What T1 shows brightest in the brain, two in five voxels; without a T1 all of the brain; no lesion."""
        inside = self.brain if self.lesion is None else self.brain & ~self.lesion
        if "T1" not in self.images:
            return inside
        return inside & (self.images["T1"] > np.percentile(self.images["T1"][self.brain], 60))

    @property
    def inner(self) -> Mask:
        """The brain without its outer 4 mm."""
        return ndimage.distance_transform_edt(self.brain, sampling=self.spacing) > RIM_MM

    @property
    def unenhanced(self) -> Mask:
        """The brain without what the agent lights up: T1C above its line through T1 by three robust deviations."""
        t1, t1c = (self.images[name][self.brain] for name in ("T1", "T1C"))
        kept = np.ones(len(t1), bool)
        for _ in range(LINES):
            above = t1c - np.polyval(np.polyfit(t1[kept], t1c[kept], 1), t1)
            centre = np.median(above[kept])
            kept = above - centre < 3 * max(1.4826 * float(np.median(np.abs(above[kept] - centre))), 1e-4)
        mask = np.zeros_like(self.brain)
        mask[self.brain] = kept
        return mask

    @property
    def fluid(self) -> Mask | None:
        """Dark on T1 and bright on T2, against white matter; None where one of them is not there."""
        if not {"T1", "T2"} <= set(self.images):
            return None
        t1, t2 = (self.images[name] / np.median(self.images[name][self.white_matter]) for name in ("T1", "T2"))
        return self.brain & (t1 < 0.55) & (t2 > 1.4)


def scaled(image: Image, brain: Mask) -> Image:
    """0 to 1, which is the brain's 99.5th percentile."""
    return (image / np.percentile(image[brain], 99.5)).clip(0, 1).astype(np.float32)


def figures(made: Image, case: Case, *, sources: Sequence[str], target: str) -> dict[str, float]:
    """Every figure of one made contrast against the real one of `case`; dB where the name says psnr."""
    box = _box(case.brain)
    made, case = made[box], case.cut(box)
    truth, brain, white = case.images[target], case.brain, case.white_matter
    matched = white_matched(made, case, target=target)
    after = linear_mix([made], truth, brain)
    columns = [case.images[name] for name in sources]
    products = [one * other for one, other in combinations_with_replacement(columns, 2)]
    quadratic = linear_mix([*columns, *products], truth, brain)
    found = {
        "psnr": psnr(made, truth, brain),
        "psnr_white_matched": psnr(matched, truth, brain),
        "psnr_fitted": psnr(after, truth, brain),
        "psnr_shaded": psnr(shaded(after, truth, brain), truth, brain),
        "psnr_linear_mix": psnr(linear_mix(columns, truth, brain), truth, brain),
        "psnr_quadratic_mix": psnr(quadratic, truth, brain),
        "psnr_quadratic_mix_shaded": psnr(shaded(quadratic, truth, brain), truth, brain),
        "psnr_quadratic_mix_with_made": psnr(linear_mix([made, *columns, *products], truth, brain), truth, brain),
    }
    for name, image in (("", made), ("_fitted", after)):
        inside = [torch.from_numpy(np.where(brain, one, 0).astype(np.float32)) for one in (image, truth)]
        region = torch.from_numpy(brain)
        found[f"ssim{name}"] = compare_volumes(*inside, mask=region, spacing=case.spacing).brain["ssim"]
        found[f"haarpsi{name}"] = haarpsi(*(one.movedim(-1, 0) for one in inside))
    if case.lesion is not None:
        for name, image in (("made", made), ("real", truth)):
            found[f"lesion_over_white_{name}"] = float(image[case.lesion].mean() / image[white].mean())
    low, high = np.percentile(truth[brain], [100 / 3, 200 / 3])
    regions = {
        "inner": case.inner,
        "rim": brain & ~case.inner,
        "dark": brain & (truth < low),
        "middle": brain & (truth >= low) & (truth <= high),
        "bright": brain & (truth > high),
    }
    if case.fluid is not None:
        regions |= {"fluid": case.fluid, "tissue": brain & ~case.fluid}
    for name, region in regions.items():
        if region.any():
            found[f"psnr_fitted_{name}"] = psnr(after, truth, region)
            found[f"bias_{name}"] = float((after - truth)[region].mean())
    return found


def white_matched(made: Image, case: Case, *, target: str) -> Image:
    """By one factor, so that its white matter is as bright as the real one's."""
    white = case.white_matter
    return made * np.float32(np.median(case.images[target][white]) / max(float(np.median(made[white])), 1e-6))


def psnr(image: Image, truth: Image, mask: Mask) -> float:
    return float(-10 * np.log10(max(np.mean((image[mask] - truth[mask]) ** 2, dtype=np.float64), 1e-10)))


def _box(mask: Mask) -> tuple[slice, ...]:
    """The mask's extent and what lies round it."""
    (extent,) = ndimage.find_objects(mask.astype(np.uint8))
    return tuple(slice(max(0, side.start - AROUND), side.stop + AROUND) for side in extent)


def linear_mix(columns: Sequence[Image], truth: Image, mask: Mask) -> Image:
    """The columns' best linear mix, with a constant, over the mask; zero outside of it."""
    matrix = np.stack([*(column[mask] for column in columns), np.ones(int(mask.sum()), np.float32)], 1)
    mixed = np.zeros_like(truth)
    mixed[mask] = matrix @ np.linalg.lstsq(matrix, truth[mask], rcond=None)[0]
    return mixed


def shaded(image: Image, truth: Image, mask: Mask) -> Image:
    """The image with a constant and a gain of second order in space, fitted on the truth: as a coil shades it."""
    return linear_mix([image, *(image * gain for gain in second_order(image.shape))], truth, mask)


def second_order(shape: tuple[int, ...]) -> list[Image]:
    """The terms of a polynomial of second order in space but the constant one, each of a shape that spreads to this."""
    axes = [np.linspace(-1, 1, side, dtype=np.float32) for side in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    return [x, y, z, x * x, y * y, z * z, x * y, y * z, x * z]


def haarpsi(image: Tensor, truth: Tensor) -> float:
    """(N, H, W), (N, H, W) in [0, 1] -> Reisenhofer et al., 2018, all slices together: 1 for equal images."""
    small = [avg_pool2d(255 * one[:, None].double(), 2) for one in (image, truth)]
    coefficients = [[_haar(one, scale).abs() for scale in range(1, SCALES + 1)] for one in small]
    near = [(2 * p * t + C) / (p * p + t * t + C) for p, t in list(zip(*coefficients, strict=True))[:-1]]
    weight = torch.maximum(*(one[-1] for one in coefficients))
    similar = (ALPHA * torch.stack(near).mean(0)).sigmoid()
    if not weight.any():
        return 1.0
    return float(torch.logit((similar * weight).sum() / weight.sum()) / ALPHA) ** 2


def _haar(image: Tensor, scale: int) -> Tensor:
    """(N, 1, H, W) -> (N, 2, H, W), the Haar wavelet's answer down and across"""
    side = 2**scale
    down = torch.full((side, side), 2.0**-scale, dtype=image.dtype)
    down[: side // 2] *= -1
    before = side // 2 - 1
    around = pad(image, (before, side - 1 - before, before, side - 1 - before))
    return conv2d(around, torch.stack([down, down.T])[:, None])
