"""float_roll against torch.roll, written out tap by tap as Eq. 4 prints it."""

import itertools
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from ops.check_op import DEVICES, Inputs, check_archives, check_op, check_registration, turn
from torch import Tensor

from monai_ext.ops import float_roll, rolled_conv

module = import_module("monai_ext.ops.float_roll")


def inputs(
    *,
    batch: int = 2,
    out: int = 3,
    channels: int = 4,
    groups: int = 2,
    kernel: tuple[int, ...] = (3, 3),
    reach: float = 2,
) -> Inputs:
    random = torch.Generator().manual_seed(batch + out + channels)
    return {
        "weight": torch.randn(out, channels, *kernel, generator=random),
        "offsets": torch.randn(batch, groups, len(kernel), generator=random) * reach,
        "scale": torch.rand(batch, groups, generator=random),
    }


def eq4(weight: Tensor, offsets: Tensor, scale: Tensor) -> Tensor:
    """The sum over floor and floor + 1 along each axis of whole rolls of each group's kernels."""
    batch, groups, dims = offsets.shape
    samples = []
    for b in range(batch):
        rolled = []
        for g, kernels in enumerate(weight.chunk(groups, dim=1)):
            total = torch.zeros_like(kernels)
            for up in itertools.product((0, 1), repeat=dims):
                whole = offsets[b, g].floor()
                fraction = offsets[b, g] - whole
                factor = torch.stack([fraction[j] if up[j] else 1 - fraction[j] for j in range(dims)]).prod()
                shifts = [int(whole[j]) + up[j] for j in range(dims)]
                total = total + factor * torch.roll(kernels, shifts, list(range(2, 2 + dims)))
            rolled.append(total * scale[b, g])
        samples.append(torch.cat(rolled, 1))
    return torch.stack(samples) if samples else weight.new_zeros(0, *weight.shape)


CASES = [
    inputs(),
    inputs(batch=1, out=1, channels=1, groups=1),
    inputs(batch=3, out=5, channels=18, groups=3, kernel=(4, 1), reach=9),  # even, one point wide, far round
    inputs(batch=2, out=2, channels=34, groups=2, kernel=(7, 5)),  # wider than a register
    inputs(batch=2, channels=8, groups=4, kernel=(3, 2, 3)),
]


@pytest.mark.parametrize("device", DEVICES)
def test_the_operator_keeps_its_promises_in_2d(device: str) -> None:
    check_op(float_roll, eq4, CASES[:4], device=device)


