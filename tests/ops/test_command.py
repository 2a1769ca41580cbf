"""python -m monai_ext ops, as a person runs it."""

import pytest

from monai_ext.__main__ import main
from monai_ext.ops import loader


def test_ops_names_each_operators_kernel(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONAI_EXT_OPS", "off")
    monkeypatch.setattr(loader, "_statuses", {})
    assert main(["ops"]) == 0
    printed = capsys.readouterr().out
    for name in ("float_roll", "selective_scan"):
        assert f"{name}: reference kernel, ready in" in printed
    assert "not better: MONAI_EXT_OPS=off" in printed


def test_ops_fails_in_words_where_a_required_kernel_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise loader.BuildError("no C++ compiler")

    monkeypatch.setenv("MONAI_EXT_OPS", "require")
    monkeypatch.setattr(loader, "_statuses", {})
    monkeypatch.setattr(loader, "built", refuse)
    assert main(["ops"]) == 1
    error = capsys.readouterr().err
    assert error == "MONAI_EXT_OPS=require, but float_roll has no cpu kernel: no C++ compiler\n"


def test_an_unknown_mode_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MONAI_EXT_OPS", "sometimes")
    assert main(["ops"]) == 2
    assert capsys.readouterr().err == "ops: MONAI_EXT_OPS must be auto, off or require, got 'sometimes'\n"
