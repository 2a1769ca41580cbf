"""What a style costs, measured: nothing where the other one is the same, and an image's own gives the network's."""

import json
from pathlib import Path

import numpy as np
import torch
from disentangling import compared, drawn, style_lost
from running import ROOT, smallest_weights

from monai_ext.data.volumes import Volume, write_volume
from monai_ext.networks import FDGAN


def write_subjects(folder: Path, *seeds: int) -> None:
    """Prepared subjects of noise, each from its seed."""
    entries = []
    for place, seed in enumerate(seeds):
        rng, own = np.random.default_rng(seed), folder / f"p{place}"
        own.mkdir()
        for contrast in ("T1", "T2", "FLAIR"):
            image = Volume(rng.uniform(0.2, 1, (24, 20, 3)).astype(np.float32), np.eye(4))
            write_volume(own / f"{contrast}.nii", image, dtype=np.uint16, slope=1 / 65535)
        write_volume(own / "mask.nii", Volume(np.ones((24, 20, 3), np.float32), np.eye(4)), dtype=np.uint8)
        entries.append({"subject": own.name, **{name: f"p{place}/{name}.nii" for name in ("T1", "T2", "FLAIR")}})
    (folder / "datalist.json").write_text(json.dumps({"name": "noise", "test": entries}))


def test_in_its_own_style_an_image_is_the_networks():
    network, x = FDGAN(width=4).eval(), torch.rand(9, 2, 24, 20)
    with torch.no_grad():
        torch.testing.assert_close(drawn(network, x, network.style(network.laf(x))), network(x).clamp(0, 1))


def test_another_ones_style_costs_nothing_where_it_is_the_same(tmp_path: Path):
    torch.manual_seed(0)
    weights = smallest_weights(ROOT / "bundles" / "fd_gan", tmp_path)
    for name, seeds in (("alike", (1, 1)), ("apart", (1, 2))):
        (tmp_path / name).mkdir()
        write_subjects(tmp_path / name, *seeds)
    assert style_lost(weights, tmp_path / "alike") == 0
    assert style_lost(weights, tmp_path / "apart") != 0


def test_blocks_and_sources_are_varied_one_at_a_time():
    networks = compared([1, 2, 16], [1, 2, 3])
    assert list(networks) == ["2 blocks", "1 block", "16 blocks", "1 source", "3 sources", "pix2pix", "BasicUNet"]
    assert networks["3 sources"] == ([], {"blocks": 2, "sources": ["T1", "T2", "T1C"]})
