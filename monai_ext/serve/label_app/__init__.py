"""A MONAI Label app: every bundle with weights, on a folder of studies."""
