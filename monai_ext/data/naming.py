"""What file names say in each dataset: whose image it is, of which visit, and which contrast.

One function a dataset, from a path relative to the dataset's folder to a Found, or None where the name is not
that dataset's.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath

from monai_ext.data.volumes import ITK_SUFFIXES
from monai_ext.modalities import canonical

EXTENSIONS = (".nii.gz", ".nii", *ITK_SUFFIXES)
LABEL = "label"
LABEL_NAMES = {"seg", "segm", "segmentation", "label", "labels", "msk", "gt", "ot"}
LABEL_NAMES |= {"lesion", "lesions", "lesionmask", "lesionmsk", "tumormask", "tumourmask"}
STRUCTURE = {"anat", "dwi", "nifti", "mri"}  # folders that name neither a person nor a visit
SESSION = re.compile(
    r"(ses|session|visit)[-_ ][^\W_]+|(ses|session|visit|timepoint|tp|scan|baseline|bl|follow[-_ ]?up|fu)[-_ ]?\d*"
    r"|(week|month|year|day)[-_ ]?\d+([-_ ]\d+)?|MR[-_ ]?(\d{1,2}|d\d+)|pre|post"
    r"|(19|20)\d\d[-_.]?\d\d[-_.]?\d\d([-_ T]?\d\d([-_.:]?\d\d){1,2}(\.\d+)?)?([-_ ](MRI?|scan))?"
    r"|(19[89]|20[0-3])\d([-_.]\d\d)?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Found:
    """What a file's name says of it.

    Attributes:
        subject: the person.
        kind: a contrast, "label", or "" for others.
        session: the visit, empty where the names tell of none.
        home: the folder that is the visit's own.
    """

    subject: str
    kind: str
    session: str = ""
    home: str = ""


def stem(path: PurePath) -> str:
    """Give a file's name without its image extension, whatever its case.

    Args:
        path: of which the last part alone counts.

    Returns:
        "case7_T1" of "case7_T1.nii.gz"; "" where the extension is not one of EXTENSIONS: then it is no image.
    """
    lower = path.name.lower()
    return next((path.name[: -len(end)] for end in EXTENSIONS if lower.endswith(end)), "")


def kind_of(word: str) -> str:
    """Say what a word of a file's name stands for: "t1ce" -> "T1C", "Segm" -> "label".

    Args:
        word: without separators before and after it; its case does not count.

    Returns:
        A name of `MODALITIES`, "label", or "" for anything else.
    """
    if re.sub(r"[\W_]+", "", word).lower() in LABEL_NAMES:
        return LABEL
    try:
        return canonical(word)
    except ValueError:
        return ""


def ixi(path: PurePath) -> Found | None:
    """Read IXI012-HH-1211-T1.nii.gz: person, hospital, examination, contrast; one visit each.

    Args:
        path: relative to the dataset's folder.

    Returns:
        What the name says, of kind "" for MRA and DTI, which have no use; None where it is no name of IXI's.
    """
    match = re.fullmatch(r"(IXI\d+)-[A-Za-z]+-\d+-(.+)", stem(path))
    return match and Found(match[1], kind_of(match[2]))


def brats2015(path: PurePath) -> Found | None:
    """Read HGG/brats_tcia_pat153_0181/VSD.Brain.XX.O.MR_T1c.35536/VSD.Brain.XX.O.MR_T1c.35536.mha.

    The inner folder may be missing; the label is VSD.Brain_3more.XX.O.OT. The people of 2013 are numbered afresh in HGG
    and LGG, and keep that in their names; those of TCIA are not, and their last number is the visit.

    Args:
        path: relative to the dataset's folder.

    Returns:
        What the name says; None where it is no name of BraTS 2015's, or lies in no person's folder.
    """
    match = re.fullmatch(r"VSD\.Brain(?:_\w+)?(?:\.X+)+(?:\.O)?\.(?:MR_)?(.+)", stem(path))
    folders = [part for part in path.parts[:-1] if not part.startswith("VSD.")]
    if not match or not folders:
        return None
    case = re.fullmatch(r"(brats_.+)_(\d+)", folders[-1])
    subject, session = (case[1], case[2]) if case else (folders[-1], "")
    if len(folders) > 1 and not subject.startswith("brats_tcia"):
        subject = f"{folders[-2]}_{subject}"
    return Found(subject, kind_of(re.sub(r"\.\d+$", "", match[1])), session)


def brats2020(path: PurePath) -> Found | None:
    """Read BraTS 2017 to 2021: BraTS20_Training_001_t1ce.nii.gz, BraTS2021_00000_seg.nii.gz.

    Up to 2019 the visit comes last, Brats18_TCIA01_390_1_flair.nii.gz. One label of 2020 kept its hospital's name,
    W39_1998.09.19_Segm.nii: it belongs to the folder that it lies in.

    Args:
        path: relative to the dataset's folder.

    Returns:
        What the name says; None where it is no name of these years', or shows neither a contrast nor a label.
    """
    case, _, word = stem(path).rpartition("_")
    if word == "Segm" and path.parent.name.lower().startswith("brats"):
        case = path.parent.name
    if not kind_of(word) or not re.match(r"brats(17|18|19|20|2021)_", case, re.IGNORECASE):
        return None
    visit = re.fullmatch(r"(brats1[789]_.+)_(\d+)", case, re.IGNORECASE)
    return Found(visit[1], kind_of(word), visit[2]) if visit else Found(case, kind_of(word))


def brats2023(path: PurePath) -> Found | None:
    """Read BraTS-GLI-00000-001-t1c.nii.gz: person BraTS-GLI-00000, time point 001; MEN, MET, PED, SSA alike.

    Args:
        path: relative to the dataset's folder.

    Returns:
        What the name says; None where it is no name of BraTS's since 2023.
    """
    match = re.fullmatch(r"(BraTS-[A-Za-z]+-\d+)(?:-(\d+))?-(\w.*)", stem(path))
    return match and Found(match[1], kind_of(match[3]), match[2] or "")


def bids(path: PurePath) -> Found | None:
    """Read sub-01_ses-02_acq-mprage_run-1_T1w.nii.gz; a T1w with ce- is T1C.

    Under derivatives/ only lesion labels count: the images there are copies.

    Args:
        path: relative to the dataset's folder.

    Returns:
        What the name says, of kind "" for an image of no use, such as a phase; None where it is no name of BIDS's, or
        is under sourcedata/, code/ or, but for lesion labels, derivatives/.

    Example:
        >>> found = bids(PurePath("sub-01/ses-02/anat/sub-01_ses-02_ce-gadolinium_T1w.nii.gz"))
        >>> found.subject, found.session, found.kind
        ('sub-01', '02', 'T1C')
    """
    match = re.fullmatch(r"sub-([^_]+)(?:_ses-([^_]+))?((?:_[a-zA-Z]+-[^_]+)*?)_([^_]+)", stem(path))
    if not match or {"sourcedata", "code"} & set(path.parts):
        return None
    subject, session, suffix = f"sub-{match[1]}", match[2] or "", match[4]
    entities = dict(entity.split("-", 1) for entity in match[3].split("_")[1:])
    mask = suffix.lower() in {"msk", "mask", "roi", "dseg"} and re.search(r"lesion|tumou?r|stroke", match[3], re.I)
    if mask or kind_of(suffix) == LABEL:
        return Found(subject, LABEL, session)
    if "derivatives" in path.parts:
        return None
    kind = kind_of(suffix)
    if "ce" in entities:  # with a contrast agent only T1 has a name here
        kind = "T1C" if kind == "T1" else ""
    if entities.get("part", "mag") != "mag":  # phase, real or imaginary part
        kind = ""
    return Found(subject, kind, session)


def isles22(path: PurePath) -> Found | None:
    """Read sub-strokecase0001_ses-0001_dwi.nii.gz and _adc in dwi, _FLAIR in anat, _msk in derivatives: BIDS.

    Args:
        path: relative to the dataset's folder.

    Returns:
        What the name says; None where it is not a sub-strokecase's.
    """
    return bids(path) if path.name.startswith("sub-strokecase") else None


def folder(path: PurePath) -> Found | None:
    """Read plain folders, by the contrast that ends a file's name or names its folder.

    case7/T1.nii.gz, case7/case7_flair.nii.gz, case7/T1/image.nii.gz, T1/case7.nii.gz, case7_T1.nii.gz. The
    innermost folder is the person, or the visit if it is called so: case7/visit2/t1ce.nii.gz,
    case7/2019-05-01/adc.mha. So is what ends the person's name: case7_visit2_T1.nii.gz, case7_visit2/T1.nii.gz.
    A word that could be either is a visit, since one person in two splits does more harm than two in one.

    Args:
        path: relative to the dataset's folder.

    Returns:
        What the name and the folders say, of kind "" where neither shows a contrast or a label; None where it is no
        image,
        or a file of no folder and of no kind.

    Example:
        >>> found = folder(PurePath("case7/2019-05-01/t1ce.nii.gz"))
        >>> found.subject, found.session, found.kind
        ('case7', '2019-05-01', 'T1C')
    """
    name = stem(path)
    if not name:
        return None
    starts = [0, *(separator.end() for separator in re.finditer(r"[_\-. ]+", name))]
    start = next((at for at in starts if kind_of(name[at:])), None)
    kind = "" if start is None else kind_of(name[start:])
    prefix = name if start is None else name[:start].rstrip("_-. ")

    homes = [part for part in path.parts[:-1] if not kind_of(part) and part.lower() not in STRUCTURE]
    named = [part for part in path.parts[:-1] if kind_of(part)]
    kind = kind or (kind_of(named[-1]) if named else "")
    if not homes:
        return Found(*_person_and_visit(prefix, kind)) if kind else None
    home = "/".join(homes)
    if len(homes) > 1 and SESSION.fullmatch(homes[-1]):
        return Found(homes[-2], kind, homes[-1], home)
    return Found(*_person_and_visit(homes[-1], kind), home)


def _person_and_visit(name: str, kind: str) -> tuple[str, str, str]:
    """case7_visit2 is visit2 of case7."""
    visit = re.fullmatch(rf"(.+?)[_\-. ]+({SESSION.pattern})", name, re.IGNORECASE)
    return (visit[1], kind, visit[2]) if visit else (name, kind, "")


LAYOUTS: dict[str, Callable[[PurePath], Found | None]] = {
    "ixi": ixi,
    "brats2015": brats2015,
    "brats2020": brats2020,
    "brats2023": brats2023,
    "isles22": isles22,
    "bids": bids,
    "folder": folder,
}
