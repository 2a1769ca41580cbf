"""Group-wise rolling of convolution kernels by fractions of a step: AGI-Net, Sec. III-B, Eq. 4 and Fig. 2."""

import ctypes
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_ext.ops import checks, loader


def float_roll(weight: Tensor, offsets: Tensor, scale: Tensor) -> Tensor:
    """Roll and scale the kernels of each group of input channels, for each sample on its own.

    Args:
        weight: ``(O, C, *k)``, two or three spatial axes; the groups cut C.
        offsets: ``(B, n, d)``, the roll of group n along kernel axis j in ``offsets[..., j]``, as ``torch.roll``
            orders dims. A fraction interpolates between ``floor`` and ``floor + 1``, so that the gradient at a whole
            offset is the right-sided derivative.
        scale: ``(B, n)``, the factor of each group (lambda in Eq. 4).

    Returns:
        ``(B, O, C, *k)`` in the weight's dtype, computed in float32 or better.

    Raises:
        ValueError: shapes that do not fit together, groups that do not divide C, another device or dtype.

    Example:
        >>> weight = torch.arange(9.0).reshape(1, 1, 3, 3)
        >>> half = float_roll(weight, offsets=torch.tensor([[[0.0, 0.5]]]), scale=torch.ones(1, 1))
        >>> half[0, 0, 0, 0].tolist()  # the first row, 0 1 2, rolled by half a step to the right
        [1.0, 0.5, 1.5]
    """
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    weight_, offsets_, scale_ = weight.to(dtype), offsets.to(dtype), scale.to(dtype)
    if not torch.jit.is_scripting():
        alone = checks.stands_alone()
        if not alone:
            _check(weight, offsets, scale)
            loader.ready("float_roll", weight.device.type)
        run = float_roll_reference if alone else _operator
        with torch.autocast(weight.device.type, enabled=False):  # products in bfloat16 would round the kernels twice
            return run(weight_, offsets_, scale_).to(weight.dtype)
    return float_roll_reference(weight_, offsets_, scale_).to(weight.dtype)


def rolled_conv(
    x: Tensor,
    weight: Tensor,
    offsets: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    gain: Tensor | None = None,
) -> Tensor:
    """Convolve each sample with its own rolled kernels, all in one grouped call.

    A script takes any batch; a trace or an ONNX file keeps the one it was made with, since its groups are fixed.

    Args:
        x: ``(B, C, *size)``, two or three spatial axes.
        weight: ``(O, C, *k)``, the kernels before they are rolled.
        offsets: ``(B, n, d)``, how far each group of input channels is rolled, as in `float_roll`.
        scale: ``(B, n)``, the factor of each group.
        bias: ``(O,)``.
        stride, padding, dilation: as of ``torch.nn.functional.conv2d``, one whole number for all axes.
        gain: ``(B, C)``, multiplies the channels of x; the kernels are multiplied in their place where they are the
            smaller.

    Returns:
        ``(B, O, *size')``, the size as of a convolution with this stride, padding and dilation.

    Raises:
        ValueError: shapes that do not fit together, an x smaller than the kernel, another device or dtype.

    Example:
        >>> x, weight = torch.rand(2, 4, 8, 8), torch.rand(6, 4, 3, 3)
        >>> offsets, scale = torch.zeros(2, 2, 2), torch.ones(2, 2)  # two groups of channels, not rolled
        >>> y = rolled_conv(x, weight, offsets, scale, padding=1)
        >>> torch.allclose(y, F.conv2d(x, weight, padding=1), atol=1e-5)
        True
    """
    if not torch.jit.is_scripting():
        if not checks.stands_alone():
            _check_conv(x, weight, offsets, scale, bias, stride, padding, dilation)
            if gain is not None:
                checks.check_shape("gain", gain, "(B, C)", (offsets.shape[0], weight.shape[1]))
    batch = x.shape[0]
    rolled = float_roll(weight, offsets, scale)
    if gain is not None:
        if rolled.numel() < x.numel():
            rolled = rolled * gain.to(rolled.dtype).reshape([batch, 1, weight.shape[1]] + [1] * (weight.dim() - 2))
        else:
            x = x * gain.to(x.dtype).reshape(list(gain.shape) + [1] * (x.dim() - 2))
    kernels = rolled.flatten(0, 1)
    biases = None if bias is None else bias.repeat(batch)
    groups = batch
    if (
        not torch.jit.is_tracing() and batch == 0
    ):  # a convolution in no group is refused: the plain one knows the output's shape
        kernels, biases, groups = weight, bias, 1
    elif batch != 1:  # one sample is left as it lies in memory
        x = x.flatten(0, 1).unsqueeze(0)
    if weight.dim() == 4:
        y = F.conv2d(x, kernels, biases, stride, padding, dilation, groups)
    else:
        y = F.conv3d(x, kernels, biases, stride, padding, dilation, groups)
    return y if batch == 1 else y.reshape([batch, weight.shape[0]] + list(y.shape[2:]))


