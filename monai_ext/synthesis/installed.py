"""Which weights are installed, what each makes of what, and which of them suits a patient's scans."""

import difflib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_ext.catalogue import bundle_names, find_bundle
from monai_ext.files import absolute
from monai_ext.modalities import Task, make_task
from monai_ext.weights import about_weights

logger = logging.getLogger(__name__)
NONE_INSTALLED = (
    "no weights are installed: train a bundle (monai-ext train agi_net --dataset_dir PREPARED), or name weights that "
    "you have with --weights FILE"
)
MOST = {"psnr_fitted": 100.0, "ssim_fitted": 1.0}  # what a figure can be
LEVEL_DB = 0.1  # a difference of PSNR that a few cases do not settle


@dataclass(frozen=True)
class Method:
    """A bundle with one file of weights: what it makes of what, and what the weights' JSON says of them.

    `name` is what a person types: agi_net for its models/model.pt, agi_net/t1_t2_to_pd for others in that folder.
    """

    name: str
    bundle: Path
    weights: Path
    task: Task
    about: Mapping[str, Any] = field(hash=False)

    @property
    def sites(self) -> tuple[str, ...]:
        """Those that the weights know apart."""
        return tuple(self.about.get("sites") or ())

    def makes(self, target: str, available: Collection[str]) -> bool:
        """Say whether it makes `target` of these contrasts. What is to be made is never a source.

        Args:
            target: a contrast.
            available: contrasts that there are.

        Returns:
            True where it has all that it needs.
        """
        sources, _ = self.task.of([contrast for contrast in available if contrast != target])
        return target in self.task.outputs and bool(sources) and not self.task.lacking(set(available) - {target})

    def uses(self, target: str, available: Collection[str]) -> tuple[str, ...]:
        """Say which of these contrasts it makes `target` of.

        Args:
            target: a contrast.
            available: contrasts that there are.

        Returns:
            They, in the order that its network knows.
        """
        return tuple(contrast for contrast in self.task.inputs if contrast in available and contrast != target)

    def __str__(self) -> str:
        if self.task.every_source:
            return f"{self.name} makes {' and '.join(self.task.outputs)} of {' and '.join(self.task.inputs)}"
        return f"{self.name} makes any of {', '.join(self.task.outputs)} of whichever others are there"


def installed_methods() -> list[Method]:
    """One for each file of weights in the models folder of an installed bundle; what is wrong with one is said.

    Returns:
        Bundle by bundle, by the names of the files.
    """
    methods = []
    for root in map(find_bundle, bundle_names()):
        for weights in sorted((root / "models").glob("*.pt")):
            try:
                methods.append(method_of(root, weights))
            except ValueError as fault:
                logger.warning("left aside: %s", fault)
    return methods


def method_of(bundle: Path, weights: Path) -> Method:
    """Say what these weights make, by their own JSON, or by the bundle's config where they have none.

    Args:
        bundle: its folder.
        weights: their file.

    Returns:
        What they make, of what, and for which sites.

    Raises:
        ValueError: they are another bundle's.
    """
    config = json.loads((bundle / "configs" / "inference.json").read_text(encoding="utf-8"))
    about = about_weights(weights)
    if about.get("bundle", bundle.name) != bundle.name:
        raise ValueError(
            f"{weights} are weights of {about['bundle']}, not of {bundle.name}: --method {about['bundle']}"
        )
    takes_any = config["sources"] is None
    sources = about.get("sources") or config["modalities" if takes_any else "sources"]
    target = about.get("target") or config["target"]
    own = weights.parent == bundle / "models" and weights.stem != "model"
    name = f"{bundle.name}/{weights.stem}" if own else bundle.name
    task = make_task(None, None, sources) if takes_any else make_task(sources, target)
    return Method(name, bundle, weights, task, about)


def methods_to_choose_from(
    *, method: str | None = None, weights: Path | str | None = None, site: str | None = None
) -> list[Method]:
    """The installed ones, or those of them that a person named.

    Args:
        method: a bundle's name, or a method's.
        weights: a file, in place of what is installed. Its JSON names the bundle, or `method` does.
        site: one that the weights have to know apart.

    Returns:
        At least one.

    Raises:
        ValueError: there is none; the message says which there are, or what to type.
    """
    methods = _of_file(absolute(Path(weights)), method) if weights is not None else installed_methods()
    if method is not None and weights is None:
        named = [candidate for candidate in methods if method in (candidate.name, candidate.bundle.name)]
        if not named:
            _refuse_name(method, methods)
        methods = named
    if not methods:
        raise ValueError(NONE_INSTALLED)
    if site is not None:
        able = [candidate for candidate in methods if site in candidate.sites]
        if not able:
            sites = sorted({name for candidate in methods for name in candidate.sites})
            names = ", ".join(sites) or f"none: leave --site out ({', '.join(candidate.name for candidate in methods)})"
            raise ValueError(f"no weights know the site {site!r}; the sites that are known: {names}")
        methods = able
    return methods


