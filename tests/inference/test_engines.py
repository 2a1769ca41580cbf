"""Engines: each gives float32 torch's image; whatever is wrong with one ends in torch, or in a line that says it."""

import errno
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor, nn

from monai_ext import runtime
from monai_ext.inference import engines, graphs, remembered
from monai_ext.inference.engines import Engine
from monai_ext.inference.graphs import GRAPHS, EngineError, OpenVINOGraph
from monai_ext.inference.inferers import PatchesInferer, SlicesInferer
from monai_ext.networks import FDGAN, AGINet, HMFMambaINR, PMMSynth
from monai_ext.networks.agi_net import RoutingFunction
from monai_ext.networks.pfm import PersonalizedNorm
from monai_ext.networks.pmm_synth import OneTask
from monai_ext.runtime import ENGINES, OLDEST

needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
needs_onnxruntime = pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="no onnxruntime")


class OtherAsGraph(nn.Module):
    """What a graph makes of it is not what torch makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + (0.1 if torch.jit.is_tracing() else 0.0)


class NoGraph(nn.Module):
    """No engine has this operation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + torch.linalg.eigvalsh(x[:, :1, :3, :3] + x[:, :1, :3, :3].mT).amin().expand(1, 1, 1, 1)


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1), nn.Sigmoid()).eval()


def volume(channels: int = 2, *, seed: int = 0) -> Tensor:
    """Smooth, in [0, 1], six slices of which the first is empty; its planes are multiples of 8."""
    coarse = torch.rand(1, channels, 6, 5, 6, generator=torch.Generator().manual_seed(seed))
    image = nn.functional.interpolate(coarse, size=(48, 40, 6), mode="trilinear")
    image[..., 0] = 0
    return image


def pmm() -> nn.Module:
    torch.manual_seed(0)
    network = PMMSynth(modalities=["T1", "T2", "FLAIR"], sites=["here", "there"], width=4)
    for module in network.modules():
        if isinstance(module, PersonalizedNorm) and module.mlp is not None:
            nn.init.normal_(module.mlp[-1].weight, std=0.2)  # untrained, all sites are alike
    given, wanted = torch.tensor([True, True, False]), torch.tensor([False, False, True])
    return OneTask(network.eval(), given=given, site=1, wanted=wanted)


def agi_net() -> nn.Module:
    torch.manual_seed(0)
    network = AGINet(width=8, stages=("down1", "body"))
    for module in network.modules():
        if isinstance(module, RoutingFunction):
            nn.init.normal_(module.offsets.weight)  # untrained, no kernel is rolled
    return network.eval()


def fd_gan() -> nn.Module:
    torch.manual_seed(0)
    return FDGAN(width=4, image_size=32).eval()


NETWORKS: dict[str, Callable[[], nn.Module]] = {"AGI-Net": agi_net, "FD-GAN": fd_gan, "PMM-Synth": pmm}


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Path]:
    """A cache of its own; `auto` is auto, torch takes for ever, and nothing is remembered in the process."""
    caplog.set_level(logging.WARNING, logger="monai_ext")  # a bundle's configs, run before, want more told
    monkeypatch.setattr(remembered, "cache_folder", lambda: tmp_path / "cache")  # kernels stay where they are
    monkeypatch.delenv("MONAI_EXT_ENGINE")
    monkeypatch.setattr(engines, "TINY", 0)
    monkeypatch.setattr(Engine, "_torch_seconds", lambda *_: 100.0)
    forget()
    yield tmp_path / "cache" / "engines"
    forget()


def forget() -> None:
    """As a new process would begin."""
    for kept in (engines._loaded, engines._choices, engines._spent, engines._failed, remembered._told):
        kept.clear()


@torch.no_grad()
def through(network: nn.Module, name: str, *, image: Tensor | None = None) -> tuple[Tensor, str]:
    """What an inferer makes of a volume, and which engine it says made it."""
    inferer = SlicesInferer(batch_size=4, amp=False, engine=name)
    made = inferer(volume() if image is None else image, network)
    return made, inferer.engine.used[0]["name"]


@torch.no_grad()
def by_hand(network: nn.Module, image: Tensor | None = None) -> Tensor:
    slices = (volume() if image is None else image)[0].permute(3, 0, 1, 2)
    made = [network(one[None]).clamp(0, 1) * bool(one.any()) for one in slices]
    return torch.cat(made).permute(1, 2, 3, 0)[None]


