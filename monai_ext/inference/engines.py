"""Which engine runs a network: torch, or a graph of it where that is faster and gives the same image.

"auto" is torch until a network has more to do than a probe takes. The probe converts it, holds what the graph makes of
a slice of this very volume against float32 torch, compares times, and remembers the fastest that agrees.
"""

import functools
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from monai_ext.inference.graphs import EXAMPLE, GRAPHS, IN_FLIGHT, EngineError, Graph, why_not
from monai_ext.inference.remembered import Choice, fingerprint, graph_of, key, processor, recalled, remember
from monai_ext.runtime import EXTRAS, autocast, checked_engine, installed, version, wanted_dtype

logger = logging.getLogger(__name__)
AGREEMENT = 50.0  # dB that a graph must reach against float32 torch
LARGEST = 200.0  # dB that are written for images that are the same
PROBE_SECONDS = 10.0  # that a probe may take
FASTER = 0.9  # of torch's time: what is hardly faster is not worth another engine
TINY = 1e10  # weights times pixels: no more than some seconds on any machine
KEPT = 4  # graphs that stay loaded
VARIABLE = "MONAI_EXT_ENGINE"  # of the environment: what "auto" is on this machine

_loaded: dict[tuple[str, str], Graph] = {}
_choices: dict[str, Choice] = {}
_spent: dict[str, float] = {}
_failed: set[tuple[str, str]] = set()
_loading = threading.Lock()  # several threads of a server may want one graph


@functools.cache
def _told_alone() -> None:
    """Once a process"""
    extras = " or ".join(f"'monai-ext[{EXTRAS[name]}]'" for name in GRAPHS)
    logger.warning("torch runs the network, for no engine that may be faster is installed: pip install %s", extras)


