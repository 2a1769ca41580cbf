"""A bundle's page from top to bottom: its commands fit together at the paper's size, and run on phantoms at a small.

What a page trains it evaluates too, of the network that it trained: said once at full size, without building it on a
device, and once by running everything that stands there, two steps each, in the order that a reader would. A loop over
numbers is said whole at full size, and run for the first of them.
"""

import json
import re
import shlex
import shutil
import socket
from ast import literal_eval
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from running import ROOT, TINY, here

from monai_ext.data.splits import parse_split
from monai_ext.data.volumes import Volume, read_volume, write_volume

SMALL = {**TINY, "slices": "['middle', 2]", "steps": 2, "batch_size": 2, "patch_size": "[24, 24, 24]", "amp": "false"}
BRATS = ("T1", "T2", "T1C", "FLAIR")
SCANS = {
    "IXI": ("T1", "T2", "PD"), "ISLES": ("FLAIR", "DWI", "ADC"), "BraTS2015": BRATS, "BraTS2019": BRATS,
    "BraTS2020": BRATS, "BraTS2023": BRATS,
}  # fmt: skip


LOOP = re.compile(r"^for (\w+) in (.*); do\n(.*?)^done\n", re.MULTILINE | re.DOTALL)


def commands(page: Path, *, passes: int | None = None) -> list[str]:
    """The page's commands, with so many passes of each loop, or all."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)

    def unrolled(loop: re.Match[str]) -> str:
        return "".join(loop[3].replace(f"${loop[1]}", value) for value in loop[2].split()[:passes])

    lines = [line.strip() for line in LOOP.sub(unrolled, "".join(blocks).replace("\\\n", " ")).splitlines()]
    assert not any("$" in line for line in lines), "a variable that no loop has"
    return [line for line in lines if line.startswith(("python -m ", "torchrun "))]


def named(words: list[str]) -> dict[str, str]:
    return {word[2:]: words[number + 1] for number, word in enumerate(words) if word.startswith("--")}


def verb_of(files: list[str]) -> str:
    return Path(files[0]).stem


def files_of(ids: dict[str, str]) -> list[str]:
    given = ids["config_file"]
    return literal_eval(given) if given.startswith("[") else [given]


def runs(bundle: Path) -> Iterator[tuple[list[str], dict[str, str]]]:
    """The configs and ids of each run of MONAI's on a page."""
    for line in commands(bundle / "docs/README.md"):
        _, found, rest = line.partition(" -m monai.bundle run ")
        if found:
            ids = named(shlex.split(rest))
            yield files_of(ids), ids


def parsed(files: list[str], ids: dict[str, str]) -> ConfigParser:
    parser = ConfigParser(ConfigParser.load_config_files([str(ROOT / file) for file in files]))
    for name, value in ids.items():
        if name not in ("config_file", "tracking"):
            parser[name] = literal_eval(value) if value[0] in "[{" or value.isdigit() else value
    for word, meant in (("true", True), ("false", False)):
        parser.update({name: meant for name, value in ids.items() if value == word})
    return parser


def definition(parser: ConfigParser) -> dict[str, Any]:
    return {key: parser.get_parsed_content(f"network_def::{key}") for key in parser["network_def"]}


def test_what_a_page_evaluates_is_the_network_that_it_trained(bundle: Path):
    """At the paper's size: by the weights' file, and with the sources and targets that it was trained for."""
    trained: dict[str, dict[str, Any]] = {}
    shipped = json.loads((bundle / "models/model.json").read_text())["network_def"]
    evaluated = 0
    for files, ids in runs(bundle):
        parser = parsed(files, ids)
        task = {name: parser[name] for name in ("sources", "target") if parser.get("network_def") and name in parser}
        weights = ids.get("weights", "")
        if verb_of(files) == "train":
            assert weights, f"{ids} does not say which weights it makes"
            trained[weights] = {**definition(parser), **(task if "modalities" not in parser else {})}
        elif weights:
            found = {**definition(parser), **(task if "modalities" not in parser else {})}
            assert found == trained[weights], f"{ids}: other than what {weights} was trained as"
            evaluated += 1
        else:
            found = definition(parser)
            own = [key for key in shipped if key not in ("modalities", "image_size")]  # of which no weight is made
            wanted = {key: shipped[key] for key in own}
            assert {key: found[key] for key in own} == wanted, f"{ids}: other than the weights that it comes with"
    assert evaluated > 5


def test_a_page_trains_nothing_that_cannot_be_built_at_the_papers_size(bundle: Path):
    seen = set()
    for files, ids in runs(bundle):
        parser = parsed(files, ids)
        told = json.dumps([definition(parser), parser.get("discriminator_def")], sort_keys=True, default=str)
        if verb_of(files) != "train" or told in seen:
            continue
        seen.add(told)
        with torch.device("meta"):
            assert sum(p.numel() for p in parser.get_parsed_content("network_def").parameters()) > 1e5
            if parser.get("discriminator_def"):
                parser.get_parsed_content("discriminator_def")
        parser.get_parsed_content("objective") if bundle.name != "pmm_synth" else None


def test_a_page_splits_everybody_or_counts_as_many_as_a_paper_does(bundle: Path):
    splits = re.findall(r"--split (\S+)", "\n".join(commands(bundle / "docs/README.md")))
    assert splits
    for text in splits:
        shares = parse_split(text)
        assert sum(shares) == pytest.approx(1) or sum(shares) >= 100, f"{text}: {shares} people, of hundreds"


