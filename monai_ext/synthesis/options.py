"""The gate for requests: what a person may ask of a bundle, each option with its type and what it may be.

Nothing from outside gets to MONAI's parser as a config: an option is checked here, and what has passed enters a config
that is opened (`monai_ext.workflow.opened`) as an object, which is not read again.
"""

import json
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from monai_ext.data.presets import MASKS, REGISTRATIONS
from monai_ext.modalities import canonical
from monai_ext.runtime import AMP, checked_engine

SIZES = ("compact", "paper")
OF_IMAGES = ("images", "contrasts", "trust_names")  # what a request may say of its images, beside `INFERENCE`
Check = Callable[[str, Any], Any]


def asked(options: Mapping[str, Any], choices: Collection[str]) -> dict[str, Any]:
    """Check a request's options for inference, of those that a bundle lets choose.

    Args:
        options: as they came.
        choices: the ids that may be chosen.

    Returns:
        The options as they enter a config.

    Raises:
        ValueError: one that cannot be chosen, or is not what it may be; the message says which and what may be.

    Example:
        >>> asked({"target": "flair", "register": "rigid"}, ("target", "register"))
        {'target': 'FLAIR', 'register': 'rigid'}
        >>> asked({"target": "$import os"}, ("target",))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: unknown contrast '$import os'; ...
    """
    return _checked(options, {name: INFERENCE[name] for name in choices})


def asked_of_training(options: Mapping[str, Any]) -> dict[str, Any]:
    """Check a request's options for training.

    Args:
        options: as they came.

    Returns:
        The options as they enter a command.

    Raises:
        ValueError: as `asked`.
    """
    return _checked(options, TRAINING)


def as_words(options: Mapping[str, Any]) -> list[str]:
    """Make checked options the words of a command.

    Args:
        options: of `asked_of_training`, or paths, by id.

    Returns:
        "--key" and the value's text, for each in turn.

    Example:
        >>> as_words({"epochs": 3, "amp": False})
        ['--epochs', '3', '--amp', 'False']
    """
    return [word for key, value in options.items() for word in (f"--{key}", str(value))]


def named_images(value: Any) -> dict[str, str]:
    """Read which file of the study is which contrast, given as a dictionary or as its JSON.

    Args:
        value: as it came.

    Returns:
        contrast -> file name.

    Raises:
        ValueError: it is neither, or names no contrast, one twice, or no file.
    """
    images = value
    if isinstance(value, str):
        try:
            images = json.loads(value)
        except (ValueError, RecursionError):
            images = None
    if not isinstance(images, dict) or not images:
        raise ValueError(f"images must be contrasts with their files, such as {{'T1': 'a.nii.gz'}}, got {short(value)}")
    named: dict[str, str] = {}
    for given_as, file in images.items():
        contrast = _contrast("images", given_as)
        if contrast in named:
            raise ValueError(f"images names {contrast} twice: {short(named[contrast])} and {short(file)}; give one")
        named[contrast] = _text("images", file)
    return named


def named_channels(value: Any) -> list[str]:
    """Read the contrasts of an image's channels, given as a list or as words with commas.

    Args:
        value: as it came, such as "T1,T2".

    Returns:
        Their names in `MODALITIES`, in the order given.

    Raises:
        ValueError: one is not known.
    """
    return _contrasts("contrasts", value)


def yes_or_no(name: str, value: Any) -> bool:
    """Read what is true or false.

    Args:
        name: of the option, for the message.
        value: as it came.

    Returns:
        What was given.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {short(value)}")
    return value


def short(value: Any) -> str:
    """Show a value in a message: on one line and of no great length.

    Args:
        value: of any type; what is neither text nor number is named by its type alone.

    Returns:
        At most 80 characters.
    """
    text = repr(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _checked(options: Mapping[str, Any], checks: Mapping[str, Check]) -> dict[str, Any]:
    for name in options:
        if name not in checks:
            raise ValueError(f"{short(name)} cannot be chosen in a request; what can is {', '.join(checks)}")
    return {name: checks[name](name, value) for name, value in options.items()}


def _one_of(*allowed: Any) -> Check:
    def check(name: str, value: Any) -> Any:
        if not isinstance(value, str | bool) or value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {short(value)}")
        return value

    return check


def _number(least: float, most: float, *, whole: bool = True) -> Check:
    def check(name: str, value: Any) -> int | float:
        kind = int if whole else int | float
        fits = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
        if not fits or not least <= value <= most:
            what = "a whole number" if whole else "a number"
            raise ValueError(f"{name} must be {what} from {least:g} to {most:g}, got {short(value)}")
        return value

    return check


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError(f"{name} must be a text, got {short(value)}")
    return value


def _contrast(name: str, value: Any) -> str:
    return canonical(_text(name, value))


def _contrasts(name: str, value: Any) -> list[str]:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names:
        raise ValueError(f"{name} must be contrasts such as T1,T2, got {short(value)}")
    return [_contrast(name, item) for item in names]


def _contrast_or_more(name: str, value: Any) -> str | list[str]:
    return _contrast(name, value) if isinstance(value, str) else _contrasts(name, value)


def _slices(name: str, value: Any) -> str | list[Any]:
    if isinstance(value, str) and value in ("every", "nonempty"):
        return value
    if isinstance(value, list | tuple) and len(value) == 2 and value[0] in ("middle", "brain"):
        return [value[0], _number(1, 4096)(name, value[1])]
    raise ValueError(f"{name} must be every, nonempty, ['middle', n] or ['brain', n], got {short(value)}")


INFERENCE: dict[str, Check] = {
    "target": _contrast_or_more,
    "site": _text,  # the weights' own check says which there are
    "reference": _contrast,
    "register": _one_of(*REGISTRATIONS),
    "brain_mask": _one_of("none", *MASKS),
    "amp": _one_of(*AMP),
    "engine": lambda _, value: checked_engine(value),
}
TRAINING: dict[str, Check] = {
    "sources": _contrasts,
    "target": _contrast,
    "modalities": _contrasts,
    "epochs": _number(1, 100_000),
    "batch_size": _number(1, 4096),
    "learning_rate": _number(0, 1, whole=False),
    "image_size": _number(8, 4096),
    "slices": _slices,
    "width": _number(1, 4096),
    "seed": _number(0, 2**32 - 1),
    "amp": _one_of(*AMP),
    "size": _one_of(*SIZES),
}
