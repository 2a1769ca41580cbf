"""Missing MRI contrasts, synthesised: networks, operators, data and engines. Importing it imports nothing heavy."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monai_ext.synthesis.synthesiser import Synthesiser as Synthesiser
    from monai_ext.synthesis.synthesiser import synthesise as synthesise

__version__ = "0.1.0"
__all__ = ["Synthesiser", "__version__", "synthesise"]


def __getattr__(name: str) -> Any:
    """What a person calls, imported when it is first asked for."""
    if name in ("Synthesiser", "synthesise"):
        from monai_ext.synthesis import synthesiser

        return getattr(synthesiser, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
