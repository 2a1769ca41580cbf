"""A synthesised volume as a new DICOM MR series in the patient's study, marked synthetic in every place there is."""

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from monai_ext import __version__
from monai_ext.data.dicom import MANUFACTURER, SYNTHETIC, Series
from monai_ext.provenance import warning

WHITEST = 1000  # what 1 becomes: a window of width 1 has no grey values where windows are of whole numbers
SLOPE = 0.02  # of [0, WHITEST] as whole numbers up to 50000; exact in the decimals that DICOM writes
LONGEST_TEXT = 10240  # characters of an LT
CARRIED = (
    *("SpecificCharacterSet", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex"),
    *("PatientAge", "PatientSize", "PatientWeight", "PatientIdentityRemoved", "DeidentificationMethod"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber"),
    *("ReferringPhysicianName", "FrameOfReferenceUID", "PositionReferenceIndicator", "PatientPosition"),
    *("BodyPartExamined", "Laterality", "MRAcquisitionType", "MagneticFieldStrength", "SliceThickness"),
    *("SpacingBetweenSlices", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceLocation"),
    *("Rows", "Columns"),
)
MAY_BE_EMPTY = (  # what every MR image has, were it empty
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator", "MRAcquisitionType"),
    *("SliceThickness", "PatientPosition"),
)


def write_series(
    folder: Path,
    array: NDArray[np.float32],
    *,
    record: Mapping[str, Any],
    reference: Series,
    sources: Mapping[str, Series],
    number: int,
    uid_root: str | None = None,
    reproducible: bool = False,
) -> None:
    """Write a volume as a new series, one file for each slice of `reference`, whose place each takes.

    Args:
        folder: for the files.
        array: (i, j, k) in [0, 1], which become grey values of 0 to 1000.
        record: its sidecar.
        reference: the series whose slices it has.
        sources: contrast -> series that it was made from.
        number: the new series'.
        uid_root: of the new UIDs; None makes them UUIDs.
        reproducible: the same scans, weights and voxels give the same bytes.
    """
    salt = () if reproducible else (uuid.uuid4().hex,)
    uids = [str(header.SOPInstanceUID) for series in sources.values() for header in series.headers]
    shown = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()  # options, site and engine show there
    who = [record["bundle"], record["version"], record["weights_sha256"], record["target"], shown, *uids, *salt]
    study = reference.headers[0]
    if reproducible:
        date, time = str(study.get("StudyDate") or "19000101"), str(study.get("StudyTime") or "000000")
    else:
        date, time = datetime.now().strftime("%Y%m%d"), datetime.now().strftime("%H%M%S")
    series_uid = new_uid(uid_root, *who)
    references = [_reference(header) for series in sources.values() for header in series.headers]
    for index, header in enumerate(reference.headers):
        image = Dataset()
        for keyword in CARRIED:
            if keyword in header:
                image[keyword] = header[keyword]
            elif keyword in MAY_BE_EMPTY:
                setattr(image, keyword, "" if keyword != "SliceThickness" else None)
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = MRImageStorage
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = UID(new_uid(uid_root, *who, str(index)))
        image.SeriesInstanceUID, image.Modality = series_uid, "MR"
        image.SeriesNumber, image.InstanceNumber = number, index + 1
        for what in ("Series", "Content", "InstanceCreation"):
            setattr(image, f"{what}Date", date)
            setattr(image, f"{what}Time", time)
        _say_synthetic(image, record, list(sources))
        image.SourceImageSequence = references
        image.ScanningSequence, image.SequenceVariant, image.ScanOptions = "RM", "NONE", ""
        image.EchoTime = image.EchoTrainLength = image.RepetitionTime = None
        if not image.get("BodyPartExamined"):
            image.BodyPartExamined = "BRAIN"  # of which these bundles know, and which has no left or right to name
        image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
        image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
        image.RescaleSlope, image.RescaleIntercept, image.RescaleType = f"{SLOPE:.2f}", "0", "US"
        image.WindowCenter, image.WindowWidth = str(WHITEST // 2), str(WHITEST)
        stored = np.rint(array[:, :, index].T.clip(0, 1) * (WHITEST / SLOPE)).astype("<u2")
        image.PixelData = stored.tobytes()
        image.save_as(folder / f"{index + 1:04d}.dcm", enforce_file_format=True)


def new_uid(root: str | None, *parts: str) -> str:
    """Make a UID below `root` from what it stands for; without a root a UUID's, which need no registration.

    Args:
        root: the organisation's, or None.
        parts: what it stands for.

    Returns:
        At most 64 characters; the same of the same root and parts.
    """
    if root:
        return str(generate_uid(prefix=f"{root.rstrip('.')}.", entropy_srcs=list(parts)))
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"


def _say_synthetic(image: Dataset, record: Mapping[str, Any], sources: Sequence[str]) -> None:
    target, maker = record["target"], f"{record['bundle']} {record['version']}"
    image.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    image.SeriesDescription = f"{SYNTHETIC} {target} ({maker}) from {','.join(sources)}"[:64]
    image.DerivationDescription = (
        f"SYNTHETIC {target}, computed by {maker}, weights sha256 {record['weights_sha256']}, "
        f"from {', '.join(sources)}. {warning(target)}"
    )
    messages = [finding["message"] for finding in record.get("checks", {}).get("findings", ())]
    image.ImageComments = " ".join([warning(target), *(f"Of its sources: {message}." for message in messages)])[
        :LONGEST_TEXT
    ]
    image.BurnedInAnnotation, image.LossyImageCompression = "NO", "00"
    image.Manufacturer, image.ManufacturerModelName = MANUFACTURER, record["bundle"]
    image.SoftwareVersions = [__version__, str(record["version"])]


def _reference(header: Any) -> Dataset:
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "121322", "DCM"
    purpose.CodeMeaning = "Source image for image processing operation"
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    item.PurposeOfReferenceCodeSequence = [purpose]
    return item
