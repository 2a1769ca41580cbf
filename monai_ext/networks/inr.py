"""Implicit neural decoder (HMF-MambaINR, Luo and Lyu, 2026, Fig. 4): an image as a function of continuous position.

The first layer of its MLP is linear in [feature, encoding of y, encoding of x], so each part is computed where it is
few: the feature's once a latent cell, the encodings' once a row and once a column of the output.
"""

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

QUERIES = 4096  # at a time: what they need stays in the processor's cache, however large the output
GPU_QUERIES = 2**20  # at a time on a GPU, where each launch of a kernel costs more than small ones take
LIMIT = 16  # the output's largest size, a side, in sizes of the input


class PeriodicEncoding(nn.Module):
    """sin(2^k pi x), cos(2^k pi x) - 1 for k < L, x an offset in cells: periods of two cells, one, a half, and so
    on.

    Less 1, which is the bias's to add, a cell's own centre is all zeros.

    Args:
        frequencies: L.
    """

    scales: Tensor

    def __init__(self, *, frequencies: int) -> None:
        super().__init__()
        scales = torch.tensor([math.pi * 2.0**k for k in range(frequencies)])
        self.register_buffer("scales", scales, persistent=False)

    def forward(self, offset: Tensor) -> Tensor:
        """(n,) offsets in cells -> (n, 2 L)"""
        phase = offset.unsqueeze(1) * self.scales
        return torch.cat([phase.sin(), phase.cos() - 1], 1)


