"""What a command need not have is not imported: help comes at once."""

import subprocess
import sys

from monai_ext.__main__ import UNUSED

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
