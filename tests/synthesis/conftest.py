"""What the tests of the one line share: two installed methods, one for a fixed task and one for any."""

from pathlib import Path

import pytest
from installed_weights import collection, scan

from monai_ext import catalogue
from monai_ext.inference.checks import Findings
from monai_ext.synthesis import looking


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AGI-Net, of T1 and T2 a FLAIR, and PMM-Synth have weights; the other two bundles have none."""
    return collection(tmp_path_factory.mktemp("both"), "agi_net", "pmm_synth")


@pytest.fixture
def installed(both: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(catalogue, "bundles_folder", lambda: both)
    monkeypatch.setattr(looking, "look", lambda _: Findings({}, ()))  # noise is no head: it is not looked at
    return both


@pytest.fixture
def patient(tmp_path: Path) -> Path:
    """A folder with a T1 and a T2 on one grid."""
    for seed, name in enumerate(("T1", "T2")):
        scan(tmp_path / "patient" / f"{name}.nii.gz", seed=seed)
    return tmp_path / "patient"
