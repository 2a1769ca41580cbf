"""What is FD-GAN's own among the bundles: its baseline, 2.5D, one and three sources, and the look at its halves."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from running import COMPACT, ROOT, TINY, refused

FD_GAN = ROOT / "bundles" / "fd_gan"


@pytest.fixture
def train(prepared: Path, bundle_run: Callable, tmp_path: Path) -> Callable:
    def run(*overlays: str, **ids: object) -> dict[str, torch.Tensor]:
        ids = {"dataset_dir": prepared, "output_dir": tmp_path, "weights": tmp_path / "model.pt", "epochs": 1} | ids
        bundle_run(FD_GAN, "train", *overlays, COMPACT, **TINY, **ids)
        return torch.load(tmp_path / "model.pt", weights_only=True)

    return run


def test_the_baseline_is_monais_unet_trained_and_evaluated_alike(
    train: Callable, prepared: Path, bundle_run: Callable, tmp_path: Path
):
    weights = train("unet", neighbours=1)  # slices beside a source's are the baseline's too
    assert not any(name.startswith(("laf", "spe")) for name in weights)
    assert weights["conv_0.conv_0.conv.weight"].shape == (8, 2 * 3, 3, 3)
    ids = {"dataset_dir": prepared, "weights": tmp_path / "model.pt", "output_dir": tmp_path / "run", "width": 8}
    bundle_run(FD_GAN, "evaluate", "unet", **ids, neighbours=1)
    assert (tmp_path / "run" / "run.json").is_file()


@pytest.mark.parametrize(("sources", "count"), [("['T1']", 1), ("['T1','T2','T1C']", 3)])
def test_one_and_three_sources_are_an_option(train: Callable, sources: str, count: int):
    assert train(sources=sources)["laf.weight"].shape == (1, count, 2, 2)


def test_slices_beside_a_source_come_along_from_training_to_the_patient(
    train: Callable, raw: Path, bundle_run: Callable, tmp_path: Path
):
    assert train(neighbours=1, **{"objective#edge_weight": 10})["laf.weight"].shape == (1, 6, 2, 2)
    ids = {"datalist": raw / "index.json", "split": "test", "weights": tmp_path / "model.pt", "neighbours": 1}
    done = bundle_run(FD_GAN, "inference", **ids, output_dir=tmp_path / "out", width=8)
    assert "2 of 2 subjects synthesised" in done.stdout


def test_a_look_at_anatomy_and_style(prepared: Path, bundle_run: Callable, trained_of: Callable, tmp_path: Path):
    ids = {"dataset_dir": prepared, "weights": trained_of(FD_GAN) / "model.pt", "picture": tmp_path / "look.png"}
    bundle_run(FD_GAN, "look", COMPACT, **ids, **TINY)
    assert Image.open(tmp_path / "look.png").mode == "RGB"


def test_a_grid_that_does_not_divide_the_image_is_refused(prepared: Path, tmp_path: Path, capsys):
    ids = {"bundle_root": str(FD_GAN), "dataset_dir": str(prepared), "output_dir": str(tmp_path), **TINY}
    said = refused(capsys, FD_GAN / "configs/train.json", COMPACT, **ids, blocks=5)
    assert "blocks must divide image_size, got blocks=5, image_size=32" in said
