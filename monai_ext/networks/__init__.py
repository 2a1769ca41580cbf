"""One file a paper, each a network of one tensor in, one tensor out."""

from monai_ext.networks.agi_net import CAGR, AGINet

__all__ = ["CAGR", "AGINet"]
