"""A grouped 3x3 convolution, LayerNorm over the channels, GELU and the mean over space, in one pass (AGI-Net, Fig. 4).

What the convolution makes is as large as its input; the CPU kernel never writes it down.
"""

import ctypes
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from monai_ext.ops import checks, loader

EPS = 1e-5  # LayerNorm's


def group_pool(
    x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, groups: int, scale: Tensor | None = None
) -> Tensor:
    """Average GELU(LayerNorm(conv(x))) over space, without writing down what the convolution makes.

    Args:
        x: ``(B, C, *size)``, two or three spatial axes.
        weight: ``(C, C / groups, 3, ...)``, of a convolution padded by one.
        bias: ``(C,)``, the convolution's.
        gain: ``(C,)``, LayerNorm's weight.
        shift: ``(C,)``, LayerNorm's bias.
        groups: of the convolution.
        scale: ``(B, C)``, what x is multiplied by first.

    Returns:
        ``(B, C)`` in x's dtype, computed in float32 or better.

    Raises:
        ValueError: shapes that do not fit together, groups that do not divide C, another device or dtype.

    Example:
        >>> x, weight = torch.rand(2, 8, 5, 5), torch.rand(8, 4, 3, 3)
        >>> zeros, ones = torch.zeros(8), torch.ones(8)
        >>> group_pool(x, weight, bias=zeros, gain=ones, shift=zeros, groups=2).shape
        torch.Size([2, 8])
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    tensors = (x.to(dtype), weight.to(dtype), bias.to(dtype), gain.to(dtype), shift.to(dtype))
    scale_ = None if scale is None else scale.to(dtype)
    if not torch.jit.is_scripting():
        if checks.stands_alone():
            return _recorded(*tensors, groups, scale_).to(x.dtype)
        _check(x, weight, bias, gain, shift, groups, scale)
        with torch.autocast(x.device.type, enabled=False):
            if x.dim() == 4 and x.device.type == "cpu":
                loader.ready("group_pool", "cpu")
                return _operator(*tensors, groups, scale_).to(x.dtype)
            return group_pool_reference(*tensors, groups, scale_).to(x.dtype)
    return group_pool_reference(tensors[0], tensors[1], tensors[2], tensors[3], tensors[4], groups, scale_).to(x.dtype)


def group_pool_reference(
    x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, groups: int, scale: Tensor | None
) -> Tensor:
    """Compute group_pool in plain PyTorch.

    Nothing is checked, and nothing is cast: all must be of one floating dtype, on one device.

    Args:
        x, weight, bias, gain, shift, groups, scale: as of `group_pool`.

    Returns:
        ``(B, C)``
    """
    y = _convolved(x, weight, bias, groups, scale).movedim(1, -1)
    return F.gelu(F.layer_norm(y, [weight.shape[0]], gain, shift)).flatten(1, -2).mean(1)


def _recorded(
    x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, groups: int, scale: Tensor | None
) -> Tensor:
    """The same in a graph: LayerNorm along the channels where they lie, for an engine would move them to the end."""
    y = _convolved(x, weight, bias, groups, scale)
    unit, _ = _normed(y)
    sides = [-1] + [1] * (x.dim() - 2)
    return F.gelu(unit * gain.reshape(sides) + shift.reshape(sides)).mean(list(range(2, x.dim())))


def _normed(y: Tensor) -> tuple[Tensor, Tensor]:
    """LayerNorm along the channels of (B, C, *size) before gain and shift, and the inverse deviation (B, 1, *size)."""
    unit = y - y.mean(1, keepdim=True)
    inverse = ((unit * unit).mean(1, keepdim=True) + EPS).rsqrt()
    return unit * inverse, inverse


def _convolved(x: Tensor, weight: Tensor, bias: Tensor, groups: int, scale: Tensor | None) -> Tensor:
    if scale is not None:
        x = x * scale.reshape(list(scale.shape) + [1] * (x.dim() - 2))
    if weight.dim() == 4:
        return F.conv2d(x, weight, bias, padding=1, groups=groups)
    return F.conv3d(x, weight, bias, padding=1, groups=groups)


def _through_norm_reference(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gain: Tensor,
    shift: Tensor,
    groups: int,
    scale: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of what the convolution made, of gain and of shift."""
    y = _convolved(x, weight, bias, groups, scale)
    unit, inverse = _normed(y)
    gain_, shift_ = gain[:, None, None], shift[:, None, None]
    v = unit * gain_ + shift_
    density = (-0.5 * v.square()).exp() / (2 * torch.pi) ** 0.5
    d = (0.5 * (1 + (v / 2**0.5).erf()) + v * density) * (grad / y[0, 0].numel())[:, :, None, None]
    inner = d * gain_
    back = inverse * (inner - inner.mean(1, keepdim=True) - unit * (inner * unit).mean(1, keepdim=True))
    return back, (d * unit).sum((0, 2, 3)), d.sum((0, 2, 3))


