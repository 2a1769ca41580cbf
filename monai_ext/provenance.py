"""What a synthesised image says of itself: that it is synthetic, and with which software it was made.

The words stand here once, for NIfTI headers, for the JSON beside each file and for whatever else carries an image.
"""

import sys

import ignite
import monai
import torch

from monai_ext import __version__

WARNING = (
    "This image is SYNTHETIC: a neural network computed it from other images. It was not acquired, can show what is "
    "not there and miss what is, and is not to be used clinically."
)
UNSEEN = {  # contrast -> what no other contrast shows of it
    "T1C": (
        "None of its sources shows what a contrast agent would: enhancement in this T1C is guessed, and where it shows "
        "none there may be some."
    )
}
UNTRAINED = "untrained"


def warning(target: str) -> str:
    """Say what an image of `target` is, and what it cannot show.

    Args:
        target: the contrast that was synthesised.

    Returns:
        `WARNING`, and the contrast's own where it has one.
    """
    return f"{WARNING} {UNSEEN[target]}" if target in UNSEEN else WARNING


def software() -> dict[str, str]:
    """List the versions that a result depends on, by the software's name."""
    return {
        "monai_ext": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "monai": monai.__version__,
        "ignite": ignite.__version__,
    }
