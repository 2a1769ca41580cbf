"""Each bundle trains through MONAI's command line: tracked, killed and resumed, on two processes, on bad input."""

import json
import os
import random
import re
import signal
import socket
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser, create_workflow
from running import BUNDLES, COMPACT, TINY, apart, options, python, refused, status_of

from monai_ext.weights import about_weights

MADE_OTHERWISE = BUNDLES[0] / "models" / "model.pt"  # wider than TINY


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def assert_same(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_weights_say_what_they_were_made_by(bundle: Path, trained: Path):
    about = about_weights(trained / "model.pt")
    assert about["bundle"] == bundle.name
    definition = ConfigParser.load_config_file(bundle / "configs/train.json")["network_def"]
    assert about["network_def"].keys() == definition.keys()
    assert about["network_def"]["_target_"] == definition["_target_"]
    assert about["network_def"]["width"] == 8
    assert about["version"] == ConfigParser.load_config_file(bundle / "configs/metadata.json")["version"]
    assert about["preset"]["crop"] == [32, 32]
    assert about["preset"]["brain_mask"] == "otsu"
    assert about["canvas"] == 32
    assert about["sources"]
    assert about["target"]


def test_a_tracked_run_has_its_terms_metrics_rates_config_and_pictures(trained: Path):
    with sqlite3.connect(trained / "mlruns.db") as store:
        metrics = {row[0] for row in store.execute("select distinct key from metrics")}
        parameters = {row[0] for row in store.execute("select distinct key from params")}
    assert {"train_loss", "loss", "data_wait", "psnr", "lr_group_0"} <= metrics
    assert any(name.startswith("generator_") for name in metrics)
    assert {"bundle", "datalist_sha256", "software.torch", "network_def.width"} <= parameters
    artifacts = {path.name for path in (trained / "mlruns").rglob("*.*")}
    assert "epoch_00001.png" in artifacts
    assert any(name.startswith("config_") for name in artifacts)


def test_killed_at_any_moment_it_resumes_to_the_same_weights(
    bundle: Path, prepared: Path, bundle_run: Callable, tmp_path: Path
):
    ids = {"dataset_dir": prepared, "epochs": 4, "batch_size": 4, **TINY}
    bundle_run(bundle, "train", COMPACT, output_dir=tmp_path / "whole", weights=tmp_path / "whole.pt", **ids)

    pairs = {"bundle_root": bundle, "config_file": [str(bundle / "configs/train.json"), str(COMPACT)], **ids}
    pairs |= {"output_dir": tmp_path / "killed", "weights": tmp_path / "killed.pt"}
    process = apart(tmp_path / "said.txt", "monai.bundle", "run", *options(pairs))
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed/checkpoints/epoch_00001.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(random.uniform(0, 0.5))
    os.kill(process, signal.SIGKILL)
    assert status_of(process) in (-signal.SIGKILL, 0)  # 0: it was done before

    again = bundle_run(
        bundle, "train", COMPACT, output_dir=tmp_path / "killed", weights=tmp_path / "killed.pt", resume="true", **ids
    )
    assert "going on from" in again.stderr or "nothing to do" in again.stderr
    assert_same(tmp_path / "whole.pt", tmp_path / "killed.pt")
    last = "checkpoints/epoch_00004.pt"
    one, other = (torch.load(tmp_path / run / last, weights_only=True)["parts"] for run in ("whole", "killed"))
    for part in ("network", "discriminator"):
        assert [name for name in one[part] if not torch.equal(one[part][name], other[part][name])] == []


def test_a_training_begins_with_weights_that_are_named(
    bundle: Path, prepared: Path, trained: Path, bundle_run: Callable, tmp_path: Path
):
    ids = {"dataset_dir": prepared, "output_dir": tmp_path, "weights": tmp_path / "model.pt", **TINY}
    ids |= {"epochs": 1, "batch_size": 4, "learning_rate": 1e-9}  # so slow that it stays where it began
    done = bundle_run(bundle, "train", COMPACT, start_from=trained / "model.pt", **ids)
    assert f"begins with {trained / 'model.pt'}, which has learnt T1" in done.stderr
    before, after = weights(trained / "model.pt"), weights(tmp_path / "model.pt")
    assert before.keys() == after.keys()
    learnt = [name for name in before if "running_" not in name and "num_batches" not in name]  # not what norms count
    assert max(float((before[name] - after[name]).abs().max()) for name in learnt) < 1e-5


@pytest.mark.long
def test_without_a_validation_split_the_weights_of_the_last_epoch_stay(
    bundle: Path, prepared: Path, bundle_run: Callable, tmp_path: Path
):
    content = json.loads((prepared / "datalist.json").read_text())
    content |= {"root": str(prepared), "training": content["training"] + content["validation"], "validation": []}
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    ids = {"datalist": tmp_path / "datalist.json", "output_dir": tmp_path, "weights": tmp_path / "model.pt", **TINY}
    bundle_run(bundle, "train", COMPACT, **ids, epochs=2, batch_size=4)
    last = torch.load(tmp_path / "checkpoints/epoch_00002.pt", weights_only=True)["parts"]["network"]
    assert all(torch.equal(value, last[name]) for name, value in weights(tmp_path / "model.pt").items())


def test_two_processes_train_one_network(bundle: Path, prepared: Path, tmp_path: Path):
    """Of one bundle by the short command through torchrun, of the others by MONAI's as torchrun starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    configs = [str(bundle / "configs/train.json"), str(bundle / "configs/multi_gpu_train.json"), str(COMPACT)]
    ids = {"dataset_dir": prepared, "output_dir": tmp_path, "epochs": 1, "batch_size": 2, **TINY}
    if bundle == BUNDLES[0]:
        where = ("--nproc_per_node=2", "--master_addr=127.0.0.1", f"--master_port={port}")
        short = ("monai_ext", "train", bundle.name, "--size", "compact", *options(ids))
        python("-m", "torch.distributed.run", *where, "-m", *short)
    else:
        every = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        said = [tmp_path / f"said{rank}.txt" for rank in range(2)]
        words = ("monai.bundle", "run", *options({"bundle_root": bundle, "config_file": configs, **ids}))
        processes = [apart(said[rank], *words, RANK=rank, LOCAL_RANK=rank, **every) for rank in range(2)]
        assert [status_of(process) for process in processes] == [0, 0], [one.read_text()[-3000:] for one in said]
    assert weights(tmp_path / "model.pt")
    checkpoint = torch.load(tmp_path / "checkpoints/epoch_00001.pt", weights_only=True)
    assert checkpoint["parts"]["sampler"]["world_size"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": "3"}, r"has the id 'epoch'; did you mean 'epochs'"),
        ({"register": "rigid"}, r"no config of this bundle has the id 'register'"),
        ({"split": "test"}, r"no config of this bundle has the id 'split'"),
        ({"version": "2.0.0"}, r"no config of this bundle has the id 'version'"),
        ({"train#trainer#acumulate": "2"}, r"has the id 'train#trainer#acumulate'; did you mean 'accumulate'"),
        ({"dataset_dir": "/nowhere"}, r"/nowhere/datalist.json"),
        ({"sources": "['T1','T3']"}, r"T3.*known"),
        ({"sources": "['T1','{target}']"}, r"each contrast is a source or the target, once"),
        ({"amp": "fp16"}, r"amp fp16 is for CUDA"),
        ({"start_from": "/nowhere/model.pt"}, r"no weights at /nowhere/model.pt: name a file .*or shipped"),
        ({"start_from": "shipped"}, r"models/model.pt does not fit the network"),
        ({"start_from": str(MADE_OTHERWISE)}, r"does not fit the network: .*it was made with"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(
    bundle: Path, prepared: Path, tmp_path: Path, change: dict, message: str, capsys: pytest.CaptureFixture[str]
):
    content = ConfigParser.load_config_file(bundle / "configs/train.json")
    target = "T1" if content["target"].startswith("@") else content["target"]  # "@": any contrast from any
    change = {key: value.replace("{target}", str(target)) for key, value in change.items()}
    ids = {"bundle_root": str(bundle), "dataset_dir": str(prepared), "output_dir": str(tmp_path), "epochs": 1, **TINY}
    ids |= {"weights": str(tmp_path / "model.pt"), **change}
    said = refused(capsys, bundle / "configs/train.json", COMPACT, **ids)
    assert re.search(message, said), said
    assert not (tmp_path / "model.pt").exists()


def test_words_of_json_on_the_command_line_are_what_json_means(bundle: Path, prepared: Path, tmp_path: Path):
    ids = {"bundle_root": str(bundle), "dataset_dir": str(prepared), "output_dir": str(tmp_path)} | TINY
    files = [str(bundle / "configs/train.json"), str(COMPACT)]
    ids |= {"amp": "false", "resume": "false", "seed": "null", "slices": ["middle", 6]}
    workflow = create_workflow(config_file=files, workflow_type="train", logging_file=False, **ids)
    trainer = workflow.trainer
    assert trainer.precision is False
    assert trainer.resume is False
    assert workflow.parser.get_parsed_content("seed") is None


def test_on_the_command_line_bad_input_ends_with_its_line_alone(bundle: Path, bundle_run: Callable, tmp_path: Path):
    done = bundle_run(bundle, "train", COMPACT, check=False, dataset_dir=tmp_path, epoch=3)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].endswith("has the id 'epoch'; did you mean 'epochs'?")
    assert "Traceback" not in done.stderr
