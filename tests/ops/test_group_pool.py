"""group_pool against a grouped convolution, LayerNorm, GELU and mean written out in float64, and its bad input."""

import pytest
import torch
from ops.check_op import check_op, check_registration
from torch import Tensor

from monai_ext.ops import group_pool as module_function
from monai_ext.ops.group_pool import _operator, _through_norm, group_pool


def written_out(
    x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, groups: int, scale: Tensor | None = None
) -> Tensor:
    """Term by term: a sum over nine shifted images, and every later step by its formula."""
    batch, channels, height, width = x.shape
    if scale is not None:
        x = x * scale[:, :, None, None]
    members = channels // groups
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1)).reshape(batch, groups, members, height + 2, width + 2)
    kernels = weight.reshape(groups, members, members, 3, 3)
    y = bias[None, :, None, None].expand(batch, channels, height, width)
    for i in range(3):
        for j in range(3):
            window = padded[..., i : i + height, j : j + width]
            y = y + torch.einsum("goi,bgihw->bgohw", kernels[..., i, j], window).reshape(y.shape)
    mean = y.mean(1, keepdim=True)
    unit = (y - mean) / ((y - mean).square().mean(1, keepdim=True) + 1e-5).sqrt()
    v = unit * gain[:, None, None] + shift[:, None, None]
    return (v * 0.5 * (1 + torch.erf(v / 2**0.5))).mean((2, 3))


def inputs(
    *, batch: int = 2, channels: int = 16, groups: int = 4, size: tuple[int, int] = (7, 9), scaled: bool = True
) -> dict:
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    made = {"x": normal(batch, channels, *size), "weight": 0.3 * normal(channels, channels // groups, 3, 3)}
    made |= {"bias": normal(channels), "gain": normal(channels), "shift": normal(channels), "groups": groups}
    return made | ({"scale": torch.rand(batch, channels, generator=draw)} if scaled else {})


CASES = [
    inputs(batch=2, channels=4, groups=2, size=(5, 6)),
    inputs(scaled=False),
    inputs(batch=1, channels=15, groups=1, size=(1, 1)),  # one pixel; outputs by eight, four, two and one
    inputs(batch=1, channels=8, groups=8, size=(13, 70)),  # a group a channel; rows that no tile fits
    inputs(batch=1, channels=64, groups=2, size=(4, 32)),  # exactly a tile
]


def test_the_operator_keeps_its_promises():
    check_op(group_pool, written_out, CASES)


def test_it_is_registered_as_pytorch_asks():
    given = list(inputs(batch=1, channels=4, groups=2, size=(4, 5)).values())
    check_registration(_operator, given)
    check_registration(_through_norm, [torch.rand(1, 4), *given])


def test_three_dimensions_run_on_the_reference():
    x, weight = torch.rand(1, 4, 3, 4, 5), torch.rand(4, 2, 3, 3, 3)
    answer = group_pool(x, weight, *torch.rand(3, 4), 2)
    assert answer.shape == (1, 4)


def test_the_package_exports_it():
    assert module_function is group_pool


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 3}, "groups must divide channels, got groups=3, channels=16"),
        ({"groups": 0}, "groups must be a whole number of at least 1"),
        ({"weight": torch.rand(16, 4, 5, 5)}, r"weight must be \(C, C / groups, 3, \.\.\.\)"),
        ({"gain": torch.rand(15)}, r"gain must be \(C,\) = \(16,\), got \(15,\)"),
        ({"scale": torch.rand(1, 16)}, r"scale must be \(B, C\) = \(2, 16\)"),
        ({"x": torch.rand(16, 7)}, "x must be"),
        ({"bias": torch.rand(16).double()}, "bias must have x's dtype"),
    ],
)
def test_bad_input_is_refused_in_words(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        group_pool(**{**inputs(), **change})
