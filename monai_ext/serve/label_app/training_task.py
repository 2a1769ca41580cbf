"""Training a bundle on the studies that a MONAI Label server holds."""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from monai_ext.files import whole_file
from monai_ext.inference.subjects import SYNTHETIC
from monai_ext.serve.label_app.confinement import without_folders
from monai_ext.synthesis.options import TRAINING, as_words, asked_of_training

SOME_LEFT_OUT = 1  # exit status of `index` and `prepare`, which did the others


class Training(TrainTask):
    """Train as on the command line, in processes of their own: `monai-ext index`, `prepare` and `train`.

    Three of four studies train, the fourth validates. Prepared images, checkpoints and weights stay in `.training`
    among the studies; the server uses those weights from then on, and the bundle's own are left as they are.

    Args:
        bundle_root: the bundle's folder.

    Raises:
        HTTPException: when called, 400 for an option that may not be.
    """

    def __init__(self, bundle_root: Path) -> None:
        super().__init__(f"{bundle_root.name}: learn from the studies here")
        self.bundle_root = bundle_root

    def config(self) -> dict[str, Any]:
        """Tell what a person chooses in the client's panel, and the defaults.

        Returns:
            Option -> its default, or the list to choose from.
        """
        return {"size": ["compact", "paper"], "epochs": 3}

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        studies = Path(datastore._datastore_path)  # it has no other name for it
        weights = trained_weights(studies, self.bundle_root.name)
        place = weights.parent
        try:
            options = asked_of_training(chosen_for_training(request))
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        size = ("--size", "compact") if options.pop("size", "compact") == "compact" else ()
        place.mkdir(parents=True, exist_ok=True)
        passed_over = (".training/*", "labels/*", f"*{SYNTHETIC}.nii*")
        where = ("--root", studies, "--layout", "folder", "--out", place / "datalist.json")
        left_out = ""
        for made in (place / "datalist.json", place / "prepared" / "datalist.json"):
            made.unlink(missing_ok=True)  # those of an earlier training are not to be taken for this one's
        left_out += _run("index", *where, "--split", "75/25/0%", "--exclude", *passed_over).stderr
        left_out += _run("prepare", "--datalist", place / "datalist.json", "--out", place / "prepared").stderr
        run = place / f"run{len(list(place.glob('run*')))}"
        words = as_words({"dataset_dir": place / "prepared", "output_dir": run, "weights": run / "model.pt", **options})
        log = _run("train", self.bundle_root, *size, *words).stdout
        for suffix in (".pt", ".json"):
            with whole_file(weights.with_suffix(suffix)) as partial:
                shutil.copy(run / f"model{suffix}", partial)
        answer = {"bundle": self.bundle_root.name, "run": run.name, "log": without_folders(log[-2000:])}
        return {**answer, "left_out": without_folders(_of_subjects(left_out))}


def trained_weights(studies: Path, bundle: str) -> Path:
    """Say where training on studies writes a bundle's weights.

    Args:
        studies: their folder.
        bundle: its name.

    Returns:
        The file, which need not be there; a folder that begins with a dot holds no study.
    """
    return studies / ".training" / bundle / "model.pt"


def chosen_for_training(request: Mapping[str, Any]) -> dict[str, Any]:
    """Take what a request says of our options.

    A panel sends back its list of sizes if nothing was chosen from it.

    Args:
        request: as it came, with what is MONAI Label's own.

    Returns:
        What `asked_of_training` is to check: null is what was not chosen, and of a list of sizes the first counts.
    """
    chosen = {key: request[key] for key in TRAINING if request.get(key) is not None}
    size = chosen.get("size")
    return {**chosen, "size": size[0]} if isinstance(size, list) and size else chosen


def _run(command: str, *words: Any) -> subprocess.CompletedProcess[str]:
    """`monai-ext` with these words; what it refuses in one line is the answer, a subject that it leaves out is none."""
    done = subprocess.run(
        [sys.executable, "-m", "monai_ext", command, *map(str, words)], capture_output=True, text=True
    )
    some = command != "train" and done.returncode == SOME_LEFT_OUT and _of_subjects(done.stderr)
    if done.returncode and not some:
        refusals = [line for line in done.stderr.splitlines() if line.startswith(f"{command}: ")]
        raise HTTPException(400, without_folders(refusals[-1] if refusals else done.stderr[-1000:]))
    return done


def _of_subjects(said: str) -> str:
    """The tables of who was left out and why, without progress bars."""
    lines = [line.rpartition("\r")[2] for line in said.splitlines()]
    return "\n".join(line for line in lines if "could not be" in line or line.startswith("  "))
