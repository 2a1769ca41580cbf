"""monai-ext train and evaluate: the same configs, ids and refusals as MONAI's runner, on a short line."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from monai.bundle import ConfigParser
from running import BUNDLES, ROOT, TINY, python

from monai_ext.__main__ import main
from monai_ext.catalogue import bundle_names, config_files, find_bundle
from monai_ext.evaluation.protocol import Protocol
from monai_ext.verbs import parsed, value_of
from monai_ext.workflow import unwrapped

AGI_NET = next(bundle for bundle in BUNDLES if bundle.name == "agi_net")


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line with which the command ends."""
    assert main([*words]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"{words[0]}: ")
    return said


def test_a_bundle_is_found_by_its_name_and_by_its_path():
    assert set(bundle_names()) == {bundle.name for bundle in BUNDLES}
    assert find_bundle("agi_net") == find_bundle(AGI_NET) == AGI_NET


def test_a_path_is_the_folder_that_it_names_were_there_a_bundle_of_that_name(tmp_path: Path, monkeypatch):
    shutil.copytree(AGI_NET / "configs", tmp_path / "agi_net" / "configs")
    monkeypatch.chdir(tmp_path)
    for path in ("./agi_net", "agi_net/", Path(tmp_path) / "agi_net"):
        assert find_bundle(path) == (tmp_path / "agi_net").resolve()
    assert find_bundle("agi_net") == AGI_NET


@pytest.mark.parametrize(("name", "hint"), [("agi-net", "did you mean agi_net"), ("zzz", "known are agi_net")])
def test_a_bundle_that_there_is_not_is_refused_with_the_nearest(name: str, hint: str):
    with pytest.raises(ValueError, match=hint):
        find_bundle(name)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no configs/metadata\.json"):
        find_bundle(tmp_path)


def test_an_overlay_goes_by_name_or_by_path(tmp_path: Path):
    mine = tmp_path / "mine.json"
    mine.write_text("{}")
    files = config_files(AGI_NET, "train", ["compact", str(mine)])
    assert [path.name for path in files] == ["train.json", "compact.json", "mine.json"]
    own = "brats, ixi, multi_gpu_train, phantom_train, resnet, unet, volumetric"
    with pytest.raises(ValueError, match=f"no overlay 'huge': name one of {own}, compact, phantoms, or a JSON file"):
        config_files(AGI_NET, "train", ["huge"])


@pytest.mark.parametrize(("text", "value"), [("120", 120), ("null", None)])
def test_a_canvas_can_be_typed(bundle: Path, text: str, value: int | None):
    ids = json.loads((bundle / "configs/evaluate.json").read_text())
    assert parsed(["--canvas", text], ids) == ({}, {"canvas": value})


def papers_protocol_with(bundle: Path, region: str) -> Protocol:
    config = ConfigParser(json.loads((bundle / "configs/evaluate.json").read_text()))
    _, given = parsed(["--protocol", "paper", "--measured#paper#region", region], config.get())
    for name, value in given.items():
        config[name] = value
    with unwrapped():
        return config.get_parsed_content("measured")


def test_one_thing_of_a_papers_protocol_can_be_changed(bundle: Path):
    paper = json.loads((bundle / "configs/evaluate.json").read_text())["measured"]["paper"]
    assert papers_protocol_with(bundle, "volume") == Protocol(**{**paper, "region": "volume"})
    with pytest.raises(ValueError, match="a protocol's region must be one of slice, volume, brain, got 'kidney'"):
        papers_protocol_with(bundle, "kidney")


@pytest.mark.parametrize("config", ["train", "phantom_train", "evaluate"])
def test_a_residual_can_be_typed(config: str):
    ids = json.loads((ROOT / f"bundles/pmm_synth/configs/{config}.json").read_text())
    assert parsed(["--residual", "['T2 over PD']"], ids) == ({}, {"residual": ["T2 over PD"]})


@pytest.mark.parametrize(
    ("name", "text", "default", "value"),
    [
        ("sources", "T1,T2", ["T1"], ["T1", "T2"]),
        ("sources", "T1,T2", None, ["T1", "T2"]),
        ("sources", "['T1', 'T2']", ["T1"], ["T1", "T2"]),
        ("slices", "nonempty", ["middle", 90], "nonempty"),
        ("slices", "['middle', 6]", "nonempty", ["middle", 6]),
        ("epochs", "3", 43, 3),
        ("learning_rate", "1", 1e-4, 1),
        ("amp", "bf16", True, "bf16"),
        ("amp", "false", True, False),
        ("preset", "null", None, None),
        ("sources", "null", None, None),
        ("seed", "null", 0, None),
        ("images", "{'T1': 'a.nii.gz'}", None, {"T1": "a.nii.gz"}),
        ("output_dir", "3", "$@bundle_root + '/runs'", 3),
        ("name", "3", "AGI-Net", "3"),
        ("weights", "$@bundle_root + '/x.pt'", "$@bundle_root + '/y.pt'", "$@bundle_root + '/x.pt'"),
    ],
)
def test_a_value_means_what_its_id_wants(name: str, text: str, default: object, value: object):
    assert value_of(name, text, default=default) == value