# What they make ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("name", "engine"),
    [
        *(pytest.param(name, "openvino", marks=needs_openvino) for name in NETWORKS),
        pytest.param("FD-GAN", "onnxruntime", marks=needs_onnxruntime),
        pytest.param("AGI-Net", "onnxruntime", marks=[needs_onnxruntime, pytest.mark.long]),
        pytest.param("PMM-Synth", "onnxruntime", marks=[needs_onnxruntime, pytest.mark.long]),
    ],
)
def test_every_engine_agrees_with_float32_torch(name: str, engine: str):
    network = NETWORKS[name]()
    image = volume(3 if name == "PMM-Synth" else 2)
    made, used = through(network, engine, image=image)
    assert used == engine
    expected = by_hand(network, image)
    assert expected.std() > 0.01, "an image of one value would show nothing"
    assert peak_signal_noise_ratio(expected.numpy(), made.numpy(), data_range=1) >= 50


@torch.no_grad()
def test_a_graph_of_one_task_gives_what_the_network_gives_for_it():
    task, x = pmm(), volume(3)[..., 3]
    network: PMMSynth = task.network
    given, site = torch.tensor([[True, True, False]]), torch.tensor([1])
    asked = network(x, given, site, torch.tensor([False, False, True]))
    torch.testing.assert_close(task(x), asked)
    torch.testing.assert_close(network.graph_of_task(x, [True, True, False], 1, [False, False, True]), asked)
    assert not torch.allclose(network(x, given, None)[:, 2:], asked[:, 2:]), "the site would change nothing"


@needs_openvino
@torch.no_grad()
def test_one_graph_serves_every_size_and_batch(fresh: Path):
    network = plain()
    for height, width, slices in ((24, 32, 1), (48, 40, 5), (32, 80, 9)):
        image = torch.rand(1, 2, height, width, slices)
        made, used = through(network, "openvino", image=image)
        assert used == "openvino"
        torch.testing.assert_close(made, by_hand(network, image), atol=1e-4, rtol=0)
    assert len([path for path in fresh.iterdir() if path.is_dir()]) == 1


@needs_openvino
@torch.no_grad()
def test_volumes_of_two_threads_do_not_mix(tmp_path: Path):
    """A server's patients share the graph of their weights."""
    network = nn.Conv2d(1, 1, 1, bias=False).eval()
    network.weight.fill_(1.0)
    OpenVINOGraph.convert(network, torch.rand(1, 1, 40, 48), tmp_path)
    graph = OpenVINOGraph(tmp_path / "model.xml", dtype=None, threads=2)

    def wrong(value: int) -> int:
        asked = torch.full((6, 1, 24, 24), float(value))
        return sum(not torch.equal(graph(asked), asked) for _ in range(150))

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(wrong, (1, 2, 3))) == [0, 0, 0]


