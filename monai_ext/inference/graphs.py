"""A network as a graph for OpenVINO or onnxruntime: converted into a file, and run from it slice by slice.

A graph takes one slice of any height and width that are multiples of SIDE, from LEAST; several are in flight at once.
"""

import contextlib
import functools
import importlib
import logging
import sys
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SIDE, LEAST = 8, 24  # pixels
EXAMPLE = (40, 48)  # of the slice that a graph is traced with
IN_FLIGHT = 4  # slices at once at most
TELEMETRY = "openvino_telemetry"  # what OpenVINO would tell its makers with, at import and at each conversion


class EngineError(RuntimeError):
    """An engine that cannot do this: why, in one line."""


class Graph(ABC):
    """A network that another engine runs on the CPU: (B, M, H, W) float32 -> (B, K, H, W).

    Args:
        path: of the file that `convert` wrote.
        dtype: what autocast would use; None for float32.
        threads: how many it takes.
        streams: how many slices are in flight at once; None for as many as there are threads, IN_FLIGHT at most.

    Raises:
        EngineError: the engine refuses it.

    Attributes:
        engine: its name.
        files: that a graph consists of; the first is the one to load.
        precision: what it computes in.
    """

    engine: str
    files: tuple[str, ...]
    precision = "float32"

    def __init__(self, path: Path, *, dtype: torch.dtype | None, threads: int, streams: int | None = None) -> None:
        self._turn = threading.Lock()  # one volume at a time: the queue's callback is of one
        with _told(self.engine):
            self._load(path, dtype, threads, streams or min(IN_FLIGHT, threads))

    @classmethod
    def convert(cls, network: nn.Module, example: Tensor, folder: Path) -> None:
        """Write a network as a graph.

        Args:
            network: in eval mode, on the CPU; of one tensor.
            example: (1, M, H, W), a slice.
            folder: takes `files`.

        Raises:
            EngineError: it cannot be converted.
        """
        with _told(cls.engine), _as_graph():
            cls._write(network, example, folder / cls.files[0])

    def __call__(self, x: Tensor) -> Tensor:
        """(B, M, H, W) float32 -> (B, K, H, W)"""
        with self._turn, _told(self.engine):
            return torch.cat(self._run(x.split(1)))

    @abstractmethod
    def _load(self, path: Path, dtype: torch.dtype | None, threads: int, streams: int) -> None: ...

    @staticmethod
    @abstractmethod
    def _write(network: nn.Module, example: Tensor, path: Path) -> None: ...

    @abstractmethod
    def _run(self, slices: Sequence[Tensor]) -> list[Tensor]:
        """(1, M, H, W) each -> (1, K, H, W) each"""


class OpenVINOGraph(Graph):
    """A `Graph` that OpenVINO runs, in bfloat16 where that is wanted and the processor has it."""

    engine, files = "openvino", ("model.xml", "model.bin")

    def _load(self, path: Path, dtype: torch.dtype | None, threads: int, streams: int) -> None:
        ov, core = _openvino(), _core()
        half = dtype is torch.bfloat16 and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if half else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams,
            "ENABLE_CPU_PINNING": False,  # processes side by side would be pinned to the same cores
        }
        self._queue = ov.AsyncInferQueue(core.compile_model(path, "CPU", settings), streams)
        self.precision = "bfloat16" if half else "float32"

    @staticmethod
    def _write(network: nn.Module, example: Tensor, path: Path) -> None:
        ov = _openvino()
        model = ov.convert_model(torch.jit.trace(network, example, check_trace=False), example_input=example)
        model.reshape([1, example.shape[1], -1, -1])
        ov.save_model(model, path, compress_to_fp16=False)

    def _run(self, slices: Sequence[Tensor]) -> list[Tensor]:
        images: dict[int, Tensor] = {}

        def keep(request: Any, number: int) -> None:
            images[number] = torch.from_numpy(np.array(request.get_output_tensor(0).data))

        self._queue.set_callback(keep)
        for number, one in enumerate(slices):
            self._queue.start_async([one.numpy()], number)
        self._queue.wait_all()
        return [images[number] for number in range(len(slices))]


