"""What the page about phantoms tells people to type works, at a size that takes seconds."""

import re
import shlex
import shutil
from pathlib import Path

import nibabel as nib
import pytest
from running import ROOT, here

PAGE = (ROOT / "docs" / "phantoms" / "README.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()]
POOL = ["--once", "--size", "2", "--validation", "1", "--spacing", "6", "--canvas", "32x28", "--depth", "26"]


@pytest.mark.long
@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_page_runs(line: str, head: Path, tmp_path: Path) -> None:
    pytest.importorskip("nilearn")
    (tmp_path / "LABELS").mkdir()
    shutil.copy(head, tmp_path / "LABELS")
    (tmp_path / "MASKS").mkdir()
    labels = nib.Nifti1Image.from_filename(head)
    nucleus = nib.Nifti1Image((labels.get_fdata() == 12).astype("uint8"), labels.affine)  # stands for an infarct
    nucleus.to_filename(tmp_path / "MASKS" / "infarct.nii")
    (tmp_path / "docs" / "phantoms").mkdir(parents=True)
    words = shlex.split(line.replace("SITE", "glioma"))
    assert words[:4] == ["python", "-m", "monai_ext", "phantom"]
    small = POOL if "--stream" in words else ["--subjects", "1", "--spacing", "8", "--jobs", "1"]
    here(*words[2:], *small, cwd=tmp_path)
    assert list((tmp_path / ("POOL" if "--stream" in words else "DIR")).rglob("*.nii*"))
