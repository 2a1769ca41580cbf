"""One attack in a process of its own, and what it must not have done."""

import contextlib
import io
import json
import os
import random
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mutants
import pydicom
from running import BUNDLES, smallest_weights

import monai_ext.data.prepare
import monai_ext.inference.maker
import monai_ext.inference.transforms  # noqa: F401 - these three so that no fork imports them anew, which costs most
from monai_ext.__main__ import main as command_line
from monai_ext.data.dicom import choose, read_series, read_study, sorted_slices
from monai_ext.data.registration import register_rigid
from monai_ext.data.volumes import read_volume
from monai_ext.synthesis.bundle import BundleSynthesiser
from monai_ext.synthesis.installed import methods_to_choose_from
from monai_ext.workflow import run_verb

CPU_SECONDS = 10  # of a whole batch; it does not depend on what else the machine does
SYNTHESES_SECONDS = 60  # of one that is synthesised from: a mutated header may well describe a thousand slices
WAITING_SECONDS = 10  # without computing: one that waits for a processor, or was stopped, is not counted as waiting
POLL_SECONDS = 0.02
FLOOR_MB = 32  # what a process takes for itself while it works, however small its files
BATCH = 10  # mutated files beside one good subject
WEIGHTS: dict[str, Path] = {}  # bundle's name -> untrained ones, the smallest


def in_a_process(work: Callable[[], list[str]], *, seconds: int | None = None) -> tuple[list[str], float]:
    """Run `work` in a fork: what it found at fault, and by how many MB the process grew."""
    seconds = seconds or CPU_SECONDS
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
            Path("/proc/self/clear_refs").write_text("5")
            before = _status("VmRSS")
            try:
                faults = work()
            except BaseException:
                faults = [traceback.format_exc()]
            answer = json.dumps([faults, (_status("VmHWM") - before) / 1024]).encode()
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(answer)
        finally:
            os._exit(0)  # whatever happens, if its parent was killed too: it must not go on in its parent's place
    os.close(writer)
    used, waits = -1, 0
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and waits * POLL_SECONDS < WAITING_SECONDS:
        now, runs = _activity(child)
        used, waits = now, 0 if runs or now != used else waits + 1
        time.sleep(POLL_SECONDS)
    if ended[0] == 0:
        os.kill(child, 9)
        os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    if not said:
        why = "hangs" if ended[0] == 0 else f"its process died of signal {os.waitstatus_to_exitcode(ended[1])}"
        return [why], 0.0
    faults, grown = json.loads(said)
    return faults, grown


def _activity(process: int) -> tuple[int, bool]:
    """The processor's ticks it has used, and whether it would run if it were let."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12]), fields[0] in "RT"


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


class Place:
    """A folder for one attack: what is in it before and after, but for `out`, is to be the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for part in ("in", "outside", "home", "tmp", "cwd"):
            (folder / part).mkdir(parents=True)

    def prepare(self, *, needs: str | None, batch: Sequence[str] = ()) -> list[str]:
        """Run the command on in/list.json; the faults that show.

        `needs` is the subject to be done, if any must be; each of `batch` is to be done or to be named.
        """
        out = self.folder / "out"
        words = ["prepare", "--datalist", str(self.folder / "in/list.json"), "--out", str(out), "--register", "none"]
        code, said, faults = self.ran(lambda: command_line(words))
        if needs is not None and code == 2:
            faults.append(f"the batch ended: {said}")
        elif needs is not None:
            listed = json.loads((out / "datalist.json").read_text(encoding="utf-8"))
            faults += _lost({entry["subject"] for entry in listed["training"]}, said, needs=needs, batch=batch)
            faults += [f"{path.name} was left in out" for path in out.iterdir() if path.name.startswith(".")]
        return faults

    def build(self, weights: Path, *, bundle: Path) -> list[str]:
        """Make what servers and commands make of weights, or of an archive that stands for its bundle."""

        def work() -> int:
            try:
                if weights.suffix != ".ts":
                    methods_to_choose_from(weights=weights)
                BundleSynthesiser(weights if weights.suffix == ".ts" else bundle, weights=weights)
            except (ValueError, OSError) as error:
                print(error, file=sys.stderr)
                return 2 if str(error) else 3
            return 0

        return self.ran(work)[2]

    def infer(self, *, bundle: Path, needs: str, batch: Sequence[str], **ids: Any) -> list[str]:
        """Run a bundle's inference into out; the faults that show, `needs` and `batch` as in `prepare`."""
        out = self.folder / "out"
        every = {"output_dir": str(out), "weights": str(WEIGHTS[bundle.name]), "width": 8, **ids}

        def work() -> int:
            try:
                run_verb(bundle, "inference", ids=every)
            except SystemExit as end:
                return end.code if isinstance(end.code, int) else 3
            return 0

        _, said, faults = self.ran(work)
        done = {path.parent.name for path in out.glob("*/*_synthetic.nii.gz")}
        faults += _lost(done, said, needs=needs, batch=batch)
        return faults + [f"{path} was left in out" for path in out.rglob(".*")]

    def ran(self, work: Callable[[], int]) -> tuple[int, str, list[str]]:
        """The status, what was said to a person, and what no work may do."""
        os.chdir(self.folder / "cwd")
        os.environ.update(HOME=str(self.folder / "home"), TMPDIR=str(self.folder / "tmp"))
        before, said = self._there(), io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            code = work()
        faults = []
        if code not in (0, 1, 2):
            faults.append(f"exit status {code}")
        if "Traceback" in said.getvalue():
            faults.append(said.getvalue())
        if code == 2 and said.getvalue().strip().count("\n"):
            faults.append(f"more than a line: {said.getvalue()}")
        faults += [f"made or changed outside of out: {path}" for path in before ^ self._there()]
        return code, said.getvalue(), faults

    def _there(self) -> set[str]:
        found = set()
        for path in self.folder.rglob("*"):
            if path.is_relative_to(self.folder / "out"):
                continue
            status = path.lstat()
            found.add(f"{path} {status.st_size if not path.is_dir() else ''} {status.st_mode}")
        return found


