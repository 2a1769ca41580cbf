"""What `prepare` does to a dataset: the papers' own sizes as presets, and the options that change them."""

from dataclasses import dataclass

from monai_ext.modalities import MODALITIES

REGISTRATIONS = ("none", "rigid")
DIFFERING = "differing"  # of a patient: rigid for a scan whose grid is not the reference's
LEAST_SPACING = 0.1  # mm: finer is a slip, and more than a memory holds
MASKS = ("zero", "otsu")
OVER = ("foreground", "volume")  # what a contrast's percentile is taken over


@dataclass(frozen=True)
class Preset:
    """How one dataset becomes slices.

    Attributes:
        reference: contrasts; the first that a subject has gives the grid.
        spacing: in mm along i, j, k; None keeps the reference's own.
        crop: voxels a slice is cut or padded to.
        size: voxels it is then resized to.
        register: "none", or "rigid" to move the contrasts onto the reference.
        brain_mask: zero, otsu, the pattern of a file, or empty: nothing is taken off.
        percentile_of: what 1 is the 99.5th percentile of: a contrast's foreground, or all voxels of its file, the
            air around the head with them.
        trained_spacing: what weights know and `prepare` does not: the voxel size of the grids that they were trained
            on. A patient whose grid is another is resampled to it; where it is None, along an axis or at all, the grid
            stays.

    Raises:
        ValueError: a `percentile_of` or `trained_spacing` that may not be.
    """

    reference: tuple[str, ...] = MODALITIES
    spacing: tuple[float | None, float | None, float | None] = (None, None, None)
    crop: tuple[int, int] | None = None
    size: tuple[int, int] | None = None
    register: str = "none"
    brain_mask: str = ""
    percentile_of: str = "foreground"
    trained_spacing: tuple[float | None, float | None, float | None] | None = None

    def __post_init__(self) -> None:
        if self.percentile_of not in OVER:
            raise ValueError(f"percentile_of must be {' or '.join(OVER)}, got {self.percentile_of!r}")
        steps = self.trained_spacing
        if steps is None:
            return
        numbers = [step for step in steps if step is not None] if isinstance(steps, tuple) and len(steps) == 3 else None
        plain = numbers is not None and all(type(step) in (int, float) for step in numbers)
        if numbers is None or not plain or not all(LEAST_SPACING <= step < 100 for step in numbers):
            wanted = f"three voxel sizes in mm, each from {LEAST_SPACING} to 100 or null"
            raise ValueError(f"trained_spacing must be {wanted}, got {steps!r}")


ONE_MM = (1.0, 1.0, None)

PRESETS = {
    "native": Preset(),
    # AGI-Net: IXI at 256 x 256, which is how T2 and PD were acquired; the sagittal T1 goes onto their slices
    "ixi": Preset(reference=("T2", "PD", "T1"), crop=(256, 256)),
    # AGI-Net, and BraTS as it is released
    "brats": Preset(crop=(240, 240)),
    # PMM-Synth: every dataset in slices of 192 x 192 without what is not brain; 1 mm is our choice
    "pmm": Preset(spacing=ONE_MM, crop=(192, 192), brain_mask="zero"),
    "isles": Preset(reference=("DWI", "ADC", "FLAIR"), spacing=ONE_MM, crop=(192, 192), brain_mask="zero"),
    # FD-GAN: 240 x 240 enlarged to 256 x 256
    "fdgan": Preset(crop=(240, 240), size=(256, 256)),
    # HMF-MambaINR: cropped in the middle, then resized; the numbers are our choice, the paper's are lost
    "hmf-brats": Preset(crop=(192, 192), size=(256, 256)),
    "hmf-ixi": Preset(reference=("T2", "PD", "T1"), crop=(224, 224), size=(256, 256)),
}
