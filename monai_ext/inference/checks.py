"""Whether a patient's scans are what they are said to be, looked at before anything is synthesised of them.

Swapped, mislabelled, turned, cropped or doubled files, and files of two people, give a picture that looks fine. What is
certain is refused (`--trust-names` goes on all the same), what is likely is said. Left and right cannot be seen in one
head, which is nearly its own mirror image; two scans of one head of which one is mirrored can.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from monai_ext.data.volumes import Volume, read_description, read_volume
from monai_ext.inference.alike import Alike, alike
from monai_ext.inference.coarse import STEP, Glance, glance
from monai_ext.inference.recogniser import UPRIGHT, Seen, pose_in_words, recognise, together, trained

TRUST = "--trust-names"
THICKEST = 10.0  # mm between slices
FEWEST_VALUES = 16  # a scan has more; a mask or a label map has fewer
MOST_CLIPPED = 0.01  # of the head's voxels at the very highest value
MOST_CUT = 25.0  # cm2 of head in a last slice or on a side, where a whole head has none
CUT_DEPTH = 0.3  # of the bright: fainter is noise or a fold-over
SAME_GRID = 0.1  # mm
FAR_APART = 2.0  # mm: less is not worth resampling for
OTHER_HEAD = 0.45  # own likeness below which two scans show two heads
HARDLY = 0.55  # below which it is said that they hardly agree
MIRRORED = 0.08  # by how much the mirror image must be more alike
SAME_IMAGE = 0.995  # correlation of the detail of two images, which noise alone keeps far below
DETAIL = 200_000  # voxels that are compared for it
DISTORTED = frozenset({"DWI", "ADC"})  # edges of echo-planar images lie elsewhere than other contrasts'
INTERCHANGED = frozenset({"T1", "T1C"})  # without enhancement nobody can tell them apart
NEXT_OF_KIN = frozenset({"PD", "T2"})  # between them lie protocols that are called either
KIN_SURER = 0.1
LEAST_SURE = 0.9  # of the contrasts that are named in its place
UNLIKELY = 0.05
SKULL_SURE = 0.9


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        kind: unreadable, synthetic, constant, labels, clipped, contrast, pose, cropped, thick, far, duplicate,
            other_head, mirrored, apart, or skulls.
        severity: "refuse" where going on gives a wrong picture, "warn" where it may.
        images: the contrasts that it is about, as they were named.
        message: one line: what was seen, how sure that is, what to type.
        sure: a probability, or None where it was measured rather than judged.
        trusted: whether `--trust-names` goes on.
    """

    kind: str
    severity: Literal["refuse", "warn"]
    images: tuple[str, ...]
    message: str
    sure: float | None = None
    trusted: bool = True


@dataclass(frozen=True)
class Look:
    """What was seen of one image: None where it could not be looked at."""

    seen: Seen | None
    spacing: tuple[float, float, float]

    @property
    def skull(self) -> bool | None:
        """True with its skull, False stripped, None where that cannot be told."""
        if self.seen is None or abs(self.seen.skull - 0.5) < SKULL_SURE - 0.5:
            return None
        return self.seen.skull > 0.5


@dataclass(frozen=True)
class Pair:
    """How two images lie: on one grid or not; `likeness` says how alike, and how far apart, they are."""

    images: tuple[str, str]
    same_grid: bool
    likeness: Alike

    @property
    def own(self) -> float:
        """How alike, by what no other head shares: above 0.6 for one head, below 0.5 for two."""
        return 2 * self.likeness.best - self.likeness.mirrored


