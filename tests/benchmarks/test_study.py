"""A study evaluates the network that it trained."""

from pathlib import Path

import pytest
import study


def test_evaluation_is_told_of_the_training_what_says_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told = {}

    def run(_bundle: str, verb: str, _overlays: object, ids: dict[str, object]) -> None:
        told[verb] = ids
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run/subjects.csv").write_text("psnr\n20\n")

    monkeypatch.setattr(study, "_run", run)
    training = {"seed": 1, "epochs": "2", "width": "8", "network_def#stages": "[]"}
    rows = study.trained_and_evaluated(
        "agi_net", tmp_path, data=tmp_path, ids={"target": "PD"}, training=training, evaluation={"name": "narrow"}
    )
    assert rows == [{"psnr": "20"}]
    assert told["train"].items() >= {**training, "target": "PD"}.items()
    assert told["evaluate"].items() >= {"width": "8", "network_def#stages": "[]", "target": "PD"}.items()
    assert not {"seed", "epochs"} & set(told["evaluate"])
