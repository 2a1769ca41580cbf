"""What a wheel carries is enough: the sources travel with it and are compiled where it is installed."""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*build, str(REPOSITORY)], check=True, cwd=folder)
    (built,) = folder.glob("monai_ext-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """The wheel, unpacked."""
    zipfile.ZipFile(wheel).extractall(wheel.parent / "site")
    return wheel.parent / "site"


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


@pytest.fixture(scope="module")
def environment_of_its_own(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A new environment with the wheel and what it asks for, in the tested versions; nothing is borrowed."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    own = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(own), "install", "--quiet", "--disable-pip-version-check"]
    for wanted in ("torch", f"{wheel}[phantom]"):
        subprocess.run([*pip, "-c", str(REPOSITORY / "constraints.txt"), wanted], check=True, cwd=folder)
    yield folder
    shutil.rmtree(folder)  # gigabytes, which pytest would keep for three runs


@pytest.mark.long
def test_the_command_of_an_installed_wheel_synthesises_in_an_empty_folder(
    environment_of_its_own: Path, tmp_path: Path
) -> None:
    pytest.importorskip("nilearn")  # the phantom's
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables["CUDA_VISIBLE_DEVICES"] = ""

    def typed(line: str, folder: Path = tmp_path) -> str:
        program, *words = shlex.split(line)
        command = [str(environment_of_its_own / "bin" / program), *words]
        done = subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = Path(typed("python -c 'import monai_ext; print(monai_ext.__file__)'").strip())
    assert where.is_relative_to(environment_of_its_own)
    assert "synthesise" in typed("monai-ext --help")
    assert "agi_net: T1 + T2 -> FLAIR" in typed("monai-ext models")

    of_a_phantom = "--site healthy --subjects 1 --spacing 4 --contrasts T1,T2,FLAIR --layout folder"
    typed(f"monai-ext phantom --out people {of_a_phantom}")
    (person,) = (tmp_path / "people").glob("healthy-*")
    scans = tmp_path / "scans"
    scans.mkdir()
    for contrast in ("T1", "T2"):
        shutil.copy(person / f"{contrast}.nii.gz", scans)
    typed("monai-ext synthesise T1.nii.gz T2.nii.gz --target FLAIR -o out", scans)

    results = scans / "out" / "scans"
    assert {path.name for path in results.iterdir()} == {f"FLAIR_synthetic.{end}" for end in ("nii.gz", "json", "png")}
    record = json.loads((results / "FLAIR_synthetic.json").read_text())
    shipped = {hashlib.sha256(path.read_bytes()).hexdigest() for path in REPOSITORY.glob("bundles/*/models/*.pt")}
    assert record["weights_sha256"] in shipped
    made, t1, truth = (
        nib.load(path) for path in (results / "FLAIR_synthetic.nii.gz", scans / "T1.nii.gz", person / "FLAIR.nii.gz")
    )
    np.testing.assert_allclose(made.affine, t1.affine)
    brain = nib.load(tmp_path / "people" / ".brain" / f"{person.name}.nii.gz").get_fdata() > 0
    likeness = np.corrcoef([image.get_fdata()[brain] for image in (truth, made, t1)])[0]
    assert likeness[1] > 0.4 > likeness[2]  # it is much more like the true FLAIR than what it was made of


def test_a_wheel_is_under_100_mb(wheel: Path) -> None:
    assert wheel.stat().st_size < 100e6


def test_a_wheel_names_its_licence_and_holds_nothing_else(installed: Path) -> None:
    assert {entry.name.partition("-")[0] for entry in installed.iterdir()} == {"monai_ext"}
    assert list(installed.glob("*.dist-info/licenses/LICENSE"))
    assert not list(installed.rglob("__pycache__"))