SIGNALLED = """
import gc, os, signal, sys, threading
from pathlib import Path
import torch
from monai_ext.inference.graphs import OpenVINOGraph

network, folder = torch.nn.Conv2d(2, 1, 3, padding=1).eval(), Path(sys.argv[1])
OpenVINOGraph.convert(network, torch.rand(1, 2, 40, 48), folder)
graphs = [OpenVINOGraph(folder / "model.xml", dtype=None, threads=2)]
graphs[0](torch.rand(2, 2, 40, 48))
elsewhere = threading.Thread(target=lambda: (graphs.clear(), gc.collect()))
elsewhere.start(), elsewhere.join()
signal.signal(signal.SIGUSR1, lambda *_: print("received"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


@needs_openvino
def test_signals_arrive_once_a_graph_is_gone(tmp_path: Path):
    done = subprocess.run([sys.executable, "-c", SIGNALLED, tmp_path], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "received"), done.stderr[-2000:]


# Which one is taken --------------------------------------------------------------------------------------------------


@needs_openvino
@pytest.mark.usefixtures("fresh")
def test_auto_takes_the_engine_that_is_faster_and_remembers_it(monkeypatch: pytest.MonkeyPatch):
    assert through(plain(), "auto")[1] == "openvino"
    forget()
    monkeypatch.setattr(Engine, "_probe", lambda *_: pytest.fail("it was probed again"))
    monkeypatch.setattr(OpenVINOGraph, "convert", lambda *_: pytest.fail("it was converted again"))
    made, used = through(plain(), "auto")
    assert used == "openvino"
    torch.testing.assert_close(made, by_hand(plain()), atol=1e-4, rtol=0)


@needs_openvino
@pytest.mark.usefixtures("fresh")
def test_auto_takes_torch_where_it_is_faster(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engines, "FASTER", 0.0)
    made, used = through(plain(), "auto")
    assert used == "torch"
    assert torch.equal(made, through(plain(), "torch")[0])


@pytest.mark.usefixtures("fresh")
def test_auto_asks_nothing_of_a_network_with_little_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engines, "TINY", 1e10)
    monkeypatch.setattr(engines, "fingerprint", lambda *_: pytest.fail("weights were read"))
    assert through(plain(), "auto")[1] == "torch"


@needs_openvino
@pytest.mark.usefixtures("fresh")
def test_auto_probes_once_a_network_has_had_as_much_to_do_as_a_probe_takes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Engine, "_torch_seconds", lambda *_: 1.0)  # 5 s a volume
    network = plain()
    assert [through(network, "auto")[1] for _ in range(3)] == ["torch", "openvino", "openvino"]


@needs_openvino
def test_other_weights_have_a_graph_of_their_own(fresh: Path):
    network = plain()
    through(network, "openvino")
    with torch.no_grad():
        network[0].weight.mul_(2)
    made, _ = through(network, "openvino")
    torch.testing.assert_close(made, by_hand(network), atol=1e-4, rtol=0)
    assert len([path for path in fresh.iterdir() if path.is_dir()]) == 2


def test_the_environment_says_what_auto_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MONAI_EXT_ENGINE", "torch")
    assert Engine("auto").name == "torch"
    monkeypatch.setenv("MONAI_EXT_ENGINE", "tensorrt")
    with pytest.raises(ValueError, match="engine must be one of auto, torch, openvino, onnxruntime, got 'tensorrt'"):
        Engine("auto")


# What may go wrong ---------------------------------------------------------------------------------------------------


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in names else found(name))


@pytest.mark.usefixtures("fresh")
def test_what_is_not_installed_is_torch_and_a_line_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch, caplog):
    without(monkeypatch, "openvino", "onnxruntime")
    engines._told_alone.cache_clear()
    for _ in range(2):
        assert through(plain(), "auto")[1] == "torch"
    told = [record.getMessage() for record in caplog.records if "pip install" in record.getMessage()]
    assert len(told) == 1, "once"
    assert told[0].endswith("is installed: pip install 'monai-ext[openvino]' or 'monai-ext[onnx]'")
    for engine, extra in (("openvino", "openvino"), ("onnxruntime", "onnx")):
        with pytest.raises(ValueError, match=rf"{engine} is not here: pip install -U 'monai-ext\[{extra}\]'"):
            SlicesInferer(engine=engine)


@pytest.mark.usefixtures("fresh")
def test_what_is_too_old_is_torch_and_a_line(monkeypatch: pytest.MonkeyPatch, caplog):
    runtime._told_too_old.cache_clear()
    monkeypatch.setattr("monai_ext.runtime.version", lambda engine: {"openvino": "2023.1.0"}.get(engine, "0.9"))
    for _ in range(2):
        assert through(plain(), "auto")[1] == "torch"
    told = [record.getMessage() for record in caplog.records]
    assert sorted(set(told)) == sorted(told), "once"
    assert any(line.startswith("openvino 2023.1.0 is too old and left aside: 2025.4 or later") for line in told)
    with pytest.raises(ValueError, match=r"openvino 2023\.1\.0 is too old: pip install -U"):
        SlicesInferer(engine="openvino")


def test_the_oldest_that_will_do_is_what_installing_asks_for():
    extras = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert all(f'"{name}>={version}"' in extras for name, version in OLDEST.items())


@pytest.mark.parametrize("name", ["openvno", "OpenVINO", 3, "$import os"])
def test_an_engine_that_is_not_known_is_refused_and_the_nearest_named(name: object):
    hint = "; did you mean 'openvino'\\?$" if str(name).lower().startswith("openv") else "got .*[^?]$"
    with pytest.raises(ValueError, match=f"engine must be one of .*{hint}"):
        SlicesInferer(engine=name)  # type: ignore[arg-type]


@needs_openvino
@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("kind", "said"), [(NoGraph, "openvino failed"), (OtherAsGraph, r"agrees with float32 torch to \d+\.\d dB")]
)
def test_what_cannot_be_converted_or_disagrees_is_left_aside(kind: type[nn.Module], said: str, caplog, monkeypatch):
    without(monkeypatch, "onnxruntime")
    network = kind().eval()
    made, used = through(network, "auto")
    assert used == "torch"
    assert torch.equal(made, through(network, "torch")[0])
    assert caplog.records
    assert all(len(record.getMessage().splitlines()) == 1 for record in caplog.records)
    with pytest.raises(ValueError, match=rf"^openvino .*{said.removeprefix('openvino ')}.*give --engine torch"):
        through(network, "openvino")
    caplog.clear()
    through(network, "auto")
    assert not caplog.records, "it is told, and found out, once"


@needs_openvino
@pytest.mark.usefixtures("fresh")
def test_a_graph_that_fails_on_the_way_leaves_the_volume_to_torch(monkeypatch: pytest.MonkeyPatch, caplog):
    network, run = plain(), OpenVINOGraph.__call__
    through(network, "auto")

    def fails(graph: OpenVINOGraph, x: Tensor) -> Tensor:
        if len(x) == 1:  # the last batch: four slices have passed
            raise EngineError("openvino failed: no memory")
        return run(graph, x)

    monkeypatch.setattr(OpenVINOGraph, "__call__", fails)
    made, used = through(network, "auto")
    assert used == "torch"
    assert torch.equal(made, through(network, "torch")[0])
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.WARNING, "openvino failed: no memory: torch goes on")
    with pytest.raises(ValueError, match="openvino failed: no memory; give --engine torch"):
        through(network, "openvino")


@needs_openvino
def test_what_a_probe_found_is_believed_whatever_the_umask(fresh: Path):
    before = os.umask(0o002)
    try:
        through(plain(), "auto")
    finally:
        os.umask(before)
    forget()
    (path,) = fresh.glob("*.json")
    assert remembered.recalled(path.stem) is not None


@needs_openvino
@pytest.mark.usefixtures("fresh")
def test_an_engine_that_failed_once_is_asked_again_by_another_process(monkeypatch: pytest.MonkeyPatch):
    without(monkeypatch, "onnxruntime")
    with monkeypatch.context() as passing:
        passing.setattr(OpenVINOGraph, "convert", lambda *_: (_ for _ in ()).throw(EngineError("no memory")))
        assert through(plain(), "auto")[1] == "torch"
    forget()
    assert through(plain(), "auto")[1] == "openvino"


@needs_openvino
def test_auto_goes_on_with_torch_where_no_folder_can_be_written(fresh: Path, monkeypatch: pytest.MonkeyPatch):
    without(monkeypatch, "onnxruntime")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(remembered.tempfile, "TemporaryDirectory", full)
    assert through(plain(), "auto")[1] == "torch"
    assert not fresh.exists() or not any(path.is_dir() for path in fresh.iterdir())


@needs_openvino
def test_a_sound_graph_that_another_process_has_put_there_stays(fresh: Path):
    through(plain(), "openvino")
    (graph,) = (path for path in fresh.iterdir() if path.is_dir())
    kept = {path.name: path.stat().st_ino for path in graph.iterdir()}

    hidden = graph.rename(fresh / "hidden")
    found = remembered.graph_of(graph.name, OpenVINOGraph.files, lambda folder: makes_from(hidden, graph, folder))
    assert found == graph
    assert {path.name: path.stat().st_ino for path in graph.iterdir()} == kept


def makes_from(hidden: Path, graph: Path, folder: Path) -> None:
    """Make a graph, as a process that began before another put one of that name there."""
    for file in OpenVINOGraph.files:
        shutil.copy(hidden / file, folder / file)
    hidden.rename(graph)


def test_networks_that_compute_otherwise_have_other_fingerprints():
    def net(act: Callable[[Tensor], Tensor]) -> nn.Module:
        network = nn.Conv2d(1, 1, 1, bias=False)
        network.weight.data.fill_(1.0)
        network.act = act  # type: ignore[assignment]
        return network

    assert remembered.fingerprint(net(torch.sigmoid)) != remembered.fingerprint(net(torch.relu))
    assert remembered.fingerprint(net(torch.relu)) == remembered.fingerprint(net(torch.relu))


@needs_openvino
@pytest.mark.parametrize("harm", ["cut short", "no JSON", "another engine", "a text for a number", "links"])
def test_a_damaged_memory_is_told_and_made_anew(fresh: Path, harm: str, caplog):
    through(plain(), "auto")
    forget()
    (path,) = fresh.glob("*.json")
    text = path.read_text()
    if harm == "links":
        path.rename(fresh / "elsewhere")
        path.symlink_to(fresh / "elsewhere")
    else:
        changed = {
            "cut short": text[:20],
            "no JSON": "\0" * 50,
            "another engine": text.replace("openvino", "os.system"),
        }
        path.write_text(changed.get(harm, text.replace("100.0", '"100.0"')))
    assert through(plain(), "auto")[1] == "openvino"
    assert [f"{path.name} is damaged" in record.getMessage() for record in caplog.records] == [True]
    assert json.loads(path.read_text())["engine"] == "openvino"


@needs_openvino
@pytest.mark.parametrize("file", ["model.xml", "model.bin", "digests.json"])
def test_a_damaged_graph_is_never_run(fresh: Path, file: str, caplog):
    through(plain(), "openvino")
    forget()
    (path,) = fresh.glob(f"*/{file}")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    made, used = through(plain(), "openvino")
    assert used == "openvino"
    torch.testing.assert_close(made, by_hand(plain()), atol=1e-4, rtol=0)
    assert ["is damaged and is made anew" in record.getMessage() for record in caplog.records] == [True]
    assert path.stat().st_size == pytest.approx(len(whole), rel=0.1)  # the names in a graph have numbers that go on


@needs_openvino
@pytest.mark.parametrize("harm", ["a file in its place", "others may write"])
def test_a_cache_that_cannot_be_used_is_told_and_nothing_is_kept(fresh: Path, harm: str, caplog):
    cache = fresh.parent
    if harm == "a file in its place":
        cache.write_text("")
    else:
        cache.mkdir()
        cache.chmod(0o777)
    assert through(plain(), "auto")[1] == "openvino"
    assert "the cache folder" in caplog.records[0].getMessage()
    assert len({record.getMessage() for record in caplog.records}) == len(caplog.records) == 1
    assert not cache.is_dir() or not list(cache.iterdir())


@needs_openvino
@pytest.mark.usefixtures("fresh")
def test_what_only_torch_can_run_says_so_where_another_engine_is_asked_for():
    scan = HMFMambaINR(width=4, state_size=2).eval()
    assert through(scan, "auto")[1] == "torch"
    with pytest.raises(ValueError, match=r"openvino cannot run this: HMFMambaINR scans .*; give --engine torch"):
        through(scan, "openvino")
    with pytest.raises(ValueError, match="sides that are multiples of 8, at least 24, got 20 x 24: give a margin"):
        through(plain(), "openvino", image=torch.rand(1, 2, 20, 24, 3))
    with pytest.raises(ValueError, match="no network in eval mode"):
        through(plain().train(), "openvino")
    with pytest.raises(ValueError, match="called with more than the slices"):
        SlicesInferer(engine="openvino")(volume(), plain(), 1)
    with pytest.raises(ValueError, match="a network in 3D is run by torch, got engine openvino"):
        PatchesInferer(patch_size=(8, 8, 8), engine="openvino")


@needs_openvino
@pytest.mark.usefixtures("fresh")
def test_graphs_that_were_not_used_for_longest_make_room(fresh: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remembered, "MOST_BYTES", 1)
    for seed in range(2):
        torch.manual_seed(seed)
        through(nn.Conv2d(2, 1, 3, padding=1).eval(), "openvino")
    assert len([path for path in fresh.iterdir() if path.is_dir()]) == 1


@needs_openvino
def test_openvino_is_given_nothing_to_tell_its_makers_with():
    graphs._openvino()
    import openvino.tools.ovc.telemetry_utils as told

    assert told.tm.__name__ == "openvino.tools.ovc.telemetry_stub"


def test_every_engine_but_torch_has_a_graph():
    assert {"auto", "torch", *GRAPHS} == set(ENGINES)
