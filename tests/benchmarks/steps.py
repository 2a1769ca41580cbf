"""What every benchmark of a network runs: a forward, a training step, and the forward through ONNX.

A training step is the network's alone: forward, L1, backward, Adam.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn


def forward(network: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> Callable[[], Tensor]:
    """Inference in evaluation mode, under autocast to `dtype` if there is one."""

    def run() -> Tensor:
        network.eval()
        with torch.inference_mode(), torch.autocast(x.device.type, dtype, enabled=dtype is not None):
            return network(x)

    return run


def step(network: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> Callable[[], None]:
    """A training step towards the mean of the sources."""
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)

    def run() -> None:
        network.train()
        optimizer.zero_grad()
        with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
            made = network(x)
        (made.float() - x.mean(1, keepdim=True)).abs().mean().backward()
        optimizer.step()

    return run


def through_onnx(network: nn.Module, x: Tensor, *, threads: int = 0) -> Callable[[], Tensor]:
    """The network converted and in a session of onnxruntime; importing it is left to those who ask for this."""
    import onnxruntime
    from monai.networks.utils import convert_to_onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = convert_to_onnx(network.eval(), inputs=[x], use_trace=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads  # 0: as many as there are
    providers = ["CUDAExecutionProvider"] if x.device.type == "cuda" else ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
    name, image = session.get_inputs()[0].name, x.cpu().numpy()

    def run() -> Tensor:
        return torch.from_numpy(session.run(None, {name: image})[0])

    return run
