"""Where the bundles meet a workstation or a hospital's pipeline: MONAI Label, MONAI Deploy and DICOM."""
