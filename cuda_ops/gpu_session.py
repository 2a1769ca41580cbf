"""All that only a GPU can show, in one command that ends within nine minutes: tests, times, memory, agreement.

    python cuda_ops/gpu_session.py --out out/gpu [--device cuda|cpu] [--quick] [--seconds 530] [--only TEXT ...]

Each part is a process of its own with a slice of the time (tests/benchmarks/parts.py): one that fails, hangs or comes
too late is a line in the table. After each part, results.json and results.md in --out are written anew. --device cpu
tries the script where there is no GPU: what needs one is not run, and the page says that no GPU ran it.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "tests" / "benchmarks"
sys.path[:0] = [str(ROOT), str(BENCHMARKS), str(ROOT / "tests" / "data" / "phantoms")]

# torch is not imported in the process that watches over the parts
from parts import HEADINGS, Outcome, Part, Row, Table, carry_out, in_markdown, tell  # noqa: E402

from monai_ext.catalogue import bundle_names  # noqa: E402
from monai_ext.files import whole_file, write_json  # noqa: E402

SECONDS = 530.0
OPERATORS = ("float_roll", "rolled_conv", "group_pool", "selective_scan")
NOT_ON_A_GPU = "not run on a GPU yet"
PHANTOM_GOAL = 1e-4  # between devices, of images in [0, 1]


def plan(device: str, *, quick: bool) -> list[Part]:
    """The parts in their order: what matters most first, torch.compile, which may take all of the time, last."""
    python, here = sys.executable, str(Path(__file__).resolve())
    where = ("--device", device, *(["--quick"] if quick else []))
    operators = (python, str(ROOT / "cuda_ops" / "bench.py"), *where)
    bundles = (python, str(BENCHMARKS / "bundle_rows.py"), *where, "--size", "256", "--batch", "4")
    parts = [Part("machine", (python, here, *where, "--part", "machine"), 30)]
    if device == "cuda":
        marked = (python, "-m", "pytest", "-m", "gpu", "-q", "--continue-on-collection-errors", str(ROOT / "tests"))
        parts += [
            Part("build", (python, "-m", "monai_ext", "ops"), 75, {"MONAI_EXT_OPS": "require"}),
            Part("pytest -m gpu", marked, 110),
        ]
    parts.append(Part("phantom", (python, here, *where, "--part", "phantom"), 40))
    parts += [Part(name, (*operators, "--rows", name), 30) for name in OPERATORS]
    for kind in ("eager", "graphed") if device == "cuda" else ("eager",):
        parts += [
            Part(f"{name}, {kind}", (*bundles, "--kind", kind, "--rows", name), 40 if kind == "eager" else 20)
            for name in bundle_names()
        ]
    if not quick:
        compiled = ("--kind", "compiled", "--rows")
        parts += [Part(f"{name}, compiled", (*bundles, *compiled, name), 60) for name in bundle_names()]
        parts += [Part(f"{name}, compiled", (*operators, "--compiled", "--rows", name), 30) for name in OPERATORS]
    # ours is found where it is not installed, too
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    slower = 1 if device == "cuda" else 4  # where it is only tried
    return [
        replace(part, seconds=slower * part.seconds, environment={**part.environment, "PYTHONPATH": path})
        for part in parts
    ]


def chosen(parts: Sequence[Part], only: Sequence[str]) -> list[Part]:
    """The first part, which names the machine, and those whose names hold one of these texts; all of them for none.

    Raises:
        ValueError: a text that no part's name holds.
    """
    for text in only:
        if not any(text in part.name for part in parts):
            names = "; ".join(part.name for part in parts)
            raise ValueError(f"--only must be in the name of a part ({names}), got {text!r}")
    return [part for n, part in enumerate(parts) if not n or not only or any(text in part.name for text in only)]


def left_out(device: str, *, quick: bool) -> list[Outcome]:
    """What the plan has not, and why."""
    gpu = ("build", "pytest -m gpu", "CUDA graphs") if device == "cpu" else ()
    missing = [Outcome(name, "not run", "it needs --device cuda", 0.0, []) for name in gpu]
    if quick:
        missing.append(Outcome("torch.compile", "not run", "--quick leaves it out", 0.0, []))
    return missing


def session(
    parts: Sequence[Part],
    out: Path,
    *,
    device: str,
    seconds: float,
    missing: Sequence[Outcome] = (),
    say: Callable[[str], None] = print,
) -> list[Outcome]:
    """Carry the parts out, and write what is known after each.

    Args:
        parts: the first says on its last line what machine this is.
        out: a folder, for results.json and results.md.
        device: "cuda" or "cpu".
        seconds: for all parts together.
        missing: what is told beside the parts.
        say: takes each line of what is printed.

    Returns:
        How each part went.

    Raises:
        OSError: the folder cannot be written to.
    """
    out.mkdir(parents=True, exist_ok=True)
    table, outcomes = Table(say), []
    for outcome in carry_out(parts, seconds=seconds):
        outcomes.append(outcome)
        write(outcomes, [*outcomes, *missing], out, device)
        for row in outcome.rows:
            table.add(row)
        say(f"{outcome.name}: {outcome.state}, {outcome.seconds:.0f} s{', ' if outcome.said else ''}{outcome.said}")
    for outcome in missing:
        say(f"{outcome.name}: {outcome.state}, {outcome.said}")
    table.end()
    say(title(outcomes, device))
    return outcomes


def title(outcomes: Sequence[Outcome], device: str) -> str:
    """What the figures are of; a GPU's name only where one ran them."""
    machine = outcomes[0] if outcomes else None
    known = machine.said if machine is not None and machine.state == "done" else "an unknown machine"
    ran = device == "cuda" and known != "an unknown machine"
    return known if ran else f"{known}: {NOT_ON_A_GPU}"


