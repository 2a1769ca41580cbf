"""A DICOM study read: its series, which contrast each shows, and the volume of one; what cannot be trusted is refused.

Which contrast a series shows is told by its description first, then by how it was acquired; `chosen` takes an explicit
map, which comes before both.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError

from monai_ext.data.declared import check_count
from monai_ext.data.volumes import LARGEST_SHEAR, LPS_TO_RAS, Volume
from monai_ext.modalities import canonical

MANUFACTURER = "monai_ext"  # of the series that we write
SYNTHETIC = "SYNTHETIC"  # which their descriptions begin with
IDENTITY = ("PatientID", "PatientName", "PatientBirthDate")
MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
LEAST_B = 500  # s/mm2: below, a diffusion image shows T2 rather than diffusion
SAME_DIRECTION = 1e-3  # between the unit vectors of two slices: 0.2 mm at the edge of a head
SAME_STEP = 0.02  # of a slice's distance
WITH_CONTRAST = re.compile(r"\+\s?c\b|\bce\b|\bgd\b|gado|\bpost\b|\bkm\b|contrast|t1c\b", re.IGNORECASE)


@dataclass(frozen=True)
class Series:
    """The instances of one series that make one volume: one echo, one b-value.

    Attributes:
        files: a file an instance.
        headers: pydicom's dataset of each, without its pixels.
    """

    files: tuple[Path, ...]
    headers: tuple[Any, ...]

    @property
    def number(self) -> str:
        """The series' number, as text; empty if it has none."""
        return str(self.headers[0].get("SeriesNumber", ""))

    @property
    def description(self) -> str:
        """The series' description; empty if it has none."""
        return str(self.headers[0].get("SeriesDescription", "")).strip()

    @property
    def b(self) -> float | None:
        """The b-value in s/mm2, None where the header tells none."""
        return _b(self.headers[0])

    @property
    def echo(self) -> float | None:
        """The echo time in ms, None where the header tells none."""
        return _number(self.headers[0], "EchoTime")

    @property
    def synthetic(self) -> bool:
        """Whether it was computed, not acquired, by its own words."""
        return is_synthetic(self.headers[0])

    def __str__(self) -> str:
        b = "" if self.b is None else f", b {self.b:g}"
        b += "" if self.echo is None else f", echo {self.echo:g}"
        shows = contrast_of(self.headers[0]) or ("synthetic" if self.synthetic else "no contrast that is known")
        return f"series {self.number} {self.description!r} ({len(self.files)} slices{b}): {shows}"


def read_study(folder: Path) -> list[Series]:
    """Read the headers of the MR series below `folder`; other files are passed over.

    Args:
        folder: with the DICOM files of one study, in any folders below.

    Returns:
        A series for each echo and each b-value.

    Raises:
        ValueError: no MR image is there, or those of two patients or two studies.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: a study is a folder of DICOM files")
    grouped: dict[tuple[Any, ...], list[tuple[Path, Any]]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with _as_fault_of(path):
            try:
                header = pydicom.dcmread(path, stop_before_pixels=True)
            except (InvalidDicomError, EOFError):
                continue
            if header.get("Modality") == "MR" and "Rows" in header:
                uid, image_type = str(header.get("SeriesInstanceUID") or ""), _image_type(header)
                if not uid or not header.get("SOPInstanceUID"):
                    raise ValueError("it has no SeriesInstanceUID or no SOPInstanceUID")
                key = (uid, str(header.get("EchoTime")), _b(header), "ADC" in image_type)
                _number(header, "EchoTime")
                contrast_of(header)  # reads what tells a contrast: a value that cannot be read shows here
                grouped.setdefault(key, []).append((path, header))
    if not grouped:
        raise ValueError(f"{folder} holds no MR image in DICOM")
    headers = [header for instances in grouped.values() for _, header in instances]
    _check_one_patient(folder, headers)
    _check_one(folder, headers, "StudyInstanceUID", what="studies")
    series = [Series(*(tuple(part) for part in zip(*instances, strict=True))) for instances in grouped.values()]
    return sorted(
        series, key=lambda entry: (int(entry.number) if entry.number.isdigit() else 0, entry.b or 0, entry.description)
    )


def _check_one_patient(folder: Path, headers: Sequence[Any]) -> None:
    """Refuse a study whose files do not all name one person by ID, name and birth date; without an ID none do."""
    for keyword in IDENTITY:
        _check_one(folder, headers, keyword, what="patients")
    if not _text(headers[0], "PatientID"):
        raise ValueError(
            f"{folder} has no PatientID: that its images are of one person cannot be told; set it in every file"
        )


def _check_one(folder: Path, headers: Sequence[Any], keyword: str, *, what: str) -> None:
    values = sorted({_text(header, keyword) for header in headers})
    if len(values) > 1:
        shown = ", ".join(map(repr, values[:4]))
        raise ValueError(
            f"{folder} holds {len(values)} {what}, expected one: {shown} ({keyword}); give a folder of one"
        )


def _text(header: Any, keyword: str) -> str:
    """A value without the padding that DICOM allows; "" where there is none."""
    value = header.get(keyword)
    return "" if value is None else str(value).strip(" \0^")


@contextmanager
def _as_fault_of(what: object) -> Iterator[None]:
    """Whatever a value may do to pydicom or to numpy is a fault of this file or series, in one line."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if reason.startswith(str(what)):
            raise
        raise ValueError(f"{what} is damaged: {reason}") from error


