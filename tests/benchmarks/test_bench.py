"""What `make bench` and the session on a GPU rely on: no part holds up another, rivals compute the same."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import bench
import bundle_rows
import gpu_session
import pytest
import torch
from parts import Outcome, Part, Row, carry_out

ROW = Row("scan", "forward", "kernel", ms=2.0, floor_ms=1.0)
TELLS = f"import sys; sys.path.append({str(Path(bundle_rows.__file__).parent)!r}); from parts import *; tell([{ROW!r}])"
HANGS = f"{TELLS}; import subprocess, time; child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True); "
HANGS += "open(sys.argv[1], 'w').write(str(child.pid)); time.sleep(60)"


def part(name: str, code: str, *arguments: object, seconds: float = 20.0) -> Part:
    return Part(name, (sys.executable, "-S", "-c", code, *map(str, arguments)), seconds)


def gone(pid: int) -> bool:
    """Whether the process has ended, be it that nobody has asked for its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_part_that_fails_or_hangs_is_a_line_and_the_rest_goes_on(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    parts = [
        part("machine", "print('a processor')"),
        part("fails", f"{TELLS}; sys.exit('no compiler')"),
        part("hangs", HANGS, pid, seconds=4.0),
        Part("is not there", (str(tmp_path / "nothing"),), 5.0),
        part("broken", "print('row: {\"what\": 1'); print('row: {\"what\": \"x\"}'); print('the end')"),
        part("goes on", TELLS),
    ]
    printed: list[str] = []
    outcomes = gpu_session.session(parts, tmp_path / "out", device="cpu", seconds=60.0, say=printed.append)
    states = {outcome.name: (outcome.state, len(outcome.rows)) for outcome in outcomes}
    assert states == {
        "machine": ("done", 0),
        "fails": ("failed", 1),
        "hangs": ("cut off", 1),
        "is not there": ("failed", 0),
        "broken": ("done", 0),
        "goes on": ("done", 1),
    }
    assert outcomes[1].said == "status 1: no compiler"
    assert outcomes[5].rows == [ROW]
    if os.path.isdir("/proc/self"):  # noqa: PTH112
        assert gone(int(pid.read_text()))
    told = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [one["state"] for one in told["parts"]] == [outcome.state for outcome in outcomes]
    assert told["parts"][5]["rows"][0]["ms"] == 2.0
    page = (tmp_path / "out" / "results.md").read_text()
    assert page.startswith("# a processor: not run on a GPU yet\n")
    assert "| hangs | cut off |" in page
    assert page.count("| scan | forward | kernel | 2.00 | - | 2.00 | - |") == 3
    assert any(line.startswith("fails: failed") for line in printed)


def test_results_are_there_after_each_part_and_nothing_begins_too_late(tmp_path: Path) -> None:
    seen = f"import json; print(len(json.load(open({str(tmp_path / 'results.json')!r}))['parts']))"
    parts = [part("machine", "pass"), part("second", seen)]
    outcomes = gpu_session.session(parts, tmp_path, device="cpu", seconds=60.0, say=lambda _: None)
    assert outcomes[1].said == "1"
    late = list(carry_out([part("one", "pass"), part("two", "pass")], seconds=1.0))
    assert [outcome.state for outcome in late] == ["not run", "not run"]


def test_figures_that_are_not_finite_are_said_and_not_written_as_numbers() -> None:
    code = (
        TELLS.replace(repr(ROW), repr(Row("scan", "forward", "kernel", ms=1.0)))
        + "; tell([Row('a', 'b', 'c', apart=float('nan'))])"
    )
    ((outcome,)) = carry_out([part("nan", code)], seconds=60.0)
    assert outcome.rows[1] == Row("a", "b", "c", note="apart not finite")


def test_the_session_ends_within_nine_minutes_and_asks_for_everything() -> None:
    parts = gpu_session.plan("cuda", quick=False)
    assert gpu_session.SECONDS + 2 < 540  # with the seconds that a killed part is waited for
    must = [one for one in parts if not one.name.endswith("compiled")]
    assert (
        sum(one.seconds for one in must[:9]) < gpu_session.SECONDS
    )  # up to the operators, be they as slow as they may
    names = {one.name for one in parts}
    assert {"machine", "build", "pytest -m gpu", "phantom", *bench.OPERATORS} <= names
    assert set(gpu_session.OPERATORS) == set(bench.OPERATORS)
    for bundle in bundle_rows.bundle_names():
        assert {f"{bundle}, {kind}" for kind in ("eager", "graphed", "compiled")} <= names
    here = {one.name for one in gpu_session.plan("cpu", quick=True)}
    missing = {one.name for one in gpu_session.left_out("cpu", quick=True)}
    assert missing == {"build", "pytest -m gpu", "CUDA graphs", "torch.compile"}
    assert not here & missing


def test_some_parts_alone_are_run_and_the_machine_is_always_named() -> None:
    parts = gpu_session.plan("cuda", quick=False)
    some = gpu_session.chosen(parts, ["float_roll", "agi_net, eager"])
    assert [one.name for one in some] == ["machine", "float_roll", "agi_net, eager", "float_roll, compiled"]
    assert gpu_session.chosen(parts, []) == parts
    with pytest.raises(ValueError, match="float_rol, graphed'"):
        gpu_session.chosen(parts, ["agi_net", "float_rol, graphed"])


def test_only_a_gpu_that_was_there_is_named() -> None:
    found = Outcome("machine", "done", "NVIDIA Z", 1.0, [])
    lost = Outcome("machine", "failed", "status 1: torch sees no CUDA device here", 1.0, [])
    assert gpu_session.title([found], "cuda") == "NVIDIA Z"
    assert gpu_session.title([lost], "cuda").endswith(gpu_session.NOT_ON_A_GPU)
    assert gpu_session.title([found], "cpu").endswith(gpu_session.NOT_ON_A_GPU)


@pytest.mark.parametrize(("name", "size"), [("float_roll", 16), ("group_pool", 9), ("selective_scan", 70)])
def test_what_an_operator_is_compared_with_computes_the_same(name: str, size: int) -> None:
    rows = list(bench.operator_rows(name, "cpu", [size], compiled=False, seconds=0.0))
    timed = [row for row in rows if row.way in bench.RUNS]
    case = bench.OPERATORS[name]
    assert {(row.way, row.by) for row in timed} == {
        (way, by) for way in case.ways for by in ("kernel", "reference", *case.others)
    }
    for row in timed:
        assert row.ms is not None, row.note
        assert row.ms > 0
        assert row.apart is not None
        assert row.apart < 1e-4, row


def test_a_bundle_is_compared_with_itself_without_operators() -> None:
    rows = {
        (row.way, row.by): row
        for row in bundle_rows.rows("agi_net", "eager", "cpu", size=16, batch=1, seconds=0.0, width=8)
    }
    for way in ("forward", "training step"):
        for by in ("reference", "ours"):
            assert rows[way, by].ms, rows[way, by].note
    assert rows["forward", "ours"].apart < 1e-4
    x = torch.rand(1, 2, 16, 16)
    with_operators = {
        name: bundle_rows.has_operators(bundle_rows.network_of(name, size=16, width=8)[0], x)
        for name in ("agi_net", "hmf_mambainr", "fd_gan")
    }
    assert with_operators == {"agi_net": True, "hmf_mambainr": True, "fd_gan": False}


def test_phantoms_of_one_device_are_the_same() -> None:
    rows = list(gpu_session.phantom_rows("cpu", quick=True))
    assert {row.apart for row in rows if row.apart is not None} == {0.0}
    assert sum(row.way.startswith("target of") for row in rows) == 7


@pytest.mark.long
def test_the_whole_session_can_be_tried_on_a_cpu(tmp_path: Path) -> None:
    parts = [replace(part, seconds=3000.0) for part in gpu_session.plan("cpu", quick=True)]  # whatever else runs
    outcomes = gpu_session.session(parts, tmp_path, device="cpu", seconds=3000.0, say=lambda _: None)
    assert [outcome.name for outcome in outcomes if outcome.state != "done"] == []
    assert all(outcome.rows for outcome in outcomes[1:])
