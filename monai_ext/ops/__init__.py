"""Operators with a plain-PyTorch reference, and C++ and CUDA kernels that override it where they can be compiled."""

from monai_ext.ops.float_roll import float_roll, rolled_conv
from monai_ext.ops.group_pool import group_pool
from monai_ext.ops.loader import Status, load, status
from monai_ext.ops.selective_scan import selective_scan

__all__ = ["Status", "float_roll", "group_pool", "load", "rolled_conv", "selective_scan", "status"]
