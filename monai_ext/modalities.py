"""The seven contrasts, their one order and their many names; and the one task: which are made of which."""

import difflib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

MODALITIES: tuple[str, ...] = ("T1", "T2", "PD", "T1C", "FLAIR", "DWI", "ADC")

_ALIASES = {
    "T1": "t1 t1w t1n t1wi t1pre t1mprage mprage t1mpr t1flash t1native spgr",
    "T2": "t2 t2w t2wi t2tse t2fse",
    "PD": "pd pdw pdwi proton protondensity",
    "T1C": "t1c t1ce t1gd t1gad t1+c t1post t1postcontrast t1cw t1wce t1contrast t1km t1wpost t1wgd t1cwi "
    "cet1 cet1w gdt1 gdt1w",
    "FLAIR": "flair fla t2f t2flair flairw t2wflair flairt2 tirm",
    "DWI": "dwi dw dwib1000 b1000 trace tracew traceb1000 isodwi dwitrace diffusion",
    "ADC": "adc adcmap apparentdiffusioncoefficient",
}
_CANONICAL = {alias: name for name, aliases in _ALIASES.items() for alias in aliases.split()}


def canonical(name: str) -> str:
    """Give the contrast that a name means, whatever its case and separators.

    Args:
        name: such as "t1_ce".

    Returns:
        A name of `MODALITIES`.

    Raises:
        ValueError: no contrast is called so; the message names the nearest.

    Example:
        >>> canonical("t1_ce"), canonical("Flair")
        ('T1C', 'FLAIR')
    """
    key = re.sub(r"[\s_.\-]+", "", name).lower()
    if key in _CANONICAL:
        return _CANONICAL[key]
    near = difflib.get_close_matches(key, _CANONICAL, n=3, cutoff=0.5)
    hint = ", ".join(f"{alias} (= {_CANONICAL[alias]})" for alias in near) or ", ".join(MODALITIES)
    raise ValueError(f"unknown contrast {name!r}; the nearest known ones: {hint}")


@dataclass(frozen=True)
class Task:
    """What a network synthesises from what, and what that means for one subject.

    Attributes:
        inputs, outputs: the contrasts of the network's channels.
        sources: those that may be used; None is whatever a subject has.
        targets: those that are wanted; None is whatever a subject lacks.
        every_source: whether a subject must have all of the sources.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sources: tuple[str, ...] | None = None
    targets: tuple[str, ...] | None = None
    every_source: bool = False

    def of(self, available: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Choose the sources and the targets of a subject.

        Args:
            available: the contrasts that it has, by their names in `MODALITIES`.

        Returns:
            The sources and the targets, in the order of the network's channels.
        """
        has = [contrast for contrast in self.inputs if contrast in available]
        targets = tuple(name for name in self.outputs if name not in has) if self.targets is None else self.targets
        return tuple(c for c in has if c not in targets and (self.sources is None or c in self.sources)), targets

    def lacking(self, available: Collection[str]) -> tuple[str, ...]:
        """Tell which of the sources that are needed a subject does not have.

        Args:
            available: the contrasts that it has, by their names in `MODALITIES`.
        """
        if not self.every_source:
            return ()
        return tuple(contrast for contrast in self.sources or self.inputs if contrast not in available)


def make_task(
    sources: Sequence[str] | None, target: str | Sequence[str] | None, modalities: Sequence[str] | None = None
) -> Task:
    """Make the task that a config or a person names.

    Args:
        sources: contrasts, by any of their names. None, with `modalities`, is whichever a subject has.
        target: one or several. None, with `modalities`, is whichever a subject lacks.
        modalities: all that the network takes and makes, where it takes whichever are there; without them, each
            source is needed.

    Returns:
        The task, its contrasts by their names in `MODALITIES`.

    Raises:
        ValueError: a contrast that is not known, is named twice, or is a source and a target; none at all.

    Example:
        >>> task = make_task(sources=["t1w", "t2w"], target="flair")
        >>> task.of(["T1", "T2", "PD"]), task.lacking(["T1"])
        ((('T1', 'T2'), ('FLAIR',)), ('T2',))
        >>> make_task(None, None, modalities=["T1", "T2", "FLAIR"]).of(["T2"])  # whatever is there, to whatever is not
        (('T2',), ('T1', 'FLAIR'))
    """
    chosen = _names("source", sources)
    targets = _names("target", [target] if isinstance(target, str) else target)
    shared = [contrast for contrast in chosen or () if contrast in (targets or ())]
    if shared:
        raise ValueError(f"{shared[0]} is a source and the target: what is to be synthesised cannot be a source")
    if modalities is None:
        if not chosen or not targets:
            raise ValueError(f"there must be a source and a target, got sources={chosen}, target={targets}")
        return Task(chosen, targets, chosen, targets, every_source=True)
    every = tuple(canonical(contrast) for contrast in modalities)
    for what, names in (("source", chosen), ("target", targets)):
        for contrast in names or ():
            if contrast not in every:
                raise ValueError(f"{contrast} is none of the contrasts that these weights know: {', '.join(every)}")
        if names == ():
            raise ValueError(f"{what}s is empty: name one, or null for all that there are to choose from")
    return Task(every, every, chosen, targets)


def _names(what: str, contrasts: Sequence[str] | None) -> tuple[str, ...] | None:
    if isinstance(contrasts, str):
        raise ValueError(f"{what}s must be a list of contrasts such as ['T1', 'T2'], got {contrasts!r}")
    if contrasts is None:
        return None
    names = tuple(canonical(contrast) for contrast in contrasts)
    for contrast in names:
        if names.count(contrast) > 1:
            raise ValueError(f"each {what} is given once, got {contrast} twice: {', '.join(names)}")
    return names
