"""What the papers compare with, by an overlay: trained, evaluated and described as the bundle's own network is."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from running import COMPACT, ROOT, TINY

OVERLAYS = [("agi_net", "unet"), ("agi_net", "resnet"), ("fd_gan", "pix2pix"), ("hmf_mambainr", "i2i_mamba")]


@pytest.mark.parametrize(("name", "overlay"), OVERLAYS)
def test_the_network_of_an_overlay_is_trained_and_evaluated(
    name: str, overlay: str, prepared: Path, bundle_run: Callable, tmp_path: Path
):
    root, weights = ROOT / "bundles" / name, tmp_path / "model.pt"
    ids = {"dataset_dir": prepared, "weights": weights, "width": TINY["width"]}
    more = {**TINY, "epochs": 1, "batch_size": 4, "output_dir": tmp_path / "train"}
    bundle_run(root, "train", overlay, COMPACT, **{**ids, **more})
    assert json.loads(weights.with_suffix(".json").read_text())["network_def"]["width"] == TINY["width"]
    size = {"image_size": TINY["image_size"]} if name == "fd_gan" else {}
    bundle_run(root, "evaluate", overlay, **ids, **size, output_dir=tmp_path / "run", slices=TINY["slices"])
    assert (tmp_path / "run" / "subjects.csv").is_file()
