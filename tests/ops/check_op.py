"""One check for every operator: what a kernel promises, whichever kernel it is."""

import io
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from monai_ext import ops
from monai_ext.ops import loader

Inputs = dict[str, Tensor | bool | None]


def check_op(
    op: Callable[..., Tensor],
    expected: Callable[..., Tensor],
    inputs: Sequence[Inputs],
    *,
    device: str = "cpu",
    rtol: float = 1e-5,
    grad_rtol: float = 1e-4,
) -> None:
    """Hold op against an independent implementation in float64, for each of these inputs (float32)."""
    inputs = [{k: v.to(device) if isinstance(v, Tensor) else v for k, v in given.items()} for given in inputs]
    _check_kernel(op, inputs[0], device)
    for arguments in inputs:
        _check_parity(op, expected, arguments, rtol, grad_rtol)
        _check_strides(op, arguments)
        _check_determinism(op, arguments)
    _check_half(op, inputs[0])
    small = _as(inputs[0], torch.float64, grad=True)
    assert torch.autograd.gradcheck(lambda *tensors: op(**_with(small, tensors)), tuple(_tensors(small).values()))
    check_archives(op, inputs[0])


def check_registration(op: Callable[..., Tensor], arguments: Sequence[object]) -> None:
    """PyTorch's own four tests of a custom operator."""
    assert set(torch.library.opcheck(op, tuple(arguments)).values()) == {"SUCCESS"}


def _check_kernel(op: Callable[..., Tensor], arguments: Inputs, device: str) -> None:
    """What is checked here is the kernel, wherever one can be had."""
    op(**_as(arguments, torch.float32))
    if loader.mode() == "off" or (device == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++")))):
        return
    status = ops.status()[op.__name__]
    assert status.kernel == device or torch.cuda.is_available(), status.reason


def _check_parity(
    op: Callable[..., Tensor], expected: Callable[..., Tensor], arguments: Inputs, rtol: float, grad_rtol: float
) -> None:
    single, double = _as(arguments, torch.float32, grad=True), _as(arguments, torch.float64, grad=True)
    result, truth = op(**single), expected(**double)
    assert result.dtype == torch.float32
    assert result.shape == truth.shape
    _close(result, truth, rtol)
    _close(op(**double), truth, 1e-12)
    if not truth.numel():
        return
    direction = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    direction = direction.to(truth.device)
    got = torch.autograd.grad(result, list(_tensors(single).values()), direction.float())
    want = torch.autograd.grad(truth, list(_tensors(double).values()), direction)
    for name, one, other in zip(_tensors(single), got, want, strict=True):
        assert one.dtype == torch.float32, name
        _close(one, other, grad_rtol)


def _check_strides(op: Callable[..., Tensor], arguments: Inputs) -> None:
    """Tensors whose memory is in another order give the same values, forward and backward."""

    def run(inputs: Inputs) -> list[Tensor]:
        result = op(**inputs)
        return [result, *torch.autograd.grad(result.square().sum(), list(_tensors(inputs).values()))]

    plain = _as(arguments, torch.float32, grad=True)
    turned = {k: turn(v).requires_grad_() if isinstance(v, Tensor) else v for k, v in plain.items()}
    for one, other in zip(run(plain), run(turned), strict=True):
        _close(one, other, 1e-6)


def _check_determinism(op: Callable[..., Tensor], arguments: Inputs) -> None:
    """Bitwise equal from run to run, and for any number of threads."""

    def run() -> list[Tensor]:
        inputs = _as(arguments, torch.float32, grad=True)
        result = op(**inputs)
        return [result, *torch.autograd.grad(result.square().sum(), list(_tensors(inputs).values()))]

    first = run()
    for threads in (1, 2, 3):
        with _threads(threads):
            for one, other in zip(first, run(), strict=True):
                assert torch.equal(one, other)


def _check_half(op: Callable[..., Tensor], arguments: Inputs) -> None:
    """Low precision is computed in float32 and rounded once."""
    for dtype in (torch.bfloat16, torch.float16):
        low = _as(arguments, dtype)
        result = op(**low)
        assert result.dtype == dtype
        assert torch.equal(result, op(**_as(low, torch.float32)).to(dtype))


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]),
]


class _Model(nn.Module):
    """The operator with all its tensors but the first as parameters."""

    def __init__(self, op: Callable[..., Tensor], arguments: Inputs) -> None:
        super().__init__()
        self.op = op
        self.flags = {k: v for k, v in arguments.items() if not isinstance(v, Tensor)}
        first, *rest = _tensors(arguments)
        self.first = first
        self.rest = nn.ParameterDict({k: nn.Parameter(_tensors(arguments)[k].clone()) for k in rest})

    def forward(self, x: Tensor) -> Tensor:
        return self.op(**{self.first: x}, **dict(self.rest.items()), **self.flags)


def check_archives(op: Callable[..., Tensor], arguments: Inputs) -> None:
    """Compiled whole, scripted, traced and exported give the same values; archives hold no operator of ours."""
    single = _as(arguments, torch.float32)
    model, x = _Model(op, single), next(iter(_tensors(single).values()))
    expected = model(x)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(x)  # inductor needs Python's headers
    _close(compiled, expected, 1e-5)
    torch.autograd.grad(compiled.sum(), list(model.parameters()))
    scripted = torch.jit.script(op)
    assert "monai_ext::" not in str(scripted.inlined_graph)
    _close(scripted(**single), expected, 1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(model, x)
        torch.jit.save(traced, io.BytesIO())
    assert "monai_ext::" not in str(traced.inlined_graph)
    _close(traced(x), expected, 1e-5)
    exported = torch.export.export(model, (x,))
    assert not [node for node in exported.graph.nodes if "monai_ext" in str(node.target)]
    _close(exported.module()(x), expected, 1e-5)


def _close(result: Tensor, truth: Tensor, rtol: float) -> None:
    scale = truth.abs().max().item() if truth.numel() else 0.0
    torch.testing.assert_close(result.double(), truth.double(), rtol=0, atol=rtol * max(scale, 1e-30))


def _tensors(arguments: Inputs) -> dict[str, Tensor]:
    return {name: value for name, value in arguments.items() if isinstance(value, Tensor)}


def _with(arguments: Inputs, tensors: Sequence[Tensor]) -> Inputs:
    return {**arguments, **dict(zip(_tensors(arguments), tensors, strict=True))}


def _as(arguments: Inputs, dtype: torch.dtype, *, grad: bool = False) -> Inputs:
    return {
        name: value.detach().to(dtype).requires_grad_(grad) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }


def turn(tensor: Tensor) -> Tensor:
    axes = list(range(tensor.dim()))[::-1]
    return tensor.detach().permute(axes).contiguous().permute(axes)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
