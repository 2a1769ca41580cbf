"""What is HMF-MambaINR's own among the bundles: any resolution, the studies by options, motion, no compiled scan."""

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from running import COMPACT, ROOT, TINY

BUNDLE = ROOT / "bundles" / "hmf_mambainr"
SMALL = {"width": TINY["width"]}


@pytest.fixture
def weights(trained_of: Callable) -> Path:
    return trained_of(BUNDLE) / "model.pt"


def test_a_scan_of_any_resolution_is_written_where_it_belongs(
    weights: Path, raw: Path, bundle_run: Callable, tmp_path: Path
):
    ids = {"datalist": raw / "index.json", "split": "test", "weights": weights, **SMALL}
    made = {}
    for scale in (1, 2):
        done = bundle_run(BUNDLE, "inference", **ids, scale=scale, output_dir=tmp_path / str(scale), quick_look="true")
        assert "2 of 2 subjects synthesised" in done.stdout
        path = next((tmp_path / str(scale)).rglob("*_synthetic.nii.gz"))
        made[scale] = nib.load(path)
        assert json.loads((path.parent / "FLAIR_synthetic.json").read_text())["resolution"]["scale"] == scale
    own, finer = made[1], made[2]
    np.testing.assert_array_equal(finer.shape, np.array(own.shape) * [2, 2, 1])
    np.testing.assert_allclose(finer.header.get_zooms(), np.array(own.header.get_zooms()) / [2, 2, 1])
    corners = [one.affine @ [-0.5, -0.5, -0.5, 1] for one in (own, finer)]
    np.testing.assert_allclose(*corners, atol=1e-4)


def test_an_absurd_spacing_names_every_subject_and_the_limit(
    weights: Path, raw: Path, bundle_run: Callable, tmp_path: Path
):
    ids = {"datalist": raw / "index.json", "split": "test", "weights": weights, "output_dir": tmp_path, **SMALL}
    done = bundle_run(BUNDLE, "inference", check=False, **ids, spacing=0.001)
    assert done.returncode == 1
    assert done.stderr.count("output_size must be from 1 to 16 times") >= 2


def test_a_patient_who_moves_is_one_option_of_evaluation(
    weights: Path, prepared: Path, bundle_run: Callable, tmp_path: Path
):
    motion = "[{'kind': 'motion', 'contrast': 'T1', 'levels': [0, 3]}]"
    ids = {"dataset_dir": prepared, "weights": weights, "output_dir": tmp_path, "perturbations": motion}
    bundle_run(BUNDLE, "evaluate", COMPACT, **ids, **TINY)
    rows = (tmp_path / "subjects.csv").read_text().splitlines()
    assert any(",motion,T1,3" in row for row in rows)


def test_an_ablation_is_trained_and_used_by_one_option(prepared: Path, raw: Path, bundle_run: Callable, tmp_path: Path):
    ids = {"without": "['rhmb','inrb']", "weights": tmp_path / "model.pt"}
    bundle_run(
        BUNDLE, "train", COMPACT, **ids, dataset_dir=prepared, output_dir=tmp_path / "train", **{**TINY, "epochs": 1}
    )
    assert not any("scan" in name for name in torch.load(tmp_path / "model.pt", weights_only=True))
    more = {"datalist": raw / "index.json", "split": "test", "output_dir": tmp_path / "out", **SMALL}
    done = bundle_run(BUNDLE, "inference", **ids, **more)
    assert "2 of 2 subjects synthesised" in done.stdout


def test_without_a_compiler_it_synthesises_the_same(
    weights: Path, raw: Path, bundle_run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    patient = next(path for path in sorted(raw.iterdir()) if path.is_dir() and any(path.glob("*T1.nii.gz")))
    files = {}
    for contrast in json.loads((BUNDLE / "configs/inference.json").read_text())["sources"]:
        files[contrast] = str(tmp_path / f"{contrast}.nii.gz")
        scan = nib.load(next(patient.glob(f"*{contrast}.nii.gz")))
        nib.save(scan.slicer[:, :, 12:20], files[contrast])
    ids = {"images": files, "weights": weights, "amp": "false", **SMALL}
    images = []
    for setting in ("auto", "off"):
        monkeypatch.setenv("MONAI_EXT_OPS", setting)
        anew = setting == "off"  # here there is a compiled one already
        bundle_run(BUNDLE, "inference", anew=anew, **ids, output_dir=tmp_path / setting)
        images.append(nib.load(next((tmp_path / setting).rglob("*_synthetic.nii.gz"))).get_fdata())
    assert images[0].any()
    np.testing.assert_allclose(*images, atol=1e-4)
