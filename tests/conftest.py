"""The kernels that tests compile go to one folder a test run, never to the user's cache."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of this run, shared by its worker processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "kernels"
    os.environ["MONAI_EXT_CACHE"] = str(folder)
    return folder
