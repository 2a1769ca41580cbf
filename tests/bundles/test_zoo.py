"""package and verify: each bundle works alone in an environment that has never heard of this repository."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from running import BUNDLES, ROOT

from monai_ext.__main__ import main
from monai_ext.files import sha256
from monai_ext.synthesis.bundle import BundleSynthesiser
from monai_ext.zoo import inside, rules
from monai_ext.zoo import package as package_module
from monai_ext.zoo.package import package
from monai_ext.zoo.verify import verify


@pytest.fixture(scope="module")
def packed(bundle: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder and the zip."""
    out = tmp_path_factory.mktemp(f"packed_{bundle.name}")
    return package(bundle, weights=trained / "model.pt", out=out)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the packages that bundles name, but without this one: a listed folder's .pth files are not read."""
    folder = tmp_path_factory.mktemp("elsewhere")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "bin" / "python"


def alone(python: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    kernels = {"MONAI_EXT_CACHE": os.environ["MONAI_EXT_CACHE"]}  # named by what they are made of; saves time alone
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [python, *map(str, arguments)], cwd=cwd, env={**environment, **kernels}, capture_output=True, text=True
    )


@pytest.mark.long
def test_a_packed_bundle_synthesises_the_same_where_this_repository_is_not(
    bundle: Path, trained: Path, packed: tuple[Path, Path], elsewhere: Path, raw: Path, tmp_path: Path
):
    assert "No module named 'monai_ext'" in alone(elsewhere, "-c", "import monai_ext", cwd=tmp_path).stderr
    zipfile.ZipFile(packed[1]).extractall(tmp_path / "unpacked")
    about = json.loads((trained / "model.json").read_text())
    case = next(path for path in sorted(raw.iterdir()) if path.is_dir() and any(path.glob("*T1.nii.gz")))
    made = about["target"][-1]
    images = {
        contrast: str(next(case.glob(f"*{contrast}.nii.gz"))) for contrast in about["sources"] if contrast != made
    }
    ids = (
        "--config_file",
        "configs/inference.json",
        "--images",
        images,
        "--output_dir",
        tmp_path / "out",
        "--amp",
        "false",
    )
    done = alone(elsewhere, "-m", "monai.bundle", "run", *ids, cwd=tmp_path / "unpacked" / bundle.name)
    assert done.returncode == 0, done.stderr[-3000:]
    ours = BundleSynthesiser(bundle, weights=trained / "model.pt", amp=False)(images, tmp_path / "ours")
    assert list(ours) == [made]
    for contrast, path in ours.items():
        (theirs,) = (tmp_path / "out").rglob(f"{contrast}_synthetic.nii.gz")
        np.testing.assert_allclose(nib.load(theirs).get_fdata(), nib.load(path).get_fdata(), atol=1e-6)


@pytest.mark.long
def test_a_packed_bundle_keeps_every_rule_of_the_zoo(packed: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    before = sorted(packed[0].rglob("*"))
    assert main(["verify", str(packed[0])]) == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    assert said.count("ok  ") == 12
    assert "FAULT" not in said
    assert sorted(packed[0].rglob("*")) == before, "verify left something behind"


def test_its_weights_are_those_that_were_trained(packed: tuple[Path, Path], trained: Path):
    weights = packed[0] / "models" / "model.pt"
    own, theirs = (torch.load(path, weights_only=True) for path in (trained / "model.pt", weights))
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in own)
    assert json.loads(weights.with_suffix(".json").read_text())["sha256"] == sha256(weights)


def test_its_readme_tells_commands_that_begin_in_its_own_folder(bundle: Path, packed: tuple[Path, Path]):
    text = (packed[0] / "docs" / "README.md").read_text()
    assert "--bundle_root ." in text
    assert f"bundles/{bundle.name}" not in text


