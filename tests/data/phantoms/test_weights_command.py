"""One command from label maps to packed weights, stopped by its own clock and taken up again."""

import json
import time
from pathlib import Path

import pytest

from monai_ext.__main__ import main
from monai_ext.weights import about_weights

TINY = ("width=8", "epochs=2", "batch_size=4", "amp=false")


@pytest.mark.long
def test_a_stopped_command_goes_on_and_ends_in_weights_that_say_what_trained_them(tmp_path: Path, head: Path) -> None:
    out = tmp_path / "packed" / "model.pt"
    words = [
        "weights",
        "agi_net",
        "--work",
        tmp_path / "work",
        "--anatomy",
        head.parent,
        "--size",
        2,
        "--validation",
        1,
    ]
    words += ["--out", out, "--note", "licence=none", "--flair_echo", 130, "--t2_echo", 45]
    words += [word for pair in TINY for word in ("--id", pair)]
    command = [str(word) for word in words]
    began = time.monotonic()
    assert main([*command, "--minutes", "0.001"]) == 3
    assert time.monotonic() - began < 40  # the pool is made within the time as well
    assert not out.exists()
    assert main(command) == 0
    pool = json.loads((tmp_path / "work" / "pool" / "datalist.json").read_text())
    assert (len(pool["training"]), len(pool["validation"])) == (2, 1)
    about = about_weights(out)
    assert (about["bundle"], about["licence"]) == ("agi_net", "none")
    assert about["data"].startswith("phantoms, no image of a patient, simulated by monai_ext ")
    assert about["data"].endswith(
        "such as ball with an echo of 130 ms in the FLAIR to be made and of 45 ms or more in T2"
    )
    assert about["agreement_db"] >= 60
    first = out.read_bytes()
    assert main(command) == 0  # all is done: the same weights again
    assert out.read_bytes() == first