@dataclass(frozen=True)
class Findings:
    """All that was seen of one patient's scans."""

    images: Mapping[str, Look]
    pairs: tuple[Pair, ...]
    found: tuple[Finding, ...] = field(default=())

    def refusals(self, *, trust_names: bool = False) -> list[Finding]:
        """Give what forbids going on.

        Args:
            trust_names: leave out the findings that are `trusted`.

        Returns:
            Those of `found`, in its order; [] to go on.
        """
        return [
            finding for finding in self.found if finding.severity == "refuse" and not (trust_names and finding.trusted)
        ]

    def warnings(self, *, trust_names: bool = False) -> list[Finding]:
        """Give what is to be said.

        Args:
            trust_names: as of `refusals`: what that leaves out is said here.

        Returns:
            Those of `found` that `refusals` has not.
        """
        refused = self.refusals(trust_names=trust_names)
        return [finding for finding in self.found if finding not in refused]

    def admitted(self, *, trust_names: bool = False) -> list[str]:
        """Give the warnings, a line each, to go on with.

        Args:
            trust_names: as of `refusals`.

        Returns:
            The messages of `warnings`.

        Raises:
            ValueError: something is refused; one line says all of it.
        """
        refused = [finding.message for finding in self.refusals(trust_names=trust_names)]
        if refused:
            raise ValueError("; ".join(refused))
        return [finding.message for finding in self.warnings(trust_names=trust_names)]

    @property
    def registration(self) -> bool:
        """Whether some image lies so far from another, on the same head, that it has to be registered."""
        return any(pair.likeness.apart > FAR_APART and pair.own >= OTHER_HEAD for pair in self.pairs)

    @property
    def skull(self) -> bool | None:
        """True if all have their skulls, False if all are stripped, None if that differs or cannot be told."""
        kinds = {look.skull for look in self.images.values()}
        return kinds.pop() if len(kinds) == 1 else None

    def shown(self) -> dict[str, tuple[str, float]]:
        """Tell what the scans show, by all of them together (`recogniser.together`); their names are not asked.

        Returns:
            By name, the likeliest contrast and its probability, T1 and T1C as the likelier of the two with both their
            probabilities; without the images that could not be looked at.
        """
        seen = {name: its_look.seen.contrasts for name, its_look in self.images.items() if its_look.seen}
        shown: dict[str, tuple[str, float]] = {}
        for name, shares in zip(seen, together(list(seen.values())), strict=True):
            either = sum(shares[one] for one in INTERCHANGED)
            sums = {one: either if one in INTERCHANGED else share for one, share in shares.items()}
            best = max(shares, key=lambda one: (sums[one], shares[one]))
            shown[name] = best, sums[best]
        return shown

    @property
    def distance(self) -> float:
        """The farthest image from what the weights were trained on: 99% of unseen phantoms are below 1."""
        return max((look.seen.distance for look in self.images.values() if look.seen), default=0.0)

    def record(self) -> dict[str, Any]:
        """Give what the JSON beside a synthetic image says of the scans.

        Returns:
            "images", "pairs" and "findings", plain values; an image that could not be looked at is not among the first.
        """
        shown = self.shown()
        images = {
            name: {
                "contrasts": {contrast: round(p, 4) for contrast, p in look.seen.contrasts.items()},
                "shows": shown[name][0],
                "skull": round(look.seen.skull, 4),
                "upright": round(float(look.seen.poses[UPRIGHT]), 4),
                "distance_from_training": round(look.seen.distance, 3),
            }
            for name, look in self.images.items()
            if look.seen
        }
        pairs = [
            {
                "images": list(pair.images),
                "same_grid": pair.same_grid,
                "likeness": round(pair.likeness.best, 3),
                "own_likeness": round(pair.own, 3),
                "apart_mm": round(pair.likeness.apart, 2),
            }
            for pair in self.pairs
        ]
        findings = [
            {"kind": finding.kind, "severity": finding.severity, "message": finding.message} for finding in self.found
        ]
        return {"images": images, "pairs": pairs, "findings": findings}


