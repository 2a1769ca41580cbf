"""What is AGI-Net's own among the bundles: its 3D overlay and its baseline."""

from collections.abc import Callable
from pathlib import Path

import torch
from running import COMPACT, ROOT, TINY

AGI_NET = ROOT / "bundles" / "agi_net"


def test_the_volumetric_overlay_trains_a_3d_network_on_patches(prepared: Path, bundle_run: Callable, tmp_path: Path):
    ids = {"dataset_dir": prepared, "output_dir": tmp_path, "weights": tmp_path / "model.pt", "epochs": 1, **TINY}
    configs = ("train", "volumetric", COMPACT)
    bundle_run(AGI_NET, *configs, **ids, patch_size="[24, 24, 24]", batch_size=4, amp=False)
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert weights["head.weight"].shape == (8, 2, 3, 3, 3)
    assert weights["body.0.first.routing.offsets.weight"].shape == (3 * 8, 64)
    ids = {"datalist": prepared.parent / "raw" / "index.json", "split": "test", "weights": tmp_path / "model.pt"}
    done = bundle_run(
        AGI_NET, "inference", "volumetric", **ids, output_dir=tmp_path / "out", width=8, patch_size="[24, 24, 24]"
    )
    assert "2 of 2 subjects synthesised" in done.stdout


def test_the_baseline_is_the_same_bundle_without_stages(prepared: Path, bundle_run: Callable, tmp_path: Path):
    ids = {"dataset_dir": prepared, "output_dir": tmp_path, "weights": tmp_path / "model.pt", "epochs": 1, **TINY}
    bundle_run(AGI_NET, "train", COMPACT, **ids, **{"network_def#stages": "[]"})
    assert not any("routing" in name for name in torch.load(tmp_path / "model.pt", weights_only=True))
