"""Maker: which weights and which preparation, so that no output names others than its own."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from monai_ext.data.presets import PRESETS, Preset
from monai_ext.files import sha256
from monai_ext.inference.maker import load_maker
from monai_ext.modalities import make_task
from monai_ext.weights import save_weights


def bundle(tmp_path, **about):
    """A bundle's folder with metadata and weights, and the network they fit."""
    root = tmp_path / "toy_net"
    (root / "configs").mkdir(parents=True)
    (root / "configs" / "metadata.json").write_text(json.dumps({"version": "1.2.3"}))
    network = nn.Conv2d(2, 1, 1)
    save_weights(root / "models" / "model.pt", network, about)
    return root, network


def maker(root, network, *, weights="", sources=("t1", "T2"), target="PD", **changes):
    options = {"bundle_root": root, "task": make_task(sources, target), **changes}
    return load_maker(network, root / "models" / "model.pt" if weights == "" else weights, **options)


def test_the_weights_are_in_the_network_that_the_maker_speaks_of(tmp_path):
    preset = replace(PRESETS["brats"], register="rigid", reference=("T1", "T2"))
    root, network = bundle(tmp_path, bundle="other_net", version="9", preset=asdict(preset), target=["PD"])
    fresh = nn.Conv2d(2, 1, 1)
    made = maker(root, fresh)
    torch.testing.assert_close(fresh.weight, network.weight)
    assert (made.bundle, made.version, made.sources, made.target) == ("other_net", "9", ("T1", "T2"), ("PD",))
    assert made.weights == sha256(root / "models" / "model.pt")
    assert made.preset == preset


@pytest.mark.parametrize("word", ["untrained", None])
def test_untrained_is_said(tmp_path, word):
    root, network = bundle(tmp_path)
    made = maker(root, network, weights=word)
    assert made.descrip("PD") == "SYNTHETIC PD by toy_net 1.2.3 from T1,T2, untrained"
    assert made.sidecar("PD")["weights_sha256"] == "untrained"
    assert made.preset == replace(Preset(), reference=("T1", "T2"), register="differing")


def test_weights_that_are_not_there_are_not_replaced_by_chance(tmp_path):
    root, network = bundle(tmp_path)
    with pytest.raises(ValueError, match=r"none\.pt: there are no weights; train first"):
        maker(root, network, weights=root / "none.pt")


@pytest.mark.parametrize("asked", [{"sources": ["T2", "T1"]}, {"target": "FLAIR"}, {"sources": ["T1", "T2", "FLAIR"]}])
def test_weights_for_another_task_are_refused(tmp_path, asked):
    root, network = bundle(tmp_path, sources=["T1", "T2"], target=["PD"])
    with pytest.raises(ValueError, match=r"model\.pt synthesises PD from T1,T2; asked for was"):
        maker(root, network, **asked)


def test_options_change_the_preset(tmp_path):
    root, network = bundle(tmp_path, preset=asdict(PRESETS["ixi"]))
    assert maker(root, network).preset.reference == ("T2", "T1")  # a new patient has no PD
    assert maker(root, network, reference="t1w").preset.reference == ("T1", "T2")
    assert maker(root, network, register="rigid").preset == replace(
        PRESETS["ixi"], register="rigid", reference=("T2", "T1")
    )
    assert maker(root, network, preset="pmm", brain_mask="otsu").preset.brain_mask == "otsu"
    assert maker(root, network, preset="pmm", brain_mask="none").preset.brain_mask == ""
    assert maker(root, network, preset="fdgan").preset.size == (256, 256)
    assert maker(root, network, preset={"crop": [9, 9]}).preset == Preset(
        crop=(9, 9), reference=("T1", "T2"), register="differing"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [({"register": "affine"}, "register must be one of none, rigid, got 'affine'"),
     ({"brain_mask": "hd-bet"}, "brain_mask must be one of none, zero, otsu, or a file with .* got 'hd-bet'"),
     ({"reference": "PD"}, "reference must be one of the sources T1, T2, got 'PD'"),
     ({"preset": "brast"}, "preset must be one of native, .*, got 'brast'"),
     ({"preset": {"percentile_of": "air"}}, "percentile_of must be foreground or volume, got 'air'"),
     ({"preset": {"sizes": 4}}, "a preset has reference, .*, got 'sizes'"),
     ({"sources": ["T9"]}, "unknown contrast 'T9'"),
     ({"bundle_root": "/nowhere"}, "bundle_root /nowhere holds no bundle")],
)  # fmt: skip
def test_a_wrong_option_is_refused_by_name(tmp_path, options, message):
    root, network = bundle(tmp_path)
    with pytest.raises(ValueError, match=message):
        maker(root, network, **options)


def test_the_header_has_room_for_the_word_whatever_else_is_long(tmp_path):
    root, network = bundle(tmp_path, bundle="b" * 200, version="ü")
    text = maker(root, network).descrip("FLAIR")
    assert text.startswith("SYNTHETIC FLAIR by b")
    assert len(text.encode()) <= 79
