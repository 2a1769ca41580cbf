"""What an evaluation measures and over what: our own protocol, and the papers' where they say another."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

PEAKS = ("range", "image")
WINDOWS = ("gaussian", "uniform")
REGIONS = ("slice", "volume", "brain")
PSNR_LIMIT = 100.0  # dB: of images that 16 bits could not tell apart, so that means stay finite
K1, K2 = 0.01, 0.03
WINDOW, SIGMA = 11, 1.5  # pixels: Wang et al., 2004
UNIFORM = 7  # pixels: scikit-image's default

_WORDS = {
    "slice": "each evaluated slice by itself, then their mean",
    "volume": "all voxels of all slices together; SSIM: all windows of all axial slices",
    "brain": "the voxels inside the mask, all slices together; SSIM: the windows centred inside the mask",
}


@dataclass(frozen=True)
class Protocol:
    """What papers measure in different ways; the defaults are ours.

    Attributes:
        peak: the maximum in PSNR: "range" is that of the range that images may have, "image" the true image's own, over
            the slice, the volume or the mask that is measured.
        ssim: its windows: "gaussian" of 11 pixels, as Wang et al. have them, or "uniform" of 7 with the sample's
            covariance, scikit-image's default.
        region: which of "slice", "volume" and "brain" a paper's tables are of. All three are measured anyway.

    Raises:
        ValueError: one of them is none that there is.
    """

    peak: str = "range"
    ssim: str = "gaussian"
    region: str = "brain"

    def __post_init__(self) -> None:
        for name, allowed in (("peak", PEAKS), ("ssim", WINDOWS), ("region", REGIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"a protocol's {name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )

    @property
    def window(self) -> int:
        """The side of SSIM's window in pixels."""
        return WINDOW if self.ssim == "gaussian" else UNIFORM

    def described(self) -> dict[str, Any]:
        """Say how each figure is computed, as plain values for an evaluation's record.

        Returns:
            Plain values, as run.json has them under "protocol".
        """
        peak = "range" if self.peak == "range" else "max(t)"
        gaussian = self.ssim == "gaussian"
        return {
            "figures": {
                "psnr": f"10 log10({peak}^2 / mean((p - t)^2)) in dB, at most {PSNR_LIMIT:g}",
                "ssim": "mean of the SSIM map",
                "mae": "mean(|p - t|)",
                "nrmse": "sqrt(sum((p - t)^2) / sum(t^2)): Euclidean norm",
                "nmse": "sum((p - t)^2) / sum(t^2)",
                "stripes": "sd of the slices' independent offsets that would roughen the error as much from slice to "
                "slice, beyond its roughness over the same distance in the plane",
            },
            "ssim": {
                "window": self.window,
                "weights": self.ssim,
                **({"sigma": SIGMA} if gaussian else {}),
                "k1": K1,
                "k2": K2,
                "dimensions": 2,
                "covariance": "population" if gaussian else "sample",
                "border": "windows that lie wholly inside the slice",
            },
            "regions": _WORDS,
            "region": self.region,
        }


OURS = Protocol()


def chosen(name: str, *, paper: Mapping[str, str]) -> Protocol:
    """Choose between our protocol and that of a bundle's paper.

    Args:
        name: "ours" or "paper".
        paper: every field of the paper's.

    Returns:
        OURS, or one of the paper's fields; the paper's are looked at for either.

    Raises:
        ValueError: another name, or the paper's lacks a field or has one that there is not.

    Example:
        >>> paper = {"peak": "image", "ssim": "uniform", "region": "slice"}
        >>> chosen("paper", paper=paper).window, chosen("ours", paper=paper).window
        (7, 11)
    """
    if name not in ("ours", "paper"):
        raise ValueError(f"protocol must be ours or paper, got {name!r}")
    needed = [field.name for field in fields(Protocol)]
    if sorted(paper) != sorted(needed):
        raise ValueError(f"a paper's protocol needs {', '.join(needed)}, got {', '.join(paper) or 'nothing'}")
    return Protocol(**paper) if name == "paper" else OURS
