"""What `make check`'s linter cannot know of the Dockerfile: that it fits this repository and the wheel it installs."""

import json
import shlex
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def stages() -> list[list[tuple[str, str]]]:
    """Each stage's instructions: the word in front and the rest of its line, continued lines as one."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    found: list[list[tuple[str, str]]] = []
    for line in filter(None, "\n".join(lines).replace("\\\n", " ").splitlines()):
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            found.append([])
        found[-1].append((word, " ".join(rest.split())))
    return found


def values(stage: list[tuple[str, str]], instruction: str) -> list[str]:
    return [rest for word, rest in stage if word == instruction]


def test_it_builds_on_a_python_that_the_package_takes_by_its_version(stages):
    for stage in stages:
        image, _, tag = values(stage, "FROM")[0].split()[0].partition(":")
        assert image == "python"
        assert tag.split("-")[0] in ("3.10", "3.11", "3.12", "3.13")


def test_what_it_copies_is_in_the_repository_and_sent_to_the_builder(stages):
    left_out = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    copied = [shlex.split(rest)[:-1] for stage in stages for rest in values(stage, "COPY")]
    sources = [word for words in copied for word in words]
    assert "." in sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source not in left_out
    for needed in ("pyproject.toml", "LICENSE", "README.md", "monai_ext", "cuda_ops", "bundles"):
        assert needed not in left_out


def test_it_runs_the_wheels_console_script_as_nobody_in_particular(stages):
    (entry,) = values(stages[-1], "ENTRYPOINT")
    (script,) = json.loads(entry)
    (installed,) = entry_points(group="console_scripts", name=script)
    assert installed.dist is not None
    assert installed.dist.name == "monai-ext"
    (user,) = values(stages[-1], "USER")
    assert user.split(":")[0] not in ("", "0", "root")
    assert any("monai_ext-*.whl" in rest for rest in values(stages[-1], "RUN"))