def look(images: Mapping[str, Path | str | Volume]) -> Findings:
    """Look at one patient's scans: each, and each pair.

    Args:
        images: contrast, as in `MODALITIES`, -> a file or a volume.

    Returns:
        What was seen; an image that cannot be read or shows nothing is a finding, not an error.

    Example:
        >>> findings = look({"T1": "T2.nii.gz", "T2": "T1.nii.gz"})  # doctest: +SKIP
        >>> findings.refusals()[0].message  # doctest: +SKIP
        'T1 (T2.nii.gz) looks like T2 (99% sure): name it T2=FILE, or go on with --trust-names'
    """
    looks: dict[str, Look] = {}
    findings: list[Finding] = []
    volumes: dict[str, Volume] = {}
    glances: dict[str, Glance] = {}
    for name, image in images.items():
        called = name if isinstance(image, Volume) else f"{name} ({Path(image).name})"
        try:
            volume = image if isinstance(image, Volume) else read_volume(image)
        except (ValueError, OSError) as error:
            findings.append(Finding("unreadable", "refuse", (name,), f"{name}: {error}", trusted=False))
            looks[name] = Look(None, (0.0, 0.0, 0.0))
            continue
        if not isinstance(image, Volume) and read_description(image).startswith("SYNTHETIC"):
            message = f"{called} is synthetic by its own words, and was not scanned: give a scan, or go on with {TRUST}"
            findings.append(Finding("synthetic", "refuse", (name,), message))
        i, j, k = (float(size) for size in volume.spacing)
        fault = _no_scan(name, called, volume)
        try:
            glanced = None if fault else glance(volume)
        except ValueError as error:
            fault = Finding("constant", "refuse", (name,), f"{called}: {error}", trusted=False)
            glanced = None
        if fault or glanced is None:
            findings += [fault] if fault else []
            looks[name] = Look(None, (i, j, k))
            continue
        volumes[name], glances[name] = volume, glanced
        looks[name] = Look(recognise(volume, glanced), (i, j, k))
        findings += _of_image(name, called, volume, glanced, looks[name])
    pairs: list[Pair] = []
    for pair in combinations(volumes, 2):
        first, second = (volumes[name] for name in pair)
        if _same_image(first, second):
            message = f"{' and '.join(pair)} are the same image: give the file of each contrast, or go on with {TRUST}"
            findings.append(Finding("duplicate", "refuse", pair, message))
            continue
        compared = Pair(pair, _same_grid(first, second), alike(glances[pair[0]], glances[pair[1]]))
        pairs.append(compared)
        if all(looks[name].seen.pose == UPRIGHT for name in pair):  # type: ignore[union-attr]
            findings += _of_pair(compared)
    kinds = {name: its_look.skull for name, its_look in looks.items() if its_look.skull is not None}
    if len(set(kinds.values())) > 1:
        stripped = [name for name, skull in kinds.items() if not skull]
        message = (
            f"{' and '.join(stripped)} has no skull, {' and '.join(n for n in kinds if n not in stripped)} has: "
            "strip all or none, or give --brain-mask"
        )
        findings.append(Finding("skulls", "warn", tuple(kinds), message))
    return Findings(looks, tuple(pairs), tuple(findings))