def float_roll_reference(weight: Tensor, offsets: Tensor, scale: Tensor) -> Tensor:
    """Compute float_roll in plain PyTorch: the points of each kernel times one matrix a sample and group.

    Nothing is checked, and nothing is cast: all three must be of one floating dtype, on one device.

    Args:
        weight: ``(O, C, *k)``, two or three spatial axes.
        offsets: ``(B, n, d)``, the roll of each group along each kernel axis, n dividing C.
        scale: ``(B, n)``, the factor of each group.

    Returns:
        ``(B, O, C, *k)``
    """
    batch, groups = offsets.shape[0], offsets.shape[1]
    kernels = _by_group(weight.unsqueeze(0), groups)  # (1, n, O C/n, K)
    matrix = _roll_matrix(offsets, list(weight.shape[2:]), -1) * scale[:, :, None, None]
    rolled = torch.matmul(kernels, matrix.transpose(-1, -2))
    rolled = rolled.reshape(batch, groups, weight.shape[0], weight.shape[1] // groups, rolled.shape[3]).transpose(1, 2)
    return rolled.reshape([batch] + list(weight.shape))


def float_roll_backward_reference(
    grad: Tensor, weight: Tensor, offsets: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of float_roll by hand, in plain PyTorch.

    Args:
        grad: ``(B, O, C, *k)``, the gradient by what float_roll returned.
        weight, offsets, scale: what it was given.

    Returns:
        The gradients by weight, offsets and scale, each of its argument's shape.
    """
    groups = offsets.shape[1]
    size = list(weight.shape[2:])
    grads = _by_group(grad, groups)  # (B, n, O C/n, K)
    matrix = _roll_matrix(offsets, size, -1)
    kernel_grads = torch.matmul(grads, matrix * scale[:, :, None, None]).sum(0)
    weight_grad = (
        kernel_grads.reshape(groups, weight.shape[0], weight.shape[1] // groups, grads.shape[3])
        .transpose(0, 1)
        .reshape(weight.shape)
    )
    products = torch.matmul(grads.transpose(-1, -2), _by_group(weight.unsqueeze(0), groups))  # by each matrix entry
    slopes = [(products * _roll_matrix(offsets, size, axis)).sum((2, 3)) for axis in range(offsets.shape[2])]
    return weight_grad, torch.stack(slopes, -1) * scale[..., None], (products * matrix).sum((2, 3))


def _by_group(weight: Tensor, groups: int) -> Tensor:
    """(B, O, C, *k) -> (B, n, O C/n, K), K the points of a kernel"""
    batch, out, channels = weight.shape[0], weight.shape[1], weight.shape[2]
    points = weight.flatten(3).shape[3]
    split = weight.reshape(batch, out, groups, channels // groups, points)
    return split.transpose(1, 2).reshape(batch, groups, out * (channels // groups), points)


def _roll_matrix(offsets: Tensor, size: list[int], slope_axis: int) -> Tensor:
    """(B, n, d) -> (B, n, K, K): a circulant along each kernel axis, or its slope along slope_axis."""
    matrix = torch.ones_like(offsets[:, :, :1, None])
    for axis in range(len(size)):
        whole = offsets[:, :, axis, None, None].floor()
        fraction = offsets[:, :, axis, None, None] - whole
        place = torch.arange(size[axis], device=offsets.device, dtype=offsets.dtype)
        distance = place[:, None] - place[None, :] - whole
        at_floor = distance.remainder(size[axis]).eq(0).to(offsets.dtype)
        above = (distance - 1).remainder(size[axis]).eq(0).to(offsets.dtype)
        if axis == slope_axis:
            circulant = above - at_floor
        else:
            circulant = (1 - fraction) * at_floor + fraction * above
        points = matrix.shape[2] * size[axis]
        matrix = matrix[:, :, :, None, :, None] * circulant[:, :, None, :, None, :]
        matrix = matrix.reshape(offsets.shape[0], offsets.shape[1], points, points)
    return matrix


def _check(weight: Tensor, offsets: Tensor, scale: Tensor) -> None:
    checks.check_rank("weight", weight, "(O, C, *k) with 2 or 3 spatial axes", 4, 5)
    checks.check_rank("offsets", offsets, "(B, n, d)", 3)
    batch, groups, _ = offsets.shape
    checks.check_shape("offsets", offsets, "(B, n, the weight's spatial axes)", (batch, groups, weight.dim() - 2))
    checks.check_shape("scale", scale, "(B, n) as in offsets", (batch, groups))
    if groups < 1 or weight.shape[1] % groups:
        raise ValueError(f"groups must divide channels, got groups={groups}, channels={weight.shape[1]}")
    if 0 in weight.shape[2:]:
        raise ValueError(f"weight must have kernel axes of at least 1, got shape {tuple(weight.shape)}")
    checks.check_alike({"weight": weight, "offsets": offsets, "scale": scale})


def _check_conv(
    x: Tensor,
    weight: Tensor,
    offsets: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    dilation: int,
) -> None:
    _check(weight, offsets, scale)
    checks.check_rank("x", x, f"(B, C, {weight.dim() - 2} spatial axes) as the weight is", weight.dim())
    checks.check_shape("x", x, "(B, C, ...)", (offsets.shape[0], weight.shape[1], *x.shape[2:]))
    checks.check_alike({"weight": weight, "x": x, "bias": bias})
    if bias is not None:
        checks.check_shape("bias", bias, "(O,)", (weight.shape[0],))
    for name, value, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        checks.check_whole(name, value, least)
    for size, points in zip(x.shape[2:], weight.shape[2:], strict=True):
        if size + 2 * padding < dilation * (points - 1) + 1:
            raise ValueError(
                f"x must be at least as large as the kernel, got shape {tuple(x.shape)} with padding={padding} "
                f"for kernel {tuple(weight.shape[2:])} with dilation={dilation}"
            )


_operator = torch.library.custom_op("monai_ext::float_roll", mutates_args=())(float_roll_reference)
_backward_operator = torch.library.custom_op("monai_ext::float_roll_backward", mutates_args=())(
    float_roll_backward_reference
)


@_operator.register_fake
def _(weight: Tensor, offsets: Tensor, scale: Tensor) -> Tensor:  # noqa: ARG001
    return weight.new_empty(offsets.shape[0], *weight.shape)


@_backward_operator.register_fake
def _(grad: Tensor, weight: Tensor, offsets: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG001
    return weight.new_empty(weight.shape), weight.new_empty(offsets.shape), weight.new_empty(scale.shape)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # noqa: ARG001
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[no-untyped-def]
    return _backward_operator(grad, *ctx.saved_tensors)


_operator.register_autograd(_backward, setup_context=_save)


class _Shape(ctypes.Structure):
    """RollShape of cuda_ops/float_roll/float_roll.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "out", "groups", "channels", "dims")),
        ("kernel", ctypes.c_int64 * 3),
    ]


