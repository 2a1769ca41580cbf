"""Shared networks, operators, data and engines of the MRI-synthesis bundles. Importing it compiles nothing."""

__version__ = "0.1.0"
