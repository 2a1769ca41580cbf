"""Every benchmark that a page names has the options that stand there, and those that can be small run as they stand.

What they measure at such sizes says nothing and is not judged: a benchmark that ends below its goal has run too.
"""

import contextlib
import io
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import study
import torch
from running import ROOT, here

BENCHMARKS, HOSTILE = ROOT / "tests" / "benchmarks", ROOT / "tests" / "hostile"
PAGES = sorted(
    {*ROOT.glob("README.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bundles/**/*.md"), *ROOT.glob("cuda_ops/*.md")}
)
# In code: `python tests/benchmarks/agi_net.py --threads 2`, and in tables `phantom.py --subjects 4` too
NAMED = re.compile(r"(?:^|`)(python )?(?:tests/(?:benchmarks|hostile)/)?(\w+\.py)((?: [^`\n]*)?)(?:`|$)", re.MULTILINE)
STUDY = ["--steps", "2", "--image_size", "32", "--slices", "['middle', 2]"]
SMALL = {
    "agi_net.py": ["--size", "32", "--width", "8", "--rounds", "1", "--torch-alone"],
    "fd_gan.py": ["--size", "32", "--width", "8", "--rounds", "1"],
    "hmf_mambainr.py": ["--size", "32", "--width", "8", "--rounds", "1", "--archive-size", "32"],
    "pmm_synth.py": ["--size", "32", "--width", "8", "--repeats", "1"],
    "training.py": ["--size", "32", "--width", "8", "--batch", "1", "--rounds", "1"],
    "mcbs.py": ["--size", "32", "--width", "8", "--samples", "16"],
    "real.py": ["--spacing", "6", "--task", "T1,T2:FLAIR"],
    "misalignment.py": ["--seeds", "0", *STUDY],
    "finer.py": STUDY,
    "shading.py": ["--spacing", "6"],
    "cortex.py": ["--spacing", "6"],
}
LARGE = {
    "beside.py": "new processes beside others that count",
    "disentangling.py": "pix2pix's eight halvings need the paper's size; tests/benchmarks/test_disentangling.py",
    "hospitals.py": "trainings on four hospitals",
    "batching.py": "an epoch of four datasets",
    "engines.py": "networks at paper width; tests/inference/test_engines.py compares small ones",
    "exports.py": "networks at paper width; tests/bundles/test_exports.py exports small ones",
    "inference.py": "a subject of 155 slices",
    "kills.py": "trainings one after another; tests/bundles/test_training.py kills one",
    "looking.py": "whole heads; tests/inference/test_checks.py looks at some",
    "phantom.py": "phantoms on the template",
    "phantoms_beside_real.py": "people's label maps",
    "registration.py": "phantoms on the template; tests/data/test_registration.py has some",
    "run.py": "thousands of files; tests/hostile/test_files.py tries some",
    "slices.py": "500 subjects",
    "subject.py": "a subject of 155 slices, four times and in new processes",
    "start.py": "new processes; tests/synthesis/test_imports.py holds what is imported",
}


def path_of(name: str) -> Path:
    return (BENCHMARKS if (BENCHMARKS / name).is_file() else HOSTILE) / name


def named() -> dict[tuple[str, str], bool]:
    """The benchmarks on the pages with the words that follow, and whether all of it is a command."""
    found: dict[tuple[str, str], bool] = {}
    for page in PAGES:
        for python, name, words in NAMED.findall(page.read_text(encoding="utf-8")):
            if not name.startswith("test_") and path_of(name).is_file():
                found[name, words.strip()] = bool(python) or found.get((name, words.strip()), False)
    return found


FOUND = named()


def run(name: str, words: list[str]) -> str:
    """What the benchmark prints; as in a process of its own, but for the time to start one."""
    threads, argv, said, status = torch.get_num_threads(), sys.argv, io.StringIO(), None
    sys.argv = [name, *words]
    try:
        with contextlib.redirect_stdout(said):
            runpy.run_path(str(path_of(name)), run_name="__main__")
    except SystemExit as end:
        status = end.code
    finally:
        torch.set_num_threads(threads)
        sys.argv = argv
    assert status in (None, 0, 1), said.getvalue()  # 1: below its goal
    return said.getvalue()


def test_each_benchmark_of_a_page_is_known_here():
    assert {name for name, _ in FOUND} == set(SMALL) | set(LARGE)


@pytest.mark.parametrize(("name", "words"), [both for both in FOUND if both[0] in LARGE and both[0] != "run.py"])
def test_what_takes_long_has_the_options_that_a_page_gives_it(name: str, words: str):
    text = path_of(name).read_text(encoding="utf-8")
    if "parse_known_args" in text:  # the others are ids of the training
        text += (ROOT / "bundles" / "pmm_synth" / "configs" / "train.json").read_text(encoding="utf-8")
    assert all(f'"{option}"' in text or f'"{option[2:]}"' in text for option in re.findall(r"--[\w-]+", words))


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "words"), [both for both, is_command in FOUND.items() if is_command and both[0] in SMALL]
)
def test_a_benchmark_runs(
    name: str, words: str, prepared: Path, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    forked = SimpleNamespace(run=lambda command, **_: here(*command[2:], cwd=tmp_path), DEVNULL=None)
    monkeypatch.setattr(study, "subprocess", forked)
    (tmp_path / "bundles").symlink_to(ROOT / "bundles")
    patient = next(folder for folder in sorted(raw.iterdir()) if any(folder.glob("*T1.nii.gz")))
    shutil.copytree(patient, tmp_path / "SCANS" / patient.name)
    for folder in ("PP", "out/demo/prepared", "data/brats", "data/glioma"):
        shutil.copytree(prepared, tmp_path / folder)
    given = shlex.split(words)
    assert run(name, [*given, *([] if "--weights" in given else SMALL[name])]).strip()
