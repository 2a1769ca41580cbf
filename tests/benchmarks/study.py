"""What the studies share: a network trained and evaluated by its bundle's own configs, unless that was done before."""

import csv
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from monai_ext.catalogue import config_files

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
OF_BOTH = (
    "width",
    "blocks",
    "neighbours",
    "image_size",
    "without",
    "personalized",
    "modalities",
)  # who says the network


def trained_and_evaluated(
    bundle: str,
    folder: Path,
    *,
    data: Path,
    overlays: Sequence[str] = (),
    ids: Mapping[str, object],
    training: Mapping[str, object],
    evaluation: Mapping[str, object],
    size: str = "compact",
    run: str = "run",
) -> list[dict[str, str]]:
    """The rows of `folder`/`run`/subjects.csv; `ids` are for both, as the overlay of a `size` is, and whatever of the
    training's says which network it is.
    """
    weights = trained(bundle, folder, data=data, overlays=overlays, training={**ids, **training}, size=size)
    network = {name: value for name, value in training.items() if name.partition("#")[0] in (*OF_BOTH, "network_def")}
    same = {"dataset_dir": data.resolve(), "weights": weights, **network, **ids}
    if not (folder / run / "run.json").is_file():
        _run(bundle, "evaluate", [*overlays, size], {**same, "output_dir": folder / run, **evaluation})
    with (folder / run / "subjects.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def trained(
    bundle: str,
    folder: Path,
    *,
    data: Path,
    overlays: Sequence[str] = (),
    training: Mapping[str, object],
    size: str = "compact",
) -> Path:
    """The weights in `folder`; a training that was stopped before its end goes on from its last checkpoint."""
    weights, ended = folder / "model.pt", folder / "trained"
    if not ended.is_file():
        ids: dict[str, object] = {"dataset_dir": data.resolve(), "weights": weights, "output_dir": folder, **training}
        if any((folder / "checkpoints").glob("*.pt")):
            ids["resume"] = "true"
        _run(bundle, "train", [*overlays, size], ids)
        ended.touch()
    return weights


def _run(bundle: str, verb: str, overlays: Sequence[str], ids: Mapping[str, object]) -> None:
    root = BUNDLES / bundle
    files = [str(file) for file in config_files(root, verb, overlays)]
    words = [str(word) for name, value in ids.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", str(root), "--config_file", str(files)]
    subprocess.run([*command, *words], check=True, stdout=subprocess.DEVNULL)