_operator = torch.library.custom_op("monai_ext::group_pool", mutates_args=())(group_pool_reference)
_through_norm = torch.library.custom_op("monai_ext::group_pool_backward", mutates_args=())(_through_norm_reference)


@_operator.register_fake
def _(x, weight, bias, gain, shift, groups, scale):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return x.new_empty(x.shape[:2])


@_through_norm.register_fake
def _(grad, x, weight, bias, gain, shift, groups, scale):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return x.new_empty(x.shape), gain.new_empty(gain.shape), shift.new_empty(shift.shape)


@register_flop_formula(torch.ops.monai_ext.group_pool)
def _(x, weight, bias, gain, shift, groups, scale, **_):  # type: ignore[no-untyped-def]  # noqa: ARG001
    """The convolution's, two for a multiply-add: for PyTorch's counter, which would see none."""
    batch, _, height, width = x
    return 2 * batch * height * width * math.prod(weight)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # noqa: ARG001
    *tensors, ctx.groups, scale = inputs
    ctx.save_for_backward(*tensors, scale)


def _backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
    x, weight, bias, gain, shift, scale = ctx.saved_tensors
    y_grad, gain_grad, shift_grad = _through_norm(grad, x, weight, bias, gain, shift, ctx.groups, scale)
    scaled = x if scale is None else x * scale[:, :, None, None]
    x_grad, weight_grad, bias_grad = torch.ops.aten.convolution_backward(
        y_grad, scaled, weight, [len(bias)], [1, 1], [1, 1], [1, 1], False, [0, 0], ctx.groups, [True, True, True]
    )
    scale_grad = None
    if scale is not None:
        scale_grad = (x_grad * x).sum((2, 3))
        x_grad = x_grad * scale[:, :, None, None]
    return x_grad, weight_grad, bias_grad, gain_grad, shift_grad, None, scale_grad


_operator.register_autograd(_backward, setup_context=_save)


def _check(
    x: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, groups: int, scale: Tensor | None
) -> None:
    checks.check_rank("x", x, "(B, C, *size) with two or three spatial axes", 4, 5)
    channels, dims = x.shape[1], x.dim() - 2
    checks.check_whole("groups", groups, 1)
    if channels < 1:
        raise ValueError(f"x must have channels, got {tuple(x.shape)}")
    if channels % groups:
        raise ValueError(f"groups must divide channels, got groups={groups}, channels={channels}")
    checks.check_shape("weight", weight, "(C, C / groups, 3, ...)", (channels, channels // groups, *[3] * dims))
    for name, tensor in (("bias", bias), ("gain", gain), ("shift", shift)):
        checks.check_shape(name, tensor, "(C,)", (channels,))
    if scale is not None:
        checks.check_shape("scale", scale, "(B, C)", (x.shape[0], channels))
    tensors: dict[str, Tensor | None] = {"x": x, "weight": weight, "bias": bias, "gain": gain, "shift": shift}
    checks.check_alike({**tensors, "scale": scale})


class _Shape(ctypes.Structure):
    """PoolShape of cuda_ops/group_pool/group_pool.h."""

    _fields_ = [(name, ctypes.c_int64) for name in ("batch", "channels", "groups", "height", "width")]


def _kernels(kernels: loader.Kernels) -> dict[str, Callable[..., object]]:
    kernels.require("group_pool_forward", "group_pool_backward")

    def forward(x, weight, bias, gain, shift, groups, scale):  # type: ignore[no-untyped-def]
        pooled = x.new_empty(x.shape[:2])
        tensors = (_plain(tensor) for tensor in (x, scale, weight, bias, gain, shift))
        kernels("group_pool_forward", _Shape(*x.shape[:2], groups, *x.shape[2:]), *tensors, pooled)
        return pooled

    def backward(grad, x, weight, bias, gain, shift, groups, scale):  # type: ignore[no-untyped-def]
        y_grad, gain_grad, shift_grad = x.new_empty(x.shape), gain.new_empty(gain.shape), shift.new_empty(shift.shape)
        tensors = (_plain(tensor) for tensor in (grad, x, scale, weight, bias, gain, shift))
        shape = _Shape(*x.shape[:2], groups, *x.shape[2:])
        kernels("group_pool_backward", shape, *tensors, y_grad, gain_grad, shift_grad)
        return y_grad, gain_grad, shift_grad

    return {"group_pool": forward, "group_pool_backward": backward}


def _plain(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


loader.BINDERS["group_pool"] = _kernels
loader.CPU_ONLY.add("group_pool")
