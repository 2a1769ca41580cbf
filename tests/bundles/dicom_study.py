"""A made-up DICOM study for tests: oblique ellipsoids in a few series, every value and place known."""

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

TURN = np.deg2rad(12)
ROW = np.array([np.cos(TURN), np.sin(TURN), 0.0])  # LPS
COLUMN = np.array([-np.sin(TURN), np.cos(TURN), 0.0])
FRAME, STUDY = "1.2.3.4.1", "1.2.3.4.2"
DESCRIPTIONS = {
    "T1": "T1 SE TRA", "T2": "T2 TSE TRA", "PD": "PD TSE TRA", "T1C": "T1 SE TRA +C", "FLAIR": "T2 FLAIR TRA",
    "DWI": "DIFFUSION_TRACEW", "ADC": "DIFFUSION_ADC",
}  # fmt: skip


def write_study(folder: Path, *contrasts: str) -> Path:
    for number, contrast in enumerate(contrasts, 1):
        write_series(folder / contrast, number=number, SeriesDescription=DESCRIPTIONS[contrast])
    return folder


def write_series(folder: Path, *, number: int, slices: int = 10, **more: Any) -> list[Path]:
    """Slices of 5 mm, 30 x 24 pixels of 6 mm; the file names run against the slices' order."""
    folder.mkdir(parents=True)
    z, y, x = np.meshgrid(np.linspace(-1, 1, slices), np.linspace(-1, 1, 30), np.linspace(-1, 1, 24), indexing="ij")
    inside = x**2 + y**2 + z**2 < 0.8
    shades = np.random.default_rng(number).integers(300, 900, inside.shape)
    uid = f"1.2.3.4.5.{number}"
    paths = []
    for index, pixels in enumerate(np.where(inside, shades, 0).astype("<u2")):
        one = Dataset()
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = MRImageStorage
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[uid, str(index)])
        one.PatientName, one.PatientID, one.PatientSex = "Nobody^At All", "N0", "O"
        one.PatientBirthDate, one.StudyDate, one.StudyTime = "19700101", "20200102", "101112"
        one.StudyID, one.AccessionNumber, one.ReferringPhysicianName = "S1", "A1", ""
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = STUDY, uid, FRAME
        one.Modality, one.SeriesNumber, one.InstanceNumber = "MR", number, index + 1
        one.ImageType, one.ScanningSequence, one.MRAcquisitionType = ["ORIGINAL", "PRIMARY", "M"], "SE", "2D"
        one.PositionReferenceIndicator, one.PatientPosition = "", "HFS"
        one.ImagePositionPatient = list(np.round(ROW * -72 + COLUMN * -90 + np.array([0, 0, 5.0 * index - 20]), 6))
        one.ImageOrientationPatient = list(np.round([*ROW, *COLUMN], 9))
        one.PixelSpacing, one.SliceThickness, one.SpacingBetweenSlices = [6, 6], 5, 5
        one.Rows, one.Columns, one.SamplesPerPixel = 30, 24, 1
        one.PhotometricInterpretation, one.PixelRepresentation = "MONOCHROME2", 0
        one.BitsAllocated, one.BitsStored, one.HighBit = 16, 12, 11
        one.PixelData = pixels.tobytes()
        for keyword, value in more.items():
            setattr(one, keyword, value)
        paths.append(folder / f"{slices - index:03d}.dcm")
        one.save_as(paths[-1], enforce_file_format=True)
    return paths
