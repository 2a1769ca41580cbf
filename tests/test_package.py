"""What a wheel carries is enough: the sources travel with it and are compiled where it is installed."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

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


def test_a_wheel_names_its_licence_and_holds_nothing_else(installed: Path) -> None:
    assert {entry.name.partition("-")[0] for entry in installed.iterdir()} == {"monai_ext"}
    assert list(installed.glob("*.dist-info/licenses/LICENSE"))
    assert not list(installed.rglob("__pycache__"))
