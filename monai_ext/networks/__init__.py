"""The networks of the papers, one file a paper; each takes one tensor of images and gives one."""

from monai_ext.networks.agi_net import CAGR, AGINet, with_cagr
from monai_ext.networks.baselines import I2IMamba, Pix2PixUNet, ResNet
from monai_ext.networks.discriminators import ContrastDiscriminators, ImageDiscriminator
from monai_ext.networks.fd_gan import FDGAN
from monai_ext.networks.hmf_mambainr import HMFMambaINR
from monai_ext.networks.pmm_synth import PMMSynth

__all__ = [
    "CAGR",
    "FDGAN",
    "AGINet",
    "ContrastDiscriminators",
    "HMFMambaINR",
    "I2IMamba",
    "ImageDiscriminator",
    "PMMSynth",
    "Pix2PixUNet",
    "ResNet",
    "with_cagr",
]
