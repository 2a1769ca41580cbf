"""Every config of every bundle through MONAI's own check, and what each of MONAI's properties is there."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import pytest
import torch
from monai.bundle import ConfigWorkflow, create_workflow
from monai.engines import Trainer, Workflow
from monai.inferers import Inferer
from running import BUNDLES, COMPACT, TINY, smallest_weights
from torch import nn
from torch.utils.data import Dataset

from monai_ext.evaluation.evaluation import Evaluation
from monai_ext.inference.subjects import Cases

VERBS = {"train": "train", "inference": "infer", "evaluate": "infer"}


def standing_alone(path: Path) -> bool:
    return "run" in json.loads(path.read_text())


def every_config() -> Iterator[tuple[Path, tuple[Path, ...]]]:
    """A bundle with the files of one workflow: a config that stands alone, or an overlay on each verb it is for."""
    for bundle in BUNDLES:
        configs = bundle / "configs"
        verbs = [configs / f"{verb}.json" for verb in VERBS]
        pooled = configs / "phantom_train.json"  # needs a pool of phantoms: test_phantom_weights has one
        for path in sorted({*configs.glob("*.json"), COMPACT} - {configs / "metadata.json", pooled}):
            if standing_alone(path):
                yield bundle, (path,)
            else:
                training = "train" in path.stem or "optimizer" in path.read_text()
                yield from ((bundle, (verb, path)) for verb in verbs[: 1 if training else None])


EVERY = list(every_config())
NAMES = [f"{bundle.name}-{'+'.join(path.stem for path in files)}" for bundle, files in EVERY]


def test_there_is_one_of_each_verb_of_each_bundle():
    assert {(bundle, files[0].stem) for bundle, files in EVERY} >= {
        (bundle, verb) for bundle in BUNDLES for verb in VERBS
    }


@pytest.fixture
def ids(prepared: Path, raw: Path, tmp_path: Path) -> Callable[[Path, tuple[Path, ...]], dict[str, Any]]:
    """What a person would say to run it here: the data, the weights, small sizes; only what its files have."""

    def of(bundle: Path, files: tuple[Path, ...]) -> dict[str, Any]:
        known = {key for path in files for key in json.loads(path.read_text())}
        (tmp_path / "weights").mkdir()
        networks = [path for path in files[1:] if re.search('"(network_def|spatial_dims|sources)":', path.read_text())]
        weights = smallest_weights(bundle, tmp_path / "weights", *networks)
        said = {
            **TINY,
            "slices": ["middle", 6],
            "batch_size": 2,
            "dataset_dir": str(raw if files[0].stem == "inference" else prepared),
            "weights": str(weights),
            "output_dir": str(tmp_path / "run"),
        }
        if files[0].stem != "train":
            del said["image_size"]  # the weights were made at the config's own
        return {key: value for key, value in said.items() if key in known}

    return of


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As torchrun sets it up for multi_gpu_train, for one process."""
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "0"), ("RANK", "0"), ("WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    yield
    idist.finalize()


KINDS: dict[str, Callable[[Any], bool]] = {
    "bundle_root": lambda value: (Path(value) / "configs").is_dir(),
    "device": lambda value: isinstance(value, torch.device),
    "dataset_dir": lambda value: Path(value).is_dir(),
    "dataset": lambda value: isinstance(value, Dataset),
    "evaluator": lambda value: isinstance(value, Workflow | Evaluation),
    "network_def": lambda value: isinstance(value, nn.Module),
    "inferer": lambda value: isinstance(value, Inferer),
    "trainer": lambda value: isinstance(value, Trainer),
    "max_epochs": lambda value: isinstance(value, int) and value > 0,
    "train_dataset": lambda value: isinstance(value, Dataset) and len(value) > 0,
    "train_inferer": lambda value: isinstance(value, Inferer),
    "version": lambda value: re.fullmatch(r"\d+\.\d+\.\d+", value) is not None,
    "monai_version": lambda value: re.fullmatch(r"\d+\.\d+\.\d+", value) is not None,
    "pytorch_version": lambda value: re.fullmatch(r"\d+\.\d+\.\d+", value) is not None,
    "numpy_version": lambda value: re.fullmatch(r"\d+\.\d+\.\d+", value) is not None,
    # optional ones, where they are there
    "dataset_data": lambda value: isinstance(value, Cases) or len(value) > 0,
    "train_dataset_data": lambda value: len(value) > 0,
    "val_dataset_data": lambda value: len(value) > 0,
    "val_dataset": lambda value: isinstance(value, Dataset) and len(value) > 0,
    "val_inferer": lambda value: isinstance(value, Inferer),
    "val_interval": lambda value: isinstance(value, int) and value > 0,
    "handlers": lambda value: all(hasattr(one, "attach") for one in value),
    "train_handlers": lambda value: all(hasattr(one, "attach") for one in value),
    "val_handlers": lambda value: all(hasattr(one, "attach") for one in value),
    "preprocessing": callable,
    "postprocessing": callable,
    "val_key_metric": lambda value: len(value) == 1 and all(hasattr(one, "attach") for one in value.values()),
    "description": lambda value: isinstance(value, str) and len(value) > 20,
    "spatial_shape": lambda value: set(value) == {"*"},
    "channel_def": lambda value: list(value) == [str(number) for number in range(len(value))],
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:parsing config_file")
@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(("root", "files"), EVERY, ids=NAMES)
def test_monais_check_misses_nothing_and_each_property_is_what_monai_says(
    root: Path,
    files: tuple[Path, ...],
    ids: Callable[[Path, tuple[Path, ...]], dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    kind = VERBS.get(files[0].stem)
    names = [str(path) for path in files]
    said = {"logging_file": False, "bundle_root": str(root), **ids(root, files)}
    if kind is None:  # neither trains nor infers: has what every bundle has, which create_workflow cannot say
        workflow = ConfigWorkflow(names, workflow_type=None, **said)
        workflow.initialize()
    else:
        workflow = create_workflow(config_file=names, workflow_type=kind, **said)
    assert workflow.check_properties() == []
    required = {name for name, entry in workflow.properties.items() if entry["required"]}
    assert len(required) == {"train": 11, "infer": 11, None: 4}[kind]
    for name in workflow.properties:
        value = getattr(workflow, name)
        if value is None and name not in required:
            continue
        assert KINDS[name](value), f"{name} is {value!r}"
