"""The head of balls.py as a file and as an anatomy, made once."""

from pathlib import Path

import numpy as np
import pytest
from balls import ball_labels, write_labels
from numpy.typing import NDArray

from monai_ext.data.phantoms.anatomy import Anatomy, read_anatomy


@pytest.fixture(scope="session")
def labels() -> NDArray[np.int32]:
    return ball_labels()


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory, labels: NDArray[np.int32]) -> Path:
    """The label map's file, alone in its folder."""
    return write_labels(tmp_path_factory.mktemp("anatomies") / "ball.nii", labels)


@pytest.fixture(scope="session")
def anatomy(head: Path) -> Anatomy:
    return read_anatomy(head, 2.0)
