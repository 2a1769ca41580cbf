"""What a wheel carries is enough: the sources travel with it and are compiled where it is installed."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built and unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*build, str(REPOSITORY)], check=True, cwd=folder)
    (wheel,) = folder.glob("monai_ext-*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler on this machine")
def test_an_installed_wheel_compiles_its_kernels(installed: Path, tmp_path: Path) -> None:
    code = "from monai_ext import ops; ops.load('float_roll'); print(ops.__file__, ops.status()['float_roll'].kernel)"
    variables = {"PYTHONPATH": str(installed), "MONAI_EXT_CACHE": str(tmp_path / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    environment = {**os.environ, "MONAI_EXT_OPS": "require", **variables}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    where, kernel = done.stdout.split()
    assert where.startswith(str(installed))
    assert kernel == "cpu"


def test_a_wheel_brings_the_bundles_with_the_weights_that_are_shipped(installed: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "bundles"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    shipped = {name for name in listed.stdout.splitlines() if "/models/" in name or "/configs/" in name}
    assert any(name.endswith("models/model.pt") for name in shipped)
    assert {name for name in shipped if not (installed / "monai_ext" / name).is_file()} == set()


@pytest.mark.long
def test_an_installed_wheel_synthesises_with_them(installed: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(("T1", "T2")):
        shades = np.random.default_rng(seed).uniform(300, 900, (24, 28, 6)).astype(np.float32)
        nib.save(nib.Nifti1Image(shades, np.diag([5.0, 5, 6, 1])), tmp_path / f"{name}.nii.gz")
    words = [
        sys.executable,
        "-m",
        "monai_ext",
        "synthesise",
        "T1.nii.gz",
        "T2.nii.gz",
        "--target",
        "FLAIR",
        "-o",
        "out",
    ]
    environment = {**os.environ, "PYTHONPATH": str(installed), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (image,) = tmp_path.glob("out/*/FLAIR_synthetic.nii.gz")
    assert np.asarray(nib.load(image).dataobj).max() > 0


def test_a_wheel_names_its_licence_and_holds_nothing_else(installed: Path) -> None:
    assert {entry.name.partition("-")[0] for entry in installed.iterdir()} == {"monai_ext"}
    assert list(installed.glob("*.dist-info/licenses/LICENSE"))
    assert not list(installed.rglob("__pycache__"))