def _lost(done: Collection[str], said: str, *, needs: str, batch: Sequence[str]) -> list[str]:
    """What was to be done and was not, and what was neither done nor named."""
    faults = [] if needs in done else [f"{needs} was not done: {said}"]
    return faults + [
        f"{name} was neither done nor named: {said}" for name in batch if name not in done | {*said.split()}
    ]


def _good(place: Place, *, files: int = 2) -> dict[str, str]:
    for contrast in ("T1", "T2")[:files]:
        mutants.good_image(place.folder / "in/good" / f"{contrast}.nii.gz", seed=1)
    return {"subject": "good", **{name: f"good/{name}.nii.gz" for name in ("T1", "T2")[:files]}}


def niftis(place: Place, seed: int) -> list[str]:
    """A batch of mutated files beside one good subject, which is the last."""
    return place.prepare(needs="good", batch=_mutated(place, seed))


def inference(place: Place, seed: int) -> list[str]:
    """Such a batch synthesised from, the bundles in turn, as a folder or a datalist, registered or not."""
    return _inferred(place, seed, _mutated(place, seed + 10**6))


def _mutated(place: Place, seed: int) -> list[str]:
    """Subjects with a mutated file each, and in the datalist a good one after them."""
    entries = []
    for number in range(BATCH):
        name = f"bad{number}"
        path = mutants.good_image(place.folder / "in" / name / "T1.nii.gz", seed=2)
        other = path.with_name(f"T2.nii{'.gz' * (number % 2)}")
        mutants.nifti(other, seed * BATCH + number)
        entries.append({"subject": name, "T1": f"{name}/T1.nii.gz", "T2": f"{name}/{other.name}"})
    _list(place, [*entries, _good(place)])
    return [entry["subject"] for entry in entries]


def _inferred(place: Place, seed: int, batch: Sequence[str]) -> list[str]:
    bundle = BUNDLES[seed % len(BUNDLES)]
    where = {"datalist": str(place.folder / "in/list.json")}
    if seed // 4 % 2:
        (place.folder / "in/list.json").unlink()
        where = {"dataset_dir": str(place.folder / "in")}
    register = "rigid" if seed // 8 % 4 == 0 else "none"
    return place.infer(bundle=bundle, needs="good", batch=batch, register=register, **where)


def good_batch(place: Place, seed: int) -> list[str]:
    """As many good subjects, prepared: what such a batch honestly needs."""
    return place.prepare(needs="good", batch=_whole(place, seed))


def good_inference(place: Place, seed: int) -> list[str]:
    """As many good subjects, synthesised from."""
    return _inferred(place, seed, _whole(place, seed))


