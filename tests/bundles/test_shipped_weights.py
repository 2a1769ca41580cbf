"""The weights that come with the bundles: whole, as their JSON says, and better on a phantom than any linear mix."""

import importlib.util
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from running import BUNDLES
from skimage.metrics import peak_signal_noise_ratio

from monai_ext.__main__ import main
from monai_ext.files import sha256
from monai_ext.modalities import MODALITIES
from monai_ext.synthesis.bundle import BundleSynthesiser
from monai_ext.weights import about_weights, read

SHIPPED = sorted(path for bundle in BUNDLES for path in (bundle / "models").glob("*.pt"))
LARGEST = 20e6  # bytes

of_each = pytest.mark.parametrize("weights", SHIPPED, ids=[f"{path.parents[1].name}-{path.stem}" for path in SHIPPED])


def person(folder: Path, *, spacing: str = "2") -> dict[str, Path]:
    """Slabs of a person's scans, who has plaques, and whose anatomy and scanner are none of the training's."""
    out = folder / "phantoms"
    words = {
        "--site": "immune",
        "--subjects": 1,
        "--spacing": spacing,
        "--contrasts": ",".join(MODALITIES),
        "--layout": "folder",
    }
    assert main(["phantom", "--out", str(out), *(str(word) for pair in words.items() for word in pair)]) == 0
    (entry,) = [entry for split in json.loads((out / "datalist.json").read_text()).values() for entry in split
                if isinstance(entry, dict)]  # fmt: skip
    for name in MODALITIES:
        scan = nib.load(out / entry[name])
        nib.save(scan.slicer[:, :, scan.shape[2] // 3 : 2 * scan.shape[2] // 3], out / f"{name}.nii.gz")
    return {name: out / f"{name}.nii.gz" for name in MODALITIES}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return person(tmp_path_factory.mktemp("person"))


OTHERS = {"1 mm": "1", "5 mm slices": "1,1,5"}


@pytest.fixture(scope="module", params=OTHERS)
def another(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return person(tmp_path_factory.mktemp("person"), spacing=OTHERS[request.param])


def test_every_bundle_comes_with_weights():
    assert {path.parents[1] for path in SHIPPED} == set(BUNDLES)


@of_each
def test_its_json_is_of_this_file_and_says_what_trained_it(weights):
    about = about_weights(weights)
    assert about["sha256"] == sha256(weights)
    assert about["bundle"] == weights.parents[1].name
    assert about["licence"] == "Apache-2.0"
    assert "no image of a patient" in about["data"]
    assert about["agreement_db"] >= 60
    assert weights.stat().st_size < LARGEST
    assert all(value.isfinite().all() for value in read(weights).values())


@of_each
def test_a_phantom_is_synthesised_better_than_by_the_best_linear_mix(weights, phantom, tmp_path):
    made, mixed = errors_of(weights, phantom, tmp_path)
    assert made < mixed


@pytest.mark.long
@of_each
def test_so_is_one_of_thin_and_of_thick_slices(weights, another, tmp_path):
    made, mixed = errors_of(weights, another, tmp_path)
    assert made < mixed


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
@of_each
@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bfloat16"])
def test_openvino_makes_what_float32_torch_makes(weights, amp, phantom, tmp_path):
    if weights.parents[1].name == "hmf_mambainr":
        with pytest.raises(ValueError, match="scans step by step"):
            synthesised(weights, phantom, tmp_path, engine="openvino", amp=amp)
        return
    exact, target, _ = synthesised(weights, phantom, tmp_path / "torch", engine="torch", amp=False)
    graph, _, _ = synthesised(weights, phantom, tmp_path / "graph", engine="openvino", amp=amp)
    images = [np.asarray(nib.load(written[target]).dataobj, dtype=np.float64) for written in (exact, graph)]
    assert peak_signal_noise_ratio(*images, data_range=1) >= (80 if not amp else 50)


def synthesised(
    weights: Path, scans: dict[str, Path], out: Path, **ids: object
) -> tuple[dict[str, Path], str, tuple[str, ...]]:
    """What the weights make of the scans, for one target, and of which sources."""
    makes = BundleSynthesiser(weights.parents[1], weights=weights, **ids)
    sources, target = (("T1", "T2"), "FLAIR") if makes.takes_any else (makes.contrasts, makes.targets[0])
    asked = {"target": [target]} if makes.takes_any else {}
    given = {name: scans[name] for name in sources}
    return makes(given, out, subject="person", trust_names=True, **asked), target, tuple(sources)


def errors_of(weights: Path, scans: dict[str, Path], out: Path) -> tuple[float, float]:
    """What is left of the truth after a fit of the synthesis, and of the sources."""
    written, target, sources = synthesised(weights, scans, out, amp=False)
    result, truth, *columns = (
        np.asarray(nib.load(path).dataobj, dtype=np.float64)
        for path in (written[target], scans[target], *(scans[name] for name in sources))
    )
    inside = truth > 0.1 * np.percentile(truth, 99)
    return left_by_a_fit([result], truth, inside), left_by_a_fit(columns, truth, inside)


def left_by_a_fit(columns: list[np.ndarray], truth: np.ndarray, inside: np.ndarray) -> float:
    """The mean square that the best linear mix, with a constant, leaves of the truth."""
    matrix = np.stack([*(column[inside] for column in columns), np.ones(inside.sum())], 1)
    _, left, *_ = np.linalg.lstsq(matrix, truth[inside], rcond=None)
    return float(left[0]) / inside.sum()
