"""What a command need not have is not imported: help comes at once."""

import subprocess
import sys

HEAVY = ("torch", "monai", "numpy", "nibabel")


def loaded_after(code: str) -> set[str]:
    lines = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_the_package_and_its_help_import_nothing_heavy():
    loaded = loaded_after(
        "import contextlib, monai_ext\nfrom monai_ext.__main__ import main\n"
        "with contextlib.suppress(SystemExit):\n    main(['synthesise', '--help'])"
    )
    assert "monai_ext.synthesis.command" in loaded
    assert not loaded & set(HEAVY)