def good_weights(place: Place, seed: int) -> list[str]:
    """Good weights, built or packed."""
    bundle = BUNDLES[seed // 2]
    return _taken(place, WEIGHTS[bundle.name], bundle=bundle, packed=seed % 2 == 1)


def _whole(place: Place, seed: int) -> list[str]:
    entries = [_good(place)]
    for number in range(BATCH):
        name = f"more{number}"
        for contrast in ("T1", "T2"):
            mutants.good_image(place.folder / "in" / name / f"{contrast}.nii.gz", seed=seed)
        entries.append({"subject": name, "T1": f"{name}/T1.nii.gz", "T2": f"{name}/T2.nii.gz"})
    _list(place, entries)
    return [entry["subject"] for entry in entries]


def datalists(place: Place, seed: int) -> list[str]:
    """A datalist with odd subjects, whose others are done, or with odd text, which may be refused as a whole."""
    rng = random.Random(seed)
    good = _good(place)
    os.mkfifo(place.folder / "in/pipe.nii")
    (place.folder / "in/loop.nii").symlink_to("loop.nii")
    (place.folder / "outside/x").write_bytes(b"not yours")
    content = {"name": "d", "root": ".", "training": [good, *mutants.entries(rng)], "validation": [], "test": []}
    if rng.random() < 0.6:
        (place.folder / "in/list.json").write_text(json.dumps(content), encoding="utf-8")
        return place.prepare(needs="good")
    if rng.random() < 0.03:
        os.mkfifo(place.folder / "in/list.json")
    else:
        (place.folder / "in/list.json").write_bytes(mutants.damaged_json(content, rng))
    return place.prepare(needs=None)


def sidecars(place: Place, seed: int) -> list[str]:
    """What an earlier run left, changed: its sidecar or its datalist."""
    rng = random.Random(seed)
    mutants.good_image(place.folder / "in/bad/T1.nii.gz", seed=3)
    _list(place, [_good(place, files=1), {"subject": "bad", "T1": "bad/T1.nii.gz"}])
    faults = place.prepare(needs="good")
    of_subject = rng.random() < 0.7
    path = place.folder / "out" / ("bad/prepared.json" if of_subject else "datalist.json")
    if rng.random() < 0.05:
        path.unlink()
        os.mkfifo(path)
        of_subject = of_subject and path.parent.name == "bad"
    else:
        path.write_bytes(mutants.damaged_json(json.loads(path.read_text()), rng))
    return faults + place.prepare(needs="good" if of_subject else None)


def studies(place: Place, seed: int) -> list[str]:
    """A study read as the dicom command reads it: volumes, or one ValueError."""
    os.chdir(place.folder / "cwd")
    other = mutants.study(place.folder / "in/study", seed)
    try:
        study = read_study(place.folder / "in/study")
        volumes = [read_series(sorted_slices(one)) for one in choose(study, ["T1", "T2"], {}).values()]
    except (ValueError, OSError) as error:
        return [] if str(error).isascii() or str(error) else ["refused without a word"]
    said = []
    if other:
        values = {_value(path, other) for path in (place.folder / "in/study").rglob("*.dcm")}
        if len(values) > 1:
            said.append(f"two people are one, by {other}: {values}")
    return said + [f"a volume of shape {one.array.shape}" for one in volumes if one.array.ndim != 3]


def weights(place: Place, seed: int) -> list[str]:
    """Weights or an archive from elsewhere, taken as each command takes them: used, or refused in a line."""
    rng = random.Random(seed)
    bundle = BUNDLES[seed % len(BUNDLES)]
    file = mutants.weights(place.folder / "in", WEIGHTS[bundle.name], bundle, rng)
    return _taken(place, file, bundle=bundle, packed=file.suffix != ".ts" and rng.random() < 0.2)


def _taken(place: Place, file: Path, *, bundle: Path, packed: bool) -> list[str]:
    if packed:
        words = ["package", str(bundle), "--weights", str(file), "--out", str(place.folder / "out")]
        return place.ran(lambda: command_line(words))[2]
    return place.build(file, bundle=bundle)


def _value(path: Path, keyword: str) -> str:
    value = pydicom.dcmread(path, stop_before_pixels=True).get(keyword)
    return "" if value is None else str(value).strip(" \0^")


def _list(place: Place, entries: list[dict[str, Any]]) -> None:
    content = {"name": "d", "root": ".", "training": entries}
    (place.folder / "in/list.json").write_text(json.dumps(content), encoding="utf-8")


ATTACKS: dict[str, Callable[[Place, int], list[str]]] = {
    "nifti": niftis, "inference": inference, "datalists": datalists, "sidecars": sidecars, "dicom": studies,
    "weights": weights,
}  # fmt: skip


def attack(kind: str, seed: int, folder: Path, *, honest_mb: float) -> list[str]:
    """The faults of one attack, none where all went as it should; `honest_mb` is what a good batch grows by."""
    try:
        seconds = SYNTHESES_SECONDS if kind == "inference" else CPU_SECONDS
        faults, grown = in_a_process(lambda: ATTACKS[kind](Place(folder), seed), seconds=seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if grown > 2 * max(honest_mb, FLOOR_MB):
        faults.append(f"took {grown:.0f} MB, where a good batch takes {honest_mb:.0f}")
    return faults


def untrained(folder: Path) -> None:
    """Fill WEIGHTS, and let ITK's first registration, which loads much, be before any process is forked."""
    for bundle in BUNDLES:
        (folder / bundle.name).mkdir()
        WEIGHTS[bundle.name] = smallest_weights(bundle, folder / bundle.name)
    head = read_volume(mutants.good_image(folder / "T1.nii.gz", seed=1))
    register_rigid(head, head)


def honest_need(kind: str, folder: Path, *, numbers: Sequence[int]) -> float:
    """How many MB a batch of good subjects takes, in the way that these attacks of a kind are made."""
    bundles = sorted({number % len(BUNDLES) for number in numbers})
    ways = {"inference": (good_inference, bundles), "weights": (good_weights, range(2 * len(BUNDLES)))}
    good, seeds = ways.get(kind, (good_batch, [5]))
    most = 0.0
    for seed in seeds:
        faults, grown = in_a_process(partial(good, Place(folder), seed), seconds=SYNTHESES_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)
        if faults:
            raise RuntimeError(f"a good batch is at fault: {faults}")
        most = max(most, grown)
    return most