def write(outcomes: Sequence[Outcome], all_of_them: Sequence[Outcome], out: Path, device: str) -> None:
    """Write both files, each whole or not at all."""
    rows = [row for outcome in outcomes for row in outcome.rows]
    content = {"machine": title(outcomes, device), "device": device, "parts": [asdict(one) for one in all_of_them]}
    write_json(out / "results.json", content)
    told = [(one.name, one.state, f"{one.seconds:.0f}", one.said or "-") for one in all_of_them]
    notes = dict.fromkeys(f"- {row.what}, {row.by}: {row.note}" for row in rows if row.note)
    texts = [
        f"# {content['machine']}\n",
        in_markdown(("part", "state", "seconds", "its last line"), told),
        in_markdown(HEADINGS, (row.cells() for row in rows)),
        *notes,
    ]
    with whole_file(out / "results.md") as file:
        file.write_text("\n".join(texts) + "\n", encoding="utf-8")


# What the parts of this file do, each in its own process.


def machine(device: str) -> None:
    """Print the machine's name as the last line."""
    import measuring
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device here: --device cpu tries the script without one")
    print(measuring.machine(device))


def phantom_rows(device: str, *, quick: bool) -> Iterator[Row]:
    """A phantom of every contrast, on the CPU and on the device from the same seed: how far voxels are apart."""
    import numpy as np
    from balls import ball_labels, write_labels

    from monai_ext.data.phantoms.acquisition import Grid
    from monai_ext.data.phantoms.anatomy import read_anatomy
    from monai_ext.data.phantoms.drawing import draw_subject
    from monai_ext.data.phantoms.rendering import render
    from monai_ext.modalities import MODALITIES

    with tempfile.TemporaryDirectory() as folder:
        anatomy = read_anatomy(write_labels(Path(folder) / "head.nii", ball_labels()), 2.0)
    grid = Grid((36, 36, 34), (4.0, 4.0, 4.0)) if quick else Grid((72, 72, 68), (2.0, 2.0, 2.0))
    subject = draw_subject(
        np.random.default_rng(1), anatomy, grid=grid, contrasts=MODALITIES, kind="glioma", skull=False
    )
    render(subject, device=device)  # libraries are loaded before it counts
    made, times = {}, {}
    for where in ("cpu", device):
        start = time.perf_counter()
        made[where] = render(subject, device=where)
        for image in made[where].images.values():
            image.cpu()  # which waits for the device
        times[where] = 1e3 * (time.perf_counter() - start)
    here, there = made["cpu"], made[device]
    yield Row("phantom", "all contrasts", "cpu", times["cpu"])
    yield Row("phantom", "all contrasts", device, times[device])
    for name in MODALITIES:
        for way, ours, theirs in (("scan", there.images, here.images), ("target", there.targets, here.targets)):
            scale = max(1.0, float(theirs[name].abs().max()))
            away = float((ours[name].cpu() - theirs[name]).abs().max()) / scale
            yield Row("phantom", f"{way} of {name}", device, apart=away)


def phantom(device: str, *, quick: bool) -> None:
    """Print the rows; the status is 1 where voxels are further apart than they may be."""
    rows = list(phantom_rows(device, quick=quick))
    tell(rows)
    far = [f"{row.way} by {row.apart:.1e}" for row in rows if row.apart is not None and not row.apart <= PHANTOM_GOAL]
    if far:
        sys.exit(f"phantoms on {device} differ from the CPU's by more than {PHANTOM_GOAL:g}: {', '.join(far)}")


def main() -> int:
    """Carry the plan out; the status is 1 where a part failed or was cut off."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="folder for results.json and results.md")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes, no torch.compile")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all parts together")
    parser.add_argument("--only", nargs="+", default=(), metavar="TEXT", help="parts whose names hold one of these")
    parser.add_argument("--part", choices=("machine", "phantom"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part == "machine":
        machine(args.device)
        return 0
    if args.part == "phantom":
        phantom(args.device, quick=args.quick)
        return 0
    try:
        parts = chosen(plan(args.device, quick=args.quick), args.only)
    except ValueError as error:
        parser.error(str(error))
    missing = left_out(args.device, quick=args.quick)
    outcomes = session(parts, args.out, device=args.device, seconds=args.seconds, missing=missing)
    return 0 if all(outcome.state == "done" for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
