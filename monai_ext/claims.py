"""What weights say of themselves is data: plain values of known keys, of which nothing can be run, followed or built.

`model.json` and an archive's configs come from anywhere. What of them goes into a config passes here first.
"""

from collections.abc import Mapping
from typing import Any

from monai_ext.modalities import MODALITIES, canonical

LARGEST = 1_000_000  # of the numbers that shape a network or an image
LARGEST_CANVAS = 2048  # pixels along a side of a plane
MARKS = ("$", "@", "%")  # with which MONAI's parser begins what it runs, follows or fetches
REGISTRATIONS = ("none", "rigid")
OVER = ("foreground", "volume")


def checked(about: Mapping[str, Any], *, of: str) -> dict[str, Any]:
    """Check that each claim that enters a config is what it may be.

    Args:
        about: what weights say; keys that enter no config are not looked at.
        of: where it is written, for the message.

    Returns:
        The claims as they are, without those of null, which say nothing.

    Raises:
        ValueError: a claim that is not what it may be; the message says which, and what may be.
    """
    try:
        for name in ("sources", "target"):
            if name in about:
                _contrasts(name, about[name])
        if about.get("sites") is not None:
            _words("sites", about["sites"])
        if about.get("preset") is not None:
            _preset(about["preset"])
        for name in ("bundle", "version", "sha256", "site", "network_sha256"):
            if about.get(name) is not None:
                _word(name, about[name])
        for name, most in (("rank", LARGEST), ("canvas", LARGEST_CANVAS)):
            if about.get(name) is not None and (type(about[name]) is not int or not 1 <= about[name] <= most):
                raise ValueError(f"{name} must be a whole number from 1 to {most}, got {_short(about[name])}")
        if about.get("network_def") is not None:
            _definition(about["network_def"])
    except ValueError as error:
        raise ValueError(f"{of} is refused: {error}") from None
    return {name: claim for name, claim in about.items() if claim is not None}


def is_plain(value: Any) -> bool:
    """Say whether a value is plain data that a config would take as it is.

    A number of sensible size, a boolean, null, a text that means itself, or a list of these, but no dictionary.
    """
    if isinstance(value, list | tuple):
        return len(value) <= 1000 and all(is_plain(item) and not isinstance(item, list | tuple) for item in value)
    if isinstance(value, str):
        return len(value) <= 200 and value.isprintable() and not value.startswith(MARKS) and "#" not in value
    if isinstance(value, int | float):
        return abs(value) <= LARGEST  # which neither NaN nor infinity is
    return value is None


def _definition(definition: Any) -> None:
    if not isinstance(definition, Mapping):
        raise ValueError(f"network_def must be the network's arguments, got {_short(definition)}")
    for key, value in definition.items():
        if key != "_target_" and (not isinstance(key, str) or not key.isidentifier() or key.startswith("_")):
            raise ValueError(f"network_def has {_short(key)}, which is no argument of a network")
        if not is_plain(value):
            raise ValueError(f"network_def's {key} must be a number, a word or a list of them, got {_short(value)}")
        if key == "residual":
            _words("network_def's residual", value)
            for text in value:
                list(map(canonical, text.split(" over ")))  # which names what is no contrast


def _preset(preset: Any) -> None:
    if isinstance(preset, str):
        _word("preset", preset)
        return
    if not isinstance(preset, Mapping):
        raise ValueError(f"preset must be a preset's fields, got {_short(preset)}")
    for key, value in preset.items():
        name = f"preset's {key}"
        if not isinstance(key, str) or not key.isidentifier() or not is_plain(value):
            raise ValueError(f"{_short(name)} must be a number, a word or a list of them, got {_short(value)}")
    if preset.get("reference") is not None:
        _contrasts("preset's reference", preset["reference"])
    for key, count in (("spacing", 3), ("crop", 2), ("size", 2)):
        values = preset.get(key)
        if values is not None and not (
            isinstance(values, list | tuple) and len(values) == count and all(_positive(number) for number in values)
        ):
            raise ValueError(f"preset's {key} must be {count} numbers above 0, got {_short(values)}")
    if preset.get("register", "none") not in REGISTRATIONS:
        raise ValueError(f"preset's register must be {' or '.join(REGISTRATIONS)}, got {_short(preset['register'])}")
    if preset.get("percentile_of", "foreground") not in OVER:
        raise ValueError(f"preset's percentile_of must be {' or '.join(OVER)}, got {_short(preset['percentile_of'])}")
    mask = preset.get("brain_mask", "")
    if not isinstance(mask, str) or mask.startswith(("/", "~")) or ".." in mask or "\\" in mask:
        raise ValueError(f"preset's brain_mask must name files below the subject's folder, got {_short(mask)}")


def _positive(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and value > 0)


def _contrasts(name: str, contrasts: Any) -> None:
    if (
        not isinstance(contrasts, list | tuple)
        or not contrasts
        or not all(contrast in MODALITIES for contrast in contrasts)
    ):
        raise ValueError(f"{name} must be a list of {', '.join(MODALITIES)}, got {_short(contrasts)}")


def _words(name: str, words: Any) -> None:
    if not isinstance(words, list | tuple):
        raise ValueError(f"{name} must be a list of words, got {_short(words)}")
    for word in words:
        _word(name, word)


def _word(name: str, word: Any) -> None:
    if not isinstance(word, str) or not word or not is_plain(word):
        raise ValueError(f"{name} must be a word, got {_short(word)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