class ImplicitDecoder(nn.Module):
    """Each pixel from the four latent cells around it: feature, encoded offset, MLP, mean weighted by opposite area.

    What reads the offset starts at zero. So a network that has seen only pixels at its cells' centres, where no offset
    teaches it anything, gives between them the bilinear mean of its answers there; one that has seen others gives more.

    Args:
        channels: of the latent.
        out_channels: of the image.
        hidden: the widths of the MLP's hidden layers.
        frequencies: L of the encoding.
    """

    def __init__(
        self, *, channels: int, out_channels: int, hidden: tuple[int, ...] = (64, 64, 64, 64), frequencies: int = 4
    ) -> None:
        super().__init__()
        self.queries, self.gpu_queries = QUERIES, GPU_QUERIES
        self.encoding = PeriodicEncoding(frequencies=frequencies)
        self.sections = [channels, 2 * frequencies, 2 * frequencies]
        self.first = nn.Linear(sum(self.sections), hidden[0])
        self.rest = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(hidden))
        self.last = nn.Linear(hidden[-1], out_channels)
        nn.init.zeros_(self.first.weight[:, channels:])

    def forward(self, latent: Tensor, extent: tuple[int, int], output_size: tuple[int, int]) -> Tensor:
        """(B, C, h, w), the height and width in cells of what is to be seen, (H, W) -> (B, K, H, W)"""
        of_feature, of_y, of_x = self.first.weight.split(self.sections, 1)
        padded = F.pad(latent, [1, 1, 1, 1], mode="replicate")  # pixels at the rim have four cells around them too
        cells = F.linear(padded.permute(0, 2, 3, 1), of_feature, self.first.bias)
        rows, row_offsets, row_weights = self._neighbours(latent, extent[0], output_size[0])
        columns, column_offsets, column_weights = self._neighbours(latent, extent[1], output_size[1])
        of_rows = F.linear(self.encoding(row_offsets), of_y).unsqueeze(1)
        of_columns = F.linear(self.encoding(column_offsets), of_x)
        strips = []
        around = (rows.shape[0] // output_size[0], columns.shape[0] // output_size[1])
        queries = self.queries if latent.device.type == "cpu" else self.gpu_queries
        step = around[0] * max(1, queries // (output_size[1] * latent.shape[0]))
        for start in range(0, rows.shape[0], step):
            stop = start + step
            chosen, encoded = rows[start:stop], of_rows[start:stop] + of_columns
            area = row_weights[start:stop].view(-1, around[0], 1, 1, 1) * column_weights.view(-1, around[1], 1)
            if torch.jit.is_scripting() or not torch.is_grad_enabled():
                strips.append(self._strip(cells, chosen, columns, encoded, area))
            else:  # computed again in the backward pass, a strip at a time, rather than kept
                strips.append(
                    checkpoint(
                        self._strip,
                        cells,
                        chosen,
                        columns,
                        encoded,
                        area,
                        use_reentrant=False,
                        preserve_rng_state=False,
                    )
                )
        return torch.cat(strips, 1).permute(0, 3, 1, 2)

    def _strip(self, cells: Tensor, rows: Tensor, columns: Tensor, encoded: Tensor, area: Tensor) -> Tensor:
        """Some of the output's rows: (B, h, w, C) cells; which of them beside each pixel -> (B, H', W, K)"""
        h = F.relu(cells.index_select(1, rows).index_select(2, columns) + encoded)
        for layer in self.rest:
            h = F.relu(layer(h))
        answer = self.last(h).unflatten(2, (-1, area.shape[3])).unflatten(1, (-1, area.shape[1]))
        return (answer * area).sum((2, 4))  # areas add up to one

    def _neighbours(self, latent: Tensor, extent: int, pixels: int) -> tuple[Tensor, Tensor, Tensor]:
        """The padded cells beside each pixel of an axis, one after the other; offsets from them; their weights.

        There are two, or one where each pixel is its own cell's centre, for the other would count for nothing.
        """
        if not torch.jit.is_scripting():  # an archive has one way for any size
            if pixels == extent:
                zeros = torch.zeros(pixels, device=latent.device)
                return torch.arange(1, pixels + 1, device=latent.device), zeros, zeros + 1
        centre = (torch.arange(pixels, device=latent.device) + 0.5) * (extent / pixels) - 0.5
        before = centre.floor()
        offset = (centre - before).unsqueeze(1)
        offset = torch.cat([offset, offset - 1], 1).flatten()
        cell = before.long().unsqueeze(1) + torch.arange(1, 3, device=latent.device)
        return cell.flatten(), offset, 1 - offset.abs()


class PixelDecoder(nn.Module):
    """An MLP that knows no coordinates and gives each cell its pixel: what stands in for ImplicitDecoder.

    Args:
        channels: of the latent.
        out_channels: of the image.
        parameters: about how many it is to have.
        layers: of the MLP.
    """

    def __init__(self, *, channels: int, out_channels: int, parameters: int, layers: int = 5) -> None:
        super().__init__()
        # w (C + 1) + (layers - 2) w (w + 1) + K (w + 1) parameters, solved for the width w of the hidden layers
        square = layers - 2
        linear = channels + 1 + square + out_channels
        root = math.sqrt(linear**2 + 4 * square * max(0, parameters - out_channels))
        hidden = [max(1, round((root - linear) / (2 * square)))] * (layers - 1)
        modules: list[nn.Module] = []
        for before, after in itertools.pairwise([channels, *hidden]):
            modules += [nn.Conv2d(before, after, 1), nn.ReLU()]
        self.mlp = nn.Sequential(*modules, nn.Conv2d(hidden[-1], out_channels, 1))

    def forward(self, latent: Tensor, extent: tuple[int, int], output_size: tuple[int, int]) -> Tensor:
        """(B, C, h, w), the height and width in cells of what is to be seen, (H, W) -> (B, K, H, W)"""
        image = self.mlp(latent)[:, :, : extent[0], : extent[1]]
        if output_size[0] == image.shape[2] and output_size[1] == image.shape[3]:
            return image
        return F.interpolate(image, output_size, mode="bilinear")


def check_output(size: tuple[int, int], height: int, width: int, limit: int = LIMIT) -> None:
    """Refuse an output of no pixels, or of more than the implicit decoder can mean anything by.

    Args:
        size: of the output, height and width.
        height, width: of the input.
        limit: how many times the input's a side may be.

    Raises:
        ValueError: a side is below 1 or beyond the limit.
    """
    if size[0] < 1 or size[1] < 1 or size[0] > limit * height or size[1] > limit * width:
        raise ValueError(
            f"output_size must be from 1 to {limit} times the input's {height} x {width} a side, "
            f"got {size[0]} x {size[1]}"
        )