class OnnxruntimeGraph(Graph):
    """A `Graph` that onnxruntime runs, always in float32."""

    engine, files = "onnxruntime", ("model.onnx",)

    def _load(self, path: Path, dtype: torch.dtype | None, threads: int, streams: int) -> None:  # noqa: ARG002
        onnxruntime = importlib.import_module("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = max(threads // streams, 1), 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._name = self._session.get_inputs()[0].name
        self._pool = ThreadPoolExecutor(streams, "onnxruntime")

    @staticmethod
    def _write(network: nn.Module, example: Tensor, path: Path) -> None:
        sizes = {"x": {2: "height", 3: "width"}, "y": {2: "height", 3: "width"}}
        names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": sizes}
        torch.onnx.export(network, (example,), str(path), dynamo=False, opset_version=17, **names)

    def _run(self, slices: Sequence[Tensor]) -> list[Tensor]:
        found = self._pool.map(lambda one: self._session.run(None, {self._name: one.numpy()})[0], slices)
        return [torch.from_numpy(one) for one in found]


GRAPHS: dict[str, type[Graph]] = {kind.engine: kind for kind in (OpenVINOGraph, OnnxruntimeGraph)}


def why_not(network: object, slices: Tensor) -> str:
    """Say why a network, or these slices, can be no graph's.

    Args:
        network: what an inferer was given.
        slices: (B, M, H, W), what it would be called with.

    Returns:
        The reason; "" where nothing is known that would hinder it.
    """
    if not isinstance(network, nn.Module) or network.training:
        return "what is called is no network in eval mode"
    for module in network.modules():
        reason = getattr(module, "torch_alone", "")
        if reason:
            return f"{type(module).__name__} {reason}"
    if slices.device.type != "cpu":
        return f"the network runs on {slices.device}, and other engines than torch compute on the CPU"
    if slices.dim() != 4 or any(side % SIDE or side < LEAST for side in slices.shape[2:]):
        size = " x ".join(map(str, slices.shape[2:]))
        return f"slices must have sides that are multiples of {SIDE}, at least {LEAST}, got {size}: give a margin"
    return ""


def _openvino() -> Any:
    """The package; it finds its telemetry missing, so that it tells nobody what it is used for."""
    loaded = TELEMETRY in sys.modules
    before = sys.modules.get(TELEMETRY)
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    finally:
        if loaded and before is not None:
            sys.modules[TELEMETRY] = before
        else:
            del sys.modules[TELEMETRY]


@functools.cache
def _core() -> Any:
    """The one of this process, never let go.

    With AMX its plugin gives the thread that loads it a stack for signals, and unmaps that when the plugin's last user
    ends, on whichever thread this is: the next signal to the first thread would be a segmentation fault.
    """
    return _openvino().Core()


@contextlib.contextmanager
def _told(engine: str) -> Iterator[None]:
    """Whatever an engine raises, as an EngineError of one line: of a library that met what it does not know."""
    try:
        yield
    except (EngineError, MemoryError):
        raise
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        logging.getLogger(__name__).debug("%s failed", engine, exc_info=True)
        raise EngineError(f"{engine} failed: {reason[:200]}") from error


@contextlib.contextmanager
def _as_graph() -> Iterator[None]:
    """What tracing needs: float32, tensors that may be recorded, and no word of what it warns of.

    OpenVINO silences everybody's warnings while it converts, and does not undo that where it fails.
    """
    root = logging.getLogger()
    level, filters, handlers = root.level, list(root.filters), list(root.handlers)
    try:
        with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
            warnings.simplefilter("ignore")
            with torch.autocast("cpu", enabled=False):
                yield
    finally:
        root.setLevel(level)
        root.filters, root.handlers = filters, handlers
