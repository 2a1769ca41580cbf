"""What a person names on the command line, recognised: image files, a folder, a datalist, a DICOM study."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from monai_ext.data.datalist import SubjectError
from monai_ext.data.layouts import DICOM, detect, walk
from monai_ext.data.naming import LABEL, LAYOUTS, Found, kind_of, stem
from monai_ext.files import absolute
from monai_ext.inference.subjects import SYNTHETIC, Cases, find_subjects
from monai_ext.modalities import MODALITIES

AS_FILES = "T1=FILE T2=FILE"


@dataclass(frozen=True)
class Study:
    """A folder that holds DICOM files."""

    folder: Path


def recognised(words: Sequence[str]) -> Cases | Study:
    """Tell who is meant by files (their contrast by name, or as T1=FILE), a folder, a datalist or a DICOM study.

    Args:
        words: of the command line.

    Returns:
        The subjects with their images, or the folder of a DICOM study.

    Raises:
        ValueError: it cannot be told, or they do not go together; the message says what to type.
    """
    if len(words) == 1 and ("=" not in words[0] or Path(words[0]).exists()):
        path = absolute(Path(words[0]))
        if path.is_dir():
            return _of_folder(path)
        if path.suffix.lower() == ".json":
            return find_subjects(datalist=path)
    images: dict[str, Path] = {}
    untold: list[Path] = []
    names = []
    for word in words:
        contrast, path, subject = _of_word(word)
        if not contrast:
            untold.append(path)
            continue
        if contrast in images:
            raise ValueError(
                f"{images[contrast]} and {path} are both {contrast}: give one of them, or say what the other shows, "
                f"as {_another(contrast)}={path}"
            )
        images[contrast] = path
        names.append(subject)
    if untold:
        raise ValueError(_looked_at(untold, images))
    named = names[0] if len(set(names)) == 1 else None
    return find_subjects(images=images, name=named or None)


def is_dicom(path: Path) -> bool:
    """Say whether the file's content, or else its name, says that it is DICOM.

    Args:
        path: a file.

    Returns:
        Whether it is; False where it cannot be read.
    """
    if path.suffix.lower() in DICOM:
        return True
    if stem(path):
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _of_word(word: str) -> tuple[str, Path, str]:
    """contrast, "" where the name does not tell it, file, and whose it is where the name says so"""
    before, equals, after = word.partition("=")
    contrast = kind_of(before) if equals and not Path(word).exists() else ""
    if equals and not Path(word).exists() and (contrast in ("", LABEL) or not after):
        raise ValueError(f"{word} is no CONTRAST=FILE such as T1=a.nii.gz; contrasts are {', '.join(MODALITIES)}")
    path = absolute(Path(after if contrast else word))
    if not path.exists():
        near = difflib.get_close_matches(path.name, [neighbour.name for neighbour in path.parent.glob("*")], n=1)
        raise ValueError(f"{path} is not there{f'; did you mean {near[0]}?' if near else ''}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give it alone, or files, as {AS_FILES}")
    if is_dicom(path):
        raise ValueError(f"{path} is DICOM: give the study's folder, alone")
    if not stem(path):
        raise ValueError(f"{path} is no image: NIfTI is read (.nii.gz, .nii), MetaImage and NRRD, and DICOM's folders")
    named = _named(path)
    if contrast:
        return contrast, path, named.subject
    if named.kind == LABEL:
        raise ValueError(f"{path} is a label map by its name, and none is needed: leave it out")
    return named.kind, path, named.subject


def _looked_at(untold: Sequence[Path], images: Mapping[str, Path]) -> str:
    """That names do not tell, and what to type: what they look like, beside the others, where that can be seen."""
    from monai_ext.inference.checks import INTERCHANGED, look  # imports torch, which takes longer than to read names

    files = " and ".join(map(str, untold))
    fault = f"{files}: {'its name does' if len(untold) == 1 else 'their names do'} not tell"
    findings = look({**images, **{str(path): path for path in untold}})
    shown = findings.shown()
    seen = [shown.get(str(path)) for path in untold]
    contrasts = [one[0] for one in seen if one]
    if findings.distance > 1 or len({*contrasts, *images}) < len(untold) + len(images):  # no head, or two look alike
        return f"{fault} what is shown: say it, as {_another(*images)}={untold[0]}"
    either = " or ".join(sorted(INTERCHANGED))
    looks = " and ".join(f"{either if one[0] in INTERCHANGED else one[0]} ({one[1]:.0%} sure)" for one in seen if one)
    words = " ".join(f"{contrast}={path}" for contrast, path in zip(contrasts, untold, strict=True))
    return f"{fault} what is shown. By its look, {looks}: say it, as {words}"


def _named(path: Path) -> Found:
    """What the names tell of a file; whose it is only where a dataset's names do, as a folder's may be any."""
    layout = detect([path])
    name = PurePath(*path.parts[-2:])
    named = LAYOUTS[layout](name) if layout != "folder" else None
    if named is not None and named.kind:
        return named
    plain = LAYOUTS["folder"](name)
    return Found("", plain.kind if plain else "")


def _another(*contrasts: str) -> str:
    return next((other for other in MODALITIES if other not in contrasts), MODALITIES[0])


def _of_folder(folder: Path) -> Cases | Study:
    unread: list[SubjectError] = []
    dicom: list[Path] = []
    images: list[Path] = []
    for file in walk(folder, unread):
        if is_dicom(file):
            dicom.append(file)
        elif stem(file) and not stem(file).endswith(SYNTHETIC):
            images.append(file)
    if dicom and not images:
        return Study(folder)
    if dicom and images and _of_one(dicom, images, folder):
        raise ValueError(
            f"{folder} holds DICOM ({dicom[0].name}) and other images ({images[0].name}): give the folder "
            f"of the DICOM study alone, or the files, as {AS_FILES}"
        )
    if not images and not unread:
        raise ValueError(
            f"{folder} holds no image and no DICOM: give a folder of subject folders (case1/T1.nii.gz), a DICOM study, "
            f"or files, as {AS_FILES}"
        )
    try:
        return find_subjects(folder=folder)
    except ValueError as error:
        raise ValueError(f"{str(error).partition('; give images')[0]}; give the files, as {AS_FILES}") from None


def _of_one(dicom: Sequence[Path], images: Sequence[Path], folder: Path) -> bool:
    """Whether DICOM and other images are of one subject: both in one folder below, or some in none of them."""
    tops = [{file.relative_to(folder).parts[:-1][:1] for file in files} for files in (dicom, images)]
    return bool(tops[0] & tops[1]) or () in tops[0] | tops[1]