def _of_file(weights: Path, method: str | None) -> list[Method]:
    if not weights.is_file():
        raise ValueError(f"there are no weights at {weights}: say with --weights where they are")
    if method is None:
        bundle, names = about_weights(weights).get("bundle"), bundle_names()
        if bundle is None:
            raise ValueError(
                f"{weights} does not say which method it is of: say it with --method {' or '.join(names) or 'NAME'}"
            )
        if bundle not in names:  # a path too: weights do not say which configs are run
            here = ", ".join(names) or "none"
            raise ValueError(
                f"{weights} says that it is of {bundle!r}, which is none of {here}: give its folder by --method"
            )
        method = bundle
    return [method_of(find_bundle(method), weights)]


def _refuse_name(method: str, methods: Sequence[Method]) -> None:
    if method in bundle_names():
        raise ValueError(
            f"no weights are installed for {method}: train it (monai-ext train {method} --dataset_dir PREPARED), or "
            "name weights that you have with --weights FILE"
        )
    names = [candidate.name for candidate in methods] or bundle_names()
    near = difflib.get_close_matches(method, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(names)}"
    raise ValueError(f"there is no method {method!r}; {hint}")


def choose_method(
    methods: Sequence[Method], target: str, available: Collection[str], *, skull: bool | None = None
) -> Method:
    """Choose for a patient: made for exactly these contrasts, else from whichever are there, else from a part.

    Where the weights' JSON states what was measured on real scans of this very task, the best of those that state it
    goes before: by PSNR, and of those that are level in that, by SSIM.

    Args:
        methods: to choose from.
        target: what is to be made.
        available: contrasts that the patient has.
        skull: whether the scans show it, None where that is not known.

    Returns:
        The best of those that can.

    Raises:
        ValueError: none makes the target of what is there; the message says what each would need.
    """
    able = [candidate for candidate in methods if candidate.makes(target, available)]
    if not able:
        has = " and ".join(available) or "nothing"
        asked = "; ".join(map(str, methods))
        others = [
            candidate.name
            for candidate in installed_methods()
            if candidate not in methods and candidate.makes(target, available)
        ]
        can = f"; {' and '.join(others)} can" if others else ""
        raise ValueError(f"{target} cannot be made of {has}: {asked}{can}")
    acquired = set(available) - {target}

    measured = {one: stated(one, one.uses(target, available), target, skull=skull) for one in able}

    def rank(method: Method) -> tuple[int, float]:
        exact = set(method.uses(target, available)) == acquired
        fixed = method.task.every_source
        return 0 if fixed and exact else 1 if not fixed else 2, -(measured[method] or 0.0)

    chosen = min(able, key=rank)
    sources = set(chosen.uses(target, available))
    same = {one: measured[one] or 0.0 for one in able if measured[one] and set(one.uses(target, available)) == sources}
    if chosen not in same:
        return chosen
    level = [one for one, psnr in same.items() if psnr > max(same.values()) - LEVEL_DB]

    def structure(method: Method) -> tuple[float, float]:
        of = method.uses(target, available)
        return stated(method, of, target, skull=skull, figure="ssim_fitted") or 0.0, same[method]

    return max(level, key=structure)


def stated(
    method: Method, sources: Sequence[str], target: str, *, skull: bool | None, figure: str = "psnr_fitted"
) -> float | None:
    """Read what a method's JSON states of a task on real scans, as `tests/benchmarks/real.py --record` writes it.

    Args:
        method: whose weights.
        sources: contrasts, in any order.
        target: a contrast.
        skull: on heads as scanned, on brains without their skull, or, for None, on all of them.
        figure: of MOST, after one linear fit: PSNR in dB, or SSIM.

    Returns:
        The mean over cases; None where it states none.
    """
    quality = method.about.get("quality")
    for task, figures in quality.items() if isinstance(quality, Mapping) else ():
        of, _, makes = str(task).partition(":")
        if makes != target or set(of.split(",")) != set(sources) or not isinstance(figures, Mapping):
            continue
        kinds = ("head", "brain") if skull is None else ("head" if skull else "brain",)
        parts = [one for one in map(figures.get, kinds) if isinstance(one, Mapping)]
        rows = [(one.get("cases"), one.get(figure)) for one in parts]
        most = MOST[figure]
        sound = [
            (n, x) for n, x in rows if isinstance(n, int) and n > 0 and isinstance(x, int | float) and 0 < x < most
        ]
        if sound:
            return sum(n * x for n, x in sound) / sum(n for n, _ in sound)
    return None
