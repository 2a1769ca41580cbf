"""Files of weights: whole, self-describing, and refused by name when they are not what they should be."""

import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from monai_ext.training.checkpoints import random_state, set_random_state
from monai_ext.weights import about_weights, load_weights, save_weights


def network(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, 1, 1))


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, nn.Module]:
    made = network()
    save_weights(tmp_path / "model.pt", made, {"network_def": {"width": 4}, "bundle": "b"})
    return tmp_path / "model.pt", made


def test_weights_are_a_flat_state_dict_and_come_back_the_same(saved: tuple[Path, nn.Module]):
    path, made = saved
    assert set(torch.load(path, weights_only=True)) == set(made.state_dict())
    other = network()
    about = load_weights(other, path)
    assert about["network_def"] == {"width": 4}
    for name, value in made.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_weights_of_another_shape_say_which_configuration_made_them(saved: tuple[Path, nn.Module]):
    with pytest.raises(
        ValueError, match=r"0.weight is \(4, 2, 3, 3\), the network's is \(6, .*made with \{'width': 4\}"
    ):
        load_weights(network(6), saved[0])


def test_weights_that_do_not_fit_leave_the_network_as_it_was(saved: tuple[Path, nn.Module]):
    other = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"has 2\.weight, which the network has not"):
        load_weights(other, saved[0])
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_weights_that_their_json_does_not_speak_of_are_refused_by_name(saved: tuple[Path, nn.Module]):
    path, _ = saved
    about = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**about, "sha256": "0" * 64}))
    for read in (about_weights, lambda file: load_weights(network(), file)):
        with pytest.raises(ValueError, match=r"model\.pt is not what the JSON beside it speaks of.*remove model\.json"):
            read(path)
    path.with_suffix(".json").unlink()
    assert load_weights(network(), path) == {}


@pytest.mark.parametrize("left", [0, 10, 1000])
def test_a_file_cut_short_is_refused_by_name(saved: tuple[Path, nn.Module], left: int):
    path, _ = saved
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match=r"model\.pt is (no file of weights|cut short or damaged)"):
        load_weights(network(), path)


CONFIGS = {
    "inference": {"sources": ["T1", "T2"], "target": "PD", "preset": None, "network_def": {"sites": ["a"]}},
    "metadata": {"name": "b", "version": "1"},
}


def archive(path: Path, made: nn.Module, **configs: object) -> Path:
    extra = {f"{name}.json": json.dumps(content) for name, content in configs.items()}
    torch.jit.save(torch.jit.script(made), path, _extra_files=extra)
    return path


class WithConstant(nn.Module):
    """Of which a script keeps more than the state dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3))
        self.register_buffer("constant", torch.ones(3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight * self.constant


@pytest.mark.parametrize(("make", "word"), [(network, "sites"), (WithConstant, "datasets")])  # what sites once were
def test_an_archives_weights_are_read_and_its_configs_say_what_they_are(tmp_path: Path, make: Callable, word: str):
    made, other = make(), make()
    inference = {**CONFIGS["inference"], "network_def": {word: ["a"]}}
    about = load_weights(other, archive(tmp_path / "model.ts", made, **{**CONFIGS, "inference": inference}))
    for name, value in made.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    assert len(about.pop("sha256")) == 64
    assert about == {"bundle": "b", "version": "1", "sources": ["T1", "T2"], "target": ["PD"], "sites": ["a"],
                     "network_def": {}}  # fmt: skip


def test_an_archive_that_is_damaged_or_says_nothing_is_refused_by_name(tmp_path: Path):
    with pytest.raises(ValueError, match=r"silent\.ts is no archive of a bundle with its inference\.json"):
        load_weights(network(), archive(tmp_path / "silent.ts", network()))
    path = archive(tmp_path / "model.ts", network(), **CONFIGS)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"model\.ts is no TorchScript archive, or is damaged"):
        load_weights(network(), path)


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/never",)


@pytest.mark.parametrize("through", ["torch", "pickle"])
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, through: str):
    path = tmp_path / "model.pt"
    if through == "torch":
        torch.save({"weights": Evil()}, path)
    else:
        path.write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(ValueError, match=r"would run (posix|nt)\.system, and weights hold no code"):
        load_weights(network(), path)


def test_a_state_of_random_numbers_survives_a_file_without_code(tmp_path: Path):
    torch.save(random_state(), tmp_path / "random.pt")
    drawn = random.random(), np.random.rand(), torch.rand(3).tolist()
    set_random_state(torch.load(tmp_path / "random.pt", weights_only=True))
    assert (random.random(), np.random.rand(), torch.rand(3).tolist()) == drawn