def contrast_of(header: Any) -> str | None:
    """Tell which contrast a series shows.

    Args:
        header: pydicom's dataset of one of its instances.

    Returns:
        The contrast, None where it is none of ours or cannot be told, and where the series is synthetic.
    """
    if is_synthetic(header):
        return None
    kinds, text = _image_type(header), f" {header.get('SeriesDescription', '')} ".lower()
    sequence = set(_values(header, "ScanningSequence"))
    if "LOCALIZER" in kinds or re.search(r"\bloc\b|localizer|scout|survey", text):
        return None
    if "ADC" in kinds or re.search(r"\badc\b|_adc\b|apparent diffusion", text):
        return "ADC"
    b = _b(header)
    if "DIFFUSION" in kinds or b is not None or re.search(r"dwi|diffusion|tracew", text):
        return "DWI" if b is None or b >= LEAST_B else None
    echo, repetition, inversion = (_number(header, key) for key in ("EchoTime", "RepetitionTime", "InversionTime"))
    if "flair" in text or "tirm" in text:
        return None if re.search(r"(?<!f)t1", text) else "FLAIR"
    if re.search(r"t2\s?\*|t2star|swi|fl2d|hemo", text) or ("t2" in text and "GR" in sequence and "SE" not in sequence):
        return None  # of T2*, which the vocabulary lacks
    if re.search(r"t1|mp\s?-?rage|spgr|bravo", text):
        return "T1C" if WITH_CONTRAST.search(text) or header.get("ContrastBolusAgent") else "T1"
    named = [name for name, word in (("PD", r"\bpd|proton"), ("T2", r"t2")) if re.search(word, text)]
    if len(named) == 2:  # a dual echo: the earlier is PD
        return "PD" if echo is not None and echo < 40 else "T2"
    if named:
        return named[0]
    if echo is None or repetition is None or "SE" not in sequence:
        return None
    if inversion is not None and inversion > 1500:
        return "FLAIR" if echo > 60 else None
    if repetition < 1000 and echo < 30:
        return "T1C" if header.get("ContrastBolusAgent") else "T1"
    if repetition > 1800:
        return "T2" if echo > 70 else "PD" if echo < 40 else None
    return None


def is_synthetic(header: Any) -> bool:
    """Say whether a series was computed by this software; scanners have synthetic series too, of what they measured.

    Args:
        header: pydicom's dataset of one of its instances.

    Returns:
        Whether it is: then it shows what a network guessed, and is no source for another.
    """
    described = re.match(rf"{SYNTHETIC} \w+ \(", str(header.get("SeriesDescription", "")))
    return _text(header, "Manufacturer") == MANUFACTURER or described is not None


def choose(study: Sequence[Series], contrasts: Sequence[str], chosen: Mapping[str, str]) -> dict[str, Series]:
    """Find the series of each contrast: the one that `chosen` names, or the one that shows it.

    Args:
        study: as `read_study` gives it.
        contrasts: which are wanted.
        chosen: contrast -> a series' number, description or UID; NUMBER@ECHO is one of a series of several echoes.

    Returns:
        contrast -> series, for every contrast.

    Raises:
        ValueError: no series or several could be a contrast, or `chosen` names a contrast that is not wanted or a
            series that is synthetic.
    """
    named = {canonical(contrast): what for contrast, what in chosen.items()}
    unused = [contrast for contrast in named if contrast not in contrasts]
    if unused:
        raise ValueError(f"--series names {unused[0]}, but the sources are {', '.join(contrasts)}")
    holds = "; the study holds\n  " + "\n  ".join(map(str, study))
    answer = {}
    for contrast in contrasts:
        what = named.get(contrast)
        if what is None:
            matching = [series for series in study if contrast_of(series.headers[0]) == contrast]
        else:
            matching = [series for series in study if what.lower() in _names(series)]
        if contrast == "DWI" and len({_uid(series) for series in matching}) == 1:
            # one series of several b-values: the strongest
            matching = [max(matching, key=lambda series: series.b or 0)]
        if not matching:
            asked = f"no series is {what!r}, asked for as {contrast}" if what else f"no series shows {contrast}"
            raise ValueError(f"{asked}: name one with --series {contrast}=NUMBER{holds}")
        if len(matching) > 1:
            numbers = " and ".join(f"{series.number} {series.description!r}" for series in matching)
            how = f"--series {contrast}=NUMBER" + ("@ECHO" if len({s.number for s in matching}) == 1 else "")
            raise ValueError(f"series {numbers} all match {contrast}: say which with {how}{holds}")
        if matching[0].synthetic:
            raise ValueError(
                f"series {matching[0].number} {matching[0].description!r} is synthetic: it was computed, and is no "
                f"source for {contrast}{holds}"
            )
        answer[contrast] = matching[0]
    return answer


