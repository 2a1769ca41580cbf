"""The bundles that there are, and how tests run them: by MONAI's command line, away from the repository's folder.

A new Python takes seconds to import what it needs, so that most runs are `here`, in the tests' own process and through
the same `python -m`. One that is to be killed, or to run beside another, is forked from it (`apart`); what a new Python
can show alone is left to `python`.
"""

import contextlib
import io
import json
import logging
import os
import runpy
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser, run
from monai.utils import set_determinism

from monai_ext.weights import save_weights
from monai_ext.workflow import say

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = sorted(path.parent.parent for path in ROOT.glob("bundles/*/configs/metadata.json"))
COMPACT = ROOT / "bundles" / "compact.json"
# Small enough for a test: what the compact overlay has is for a person's first look.
TINY = {"width": 8, "discriminator_width": 8, "image_size": 32, "slices": "['middle', 6]"}


def shared_folder(tmp_path_factory: pytest.TempPathFactory, name: str) -> Path:
    """The same for every worker process of this run."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name


def python(*arguments: object, cwd: Path | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    """This Python, one thread, in a folder that is not the repository's unless asked for."""
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=cwd or "/", env=environment, capture_output=True, text=True, timeout=600)
    assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def here(module: str, *arguments: object, cwd: Path | None = None, check: bool = True) -> subprocess.CompletedProcess:
    """As `python("-m", module, ...)`: the same words to the same module, what it says and its status; no new Python."""
    words = list(map(str, arguments))
    out, err = io.StringIO(), io.StringIO()
    status: object = 0
    with _left_as_it_was(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        os.chdir(cwd or "/")
        sys.argv = [module, *words]
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            status = end.code or 0
        except Exception as error:  # as Python does at its end
            sys.excepthook(type(error), error, error.__traceback__)
            status = 1
    if not isinstance(status, int):
        err.write(f"{status}\n")
        status = 1
    done = subprocess.CompletedProcess([module, *words], status, out.getvalue(), err.getvalue())
    assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def apart(said: Path, module: str, *arguments: object, **environment: object) -> int:
    """The id of a process, forked from this one, that does what `here` does; at its end, what it says is in `said`."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.environ.update({name: str(value) for name, value in environment.items()})
        done = here(module, *arguments, check=False)
        said.write_text(done.stdout + done.stderr)
        status = done.returncode
    finally:
        os._exit(status)


def status_of(process: int, *, seconds: float = 300) -> int:
    """How a process of `apart` ended; one that takes longer is killed."""
    deadline = time.monotonic() + seconds
    while not (ended := os.waitpid(process, os.WNOHANG))[0] and time.monotonic() < deadline:
        time.sleep(0.02)
    if not ended[0]:
        os.kill(process, signal.SIGKILL)
        ended = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(ended[1])


@contextlib.contextmanager
def _left_as_it_was() -> Iterator[None]:
    """What a run changes for its whole process, and what `python` gives its own."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    folder, argv, path, hook = Path.cwd(), sys.argv, sys.path[:], sys.excepthook
    with patch.dict(os.environ), patch("torch.cuda.is_available", return_value=False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="runpy")  # which finds modules that tests have imported
        sys.excepthook = sys.__excepthook__
        try:
            yield
        finally:
            os.chdir(folder)
            sys.argv, sys.path[:], sys.excepthook = argv, path, hook
            root.handlers[:] = handlers
            root.setLevel(level)
            set_determinism(None)


def options(pairs: dict[str, object]) -> list[str]:
    return [part for name, value in pairs.items() for part in (f"--{name}", str(value))]


def refused(capsys: pytest.CaptureFixture[str], *files: Path, **ids: object) -> str:
    """The line with which MONAI's run ends, run here and not in a process of its own, which would take seconds."""
    parsed = {key: DefaultParseValue(value) if isinstance(value, str) else value for key, value in ids.items()}
    with pytest.raises(Exception) as caught:  # noqa: PT011 - what a person sees of it is what counts
        run(config_file=[str(file) for file in files], logging_file=False, **parsed)
    capsys.readouterr()
    say(caught.type, caught.value, caught.tb)
    said = capsys.readouterr().err
    assert said.startswith("error: "), said
    assert said.count("\n") == 1, said
    return said


def smallest_weights(bundle: Path, folder: Path, *overlays: Path, **task: list[str]) -> Path:
    """Untrained, of the bundle's own network at its smallest."""
    parser = ConfigParser(ConfigParser.load_config_files([bundle / "configs" / "inference.json", *overlays]))
    parser["width"] = 8
    for name, contrasts in task.items():
        parser[name] = contrasts if name == "sources" or not isinstance(parser[name], str) else contrasts[0]
    every = parser["sources"] or parser["modalities"]
    targets = parser["target"] or every
    about = {
        "bundle": bundle.name,
        "version": json.loads((bundle / "configs" / "metadata.json").read_text())["version"],
        "network_def": {key: parser.get_parsed_content(f"network_def::{key}") for key in parser["network_def"]},
        "sources": list(every),
        "target": [targets] if isinstance(targets, str) else list(targets),
    }
    save_weights(folder / "model.pt", parser.get_parsed_content("network_def"), about)
    return folder / "model.pt"
