"""python -m monai_ext verify DIR: the model zoo's rules, asked of a bundle's folder, offline."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from monai_ext.files import absolute
from monai_ext.zoo import rules


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="DIR", help="a bundle with its weights, as package writes it")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """A line a rule; the exit status is 1 if one is not kept."""
    bad = 0
    for rule, faults in verify(absolute(args.bundle)).items():
        print(f"{'FAULT' if faults else 'ok':5}  {rule}", flush=True)
        for fault in faults:
            print(f"       {fault}")
        bad += bool(faults)
    return 1 if bad else 0


def verify(bundle: Path) -> dict[str, list[str]]:
    """Each of the zoo's rules with what is wrong by it: nothing, if the zoo would take the bundle."""
    if not bundle.is_dir():
        raise ValueError(f"{bundle} is no folder: verify takes the folder that package wrote, unpacked")
    answers = {name: list(rule(bundle)) for name, rule in rules.RULES.items()}
    if answers["files"]:  # what is not there cannot be run
        return answers
    return {**answers, **_inside(bundle)}


def _inside(bundle: Path) -> dict[str, list[str]]:
    """The rules that run the bundle: its own folder comes before all else on the path, and nothing is written to it."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    if (bundle / "monai_ext").is_dir():
        environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-m", "monai_ext.zoo.inside"], cwd=bundle, env=environment, capture_output=True, text=True
    )
    try:
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))
    except (ValueError, IndexError):
        message = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return {"it starts": [f"Python ended with status {done.returncode}: {message}"]}
