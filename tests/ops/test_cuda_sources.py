"""The CUDA sources themselves, compiled for the CPU and run thread by thread: right numbers without a GPU.

What a GPU alone can show, its memory model and its speed, is left to the tests marked gpu.
"""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from ops import test_float_roll, test_selective_scan
from ops.check_op import Inputs
from torch import Tensor

from monai_ext.ops import loader
from monai_ext.ops.selective_scan import CUDA_CHUNK

SOURCES = Path(__file__).resolve().parents[2] / "cuda_ops"
SHIM = Path(__file__).with_name("cuda_on_cpu.h")


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Callable[..., object]]]:
    """The CUDA kernels of an operator, as functions of CPU tensors."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler on this machine")

    @cache
    def compiled(name: str) -> dict[str, Callable[..., object]]:
        library = tmp_path_factory.mktemp("emulated") / f"{name}.so"
        source = SOURCES / name / f"{name}_cuda.cu"
        flags = ["-std=c++17", "-O1", "-w", "-fPIC", "-shared", "-x", "c++", "-include"]
        subprocess.run([compiler, *flags, str(SHIM), str(source), "-o", str(library)], check=True)
        return loader.BINDERS[name](loader.Kernels(ctypes.CDLL(str(library)), "cpu"))

    return compiled


def close(result: Tensor, expected: Tensor) -> None:
    """To rounding, as sums of many terms have it."""
    rounding = torch.finfo(expected.dtype).eps * 100
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(result, expected, rtol=0, atol=rounding * scale)


def of(dtype: torch.dtype, arguments: Inputs) -> dict[str, Tensor | bool | None]:
    return {
        name: value.to(dtype).requires_grad_() if isinstance(value, Tensor) else value
        for name, value in arguments.items()
        if name != "z"
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float_rolls_cuda_kernels_compute_eq4_and_its_gradients(
    dtype: torch.dtype, emulated: Callable[[str], dict[str, Callable[..., object]]]
) -> None:
    kernels = emulated("float_roll")
    for arguments in test_float_roll.CASES:
        given = of(dtype, arguments)
        expected = test_float_roll.eq4(**given)
        plain = [value.detach() for value in given.values()]
        close(kernels["float_roll"](*plain), expected.detach())
        grad = torch.randn_like(expected)
        grads = kernels["float_roll_backward"](grad, *plain)
        for one, other in zip(
            grads, torch.autograd.grad(expected, list(given.values()), grad, materialize_grads=True), strict=True
        ):
            close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_selective_scans_cuda_kernels_compute_the_recurrence_and_its_gradients(
    dtype: torch.dtype, emulated: Callable[[str], dict[str, Callable[..., object]]]
) -> None:
    kernels = emulated("selective_scan")
    for arguments in test_selective_scan.CASES:
        given = of(dtype, arguments)
        expected = test_selective_scan.step_by_step(**given, z=None)
        plain = [value.detach() if isinstance(value, Tensor) else value for value in given.values()]
        y, saved = kernels["selective_scan"](*plain, chunk=CUDA_CHUNK)
        close(y, expected.detach())
        grad = torch.randn_like(expected)
        grads = kernels["selective_scan_backward"](grad, *plain, saved, chunk=CUDA_CHUNK)
        tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        wanted = torch.autograd.grad(expected, list(tensors.values()), grad, materialize_grads=True)
        computed = [one for one, name in zip(grads, given, strict=False) if name in tensors]
        for one, other in zip(computed, wanted, strict=True):
            close(one, other)