def _names(series: Series) -> set[str]:
    """What a person may call it, in small letters."""
    echo = set() if series.echo is None else {f"{series.number}@{series.echo:g}"}
    return {series.number, series.description.lower(), _uid(series), *echo}


def sorted_slices(series: Series) -> Series:
    """Sort a series' slices along their normal, and refuse what is no one volume.

    Args:
        series: of `read_study`, its instances in any order.

    Returns:
        The same instances, from the lowest along the normal to the highest.

    Raises:
        ValueError: it is not MR Image Storage of two slices or more, lies nowhere, is too large, or its slices are not
            parallel, of one size, equally far apart, each there once.
    """
    name = f"series {series.number} {series.description!r}"
    with _as_fault_of(name):
        return _sorted_slices(series, name)


def _sorted_slices(series: Series, name: str) -> Series:
    first = series.headers[0]
    if str(first.SOPClassUID) != MR_IMAGE:
        raise ValueError(f"{name} is {first.SOPClassUID.name}: only MR Image Storage, a file a slice, is read")
    lacking = [key for key in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing") if not first.get(key)]
    if lacking:
        raise ValueError(f"{name} lacks {', '.join(lacking)}: where its slices lie is not known")
    for header in series.headers:
        _check_place(header, name)
    check_count(name, (first.Rows, first.Columns, len(series.headers)))
    if len(series.headers) < 2:
        raise ValueError(f"{name} has one slice: a volume needs more")
    directions = np.array([header.ImageOrientationPatient for header in series.headers], dtype=float)
    apart = np.abs(directions - directions[0]).max(axis=1)
    if apart.max() > SAME_DIRECTION:
        count = int((apart > SAME_DIRECTION).sum())
        raise ValueError(f"{name} has mixed orientations: {count} of {len(apart)} slices are not parallel to the first")
    for key in ("Rows", "Columns", "PixelSpacing"):
        values = {str(header.get(key)) for header in series.headers}
        if len(values) > 1:
            raise ValueError(f"{name} has slices of different {key}: {', '.join(sorted(values))}")
    normal = np.cross(directions[0, :3], directions[0, 3:])
    positions = np.array([header.ImagePositionPatient for header in series.headers], dtype=float)
    order = np.argsort(positions @ normal, kind="stable")
    along = (positions @ normal)[order]
    steps = np.diff(along)
    usual = float(np.median(steps))
    if steps.min() < 1e-3:
        where = along[int(steps.argmin())]
        raise ValueError(f"{name} has two slices at {where:.2f} mm: it holds more than one volume, or a slice twice")
    wrong = np.flatnonzero(np.abs(steps - usual) > SAME_STEP * usual)
    if wrong.size:
        at, step = along[wrong[0]], steps[wrong[0]]
        times = step / usual
        if times > 1.5 and abs(times - round(times)) < 2 * SAME_STEP * round(times):
            missing = sum(round(float(steps[place]) / usual) - 1 for place in wrong)
            gap = f"after {at:.2f} mm comes {at + step:.2f} mm, where the others are {usual:.2f} mm apart"
            raise ValueError(f"{name} lacks {missing} slice{'s' * (missing > 1)}: {gap}")
        raise ValueError(f"{name} has unequal spacing: {step:.2f} mm after {at:.2f} mm, elsewhere {usual:.2f} mm")
    drift = (positions[order][-1] - positions[order][0]) - normal * (along[-1] - along[0])
    if np.linalg.norm(drift) > min(0.5, LARGEST_SHEAR * abs(along[-1] - along[0])):
        raise ValueError(f"{name} is sheared: its slices drift sideways by {np.linalg.norm(drift):.2f} mm")
    return Series(tuple(series.files[n] for n in order), tuple(series.headers[n] for n in order))


def _check_place(header: Any, name: str) -> None:
    """Refuse a slice whose place is not numbers, or whose pixels have no size."""
    places = (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2))
    for key, count in places:
        value = header.get(key)
        numbers = np.array([] if value is None else value, dtype=float).ravel()
        if numbers.size != count or not np.isfinite(numbers).all():
            raise ValueError(f"{name} has {key} {value!s:.60}, expected {count} numbers")
        if key == "PixelSpacing" and numbers.min() <= 0:
            raise ValueError(f"{name} has PixelSpacing {value!s:.60}: both must be above zero")
        if key == "ImageOrientationPatient":
            axes = numbers.reshape(2, 3)
            if np.abs(axes @ axes.T - np.eye(2)).max() > 0.01:
                raise ValueError(f"{name} has {key} {value!s:.60}: its axes are not of length 1 and at 90 degrees")


