"""What the tests of data share: where the really acquired cases lie, for those who have them."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Really acquired cases, kept beside the checkout, never in it; without them a test is skipped."""
    folder = (Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "real").resolve()
    if not folder.is_dir():
        pytest.skip(f"no really acquired cases in {folder}")
    return folder
