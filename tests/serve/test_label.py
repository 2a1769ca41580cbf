"""A real MONAI Label server: studies in, each bundle trained there, SYNTHETIC images out, misuse answered in words."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from label_server import LABEL, ROOT, Server, make_studies, serving

BUNDLES = sorted(path.parent.parent for path in ROOT.glob("bundles/*/configs/metadata.json"))
TINY = {"width": 8, "image_size": 32, "slices": ["middle", 6], "epochs": 1, "batch_size": 4}

pytestmark = pytest.mark.skipif(not (LABEL / "monailabel").is_file(), reason="needs MONAI Label: make test-serve")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("label")
    make_studies(folder / "studies", count=4)
    broken = folder / "studies" / "zz_broken"  # one study that cannot be read, which is to stop no training
    broken.mkdir()
    for contrast in ("T1", "T2", "FLAIR"):
        (broken / f"zz_broken_{contrast}.nii.gz").touch()
    mixed, first = folder / "studies" / "zz_mixed", min(folder.glob("studies/healthy-*"))
    mixed.mkdir()
    for name, contrast in (("sag_T1", "T1"), ("ax_T2", "T2"), ("x_trace", "FLAIR")):
        shutil.copy(scan(first, contrast), mixed / f"{name}.nii.gz")
    with serving(folder) as server:
        yield server


@pytest.fixture(scope="module", params=BUNDLES, ids=[bundle.name for bundle in BUNDLES])
def bundle(request: pytest.FixtureRequest, server: Server) -> Path:
    """One that the server has trained on its studies."""
    name = request.param.name
    assert name not in server.info()["models"]
    status, said = server.infer(name, image(server))
    assert status == 500
    assert b"has no weights" in said
    status, said = server.ask(f"/train/{name}?run_sync=true", body={**TINY, **task(request.param)})
    assert status == 200, said
    assert "zz_broken" in json.loads(said)["left_out"]
    assert trained(server, name).is_file()
    assert not (server.models / name).exists()  # weights that were there would be as they were
    return request.param


def trained(server: Server, name: str) -> Path:
    """The weights that the server has trained, among the studies."""
    return server.studies / ".training" / name / "model.pt"


def task(bundle: Path) -> dict[str, Any]:
    """FLAIR from T1 and T2, or each of the three from the others."""
    if takes_any(bundle):
        return {"modalities": ["T1", "T2", "FLAIR"]}
    return {"sources": ["T1", "T2"], "target": "FLAIR"}


def takes_any(bundle: Path) -> bool:
    return json.loads((bundle / "configs" / "inference.json").read_text())["sources"] is None


def image(server: Server, study: int = 0, contrast: str = "T1") -> str:
    folder = sorted(path for path in server.studies.iterdir() if any(path.glob("*T1.nii.gz")))[study]
    return f"{folder.name}/{scan(folder, contrast).name.removesuffix('.nii.gz')}"


def scan(folder: Path, contrast: str) -> Path:
    return next(folder.glob(f"*{contrast}.nii.gz"))


def read(answer: bytes, folder: Path) -> Any:
    (folder / "answer.nii.gz").write_bytes(answer)
    return nib.load(folder / "answer.nii.gz")


def test_the_answer_is_an_image_as_the_command_line_would_have_written_it(bundle: Path, server: Server, tmp_path: Path):
    status, answer = server.infer(bundle.name, image(server), target="FLAIR")
    assert status == 200, answer
    made: Any = read(answer, tmp_path)
    study = server.studies / image(server).partition("/")[0]
    images = {contrast: str(scan(study, contrast)) for contrast in ("T1", "T2")}
    ids = {"bundle_root": bundle, "config_file": bundle / "configs/inference.json", "images": images,
           "weights": trained(server, bundle.name), "output_dir": tmp_path / "out",
           "width": TINY["width"], **task(bundle), "target": "FLAIR"}  # fmt: skip
    words = [word for name, value in ids.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "monai.bundle", "run", *words]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    expected: Any = nib.load(next((tmp_path / "out").rglob("FLAIR_synthetic.nii.gz")))
    assert made.get_data_dtype() == np.float32
    np.testing.assert_array_equal(made.affine, nib.load(images["T1"]).affine)
    np.testing.assert_array_equal(made.get_fdata(), expected.get_fdata())
    assert b"SYNTHETIC FLAIR" in made.header["descrip"].item()


def test_the_result_stays_in_the_study_under_a_name_that_says_what_it_is(bundle: Path, server: Server):
    status, said = server.infer(bundle.name, image(server, 1), output="json", target="FLAIR")
    assert status == 200, said
    name = f"FLAIR_{bundle.name}_synthetic"
    assert json.loads(said)["synthetic"]
    assert json.loads(said)["stored"] == [name]
    assert json.loads(said)["warnings"] == []
    study = server.studies / image(server, 1).partition("/")[0]
    assert json.loads((study / f"{name}.json").read_text())["synthetic"]
    assert server.ask(f"/datastore/image?image={study.name}/{name}")[0] == 200


def test_the_panel_offers_the_targets_that_there_are_and_may_send_its_list_back(bundle: Path, server: Server):
    panel = server.info()["models"][bundle.name]["config"]
    assert panel["target"] == (task(bundle).get("modalities") or ["FLAIR"])
    assert ("site" in panel) == takes_any(bundle)
    assert server.infer(bundle.name, image(server), **panel)[0] == 200


def test_a_4d_image_holds_several_contrasts(bundle: Path, server: Server, tmp_path: Path):
    study = server.studies / image(server).partition("/")[0]
    scans: list[Any] = [nib.load(scan(study, contrast)) for contrast in ("T2", "T1")]
    both = np.stack([one.get_fdata(dtype=np.float32) for one in scans], axis=-1)
    nib.save(nib.Nifti1Image(both, scans[1].affine), tmp_path / "both.nii.gz")
    status, answer = server.upload(bundle.name, tmp_path / "both.nii.gz", contrasts="T2,T1", target="FLAIR")
    assert status == 200, answer
    expected = read(server.infer(bundle.name, image(server), target="FLAIR")[1], tmp_path).get_fdata()
    np.testing.assert_allclose(read(answer, tmp_path).get_fdata(), expected, atol=1e-4)


def test_eight_requests_at_once_are_all_answered_and_none_mixed_up(bundle: Path, server: Server):
    alone = [server.infer(bundle.name, image(server, study), target="FLAIR")[1] for study in (0, 1)]
    assert alone[0] != alone[1]
    with ThreadPoolExecutor(8) as clients:
        answers = list(
            clients.map(lambda turn: server.infer(bundle.name, image(server, turn % 2), target="FLAIR"), range(8))
        )
    assert answers == [(200, alone[turn % 2]) for turn in range(8)]


@pytest.mark.parametrize(
    ("where", "params", "status", "said"),
    [
        ("nobody/T1", {}, 404, "there is no image 'nobody/T1' among the studies: there are "),
        ("", {"target": "PD"}, 400, "PD"),
        ("", {"images": {"T1": "T1.nii.gz", "T2": "../../T2.nii.gz"}}, 400, "images must be files of the study"),
        ("", {"contrasts": "T1,T2"}, 400, "contrasts names 2 channels, T1, T2, but the image has 1"),
    ],
)
def test_a_bad_request_is_answered_with_its_reason(bundle: Path, server: Server, where, params, status, said):
    study, _, name = image(server).partition("/")
    if "images" in params:
        own = {contrast: file.replace("T1.nii.gz", f"{name}.nii.gz") for contrast, file in params["images"].items()}
        params = {"images": own}
    answer = server.infer(bundle.name, where or f"{study}/{name}", **params)
    assert answer[0] == status, answer
    assert said in json.loads(answer[1])["detail"]


def test_an_upload_that_cannot_be_read_is_answered_in_words(bundle: Path, server: Server, tmp_path: Path):
    header = nib.Nifti1Image(np.zeros((2, 2, 2, 2), np.int16), np.eye(4)).header
    header["dim"][1:4], header["vox_offset"] = 2000, 352
    (tmp_path / "large.nii").write_bytes(header.binaryblock + bytes(400))
    (tmp_path / "text.nii").write_text("not found")
    (tmp_path / "half.nii.gz").write_bytes(
        scan(server.studies / image(server).partition("/")[0], "T1").read_bytes()[:900]
    )
    for name, said in (
        ("large", b"is too large"),
        ("text", b"is text, not an image"),
        ("half", b"truncated or damaged"),
    ):
        file = next(tmp_path.glob(f"{name}.*"))
        status, answer = server.upload(bundle.name, file, contrasts="T1,T2", target="FLAIR")
        assert status == 400, answer
        assert said in answer


def test_a_study_is_one_subject_however_its_files_begin(bundle: Path, server: Server):
    mixed = server.studies / "zz_mixed"
    status, said = server.infer(bundle.name, f"{mixed.name}/ax_T2", output="json", target="FLAIR", amp=False)
    assert status == 200, said
    assert set(json.loads(said)["sources"]) == {"T1", "T2"}
    shutil.copy(mixed / "sag_T1.nii.gz", mixed / "cor_T1.nii.gz")
    status, said = server.infer(bundle.name, f"{mixed.name}/ax_T2", output="json", target="FLAIR")
    (mixed / "cor_T1.nii.gz").unlink()
    assert status == 400, said
    assert "cor_T1.nii.gz and sag_T1.nii.gz are both T1: say with images which is which" in json.loads(said)["detail"]


def test_a_study_that_lacks_a_source_is_answered_with_what_it_has(bundle: Path, server: Server):
    study, _, name = image(server).partition("/")
    status, said = server.infer(bundle.name, f"{study}/{name}", images={"T1": f"{name}.nii.gz"}, target="FLAIR")
    if takes_any(bundle):
        assert status == 200
    else:
        assert status == 400
        assert "lacks T2, has T1" in json.loads(said)["detail"]


def test_a_bundle_that_is_not_there_is_named_with_those_that_are(server: Server):
    for path in (f"/infer/agi_nets?image={image(server)}", "/train/agi_nets?run_sync=true"):
        status, said = server.ask(path, form={"params": b"\r\n\r\n{}"} if "infer" in path else None, body={})
        assert status == 404
        assert b"there is no bundle 'agi_nets': there are agi_net, " in said


def test_weights_that_do_not_fit_are_an_error_and_not_silence(bundle: Path, server: Server):
    file = trained(server, bundle.name).with_suffix(".json")
    before = file.read_text()
    about = json.loads(before)
    about["network_def"]["width"] = 16
    file.write_text(json.dumps(about))
    weights = file.with_name("model.pt")
    os.utime(weights)
    try:
        status, said = server.infer(bundle.name, image(server), target="FLAIR")
        assert status == 500
        assert b"cannot be served" in said
        assert "cannot be served" in server.log.read_text(errors="replace")
    finally:
        file.write_text(before)
        os.utime(weights)
    assert server.infer(bundle.name, image(server), target="FLAIR")[0] == 200


def test_other_weights_beside_a_bundles_own_are_a_model_of_their_own(tmp_path: Path) -> None:
    make_studies(tmp_path / "studies", count=1)
    (tmp_path / "models").mkdir()
    shutil.copytree(ROOT / "bundles" / "agi_net" / "models", tmp_path / "models" / "agi_net")
    with serving(tmp_path) as server:
        assert {"agi_net", "agi_net-t1_t2_to_pd"} <= set(server.info()["models"])
        status, answer = server.infer("agi_net-t1_t2_to_pd", image(server), trust_names=True)
        assert status == 200, answer
        assert read(answer, tmp_path).ndim == 3
    (record,) = server.studies.glob("*/PD_agi_net_synthetic.json")
    assert json.loads(record.read_text())["target"] == "PD"