@pytest.mark.parametrize(
    ("name", "text", "default", "wanted"),
    [
        ("epochs", "many", 43, "a whole number"),
        ("epochs", "2.5", 43, "a whole number"),
        ("epochs", "true", 43, "a whole number"),
        ("learning_rate", "fast", 1e-4, "a number"),
        ("resume", "maybe", False, "true or false"),
        ("resume", "1", False, "true or false"),
        ("perturbations", "3", [], "a list"),
        ("network_def", "3", {"_target_": "a"}, "a dictionary"),
        ("sources", "T1,", ["T1"], "contrasts with commas between them, such as T1,T2"),
        ("sources", ",", None, "contrasts with commas between them, such as T1,T2"),
    ],
)
def test_a_value_of_the_wrong_kind_or_an_empty_name_is_refused(name: str, text: str, default: object, wanted: str):
    with pytest.raises(ValueError, match=f"--{name} must be {wanted}"):
        value_of(name, text, default=default)


@pytest.mark.parametrize(
    ("name", "default"),
    [("epochs", 43), ("sources", ["T1"]), ("target", "FLAIR"), ("amp", True), ("dataset_dir", "$@bundle_root")],
)
def test_null_is_refused_where_the_config_has_a_value(name: str, default: object):
    with pytest.raises(ValueError, match=f"--{name} must not be null, for its default is"):
        value_of(name, "null", default=default)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--epochs"], "--epochs has no value"),
        (["--sources", ""], "--sources has no value"),
        (["--size="], "--size has no value"),
        (["epochs", "3"], "expected --ID VALUE, got 'epochs'"),
        (["--epochs", "3", "--epochs=4"], "--epochs is given twice"),
    ],
)
def test_words_that_are_no_ids_are_refused(words: list[str], reason: str):
    with pytest.raises(ValueError, match=reason):
        parsed(words, {"epochs": 43})


def test_a_misspelt_id_and_one_of_another_verb_are_refused_before_anything_is_built(capsys: pytest.CaptureFixture[str]):
    assert "did you mean 'epochs'" in refused(capsys, "train", "agi_net", "--epoch", "3")
    for name, value in (("register", "rigid"), ("split", "test"), ("version", "2.0.0")):
        assert f"no config of this bundle has the id '{name}'" in refused(
            capsys, "train", "agi_net", f"--{name}", value
        )
    assert "'network_def#widht'; did you mean 'width'" in refused(
        capsys, "train", "agi_net", "--network_def#widht", "3"
    )
    assert "there is no bundle" in refused(capsys, "evaluate", "agi", "--split", "test")


def test_help_lists_the_ids_with_their_defaults(capsys: pytest.CaptureFixture[str], bundle: Path):
    assert main(["train", bundle.name, "--help"]) == 0
    said = capsys.readouterr().out
    config = json.loads((bundle / "configs" / "train.json").read_text())
    assert f"--epochs               {config['epochs']}" in said
    assert "network_def" in said
    assert f'--runs                 "runs/{bundle.name}"' in said


def test_help_imports_nothing_heavy():
    for words in (["--help"], ["train", "agi_net", "--help"]):
        done = python("-X", "importtime", "-m", "monai_ext", *words)
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert not imported & {"torch", "monai", "numpy", "nibabel"}, words


def of_the_first_page() -> list[list[str]]:
    """The words of its three commands that train, evaluate and synthesise."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    return [shlex.split(line)[1:] for line in re.findall(r"^monai-ext .*", page, re.MULTILINE)]


def test_the_first_page_trains_evaluates_and_synthesises_and_writes_where_one_stands(
    prepared: Path, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    case = next(path for path in sorted(raw.iterdir()) if path.is_dir() and any(path.glob("*T1.nii.gz")))
    for contrast in ("T1", "T2"):
        shutil.copy(next(case.glob(f"*{contrast}.nii.gz")), tmp_path / f"{contrast}.nii.gz")
    (tmp_path / "prepared").symlink_to(prepared)
    monkeypatch.chdir(tmp_path)
    before = files_of(AGI_NET)
    train, evaluate, synthesise = of_the_first_page()
    assert [words[0] for words in (train, evaluate, synthesise)] == ["train", "evaluate", "synthesise"]
    small = ["--batch_size", "4", "--size", "compact", "--slices", TINY["slices"]]
    of_training = [
        word for name in ("width", "discriminator_width", "image_size") for word in (f"--{name}", TINY[name])
    ]
    train += [*small, *map(str, of_training), "--epochs", "1"]
    assert main(train) == 0
    assert "earlier training" in refused(capsys, *train)
    evaluate[evaluate.index("--width") + 1] = str(TINY["width"])
    assert main([*evaluate, *small]) == 0
    assert (tmp_path / "runs/agi_net/evaluate/subjects.csv").is_file()
    assert main([*synthesise, "--trust-names"]) == 0
    assert len(list((tmp_path / "synthetic").rglob("FLAIR_synthetic.nii.gz"))) == 1
    assert files_of(AGI_NET) == before


def files_of(folder: Path) -> dict[Path, int]:
    """When each was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
