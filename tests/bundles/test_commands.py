"""What the READMEs tell people to type into MONAI's runner: files and ids are there, and the first page's three run."""

import re
import shlex
import shutil
from ast import literal_eval
from pathlib import Path

import pytest
from monai.bundle import ConfigParser
from running import BUNDLES, ROOT, TINY, python

from monai_ext.workflow import refuse_unknown_ids

READMES = [
    ROOT / "README.md",
    ROOT / "bundles/README.md",
    ROOT / "docs/exports.md",
    *(bundle / "docs/README.md" for bundle in BUNDLES),
]
OWN = ("bundle_root", "config_file", "meta_file", "filepath", "ckpt_file", "input_shape")  # the verbs', not ids


def commands(readme: Path) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", readme.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if " -m monai.bundle " in line]


def named(command: str) -> dict[str, str]:
    """What a command line gives its ids."""
    words = shlex.split(command.partition(" -m monai.bundle ")[2])
    return {word[2:]: words[number + 1] for number, word in enumerate(words) if word.startswith("--")}


@pytest.mark.parametrize("command", [command for readme in READMES for command in commands(readme)])
def test_a_command_has_files_that_are_there_and_ids_that_are_known(command: str):
    ids = named(command)
    files = literal_eval(ids["config_file"]) if ids["config_file"].startswith("[") else [ids["config_file"]]
    parser = ConfigParser(ConfigParser.load_config_files([str(ROOT / file) for file in files]))
    for name, value in ids.items():
        if name not in OWN and name not in ("tracking", "tracking_uri", "experiment_name", "run_name"):
            parser[name] = value
    own = (ROOT / ids["bundle_root"] / "configs").glob("*.json")
    refuse_unknown_ids(parser.get(), [ConfigParser.load_config_file(path) for path in own])


def test_the_commands_of_the_first_page_train_evaluate_and_synthesise(prepared: Path, raw: Path, tmp_path: Path):
    train, evaluate, infer = commands(ROOT / "README.md")
    case = next(path for path in sorted(raw.iterdir()) if path.is_dir() and any(path.glob("*T1.nii.gz")))
    sources, target = literal_eval(named(infer)["sources"]), named(infer)["target"]
    images = {contrast: str(next(case.glob(f"*{contrast}.nii.gz"))) for contrast in sources}
    shutil.copytree(ROOT / "bundles" / "agi_net", tmp_path / "bundles" / "agi_net")
    width = {"width": TINY["width"]}
    for command, ids in (
        (train, {**TINY, "epochs": 1, "batch_size": 4, "dataset_dir": prepared}),
        (evaluate, {**width, "dataset_dir": prepared, "output_dir": tmp_path / "run"}),
        (infer, {**width, "images": images}),
    ):
        given = {**named(command), **ids}
        words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        python("-m", "monai.bundle", "run", *words, cwd=tmp_path)
    shipped = "bundles/agi_net/models/model.pt"
    assert (tmp_path / shipped).read_bytes() == (ROOT / shipped).read_bytes()
    assert (tmp_path / "run" / "run.json").is_file()
    assert len(list((tmp_path / "synthetic").rglob(f"{target}_synthetic.nii.gz"))) == 1
