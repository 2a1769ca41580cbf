"""The MONAI Deploy application, run by Holoscan on a CPU: the same series as the dicom command writes."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from dicom_study import DESCRIPTIONS, write_study
from running import BUNDLES, ROOT, options, python, smallest_weights

from monai_ext.__main__ import main
from monai_ext.synthesis.bundle import BundleSynthesiser

DEPLOY = ROOT / ".venv-deploy" / "bin" / "python"

pytestmark = pytest.mark.skipif(not DEPLOY.is_file(), reason="needs MONAI Deploy: make deploy-test")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"), *DESCRIPTIONS)


@pytest.fixture(scope="module", params=BUNDLES, ids=[bundle.name for bundle in BUNDLES])
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle's folder with its weights, as `package` writes it."""
    folder = tmp_path_factory.mktemp("packed")
    weights = smallest_weights(request.param, folder)
    assert main(["package", *map(str, (request.param, "--weights", weights, "--out", folder / "zoo"))]) == 0
    return folder / "zoo" / request.param.name


@pytest.fixture
def deploy(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(study: Path, model: Path | None, out: Path, *words: str, **choices: object) -> subprocess.CompletedProcess:
        config = tmp_path / "app.yaml"
        config.write_text("\n".join(["synthesis:", *(f"  {name}: {value}" for name, value in choices.items())]) + "\n")
        command = [DEPLOY, "-m", "monai_ext.serve.deploy_app", "--input", study, "--output", out, *words]
        command += ["--model", model] if model else []
        environment = {**os.environ, "HOLOSCAN_CONFIG_PATH": str(config), "OMP_NUM_THREADS": "1"}
        out.mkdir(exist_ok=True)
        done = subprocess.run(
            [*map(str, command)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode >= 0, done.stderr
        return done

    return run


def test_the_application_writes_what_the_command_writes(packed: Path, study: Path, tmp_path: Path, deploy: Callable):
    target = BundleSynthesiser(packed).targets[-1]
    chosen = ("--target", target, "--uid-root", "1.2.826.0.1", "--reproducible")
    assert main(["dicom", *map(str, ("--study", study, "--bundle", packed, "--out", tmp_path / "own", *chosen))]) == 0
    done = deploy(study, packed, tmp_path / "out", target=target, uid_root="1.2.826.0.1", reproducible="true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SYNTHETIC_{target}" in done.stdout
    own = sorted((tmp_path / "own").rglob("*.dcm"))
    theirs = sorted((tmp_path / "out").rglob("*.dcm"))
    assert [path.name for path in own] == [path.name for path in theirs]
    for ours, path in zip(own, theirs, strict=True):
        image, other = pydicom.dcmread(ours), pydicom.dcmread(path)
        assert image.PixelData == other.PixelData
        assert (image.SOPInstanceUID, image.SeriesDescription) == (other.SOPInstanceUID, other.SeriesDescription)


def test_an_archive_alone_gives_what_its_folder_gives(packed: Path, study: Path, tmp_path: Path, deploy: Callable):
    models = tmp_path / "models"
    models.mkdir()
    python("-m", "monai.bundle", "ckpt_export", "network_def", *options({
        "bundle_root": packed, "config_file": packed / "configs" / "inference.json", "filepath": models / "model.ts",
    }), cwd=tmp_path)  # fmt: skip
    target = BundleSynthesiser(packed).targets[-1]
    folders = {}
    for name, model in (("folder", packed), ("archive", models)):
        done = deploy(study, model, tmp_path / name, target=target)
        assert done.returncode == 0, done.stdout + done.stderr
        folders[name] = sorted((tmp_path / name).rglob("*.dcm"))
    assert folders["folder"]
    for ours, path in zip(folders["folder"], folders["archive"], strict=True):
        assert pydicom.dcmread(ours).PixelData == pydicom.dcmread(path).PixelData


# What follows does not depend on the bundle: one stands for all.


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    weights = smallest_weights(BUNDLES[0], folder, sources=["T1", "FLAIR"], target=["T2"])
    assert main(["package", *map(str, (BUNDLES[0], "--weights", weights, "--out", folder / "zoo"))]) == 0
    return folder / "zoo"


@pytest.mark.parametrize(
    ("contrasts", "choices", "said"),
    [
        (["T1"], {}, "FLAIR"),
        (["T1", "FLAIR"], {"uid_root": "mine"}, "the UID root must be numbers with dots"),
        (["T1", "FLAIR"], {"colour": "red"}, "colour cannot be chosen"),
        (["T1", "FLAIR"], {"series": "[T1=99]"}, "99"),
        (["T1", "FLAIR"], {"site": "nowhere"}, "agi_net tells no sites apart"),
    ],
)
def test_a_refusal_is_one_line_and_writes_nothing(
    model: Path, tmp_path: Path, deploy: Callable, contrasts: list[str], choices: dict[str, str], said: str
):
    done = deploy(write_study(tmp_path / "study", *contrasts), model, tmp_path / "out", **choices)
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said in line
    assert not [*(tmp_path / "out").iterdir()]


def test_a_folder_with_no_model_is_refused_by_name(study: Path, tmp_path: Path, deploy: Callable):
    (tmp_path / "models").mkdir()
    done = deploy(study, tmp_path / "models", tmp_path / "out")
    assert done.returncode == 1
    assert "must be or hold one bundle" in done.stderr
    assert "give --target" in done.stderr


def test_without_a_model_a_target_alone_is_made_by_what_is_installed(tmp_path: Path, deploy: Callable):
    study = write_study(tmp_path / "study", "T1", "T2")
    done = deploy(study, None, tmp_path / "out", "--target", "flair", trust_names="true")
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (tmp_path / "out").iterdir()
    assert folder.name == "SYNTHETIC_FLAIR"
    (line,) = [line for line in done.stderr.splitlines() if "models holds no bundle" in line]
    taken = line.split("installed, ")[1].split()[0]
    assert taken in {bundle.name for bundle in BUNDLES}
    assert f"({taken} " in pydicom.dcmread(next(folder.iterdir())).SeriesDescription
    alone = write_study(tmp_path / "alone", "T1")
    done = deploy(alone, None, tmp_path / "none", "--target", "PD", trust_names="true")
    assert done.returncode == 1
    assert "PD cannot be made of T1" in done.stderr
