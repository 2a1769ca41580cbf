"""One check for every network: the contract that the collection's bundles, exports and hosts rely on."""

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import onnxruntime
import torch
from monai.networks.utils import convert_to_onnx
from torch import Tensor, nn


def check_network(
    make: Callable[[], nn.Module],
    *,
    in_channels: int,
    out_channels: int,
    sizes: tuple[tuple[int, ...], ...],
    onnx: bool = True,
) -> None:
    """`make` builds a small one; `sizes` are spatial, odd ones among them; `onnx` (seconds) exports the first."""
    torch.manual_seed(0)
    network = make()
    images = [torch.rand(2, in_channels, *size) for size in sizes]
    for image in images:
        made = network.eval()(image)
        assert made.shape == (2, out_channels, *image.shape[2:])
        assert made.dtype == torch.float32
        assert made.isfinite().all()
    _check_samples_are_apart(network, images[0])
    _check_gradients(make, images[0])
    _check_half(network, images[0])
    _check_script(network, images)
    if onnx:
        _check_onnx(network, images[0])


def _check_samples_are_apart(network: nn.Module, image: Tensor) -> None:
    """A batch is its samples, each as if it were alone, and the same each time."""
    with torch.no_grad():
        together = network(image)
        assert torch.equal(together, network(image))
        for index in range(len(image)):
            torch.testing.assert_close(network(image[index : index + 1])[0], together[index], rtol=1e-4, atol=1e-5)


def _check_gradients(make: Callable[[], nn.Module], image: Tensor) -> None:
    """Every parameter learns."""
    network = make().train()
    stirred(network)(image).square().mean().backward()
    still = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    assert still == []


def stirred(network: nn.Module) -> nn.Module:
    """Weights that begin at zero stop the gradient of what comes before them: moved a little away."""
    with torch.no_grad():
        for value in network.parameters():
            if not value.any():
                value.normal_(std=0.1)
    return network


def _check_half(network: nn.Module, image: Tensor) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert network(image).isfinite().all()


def _check_script(network: nn.Module, images: list[Tensor]) -> None:
    """Scripted, not traced; the archive holds no operator of ours, and its plain PyTorch gives what kernels give."""
    torch.jit.script(network.train())
    script = torch.jit.script(network.eval())
    assert "monai_ext::" not in str(script.inlined_graph)
    file = io.BytesIO()
    torch.jit.save(script, file)
    file.seek(0)
    again = torch.jit.load(file)
    with torch.no_grad():
        for image in images:
            torch.testing.assert_close(again(image), network(image), rtol=1e-4, atol=1e-5)


def _check_onnx(network: nn.Module, image: Tensor) -> None:
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        model = convert_to_onnx(network.eval(), inputs=[image], use_trace=False)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (answer,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(answer, network(image).numpy(), atol=1e-4)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its progress."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123
        yield