class Engine:
    """Gives inferers what to call in a network's place, and says afterwards what it was.

    Args:
        name: "torch"; "openvino" or "onnxruntime", or an error where they cannot; "auto": whichever is fastest, or
            what MONAI_EXT_ENGINE says.
        amp: precision, see `monai_ext.runtime`.

    Raises:
        ValueError: an engine that is not known, or not installed.

    Example:
        >>> from torch import nn
        >>> engine, network = Engine("auto", amp=False), nn.Conv2d(2, 1, 3, padding=1).eval()
        >>> engine.best_for(network, torch.rand(1, 2, 32, 32), count=3) is network  # nothing that would be worth it
        True
    """

    def __init__(self, name: str = "torch", *, amp: bool | str = True) -> None:
        self.name, self.amp = checked_engine(name), amp
        if self.name == "auto":
            self.name = checked_engine(os.environ.get(VARIABLE) or "auto")
        self.used: list[dict[str, str]] = []

    def best_for(self, network: Any, sample: Tensor, *, count: int, plain: bool = True) -> Callable[..., Tensor]:
        """Choose for a volume.

        Args:
            network: as the inferer was given it.
            sample: (1, M, H, W), a slice of the volume.
            count: how many slices there are.
            plain: whether the network is called with the slices alone.

        Returns:
            The network, or a graph of it that takes the same slices.

        Raises:
            ValueError: an engine that was asked for cannot do it; the message says what to do.
        """
        if self.name == "torch":
            return network
        reason = why_not(network, sample) if plain else "the network is called with more than the slices"
        if self.name != "auto":
            return self._asked_for(network, sample, reason)
        if reason:
            logger.debug("torch runs the network: %s", reason)
            return network
        if sum(weights.numel() for weights in network.parameters()) * sample[0, 0].numel() * count < TINY:
            return network
        names = [name for name in GRAPHS if installed(name)]
        if not names:
            _told_alone()
            return network
        return self._fastest(network, sample, names, count) or network

    def begin(self, run: object, device: torch.device) -> None:
        """Note what a volume goes through.

        Args:
            run: of `best_for`.
            device: of the volume.
        """
        name, precision = "torch", str(wanted_dtype(device, self.amp) or torch.float32).removeprefix("torch.")
        if isinstance(run, Graph):
            name, precision = run.engine, run.precision
        used = {"name": name, "version": version(name), "precision": precision}
        self.used = [used, *(one for one in self.used if one != used)]

    def after(self, error: EngineError, network: Any) -> Any:
        """Go on with torch where a graph failed on the way.

        Args:
            error: what happened.
            network: whose graph it was.

        Returns:
            The network.

        Raises:
            ValueError: that engine was asked for.
        """
        if self.name != "auto":
            raise ValueError(_instead(error)) from error
        logger.warning("%s: torch goes on", error)
        made_of = fingerprint(network)
        for own in [(made_of, self._kind(name)) for name in GRAPHS]:
            _failed.add(own)
            _loaded.pop(own, None)
        return network

    def _asked_for(self, network: nn.Module, sample: Tensor, reason: str) -> Graph:
        if reason:
            raise ValueError(_instead(f"{self.name} cannot run this: {reason}"))
        made_of = fingerprint(network)
        question = self._remembered_name(made_of, sample, [self.name], "asked for")
        try:
            graph = self._graph(self.name, network, sample, made_of)
            choice = _choices.get(question) or recalled(question)
            agreement = choice.agreement if choice else _agreement(graph(sample), _exact(network, sample))
        except EngineError as error:
            raise ValueError(_instead(error)) from error
        if agreement < AGREEMENT:
            raise ValueError(_instead(f"{self.name} {_disagrees(agreement)}"))
        if not choice:
            _choices[question] = Choice(self.name, 0.0, 0.0, 0.0, agreement)
            remember(question, _choices[question])
        return graph

    def _fastest(self, network: nn.Module, sample: Tensor, names: list[str], count: int) -> Graph | None:
        """None for torch."""
        made_of = fingerprint(network)
        question = self._remembered_name(made_of, sample, names)
        choice = _choices.get(question) or recalled(question)
        if choice is None:
            seconds = self._torch_seconds(network, sample)
            _spent[made_of] = _spent.get(made_of, 0.0) + seconds * count
            if _spent[made_of] < PROBE_SECONDS:
                return None
            choice, lasting = self._probe(network, sample, names, made_of, seconds)
            if lasting:
                remember(question, choice)
        _choices[question] = choice
        own = (made_of, self._kind(choice.engine))
        gain = (choice.torch_seconds - choice.engine_seconds) * count
        if choice.engine not in names or own in _failed or (own not in _loaded and gain < choice.load_seconds):
            return None
        try:
            return self._graph(choice.engine, network, sample, made_of)
        except EngineError as error:
            self.after(error, network)
            return None

    def _probe(
        self, network: nn.Module, sample: Tensor, names: list[str], made_of: str, seconds: float
    ) -> tuple[Choice, bool]:
        """The choice, and whether it is worth remembering: every engine that was tried gave an answer."""
        logger.info("which engine is fastest is found out once for these weights")
        begun = time.perf_counter()
        exact, failed = _exact(network, sample), False
        for name in names:
            if name != names[0] and time.perf_counter() - begun > PROBE_SECONDS / 2:
                break
            try:
                self._graph(name, network, sample, made_of)
                _loaded.pop((made_of, self._kind(name)), None)  # how long it takes to load what is made
                load, graph = _timed(functools.partial(self._graph, name, network, sample, made_of))
                agreement = _agreement(graph(sample), exact)
                if agreement < AGREEMENT:
                    logger.warning("%s %s: it is left aside", name, _disagrees(agreement))
                    continue
                taken, _ = _timed(functools.partial(graph, sample.expand(IN_FLIGHT, -1, -1, -1)), times=2)
            except EngineError as error:
                logger.warning("%s: it is left aside", error)
                failed = True
                continue
            if taken / IN_FLIGHT < FASTER * seconds:
                return Choice(name, seconds, taken / IN_FLIGHT, load, agreement), True
        choice = Choice("torch", seconds, seconds, 0.0, LARGEST)
        return choice, not failed  # a full disk today says nothing of tomorrow

    def _graph(self, name: str, network: nn.Module, sample: Tensor, made_of: str) -> Graph:
        own = (made_of, self._kind(name))
        with _loading:
            if own not in _loaded:
                kind = GRAPHS[name]
                example = torch.rand(1, sample.shape[1], *EXAMPLE)
                convert = functools.partial(kind.convert, network, example)
                try:
                    folder = graph_of(key(made_of, [name], name), kind.files, convert)
                except OSError as error:
                    raise EngineError(f"no graph can be written: {error}") from error
                dtype = wanted_dtype("cpu", self.amp)
                graph = kind(folder / kind.files[0], dtype=dtype, threads=torch.get_num_threads())
                while len(_loaded) >= KEPT:
                    del _loaded[next(iter(_loaded))]
                _loaded[own] = graph
            return _loaded[own]

    def _kind(self, name: str) -> str:
        return f"{name} {wanted_dtype('cpu', self.amp)} {torch.get_num_threads()}"

    def _remembered_name(self, made_of: str, sample: Tensor, names: list[str], how: str = "") -> str:
        size = round(math.log2(sample[0, 0].numel()))
        facts = (how, size, torch.get_num_threads(), processor(), str(wanted_dtype("cpu", self.amp)))
        return key(made_of, names, *facts)

    def _torch_seconds(self, network: nn.Module, sample: Tensor) -> float:
        with autocast("cpu", self.amp):
            return _timed(functools.partial(network, sample), times=2)[0]


def _timed(work: Callable[[], Any], times: int = 1) -> tuple[float, Any]:
    """The least of so many times in seconds, and the last result."""
    least, result = math.inf, None
    for _ in range(times):
        begun = time.perf_counter()
        result = work()
        least = min(least, time.perf_counter() - begun)
    return least, result


def _exact(network: nn.Module, sample: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        image: Tensor = network(sample)
    return image


def _agreement(image: Tensor, exact: Tensor) -> float:
    """PSNR in dB of what is in [0, 1], at a range of 1, of the worst channel that shows anything; 0 of no image."""
    if image.shape != exact.shape or not bool(image.isfinite().all()):
        return 0.0
    shown = (image != 0).flatten(2).any(2)[0] | (exact != 0).flatten(2).any(2)[0]
    errors = (image.clamp(0, 1) - exact.clamp(0, 1)).square().mean((0, 2, 3))[shown]
    error = float(errors.max()) if len(errors) else 0.0
    return min(LARGEST, -10 * math.log10(error)) if error > 0 else LARGEST


def _disagrees(agreement: float) -> str:
    return f"agrees with float32 torch to {agreement:.1f} dB on a slice of this volume, and {AGREEMENT:g} are asked for"


def _instead(what: object) -> str:
    return f"{what}; give --engine torch, or auto, which takes torch where another cannot"


def engine_of(inferer: object) -> Mapping[str, str] | None:
    """Say what the last volume went through.

    Args:
        inferer: any; ours have an `engine`.

    Returns:
        "name", "version" and "precision"; None where it does not say.
    """
    used = getattr(getattr(inferer, "engine", None), "used", ())
    return used[0] if used else None
