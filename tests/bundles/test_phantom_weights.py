"""From a pool of phantoms to weights as they are shipped: trained, taken up again, packed, refused where need be."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from monai.bundle import create_workflow
from pools import write_pool
from running import shared_folder
from torch.testing import assert_close

from monai_ext.catalogue import config_files
from monai_ext.weights import about_weights, load_weights, read, sha256, write_tensors
from monai_ext.workflow import run_verb
from monai_ext.zoo.pack import pack

OVERLAYS = ("phantoms", "phantom_train")
TINY = {"width": 8, "batch_size": 8, "epochs": 1, "amp": False}


@pytest.fixture(scope="session")
def small_pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shared_folder(tmp_path_factory, "pool")
    folder.mkdir(exist_ok=True)
    with FileLock(folder / ".lock"):
        if not (folder / "datalist.json").is_file():
            write_pool(folder)
    return folder


@pytest.fixture(scope="session")
def phantom_trained(bundle: Path, small_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of two steps on phantoms; its weights are `model.pt` there."""
    folder = shared_folder(tmp_path_factory, f"phantom_trained_{bundle.name}")
    folder.mkdir(exist_ok=True)
    with FileLock(folder / ".lock"):
        if not (folder / "done").exists():
            train(bundle, small_pool, folder)
            (folder / "done").touch()
    return folder


def train(bundle: Path, pool: Path, folder: Path, **ids: object) -> None:
    where = {"dataset_dir": str(pool), "output_dir": str(folder), "weights": str(folder / "model.pt")}
    run_verb(bundle, "train", overlays=OVERLAYS, ids={**where, **TINY, **ids})


def test_a_training_that_stopped_is_taken_up_where_it_was(bundle, small_pool, phantom_trained, tmp_path):
    shutil.copytree(phantom_trained, tmp_path / "again")
    train(bundle, small_pool, tmp_path / "again", epochs=2, resume=True)
    train(bundle, small_pool, tmp_path / "whole", epochs=2)
    ends = [torch.load(tmp_path / which / "checkpoints" / "epoch_00002.pt") for which in ("again", "whole")]
    again, whole = (end["parts"]["sampler"] for end in ends)
    assert again == whole
    assert ends[0]["epoch"] == 2
    assert_close(*(read(tmp_path / which / "model.pt") for which in ("again", "whole")), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:parsing config_file")
def test_monais_check_misses_nothing(bundle, small_pool, tmp_path):
    files = [str(path) for path in config_files(bundle, "train", OVERLAYS)]
    where = {"dataset_dir": str(small_pool), "output_dir": str(tmp_path), "weights": str(tmp_path / "model.pt")}
    said = {"logging_file": False, "bundle_root": str(bundle), **where, **TINY}
    workflow = create_workflow(config_file=files, workflow_type="train", **said)
    assert workflow.check_properties() == []
    assert len(workflow.train_dataset) > 0


def test_packed_weights_are_half_as_large_and_make_the_same(bundle, small_pool, phantom_trained, tmp_path):
    said = pack(
        bundle,
        weights=phantom_trained / "model.pt",
        datalist=small_pool / "datalist.json",
        out=tmp_path / "model.pt",
        notes={"data": "phantoms of a test"},
    )
    assert said["precision"] == "float16"
    assert said["agreement_db"] >= 60
    assert said == about_weights(tmp_path / "model.pt")
    assert said["licence"] == "Apache-2.0"
    assert said["data"] == "phantoms of a test"
    full, half = (path.stat().st_size for path in (phantom_trained / "model.pt", tmp_path / "model.pt"))
    assert half < 0.7 * full  # the rest are names


def test_a_mean_of_points_is_what_the_shares_say(bundle, small_pool, phantom_trained, tmp_path):
    first, changed = read(phantom_trained / "model.pt"), tmp_path / "changed.pt"
    write_tensors(changed, {name: v * 1.5 if v.is_floating_point() else v for name, v in first.items()})
    where = {"weights": phantom_trained / "model.pt", "datalist": small_pool / "datalist.json"}
    said = pack(bundle, **where, out=tmp_path / "model.pt", others={changed: 0.4})
    mean = read(tmp_path / "model.pt")
    name = next(name for name, value in first.items() if value.dim() == 4)
    assert_close(mean[name].float(), 1.2 * first[name], rtol=2e-3, atol=1e-6)
    assert said["averaged"] == {sha256(changed)[:16]: 0.4}
    assert "data" not in said  # nobody says that this pool is of phantoms
    with pytest.raises(ValueError, match=r"come to 1\.4, 1 is all there is"):
        pack(bundle, **where, out=tmp_path / "model.pt", others={changed: 1.4})
    write_tensors(changed, {"weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="is of another network"):
        pack(bundle, **where, out=tmp_path / "model.pt", others={changed: 0.4})


def test_weights_that_lose_too_much_in_half_precision_stay_whole(small_pool, phantom_trained, bundle, tmp_path):
    weights = read(phantom_trained / "model.pt")
    name = next(name for name, value in weights.items() if value.dim() == 4)
    weights[name] = weights[name] * 1e6  # beyond what half precision holds
    write_tensors(tmp_path / "model.pt", weights)
    about = json.loads((phantom_trained / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**about, "sha256": sha256(tmp_path / "model.pt")}))
    datalist = small_pool / "datalist.json"
    said = pack(bundle, weights=tmp_path / "model.pt", datalist=datalist, out=tmp_path / "packed.pt")
    assert said["precision"] == "float32"
    assert read(tmp_path / "packed.pt")[name].dtype is torch.float32


def test_weights_of_another_network_are_refused(bundle, small_pool, phantom_trained, tmp_path):
    other = next(one for one in sorted(bundle.parent.glob("*/configs")) if one.parent != bundle).parent
    with pytest.raises(ValueError, match=f"was made by {bundle.name}, not by {other.name}"):
        pack(
            other,
            weights=phantom_trained / "model.pt",
            datalist=small_pool / "datalist.json",
            out=tmp_path / "model.pt",
        )
    assert not (tmp_path / "model.pt").exists()
    with pytest.raises(ValueError, match="does not fit the network: lacks"):
        load_weights(torch.nn.Linear(2, 2), phantom_trained / "model.pt")


def test_weights_whose_digest_is_not_the_cards_are_refused(bundle, small_pool, phantom_trained, tmp_path):
    for name in ("model.pt", "model.json"):
        shutil.copy(phantom_trained / name, tmp_path / name)
    content = read(tmp_path / "model.pt")
    write_tensors(tmp_path / "model.pt", {name: value + 1 for name, value in content.items()})
    with pytest.raises(ValueError, match="is not what the JSON beside it speaks of"):
        pack(bundle, weights=tmp_path / "model.pt", datalist=small_pool / "datalist.json", out=tmp_path / "p.pt")
