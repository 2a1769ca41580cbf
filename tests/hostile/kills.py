"""Trainings killed at random moments and taken up again: do they end with the weights of one that ran through?

    python tests/hostile/kills.py --kills 20

The bundles take turns, each tiny and on phantoms. A line is printed for each kill, and the exit status is 1 if any
tensor of any resumed training differs in one bit.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "bundles"), str(ROOT)]

import torch  # noqa: E402 - below what says where our own modules are
from running import BUNDLES, COMPACT, TINY, options  # noqa: E402

EPOCHS = 4


def python(*arguments: object) -> None:
    """Run it to its end, however busy the machine is."""
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd="/", capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{arguments[:4]} ended with status {done.returncode}: {done.stderr[-2000:]}")


def phantoms(folder: Path) -> Path:
    """Five coarse heads, prepared."""
    raw, out = folder / "raw", folder / "prepared"
    contrasts = "T1,T2,PD,T1C,FLAIR,DWI,ADC"
    many = ["--site", "glioma", "--subjects", 5, "--spacing", 6, "--contrasts", contrasts, "--layout", "folder"]
    python("-m", "monai_ext", "phantom", "--out", raw, *many)
    python("-m", "monai_ext", "index", "--root", raw, "--out", raw / "index.json", "--split", "2/1/2")
    grid = ["--size", 32, "--brain-mask", "otsu"]
    python("-m", "monai_ext", "prepare", "--datalist", raw / "index.json", "--out", out, *grid)
    return out


def training(bundle: Path, data: Path, out: Path, *, resume: bool = False) -> list[str]:
    """The arguments of one."""
    configs = [str(bundle / "configs" / "train.json"), str(COMPACT)]
    ids = {"bundle_root": bundle, "config_file": configs, "dataset_dir": data, "epochs": EPOCHS, "batch_size": 4}
    ids |= {"output_dir": out, "weights": out / "model.pt", "resume": str(resume).lower(), **TINY}
    return ["-m", "monai.bundle", "run", *options(ids)]


def killed_after(seconds: float, arguments: list[str]) -> str:
    """Start it, send SIGKILL, and say what it was doing."""
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    return "killed" if process.wait() < 0 else "had ended"


def differing(one: Path, other: Path) -> list[str]:
    """The tensors that are not the same to the bit."""
    first, second = (torch.load(path, weights_only=True) for path in (one, other))
    if first.keys() != second.keys():
        return sorted(first.keys() ^ second.keys())
    return [name for name in first if first[name].numpy().tobytes() != second[name].numpy().tobytes()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    exact = kills = 0
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        work = Path(folder)
        data = phantoms(work)
        took: dict[Path, tuple[float, float]] = {}
        while kills < args.kills:
            bundle = BUNDLES[kills % len(BUNDLES)]
            whole, again = work / bundle.name, work / "again"
            if bundle not in took:
                start = time.monotonic()
                process = subprocess.Popen(
                    [sys.executable, *training(bundle, data, whole)],
                    cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )  # fmt: skip
                begun = 0.0
                while process.poll() is None:
                    if not begun and (whole / "checkpoints").is_dir():
                        begun = time.monotonic() - start
                    time.sleep(0.05)
                if process.returncode:
                    raise RuntimeError(f"{bundle.name} does not train: exit status {process.returncode}")
                took[bundle] = begun, time.monotonic() - start
            begun, end = took[bundle]
            moment = rng.uniform(0.8 * begun, end)
            how = killed_after(moment, training(bundle, data, again))
            if how == "killed":
                there = sorted(path.name for path in again.glob("checkpoints/epoch_*.pt"))
                python(*training(bundle, data, again, resume=bool(there)))  # before the first, it begins anew
                wrong = differing(whole / "model.pt", again / "model.pt")
                kills += 1
                exact += not wrong
                left = there[-1] if there else "no checkpoint"
                print(f"{kills}: {bundle.name} {how} after {moment:.1f} s, {left}; differing: {wrong or 'none'}")
                sys.stdout.flush()
            shutil.rmtree(again, ignore_errors=True)
    print(f"{exact} of {kills} killed trainings ended with the same weights to the bit")
    return 0 if exact == kills else 1


if __name__ == "__main__":
    sys.exit(main())
