"""What a command need not have is not imported: help comes at once."""

import os
import subprocess
import sys

import pytest

from monai_ext.__main__ import PATIENCE, UNUSED

HEAVY = ("torch", "monai", "numpy", "nibabel")


def loaded_after(code: str) -> set[str]:
    lines = f"import sys\n{code}\nprint(*(name for name, module in sys.modules.items() if module))"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_the_package_and_its_help_import_nothing_heavy():
    loaded = loaded_after(
        "import contextlib, monai_ext\nfrom monai_ext.__main__ import main\n"
        "with contextlib.suppress(SystemExit):\n    main(['synthesise', '--help'])"
    )
    assert "monai_ext.synthesis.command" in loaded
    assert not loaded & set(HEAVY)


def test_a_synthesis_leaves_out_what_monai_would_import_for_others_and_a_training_does_not():
    lines = (
        "import contextlib\nfrom monai_ext.__main__ import script\nsys.argv = ['monai-ext', {command!r}, '--help']\n"
        "with contextlib.suppress(SystemExit):\n    script()\nimport monai_ext.synthesis.synthesiser, monai.handlers"
    )
    assert not loaded_after(lines.format(command="synthesise")) & set(UNUSED)
    assert "mlflow" in loaded_after(lines.format(command="train"))


@pytest.mark.parametrize(
    ("environment", "spins"), [({}, PATIENCE), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")]
)
def test_threads_are_told_how_long_to_wait_before_torch_is_there_unless_the_environment_says(
    environment: dict[str, str], spins: str
):
    lines = (
        "import contextlib, os, sys\nfrom monai_ext.__main__ import script\n"
        "sys.argv = ['monai-ext', 'train', '--help']\n"
        "assert 'torch' not in sys.modules\n"
        "with contextlib.suppress(SystemExit):\n    script()\nprint(os.environ.get('GOMP_SPINCOUNT'))"
    )
    own = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    words = [sys.executable, "-c", lines]
    done = subprocess.run(words, env={**own, **environment}, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == spins