def _shape(weight: Tensor, offsets: Tensor) -> _Shape:
    batch, groups, dims = offsets.shape
    kernel = (ctypes.c_int64 * 3)(*weight.shape[2:])
    return _Shape(batch, weight.shape[0], groups, weight.shape[1] // groups, dims, kernel)


def _fits(weight: Tensor, offsets: Tensor) -> bool:
    """Whether a CUDA block's shared memory holds the taps' tables: up to 39x39 or 9x9x9 points."""
    return 2 ** offsets.shape[2] * math.prod(weight.shape[2:]) * 4 <= 24 * 1024


def _kernels(kernels: loader.Kernels) -> dict[str, Callable[..., object]]:
    kernels.require("float_roll_forward", "float_roll_backward")

    def forward(weight: Tensor, offsets: Tensor, scale: Tensor) -> Tensor:
        if kernels.device == "cuda" and not _fits(weight, offsets):
            return float_roll_reference(weight, offsets, scale)
        rolled = weight.new_empty(offsets.shape[0], *weight.shape)
        inputs = (weight.contiguous(), offsets.contiguous(), scale.contiguous())
        kernels("float_roll_forward", _shape(weight, offsets), *inputs, rolled)
        return rolled

    def backward(grad: Tensor, weight: Tensor, offsets: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if kernels.device == "cuda" and not _fits(weight, offsets):
            return float_roll_backward_reference(grad, weight, offsets, scale)
        inputs = (grad.contiguous(), weight.contiguous(), offsets.contiguous(), scale.contiguous())
        grads = weight.new_empty(weight.shape), weight.new_empty(offsets.shape), weight.new_empty(scale.shape)
        kernels("float_roll_backward", _shape(weight, offsets), *inputs, *grads)
        return grads

    return {"float_roll": forward, "float_roll_backward": backward}


loader.BINDERS["float_roll"] = _kernels
