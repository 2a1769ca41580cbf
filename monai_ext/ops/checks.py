"""What every operator asks of its arguments, refused in words before a kernel runs."""

import torch
from torch import Tensor


def check_shape(name: str, tensor: Tensor, expected: str, shape: tuple[int, ...]) -> None:
    """Refuse a tensor that is not of this shape.

    Args:
        name: of the argument, for the message.
        tensor: what was given.
        expected: the shape in letters, such as "(B, C)", for the message.
        shape: the shape in numbers.

    Raises:
        ValueError: the shape is another one.
    """
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must be {expected} = {shape}, got {tuple(tensor.shape)}")


def check_rank(name: str, tensor: Tensor, expected: str, *ranks: int) -> None:
    """Refuse a tensor that has not one of these numbers of dimensions.

    Args:
        name: of the argument, for the message.
        tensor: what was given.
        expected: what it should be, in words.
        ranks: the numbers of dimensions that may be.

    Raises:
        ValueError: it has another number.
    """
    if tensor.dim() not in ranks:
        raise ValueError(f"{name} must be {expected}, got shape {tuple(tensor.shape)}")


def check_alike(tensors: dict[str, Tensor | None], *, float32_too: tuple[str, ...] = ()) -> None:
    """Refuse tensors that are not floating, or differ from the first in device or, but under autocast, in dtype.

    Args:
        tensors: by the argument's name; None is an argument that was left out.
        float32_too: names of those that may be float32 whatever the first one is.

    Raises:
        ValueError: one differs; the message says which and in what.
    """
    first, *_ = tensors
    like = tensors[first]
    assert like is not None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be a floating-point tensor, got {tensor.dtype}")
        if tensor.device != like.device:
            raise ValueError(
                f"{name} must be on {first}'s device, got {name} on {tensor.device}, {first} on {like.device}"
            )
        same = tensor.dtype == like.dtype or (name in float32_too and tensor.dtype == torch.float32)
        if not same and not torch.is_autocast_enabled(like.device.type):
            raise ValueError(f"{name} must have {first}'s dtype, got {name} in {tensor.dtype}, {first} in {like.dtype}")


def check_whole(name: str, value: int, least: int) -> None:
    """Refuse what is not a whole number of at least this.

    Args:
        name: of the argument, for the message.
        value: what was given.
        least: the smallest number that may be.

    Raises:
        ValueError: it is no int, is a bool, or is less.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def stands_alone() -> bool:
    """Say whether the model is being traced or exported: then it records plain PyTorch, not an operator of ours.

    Returns:
        True in a trace and in an export; False in a script and in plain PyTorch.
    """
    return torch.jit.is_tracing() or torch.compiler.is_exporting()
