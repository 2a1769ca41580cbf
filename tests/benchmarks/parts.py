"""Parts of a measurement, each in a process of its own with a time slice: one that fails or hangs costs a line.

Only the standard library: whoever starts the parts goes on when torch itself hangs.
"""

import contextlib
import json
import math
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace

LEAST = 3.0  # seconds: with less left, a part is not begun
MARK = "row: "
HEADINGS = ("what", "way", "with", "ms", "peak MB", "x floor", "apart")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: the operator or the bundle.
        way: forward, training step, ...
        by: the implementation.
        ms: median; None is a dash, and the note says why.
        peak_mb: the most memory that a run takes beyond its inputs.
        floor_ms: the least time that it could take.
        apart: the largest difference from the truth, relative to the truth's largest value.
        note: said under the table.
    """

    what: str
    way: str
    by: str
    ms: float | None = None
    peak_mb: float | None = None
    floor_ms: float | None = None
    apart: float | None = None
    note: str = ""

    def cells(self) -> list[str]:
        """As the table has them, a dash for what there is not."""
        ratio = None if self.ms is None or not self.floor_ms else self.ms / self.floor_ms
        numbers = [_number(value, ".2f") for value in (self.ms, self.peak_mb, ratio)]
        return [self.what, self.way, self.by, *numbers, _number(self.apart, ".1e")]


@dataclass(frozen=True)
class Part:
    """What one process is to do.

    Attributes:
        name: in the list of parts.
        command: program and arguments.
        seconds: it is cut off after so many.
        environment: variables beside those of this process.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a part went: done, failed, cut off or not run; its last line; the rows that it printed until then."""

    name: str
    state: str
    said: str
    seconds: float
    rows: list[Row]


def tell(rows: Iterable[Row]) -> None:
    """Print each row, as a part's process does, the moment it is there."""
    for row in rows:
        print(MARK + json.dumps(asdict(row)), flush=True)


def carry_out(parts: Iterable[Part], *, seconds: float) -> Iterator[Outcome]:
    """Run parts one after the other, all of them within so many seconds: what no time is left for is not run."""
    deadline = time.monotonic() + seconds
    for part in parts:
        left = deadline - time.monotonic()
        if left < LEAST:
            yield Outcome(part.name, "not run", f"the {seconds:.0f} s for all parts were over", 0.0, [])
        else:
            yield _outcome(part, min(part.seconds, left))


def _outcome(part: Part, limit: float) -> Outcome:
    start = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:  # no pipe that a grandchild could hold open
        environment = {**os.environ, **part.environment}
        try:
            process = subprocess.Popen(
                part.command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, start_new_session=True
            )
        except OSError as error:
            return Outcome(part.name, "failed", f"{part.command[0]} does not start: {error.strerror}", 0.0, [])
        try:
            status: int | None = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(process)
        printed, complaints = (_text(file).splitlines() for file in (out, err))
    rows = [row for line in printed if line.startswith(MARK) and (row := _row(line.removeprefix(MARK)))]
    others = [line for line in printed if line.strip() and not line.startswith(MARK)]
    complaints = [line for line in complaints if line.strip()]
    spent = time.monotonic() - start
    if status is None:
        return Outcome(part.name, "cut off", f"after {limit:.0f} s", spent, rows)
    if status:
        said = _last(complaints) or _last(others) or "it said nothing"
        return Outcome(part.name, "failed", f"status {status}: {said}", spent, rows)
    return Outcome(part.name, "done", _last(others), spent, rows)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the part and what it started. One that the system does not let die is left to the system."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=2)


def _last(lines: list[str]) -> str:
    return lines[-1].strip()[:300] if lines else ""


def _text(file: object) -> str:
    file.seek(0)  # type: ignore[attr-defined]
    return file.read().decode(errors="replace")  # type: ignore[attr-defined]


def _row(line: str) -> Row | None:
    """A row that a part printed; None for a line that was cut off within. What is not finite becomes a note."""
    try:
        row = Row(**json.loads(line))
        row.cells()
    except (ValueError, TypeError):
        return None
    wrong = [name for name, value in asdict(row).items() if isinstance(value, float) and not math.isfinite(value)]
    return replace(row, **dict.fromkeys(wrong), note=f"{', '.join(wrong)} not finite") if wrong else row


class Table:
    """Rows printed as they come, in columns; what their notes say comes at the end, each note once."""

    WIDTHS = (15, 22, 16, 9, 9, 8, 8)

    def __init__(self, say: Callable[[str], None] = print) -> None:
        self.say, self.notes = say, {}
        self._line(HEADINGS)
        self._line("-" * width for width in self.WIDTHS)

    def add(self, row: Row) -> None:
        """Print it, and keep its note for the end."""
        self._line(row.cells())
        if row.note:
            self.notes[f"{row.what}, {row.by}: {row.note}"] = None

    def end(self) -> None:
        """Say what the dashes stand for."""
        for note in self.notes:
            self.say(note)

    def _line(self, cells: Iterable[str]) -> None:
        self.say(" | ".join(cell.ljust(width) for cell, width in zip(cells, self.WIDTHS, strict=True)).rstrip())


def in_markdown(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown; what stands in a cell cannot end it."""
    headings = list(headings)
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