def read_series(series: Series) -> Volume:
    """Read the volume of a series: its values, rescaled, and where they lie.

    Args:
        series: of `sorted_slices`, whose files are read one after the other.

    Returns:
        (columns, rows, slices) in the units that RescaleSlope and RescaleIntercept give, its affine in RAS mm.

    Raises:
        ValueError: too many voxels, or a file that is damaged, has no pixels, or is compressed in a way that is not
            read.
        OSError: a file cannot be read.
    """
    check_count(series, (series.headers[0].Rows, series.headers[0].Columns, len(series.files)))
    slices = [_pixels(path) for path in series.files]
    first, last = series.headers[0], series.headers[-1]
    row, column = np.split(np.array(first.ImageOrientationPatient, dtype=float), 2)
    start, end = (np.array(header.ImagePositionPatient, dtype=float) for header in (first, last))
    affine = np.eye(4)
    affine[:3, 0] = row * float(first.PixelSpacing[1])
    affine[:3, 1] = column * float(first.PixelSpacing[0])
    affine[:3, 2] = (end - start) / (len(slices) - 1)
    affine[:3, 3] = start
    return Volume(np.stack([plane.T for plane in slices], axis=-1), LPS_TO_RAS @ affine)


def _pixels(path: Path) -> NDArray[np.float32]:
    with _as_fault_of(path):
        image = pydicom.dcmread(path)
        if not image.get("PixelData"):
            raise ValueError(f"{path} has no PixelData: copy it again")
        factors = [_factor(image, path, *pair) for pair in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))]
        try:
            stored = image.pixel_array
        except (RuntimeError, ValueError, NotImplementedError, AttributeError, KeyError, TypeError) as error:
            syntax = image.file_meta.TransferSyntaxUID
            if syntax.is_compressed:
                hint = "decompress the study first (gdcmconv --raw, dcmdjpeg), or install pylibjpeg"
                raise ValueError(f"{path} is compressed as {syntax.name}, which cannot be read here: {hint}") from error
            raise ValueError(f"{path} is damaged: its pixels cannot be read ({error})") from error
        if stored.ndim != 2:
            raise ValueError(f"{path} has pixels of shape {stored.shape}, expected one grey slice")
        return (stored * factors[0] + factors[1]).astype(np.float32)


def _factor(image: Any, path: Path, keyword: str, default: float) -> float:
    """A rescaling's number; one that is there and empty is refused, for what it was is not known."""
    if keyword not in image:
        return default
    value = image[keyword].value
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number) or (keyword == "RescaleSlope" and number == 0):
        raise ValueError(f"{path} has {keyword} {value!s:.40}, expected a number{'' if default == 0 else ' but 0'}")
    return number


def _b(header: Any) -> float | None:
    """The b-value in s/mm2, where the header has one: DICOM's own, Siemens's, or in the sequence's name."""
    for tag in ((0x0018, 0x9087), (0x0019, 0x100C)):
        if tag in header:
            try:
                return float(header[tag].value)
            except (TypeError, ValueError):
                continue
    match = re.search(r"ep_b(\d+)t?$", str(header.get("SequenceName", "")))
    return float(match[1]) if match else None


def _uid(series: Series) -> str:
    return str(series.headers[0].SeriesInstanceUID)


def _image_type(header: Any) -> list[str]:
    return [value.upper() for value in _values(header, "ImageType")]


def _values(header: Any, keyword: str) -> list[str]:
    value = header.get(keyword) or []
    return [value] if isinstance(value, str) else [str(item) for item in value]


def _number(header: Any, keyword: str) -> float | None:
    value = header.get(keyword)
    return None if value in (None, "") else float(value)