def test_a_batch_can_be_shared_out_between_a_pages_processes(bundle: Path):
    lines = [line for line in commands(bundle / "docs/README.md") if line.startswith("torchrun ")]
    assert lines
    for line in lines:
        ids = named(shlex.split(line))
        given = parsed(files_of(ids), {name: ids[name] for name in ids if name == "batch_size"})["batch_size"]
        assert given % int(ids["nproc_per_node"]) == 0, f"{line}: {given} slices"


def lay_out(folder: Path, *, prepared: Path, raw: Path) -> None:
    """What a page's commands name: the bundles, scans, prepared data and patients."""
    shutil.copytree(ROOT / "bundles", folder / "bundles")
    patients = sorted(path for path in raw.iterdir() if path.is_dir() and any(path.glob("*T1.nii.gz")))
    for name in ("brats", "ixi", "isles", "ours"):
        shutil.copytree(prepared, folder / name)
        listed = json.loads((folder / name / "datalist.json").read_text())
        (folder / name / "datalist.json").write_text(json.dumps({**listed, "name": name, "root": "."}))
    for name, contrasts in SCANS.items():
        for patient in patients[:3]:
            (folder / name / patient.name).mkdir(parents=True)
            brain = read_volume(raw / ".brain" / f"{patient.name}.nii.gz").array > 0
            for contrast in contrasts:
                scan = next(patient.glob(f"*{contrast}.nii.gz"))
                head = read_volume(scan)
                kept = head.array if name == "IXI" else head.array * brain  # the others come without their skull
                write_volume(folder / name / patient.name / scan.name, Volume(kept, head.affine))
    shutil.copytree(patients[0], folder / "patients" / "a")
    (folder / "a").mkdir()
    for contrast in ("T1", "T2", "FLAIR"):
        shutil.copy(next(patients[0].glob(f"*{contrast}.nii.gz")), folder / "a" / f"{contrast}.nii.gz")


def smaller(line: str) -> tuple[str, list[str]]:
    """The module that a command runs, and its words with what makes it small."""
    words = shlex.split(line)
    module, words = words[words.index("-m") + 1], words[words.index("-m") + 2 :]
    if module == "monai_ext":
        if words[0] == "index":
            words[words.index("--split") + 1] = "1/1/1"
        if words[0] == "prepare":  # where the page does, and not over what the other commands train on
            words[words.index("--out") + 1] = "prepared/" + words[words.index("--out") + 1]
        return module, words
    ids = named(words)
    if words[0] != "run":  # an export, of the shipped weights
        return module, words
    verb = verb_of(files_of(ids))
    small = {key: value for key, value in SMALL.items() if key not in ids}
    if verb == "train":
        wanted = set(small) - (set() if "volumetric" in ids["config_file"] else {"patch_size"})
    elif "weights" in ids:
        wanted = {"width"} | ({"image_size"} if "fd_gan" in ids["config_file"] and verb != "inference" else set())
        wanted |= set() if verb == "inference" else {"slices"}
        wanted |= {"patch_size"} if "volumetric" in ids["config_file"] else set()
    else:
        wanted = {"slices"} if verb in ("evaluate", "look") else set()
    for name in sorted(wanted & set(small)):
        words += [f"--{name}", str(small[name])]
    if "width" in ids and "weights" in ids:
        words[words.index("--width") + 1] = str(SMALL["width"])
    return module, words


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.mark.long
def test_every_command_of_a_page_runs(
    bundle: Path, prepared: Path, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    lay_out(tmp_path, prepared=prepared, raw=raw)
    for name, value in (("RANK", 0), ("LOCAL_RANK", 0), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(name, str(value))
    shipped = (tmp_path / "bundles" / bundle.name / "models/model.pt").read_bytes()
    lines = commands(bundle / "docs/README.md", passes=1)
    for line in lines:
        if line.startswith("torchrun"):
            monkeypatch.setenv("WORLD_SIZE", "1")  # what two make of it, test_processes has
            monkeypatch.setenv("MASTER_PORT", str(free_port()))
        else:
            monkeypatch.delenv("WORLD_SIZE", raising=False)
        module, words = smaller(line)
        if words[0] == "report":  # of loops the first pass alone was run
            words = [word for word in words if not word.startswith("runs/") or (tmp_path / word).is_dir()]
        done = here(module, *words, cwd=tmp_path, check=False)
        assert done.returncode == 0, f"{line}\n{' '.join(words)}\n{done.stdout[-1500:]}{done.stderr[-3000:]}"
    assert (tmp_path / "bundles" / bundle.name / "models/model.pt").read_bytes() == shipped
    assert len(lines) > 20


@pytest.mark.long
def test_what_a_page_trains_takes_a_step_at_the_papers_size(bundle: Path, prepared: Path, raw: Path, tmp_path: Path):
    """The first training of each set of configs, at its width and canvas: two slices and one step. A patch in 3D takes
    minutes on a CPU, and what makes several processes of one changes nothing of a step: both run small, above.
    """
    lay_out(tmp_path, prepared=prepared, raw=raw)
    seen = []
    for files, ids in runs(bundle):
        extra = [Path(file).stem for file in files[1:]]
        if (
            verb_of(files) != "train"
            or files in seen
            or {"adapt", "compact", "volumetric", "multi_gpu_train"} & {*extra}
        ):
            continue
        seen.append(files)
        small = {"steps": 1, "batch_size": 2, "slices": "['middle', 2]"}
        words = [word for name, value in {**ids, **small}.items() for word in (f"--{name}", str(value))]
        done = here("monai.bundle", "run", *words, cwd=tmp_path, check=False)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-1500:]}{done.stderr[-3000:]}"
        assert (tmp_path / ids["weights"]).is_file()
    assert seen
