"""What PMM-Synth does differently for each site, the paper's "dataset": Personalized Feature Modulation (arXiv
2602.19723, Eq. 1-3), and convolutions that can have a change of their own for a site that came later.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_ext.networks.layers import instance_norm


class SiteEmbedding(nn.Module):
    """Eq. 1: the sinusoidal code of a site's number, and an MLP; `added` are vectors of sites that came later.

    The MLPs have SiLU: of a few ReLUs all may be silent for two numbers, and two sites would be one.

    Args:
        sites: how many there are.
        channels: of the embedding, E.
    """

    frequencies: Tensor

    def __init__(self, *, sites: int, channels: int) -> None:
        super().__init__()
        self.sites = sites
        steps = torch.arange(channels // 2) / (channels // 2)
        self.register_buffer("frequencies", torch.exp(-math.log(1e4) * steps), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, channels))
        self.added = nn.ModuleList()

    def forward(self, site: Tensor) -> Tensor:
        """(B,) numbers from 0 -> (B, E)"""
        angle = (site + 1).unsqueeze(1) * self.frequencies
        embedding = self.mlp(torch.cat([angle.sin(), angle.cos()], 1))  # Eq. 1
        for number, added in enumerate(self.added):
            embedding = torch.where((site == self.sites + number).unsqueeze(1), added(), embedding)
        return embedding


class PersonalizedNorm(nn.Module):
    """Instance norm, its learnt scale and shift, and PFM (Eq. 2-3) on top, all in one pass over the features.

    The MLP's last layer starts at zero, so PFM starts as the identity; no embedding means gamma = beta = 0.

    Args:
        channels: of the features.
        embedding: channels of the site's embedding, 0 for a network without PFM.
    """

    def __init__(self, channels: int, *, embedding: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.mlp = None
        if embedding:
            last = nn.Linear(embedding, 2 * channels)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.mlp = nn.Sequential(nn.Linear(embedding, embedding), nn.SiLU(), last)

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """(B, C, H, W), (B, E) -> (B, C, H, W)"""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if self.mlp is not None:
            if embedding is not None:
                gamma, beta = self.mlp(embedding).float().chunk(2, dim=1)  # Eq. 2
                # Eq. 3 of what the norm gives: (weight * norm + bias) * (gamma + 1) + beta
                weight, bias = torch.addcmul(weight, weight, gamma), torch.addcmul(bias + beta, bias, gamma)
        return instance_norm(x, weight.expand(x.shape[0], -1), bias.expand(x.shape[0], -1))


class Conv(nn.Module):
    """A convolution; `changes` are what sites added later make of its weight, by number, -1 for none.

    Args:
        before, after: channels in and out.
        kernel_size, stride, bias: as of nn.Conv2d.
    """

    def __init__(self, before: int, after: int, kernel_size: int = 3, *, stride: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.stride, self.padding = stride, kernel_size // 2
        plain = nn.Conv2d(before, after, kernel_size, bias=bias)
        self.weight, self.bias = plain.weight, plain.bias
        self.changes = nn.ModuleList()

    def forward(self, x: Tensor, change: int) -> Tensor:
        """(B, C, H, W) -> (B, O, H / stride, W / stride)"""
        weight = self.weight
        for number, low_rank in enumerate(self.changes):
            if number == change:
                weight = weight + low_rank()
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)