@pytest.mark.parametrize("device", DEVICES)
def test_the_operator_keeps_its_promises_in_3d(device: str) -> None:
    check_op(float_roll, eq4, CASES[4:], device=device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pytorch_accepts_both_registrations(dtype: torch.dtype) -> None:
    tensors = [tensor.to(dtype).requires_grad_() for tensor in CASES[0].values()]
    check_registration(torch.ops.monai_ext.float_roll, tensors)
    grad = torch.randn(2, *tensors[0].shape, dtype=dtype)
    check_registration(torch.ops.monai_ext.float_roll_backward, [grad, *(t.detach() for t in tensors)])
    turned = [turn(tensor.detach()).requires_grad_() for tensor in tensors]  # another order of memory
    check_registration(torch.ops.monai_ext.float_roll, turned)
    check_registration(torch.ops.monai_ext.float_roll_backward, [turn(grad), *(t.detach() for t in turned)])


@pytest.mark.parametrize("arguments", CASES, ids=lambda arguments: str(tuple(arguments["weight"].shape)))
def test_the_hand_derived_gradients_are_autograds(arguments: Inputs) -> None:
    tensors = [tensor.double().requires_grad_() for tensor in arguments.values()]
    rolled = eq4(*tensors)
    grad = torch.randn_like(rolled)
    expected = torch.autograd.grad(rolled, tensors, grad)
    result = module.float_roll_backward_reference(grad, *(tensor.detach() for tensor in tensors))
    for one, other in zip(result, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_whole_offsets_are_torch_roll() -> None:
    weight = torch.randn(2, 3, 3, 5)
    rolled = float_roll(weight, torch.tensor([[[2.0, -1.0]]]), torch.ones(1, 1))
    assert torch.equal(rolled[0], torch.roll(weight, (2, -1), (2, 3)))


def test_offsets_repeat_after_the_kernels_size() -> None:
    arguments = inputs(kernel=(3, 4))
    further = arguments["offsets"] + torch.tensor([3.0, -4.0])
    torch.testing.assert_close(float_roll(**arguments), float_roll(**{**arguments, "offsets": further}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_does_not_touch_the_kernels(dtype: torch.dtype) -> None:
    arguments = {name: tensor.to(dtype) for name, tensor in inputs().items()}
    with torch.autocast("cpu", torch.bfloat16):
        under = float_roll(**arguments)
    assert torch.equal(under, float_roll(**arguments))
    torch.testing.assert_close(under, eq4(**{k: v.double() for k, v in arguments.items()}).to(dtype))


def test_the_gradient_at_offset_zero_is_the_right_sided_slope() -> None:
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    offsets = torch.zeros(1, 1, 2, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(1, 2, 2, 3, 3, dtype=torch.float64)
    (grad,) = torch.autograd.grad(
        float_roll(weight, offsets, torch.ones(1, 1, dtype=torch.float64)), offsets, direction
    )
    slopes = torch.stack([(torch.roll(weight, 1, axis) - weight).mul(direction[0]).sum() for axis in (2, 3)])
    torch.testing.assert_close(grad[0, 0], slopes)
    assert grad.abs().min() > 0


def test_an_offset_that_is_not_a_number_spoils_its_own_group_alone() -> None:
    arguments = inputs()
    arguments["offsets"][0, 1, 0] = float("nan")
    rolled = float_roll(**arguments)
    assert rolled[0, :, 2:].isnan().all()
    assert rolled[0, :, :2].isfinite().all()
    assert rolled[1].isfinite().all()


@pytest.mark.parametrize("shape", [{"batch": 0}, {"out": 0}, {"channels": 0}])
def test_empty_inputs_give_empty_kernels(shape: dict[str, int]) -> None:
    arguments = {k: v.requires_grad_() for k, v in inputs(**shape).items()}
    rolled = float_roll(**arguments)
    assert rolled.shape == (arguments["offsets"].shape[0], *arguments["weight"].shape)
    rolled.sum().backward()
    assert not arguments["offsets"].grad.any()


@pytest.mark.parametrize("size", [(9, 8), (6, 5, 7)])
def test_rolled_conv_is_each_samples_own_convolution(size: tuple[int, ...]) -> None:
    arguments = inputs(batch=3, kernel=(3,) * len(size))
    x, bias = torch.randn(3, 4, *size), torch.randn(3)
    result = rolled_conv(x, **arguments, bias=bias, stride=2, padding=1)
    kernels = eq4(**arguments)
    conv = F.conv2d if len(size) == 2 else F.conv3d
    expected = torch.cat([conv(x[b : b + 1], kernels[b], bias, stride=2, padding=1) for b in range(3)])
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("size", [(9, 8), (6, 5, 7)])
def test_rolled_convs_archives_compute_the_same(size: tuple[int, ...]) -> None:
    check_archives(rolled_conv, {"x": torch.randn(2, 4, *size), **inputs(kernel=(3,) * len(size))})


def test_a_scripted_rolled_conv_takes_any_batch() -> None:
    scripted = torch.jit.script(rolled_conv)
    for batch in (0, 1, 3):
        x, arguments = torch.randn(batch, 4, 9, 8), inputs(batch=batch)
        torch.testing.assert_close(scripted(x, **arguments, padding=1), rolled_conv(x, **arguments, padding=1))


def test_rolled_conv_of_an_empty_batch_knows_its_shape() -> None:
    assert rolled_conv(torch.zeros(0, 4, 9, 8), **inputs(batch=0), padding=1).shape == (0, 3, 9, 8)


def test_rolled_conv_runs_in_bfloat16_under_autocast() -> None:
    arguments = inputs()
    arguments["offsets"] = arguments["offsets"].bfloat16()  # what a linear layer hands over there
    with torch.autocast("cpu", torch.bfloat16):
        assert rolled_conv(torch.randn(2, 4, 8, 8), **arguments, padding=1).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"weight": torch.zeros(3, 4, 3)},
            r"weight must be \(O, C, \*k\) with 2 or 3 spatial axes, got shape \(3, 4, 3\)",
        ),
        ({"weight": torch.zeros(3, 5, 3, 3)}, "groups must divide channels, got groups=2, channels=5"),
        ({"weight": torch.zeros(3, 4, 3, 0)}, "weight must have kernel axes of at least 1"),
        ({"offsets": torch.zeros(2, 2)}, r"offsets must be \(B, n, d\), got shape \(2, 2\)"),
        ({"offsets": torch.zeros(2, 2, 3)}, r"offsets must be .* = \(2, 2, 2\), got \(2, 2, 3\)"),
        ({"offsets": torch.zeros(2, 0, 2), "scale": torch.zeros(2, 0)}, "groups must divide channels, got groups=0"),
        ({"scale": torch.zeros(2, 3)}, r"scale must be \(B, n\) as in offsets = \(2, 2\), got \(2, 3\)"),
        (
            {"scale": torch.zeros(2, 2, dtype=torch.float64)},
            "scale must have weight's dtype, got scale in torch.float64",
        ),
        ({"scale": torch.zeros(2, 2, device="meta")}, "scale must be on weight's device, got scale on meta"),
        (
            {"offsets": torch.zeros(2, 2, 2, dtype=torch.int64)},
            "offsets must be a floating-point tensor, got torch.int64",
        ),
    ],
)
def test_bad_input_is_refused_in_words(change: Inputs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        float_roll(**{**inputs(), **change})


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.zeros(2, 4, 8), {}, r"x must be \(B, C, 2 spatial axes\) as the weight is"),
        (torch.zeros(2, 5, 8, 8), {}, r"x must be .* = \(2, 4, 8, 8\), got \(2, 5, 8, 8\)"),
        (torch.zeros(2, 4, 8, 8, dtype=torch.float64), {}, "x must have weight's dtype"),
        (torch.zeros(2, 4, 8, 8), {"stride": 0}, "stride must be a whole number of at least 1, got 0"),
        (torch.zeros(2, 4, 8, 8), {"padding": -1}, "padding must be a whole number of at least 0, got -1"),
        (torch.zeros(2, 4, 8, 2), {}, r"x must be at least as large as the kernel, got shape \(2, 4, 8, 2\)"),
        (torch.zeros(2, 4, 8, 8), {"bias": torch.zeros(4)}, r"bias must be \(O,\) = \(3,\), got \(4,\)"),
        (torch.zeros(2, 4, 8, 8), {"dilation": float("nan")}, "dilation must be a whole number of at least 1, got nan"),
    ],
)
def test_rolled_conv_refuses_bad_input_in_words(x: Tensor, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rolled_conv(x, **inputs(), **options)