def _no_scan(name: str, called: str, volume: Volume) -> Finding | None:
    """What is no scan at all: constant, not finite, or a mask."""
    low, high = float(volume.array.min()), float(volume.array.max())
    if not np.isfinite([low, high]).all():
        return Finding("constant", "refuse", (name,), f"{called} has voxels that are no numbers", trusted=False)
    if low == high:
        return Finding("constant", "refuse", (name,), f"{called} shows nothing: every voxel is {low:g}", trusted=False)
    few = np.unique(volume.array.ravel()[:: max(volume.array.size // DETAIL, 1)])
    if len(few) < FEWEST_VALUES:
        message = f"{called} has only {len(few)} values, as a mask or label map has: give the scan, or {TRUST}"
        return Finding("labels", "refuse", (name,), message)
    return None


def _of_image(name: str, called: str, volume: Volume, glanced: Glance, look: Look) -> Iterator[Finding]:
    assert look.seen is not None
    if max(look.spacing) > THICKEST:
        message = (
            f"{called} has slices of {max(look.spacing):.1f} mm, and more than {THICKEST:g} mm tells too little "
            f"between them: take another series, or go on with {TRUST}"
        )
        yield Finding("thick", "refuse", (name,), message)
    clipped = _clipped(volume)
    if clipped > MOST_CLIPPED:
        message = f"{called} is clipped: {clipped:.0%} of the bright voxels have the highest value"
        yield Finding("clipped", "warn", (name,), message)
    model = trained()
    pose = look.seen.pose
    sure = float(look.seen.poses[pose])
    if pose != UPRIGHT and sure >= model.sure_of_pose:
        message = (
            f"{called} lies {pose_in_words(pose)}, where its header calls it upright ({_percent(sure)} sure): "
            f"correct the header, or go on with {TRUST}"
        )
        yield Finding("pose", "refuse", (name,), message, sure)
    else:
        yield from _of_contrast(name, called, look.seen, model.implausible)
    sides = _cut(glanced, skull=look.skull)
    if sides:
        area = max(sides.values())
        message = f"{called} is cropped: {area:.0f} cm2 of the head lie on its {' and '.join(sides)} edge"
        yield Finding("cropped", "warn", (name,), message)
    if look.seen.distance > 1:
        message = (
            f"{called} lies {look.seen.distance:.1f} times as far from what the weights were trained on as 99% of "
            "what they know: look at the result with care"
        )
        yield Finding("far", "warn", (name,), message)


def _of_contrast(name: str, called: str, recognised: Seen, implausible: float) -> Iterator[Finding]:
    """What it shows may lie between two contrasts, and be certain not to be the one that it is called."""
    shares: dict[str, float] = {}
    for contrast, probability in recognised.contrasts.items():
        group = " or ".join(sorted(INTERCHANGED)) if contrast in INTERCHANGED else contrast
        shares[group] = shares.get(group, 0.0) + probability
    own = " or ".join(sorted(INTERCHANGED)) if name in INTERCHANGED else name
    likeliest = sorted(shares, key=lambda group: -shares[group])
    if own not in shares or own == likeliest[0]:
        return
    looks: list[str] = []
    sure = 0.0
    for group in likeliest:
        if sure < LEAST_SURE:
            looks.append(group)
            sure += shares[group]
    if {likeliest[0], name} == NEXT_OF_KIN:
        implausible *= KIN_SURER
    words = " or ".join(looks)
    if shares[own] < implausible:
        right = f"name it {words}=FILE" if len(looks) == 1 and " " not in words else "name it by what it is"
        message = f"{called} looks like {words} ({_percent(sure)} sure): {right}, or go on with {TRUST}"
        yield Finding("contrast", "refuse", (name,), message, sure)
    elif shares[own] < UNLIKELY:
        message = f"{called} may be {words} ({_percent(sure)} sure) rather than {name}: look at it"
        yield Finding("contrast", "warn", (name,), message, sure)


def _of_pair(pair: Pair) -> Iterator[Finding]:
    first, second = pair.images
    likeness = pair.likeness
    if likeness.mirrored > likeness.best + MIRRORED:
        message = (
            f"{second} is {first}'s mirror image: left and right are exchanged in one of them; correct its header, or "
            f"go on with {TRUST}"
        )
        yield Finding("mirrored", "refuse", pair.images, message)
    elif pair.own < OTHER_HEAD and not DISTORTED & set(pair.images):
        message = (
            f"{first} and {second} show two heads: their edges agree to {max(pair.own, 0):.2f}, where one head's do "
            f"to 0.6 and more; give one patient's files, or go on with {TRUST}"
        )
        yield Finding("other_head", "refuse", pair.images, message)
    elif pair.own < (OTHER_HEAD if DISTORTED & set(pair.images) else HARDLY):
        message = f"{first} and {second} hardly agree ({pair.own:.2f} of 1): are they of one patient?"
        yield Finding("other_head", "warn", pair.images, message)
    elif likeness.apart > FAR_APART:
        message = f"{first} and {second} lie {likeness.apart:.0f} mm apart by their headers: they have to be registered"
        yield Finding("apart", "warn", pair.images, message)


def _cut(glanced: Glance, *, skull: bool | None) -> dict[str, float]:
    """cm2 of head on each side of the field of view where a head should end; below, a neck may go on."""
    bright = glanced.head & (glanced.array > CUT_DEPTH)
    sides = {"left": (0, 0), "right": (0, -1), "back": (1, 0), "front": (1, -1), "top": (2, -1)}
    if skull is False:
        sides["lower"] = (2, 0)
    areas = {}
    for side, (axis, place) in sides.items():
        inner = bright.take(place, axis=axis) | bright.take(1 if place == 0 else -2, axis=axis)
        areas[side] = float(inner.sum()) * STEP**2 / 100 if bright.shape[axis] > 2 else 0.0
    return {side: area for side, area in areas.items() if area > MOST_CUT}


def _clipped(volume: Volume) -> float:
    """The share of the bright voxels that have the very highest value."""
    values = volume.array.ravel()[:: max(volume.array.size // (10 * DETAIL), 1)]
    high = float(volume.array.max())
    bright = values[values > 0.2 * high]
    return float((bright == high).mean()) if bright.size else 0.0


def _same_grid(first: Volume, second: Volume) -> bool:
    return first.shape == second.shape and bool(np.abs(first.affine - second.affine).max() < SAME_GRID)


def _same_image(first: Volume, second: Volume) -> bool:
    """Whether the detail of two images, noise and all, is the same but for scale."""
    if first.shape != second.shape:
        return False
    a, b = (_detail(volume) for volume in (first, second))
    if a.std() == 0 or b.std() == 0:
        return False
    return bool(np.corrcoef(a, b)[0, 1] > SAME_IMAGE)


def _detail(volume: Volume) -> NDArray[np.float32]:
    """How each of some voxels differs from its neighbour along the first axis."""
    steps = np.diff(volume.array, axis=0).ravel()
    return steps[:: max(steps.size // DETAIL, 1)]


def _percent(sure: float) -> str:
    return f"{min(int(100 * sure), 99)}%"