def test_other_bundles_of_an_installed_package_do_not_come_along(monkeypatch, draft, weights, tmp_path):
    shutil.copytree(
        package_module.PACKAGE, tmp_path / "site" / "monai_ext", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copytree(package_module.PACKAGE.parent / "cuda_ops", tmp_path / "site" / "monai_ext" / "cuda_ops")
    (tmp_path / "site" / "monai_ext" / "bundles" / "fd_gan").mkdir(parents=True)
    monkeypatch.setattr(package_module, "PACKAGE", tmp_path / "site" / "monai_ext")
    folder, _ = package(draft, weights=weights, out=tmp_path / "out")
    assert not (folder / "monai_ext" / "bundles").exists()
    assert (folder / "monai_ext" / "cuda_ops").is_dir()


@pytest.mark.long
def test_verify_sees_that_code_or_numbers_are_lacking(draft, weights, tmp_path, capsys):
    folder, _ = package(draft, weights=weights, out=tmp_path / "out")
    content = torch.load(folder / "models" / "model.pt", weights_only=True)
    name = next(name for name, value in content.items() if value.is_floating_point())
    content[name].view(-1)[0] = torch.nan
    torch.save(content, folder / "models" / "model.pt")
    about = folder / "models" / "model.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "sha256": sha256(folder / "models" / "model.pt")}))
    assert main(["verify", str(folder)]) == 1
    assert "values that are not finite" in capsys.readouterr().out
    shutil.rmtree(folder / "monai_ext")
    assert main(["verify", str(folder)]) == 1
    assert "needs monai_ext, which did not come along" in capsys.readouterr().out


def test_the_zip_holds_what_the_folder_holds(packed: tuple[Path, Path]):
    names = zipfile.ZipFile(packed[1]).namelist()
    assert sorted(names) == sorted(path.relative_to(packed[0].parent).as_posix() for path in rules.contents(packed[0]))
    assert any("cuda_ops" in name for name in names)


ZOO_SETTINGS = """
[flake8]
select = B,C,E,F,N,P,T4,W,B9
max_line_length = 120
ignore = E203,E501,E741,W503,W504,C408,N812,B023
per_file_ignores = __init__.py: F401, __main__.py: F401
[isort]
known_first_party = models
profile = black
line_length = 120
"""  # of its setup.cfg, what bears on Python files; its pyproject.toml gives black the same line length
LINTERS = (
    ("flake8",),
    ("isort", "--check"),
    ("black", "--check", "--skip-magic-trailing-comma", "-l120", "-tpy37", "-tpy38", "-tpy39"),
)


@pytest.mark.long
@pytest.mark.parametrize("linter", LINTERS, ids=[linter[0] for linter in LINTERS])
def test_what_comes_along_has_the_zoos_style(linter: tuple[str, ...], draft: Path, weights: Path, tmp_path: Path):
    (tmp_path / "setup.cfg").write_text(ZOO_SETTINGS)
    package(draft, weights=weights, out=tmp_path / "models")
    done = subprocess.run([sys.executable, "-m", *linter, "."], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    unsorted = tmp_path / "models" / draft.name / "unsorted.py"  # the linter does look at what is in the folder
    unsorted.write_text("import torch\nimport os\n\n\nl = [ os,torch ]\nxs = {x for x in [1] if x == None}\n")
    done = subprocess.run([sys.executable, "-m", *linter, "."], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "unsorted.py" in done.stdout + done.stderr


def test_the_applications_that_it_names_are_those_of_the_tested_versions(bundle: Path):
    label = (ROOT / "monai_ext/serve/label_app/constraints.txt").read_text()
    deploy = (ROOT / "Makefile").read_text()
    assert rules.metadata(bundle)["supported_apps"] == {
        "monai-label": re.search(r"^monailabel==(\S+)$", label, re.MULTILINE)[1],
        "monai-deploy": re.search(r"monai-deploy-app-sdk==(\S+)", deploy)[1],
    }


@pytest.mark.filterwarnings("ignore:parsing config_file")
def test_a_property_at_the_wrong_place_is_told(draft: Path, weights: Path, tmp_path: Path, monkeypatch):
    """As the zoo itself would say, for an application that asks for it."""
    folder, _ = package(draft, weights=weights, out=tmp_path / "out")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(inside, "LOGGING", False)  # here the log is that of all tests
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # which check_config replaces
    assert list(inside.properties()) == []
    config = folder / "configs" / "inference.json"
    content = json.loads(config.read_text())
    content["evaluator"]["val_handlers"] = "@others"
    config.write_text(json.dumps({**content, "others": content.pop("handlers")}))
    set_metadata(folder, supported_apps={})
    said = list(inside.properties())
    assert len(said) == 2
    assert "names no application in supported_apps" in said[0]
    assert "lacks 'handlers'" in said[1]


# What is refused does not depend on the bundle: one stands for all.


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    """A bundle to spoil."""
    return Path(shutil.copytree(BUNDLES[0], tmp_path / "bundles" / BUNDLES[0].name))


@pytest.fixture
def weights(draft: Path, tmp_path: Path) -> Path:
    """Of the draft's own network, at its smallest."""
    from monai.bundle import ConfigParser

    from monai_ext.weights import save_weights

    parser = ConfigParser(ConfigParser.load_config_file(draft / "configs" / "inference.json"))
    parser["width"] = 8
    definition = {key: parser.get_parsed_content(f"network_def::{key}") for key in parser["network_def"]}
    about = {"bundle": draft.name, "version": rules.metadata(draft)["version"], "network_def": definition}
    save_weights(tmp_path / "model.pt", parser.get_parsed_content("network_def"), about)
    return tmp_path / "model.pt"


def set_metadata(bundle: Path, **values: object) -> None:
    path = bundle / "configs" / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_about(weights: Path, **values: object) -> None:
    path = weights.with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refusal(draft: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says; nothing is written."""
    assert main(["package", str(draft), "--weights", str(weights), "--out", str(tmp_path / "out")]) == 2
    assert not any(tmp_path.glob("out/*"))
    return capsys.readouterr().err


def test_weights_that_do_not_fit_are_refused_by_name(draft, weights, tmp_path, capsys):
    content = torch.load(weights, weights_only=True)
    name = next(iter(content))
    content[name] = torch.zeros(3)
    torch.save(content, weights)
    about = json.loads(weights.with_suffix(".json").read_text())
    weights.with_suffix(".json").write_text(json.dumps({**about, "sha256": sha256(weights)}))
    said = refusal(draft, weights, tmp_path, capsys)
    assert "does not fit the network" in said
    assert name in said


def test_a_disk_that_fills_while_packing_is_one_line(draft, weights, tmp_path, capsys, monkeypatch):
    def full(_: str, target: str, **__: object) -> None:
        raise OSError(28, "No space left on device", target)

    ordinary = shutil.copytree
    monkeypatch.setattr(shutil, "copytree", lambda *args, **more: ordinary(*args, **{**more, "copy_function": full}))
    said = refusal(draft, weights, tmp_path, capsys)
    assert "nothing was packed" in said
    assert "No space left on device" in said
    assert said.strip().count("\n") == 0


def test_weights_that_are_not_there_are_refused(draft, tmp_path, capsys):
    assert "there are no weights" in refusal(draft, tmp_path / "none.pt", tmp_path, capsys)


def test_weights_of_another_bundle_are_refused(draft, weights, tmp_path, capsys):
    change_about(weights, bundle="another")
    assert "was made by another, not by" in refusal(draft, weights, tmp_path, capsys)


def test_weights_of_another_version_are_refused(draft, weights, tmp_path, capsys):
    change_about(weights, version="0.0.9")
    assert "was made by version 0.0.9" in refusal(draft, weights, tmp_path, capsys)


def test_a_dirty_version_is_refused(draft, weights, tmp_path, capsys):
    set_metadata(draft, version="0.1.0+dirty")
    change_about(weights, version="0.1.0+dirty")
    assert "version must be three numbers such as 0.1.0, got '0.1.0+dirty'" in refusal(draft, weights, tmp_path, capsys)


def test_a_version_without_a_line_in_the_changelog_is_refused(draft, weights, tmp_path, capsys):
    set_metadata(draft, version="9.0.0")
    change_about(weights, version="9.0.0")
    assert "changelog has no line for version 9.0.0" in refusal(draft, weights, tmp_path, capsys)


def test_a_changelog_that_goes_on_is_refused(draft, weights, tmp_path, capsys):
    changelog = {**rules.metadata(draft)["changelog"], "9.1.0": "something later"}
    set_metadata(draft, changelog=changelog)
    assert "changelog goes on to 9.1.0" in refusal(draft, weights, tmp_path, capsys)


def test_a_missing_section_is_refused(draft, weights, tmp_path, capsys):
    readme = draft / "docs" / "README.md"
    readme.write_text(readme.read_text().replace("## Limitations", "## Weaknesses"))
    assert "docs/README.md lacks the section 'Limitations'" in refusal(draft, weights, tmp_path, capsys)


def test_a_readme_that_does_not_warn_is_refused(draft, weights, tmp_path, capsys):
    readme = draft / "docs" / "README.md"
    readme.write_text(readme.read_text().replace("not to be used clinically", "ready"))
    assert "does not say 'not to be used clinically'" in refusal(draft, weights, tmp_path, capsys)


def test_metadata_that_break_the_schema_are_refused(draft, weights, tmp_path, capsys):
    set_metadata(draft, authors=["one", "two"])
    assert "configs/metadata.json, authors:" in refusal(draft, weights, tmp_path, capsys)


def test_a_personal_path_is_refused(draft, weights, tmp_path, capsys):
    readme = draft / "docs" / "README.md"
    line = "Data lie in " + "/home/" + "somebody/data."
    readme.write_text(readme.read_text() + line)
    assert "holds a personal path: " + "/home/" + "somebody" in refusal(draft, weights, tmp_path, capsys)


def test_a_missing_licence_is_refused(draft, weights, tmp_path, capsys):
    (draft / "LICENSE").unlink()
    assert "LICENSE is missing" in refusal(draft, weights, tmp_path, capsys)


def test_a_folder_that_is_no_bundle_is_refused(weights, tmp_path, capsys):
    (tmp_path / "none").mkdir()
    assert "is no bundle" in refusal(tmp_path / "none", weights, tmp_path, capsys)


def test_what_was_packaged_before_is_kept(draft, weights, tmp_path):
    package(draft, weights=weights, out=tmp_path / "out")
    with pytest.raises(ValueError, match="is there already and is kept"):
        package(draft, weights=weights, out=tmp_path / "out")


def test_what_a_server_left_in_its_app_is_left_behind(draft, weights, tmp_path, monkeypatch):
    own = tmp_path / "monai_ext"
    shutil.copytree(ROOT / "monai_ext", own)
    shutil.copytree(ROOT / "cuda_ops", tmp_path / "cuda_ops")
    for name in ("bin", "lib", "logs", "model"):
        (own / "serve" / "label_app" / name).mkdir(exist_ok=True)
        (own / "serve" / "label_app" / name / "large").write_bytes(bytes(100))
    monkeypatch.setattr("monai_ext.zoo.package.PACKAGE", own)
    folder, _ = package(draft, weights=weights, out=tmp_path / "out")
    assert not [path for path in (folder / "monai_ext" / "serve" / "label_app").iterdir() if path.is_dir()]


def test_a_large_file_needs_an_address_and_gets_its_hash(draft, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(rules, "LARGEST", 60_000)
    with pytest.raises(ValueError, match=r"models/model.pt.*say with --url"):
        package(draft, weights=weights, out=tmp_path / "out")
    folder, _ = package(draft, weights=weights, out=tmp_path / "out", url="https://example.org/weights/")
    entries = {entry["path"]: entry for entry in rules.large_files(folder)}
    assert entries["models/model.pt"] == {
        "path": "models/model.pt",
        "url": "https://example.org/weights/model.pt",
        "hash_val": sha256(folder / "models" / "model.pt"),
        "hash_type": "sha256",
    }


def test_two_packages_of_the_same_are_the_same_to_the_byte(draft, weights, tmp_path):
    one, two = (package(draft, weights=weights, out=tmp_path / name)[1] for name in ("one", "two"))
    assert sha256(one) == sha256(two)


def test_verify_tells_what_a_network_that_cannot_be_scripted_lacks(draft, weights, tmp_path):
    folder, _ = package(draft, weights=weights, out=tmp_path / "out")
    config = folder / "configs" / "inference.json"
    content = json.loads(config.read_text())
    module = folder / "unscriptable.py"
    module.write_text(
        "import torch\n\n\nclass Net(torch.nn.Module):\n    def forward(self, x, *more):\n        return x\n"
    )
    config.write_text(json.dumps({**content, "network_def": {"_target_": "unscriptable.Net"}}))
    answers = verify(folder)
    assert "does not fit the network" in answers["network_def and its weights"][0]
    assert answers["script archive"]


def test_verify_tells_of_weights_that_were_exchanged(draft, weights, tmp_path):
    folder, _ = package(draft, weights=weights, out=tmp_path / "out")
    torch.save({}, folder / "models" / "model.pt")
    assert list(rules.weights(folder)) == [
        "models/model.json speaks of other weights than models/model.pt: the sha256 differ"
    ]


def test_verify_takes_a_folder_alone(tmp_path, capsys):
    assert main(["verify", str(tmp_path / "x.zip")]) == 2
    assert "verify takes the folder that package wrote" in capsys.readouterr().err
