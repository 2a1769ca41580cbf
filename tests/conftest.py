"""What all tests share: a kernel cache of their own, never the user's, and where really acquired cases lie."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is imported: test processes stand side by side, and runs are compared bit for bit.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MONAI_EXT_ENGINE"] = "torch"  # what is fastest depends on the machine; tests of engines name theirs


@pytest.fixture(scope="session", autouse=True)
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of this run, shared by its worker processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "kernels"
    os.environ["MONAI_EXT_CACHE"] = str(folder)
    return folder


@pytest.fixture(autouse=True)
def no_handler_left() -> Iterator[None]:
    """A bundle's logging.conf leaves handlers whose stream ends with the test: the next warning would print a fault."""
    root = logging.getLogger()
    before = root.handlers[:]
    yield
    for handler in root.handlers[:]:
        if handler not in before:
            root.removeHandler(handler)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Really acquired cases, kept beside the checkout, never in it; without them a test is skipped."""
    folder = (Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "real").resolve()
    if not folder.is_dir():
        pytest.skip(f"no really acquired cases in {folder}")
    return folder
