"""What is PMM-Synth's own among the bundles: several datasets, any contrasts, every task, a dataset added later."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import pytest
from monai.bundle import ConfigParser
from running import COMPACT, ROOT, TINY, refused

from monai_ext.inference.subjects import find_cases
from monai_ext.modalities import make_task
from monai_ext.networks import PMMSynth
from monai_ext.weights import save_weights

PMM = ROOT / "bundles" / "pmm_synth"
SITES = {
    "glioma": ("T1", "T2", "T1C", "FLAIR", "DWI", "ADC"), "immune": ("T1", "T2", "FLAIR", "ADC"),
    "stroke": ("FLAIR", "DWI", "ADC"), "brats": ("T1", "T2", "T1C", "FLAIR"),
}  # fmt: skip
WIDTH = {"width": TINY["width"]}
SIX = ("T1", "T2", "T1C", "FLAIR", "DWI", "ADC")


@pytest.fixture(scope="module")
def sites(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A datalist a site, of what it would have of the phantoms: a subject a split."""
    folder = tmp_path_factory.mktemp("sites")
    listed = json.loads((prepared / "datalist.json").read_text())
    for site, contrasts in SITES.items():
        content = {"name": site, "root": str(prepared)}
        for split in ("training", "validation", "test"):
            entry = listed[split][0]
            content[split] = [{key: entry[key] for key in ("subject", *contrasts)}]
        (folder / f"{site}.json").write_text(json.dumps(content))
    return {site: folder / f"{site}.json" for site in SITES}


def named(sites: dict[str, Path], *names: str) -> str:
    return str([[name, str(sites[name])] for name in names])


def voxels(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): nib.load(path).get_fdata().tobytes()
        for path in sorted(folder.rglob("*_synthetic.nii.gz"))
    }


def test_three_sites_are_learnt_resumed_and_evaluated_and_a_fourth_is_added_without_a_bit_of_theirs_changing(
    sites: dict[str, Path], raw: Path, bundle_run: Callable, tmp_path: Path
):
    weights = tmp_path / "model.pt"
    ids = {"weights": weights, **WIDTH}
    train = {**ids, **TINY, "slices": "['middle', 2]", "output_dir": tmp_path / "train"}
    train |= {"datalist": named(sites, "glioma", "immune", "stroke")}
    bundle_run(PMM, "train", COMPACT, **train, epochs=1)
    assert json.loads(weights.with_suffix(".json").read_text())["sites"] == ["glioma", "immune", "stroke"]
    resumed = bundle_run(PMM, "train", COMPACT, **train, epochs=2, resume="true")
    assert "going on from" in resumed.stderr

    evaluate = {**ids, "datalist": str(sites["immune"])}
    bundle_run(PMM, "evaluate", **evaluate, output_dir=tmp_path / "run")
    bundle_run(PMM, "evaluate", **evaluate, output_dir=tmp_path / "nobody", site="none", every_task="false")
    records = [json.loads((tmp_path / run / "run.json").read_text()) for run in ("run", "nobody")]
    assert [record["site"] for record in records] == [None, "none"]
    with (tmp_path / "run" / "matrix.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["region"] == "brain"]
    there = {name for row in rows for name in (*row["sources"].split("+"), row["target"])}
    assert there == set(SITES["immune"])
    n = len(there)
    assert len(rows) == sum(len([s for s in range(2**n) if 0 < s < 2**n - 1 and not s >> t & 1]) for t in range(n))
    assert all(float(row["psnr"]) > 0 and row["subjects"] == "1" for row in rows)

    patient = min(raw.glob("*/T1.nii.gz"))
    infer = {**ids, "images": {"T1": str(patient)}, "site": "glioma"}
    bundle_run(PMM, "inference", **infer, output_dir=tmp_path / "before")
    kept = weights.read_bytes()
    adapter = tmp_path / "brats.pt"
    new = {**train, "datalist": named(sites, "brats"), "output_dir": tmp_path / "adapt", "adapters": adapter}
    bundle_run(PMM, "train", COMPACT, PMM / "configs/adapt.json", **new, epochs=1)
    assert weights.read_bytes() == kept
    assert adapter.stat().st_size < 0.5 * weights.stat().st_size
    bundle_run(PMM, "inference", **infer, output_dir=tmp_path / "after", adapters=adapter)
    before = voxels(tmp_path / "before")
    assert len(before) == 5
    assert before == voxels(tmp_path / "after")
    bundle_run(PMM, "inference", **{**infer, "site": "brats"}, output_dir=tmp_path / "new", adapters=adapter)
    assert voxels(tmp_path / "new").keys() == before.keys()
    assert voxels(tmp_path / "new") != before


@pytest.fixture
def infer_refused(trained_pmm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(**ids: object) -> str:
        own = {"bundle_root": str(PMM), "output_dir": str(tmp_path / "out"), "weights": str(trained_pmm), **WIDTH}
        return refused(capsys, PMM / "configs/inference.json", **(own | ids))

    return run


@pytest.fixture(scope="module")
def trained_pmm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of no worth: what is refused is refused before they count."""
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    network = PMMSynth(width=TINY["width"])
    about = {"sources": SIX, "target": SIX, "sites": ["glioma", "stroke"], "bundle": "pmm_synth", "version": "0"}
    save_weights(path, network, about)
    return path


@pytest.mark.parametrize(
    ("configs", "option"),
    [(["inference"], "weights"), (["evaluate"], "weights"), (["train", "adapt"], "weights"), (["train"], "start_from")],
)
def test_a_residual_is_taken_where_the_weights_have_learnt_one(configs: list[str], option: str, tmp_path: Path):
    learnt = {"width": TINY["width"], "residual": ["T1C over T1"]}
    save_weights(tmp_path / "model.pt", PMMSynth(**learnt), {"network_def": learnt})
    for weights, bases in ((tmp_path / "model.pt", [-1, -1, 0, -1, -1, -1]), (tmp_path / "no.pt", [-1] * 6)):
        parser = ConfigParser(ConfigParser.load_config_files([PMM / f"configs/{name}.json" for name in configs]))
        parser.update({option: str(weights), "bundle_root": str(PMM), **WIDTH})
        assert parser.get_parsed_content("network_def").bases == bases


def test_a_training_that_names_a_residual_or_begins_anew_has_its_own():
    for overlay, option, bases in (
        ("train", {"residual": ["FLAIR over T2"]}, [-1, -1, -1, 1, -1, -1]),
        ("train", {}, [-1] * 6),
        ("phantom_train", {}, [-1, -1, 0, -1, -1, -1]),
    ):
        parser = ConfigParser(
            ConfigParser.load_config_files([PMM / f"configs/{name}.json" for name in ("train", overlay)])
        )
        parser.update({"bundle_root": str(PMM), **option, **WIDTH})
        assert parser.get_parsed_content("network_def").bases == bases


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"site": "brats"}, "unknown site 'brats'; the known ones: glioma, stroke; null means none of them"),
        ({"target": ["PD"]}, "PD is none of the contrasts that these weights know: T1, T2, T1C, FLAIR, DWI, ADC"),
        ({"target": ["T2", "t2w"]}, "each target is given once, got T2 twice"),
        ({"target": []}, "targets is empty"),
    ],
)
def test_what_cannot_be_synthesised_is_refused_by_name(
    infer_refused: Callable, tmp_path: Path, change: dict, message: str
):
    patient = tmp_path / "T1.nii.gz"
    patient.write_bytes(b"0" * 400)  # it is not opened
    assert message in infer_refused(images={"T1": str(patient)}, **change)


def test_a_contrast_outside_the_vocabulary_and_one_given_twice_are_refused(infer_refused: Callable, tmp_path: Path):
    assert "PD is none of the contrasts" in infer_refused(images={"PD": str(tmp_path / "a.nii.gz")})
    files = {"T1": str(tmp_path / "a.nii.gz"), "t1w": str(tmp_path / "b.nii.gz")}
    assert "images names T1 twice" in infer_refused(images=files)


def test_a_subject_with_every_contrast_leaves_nothing_to_do_and_that_is_no_fault(
    trained_pmm: Path, bundle_run: Callable, raw: Path, tmp_path: Path
):
    ids = {"datalist": raw / "index.json", "split": "test", "weights": trained_pmm, **WIDTH}
    done = bundle_run(PMM, "inference", **ids, output_dir=tmp_path / "out")
    assert done.stdout.count("has every contrast, so there is nothing to synthesise") == 2
    assert not (tmp_path / "out").exists()


def test_a_subject_without_a_contrast_to_start_from_is_named(
    trained_pmm: Path, bundle_run: Callable, raw: Path, tmp_path: Path
):
    ids = {"datalist": raw / "index.json", "split": "test", "weights": trained_pmm, **WIDTH}
    cases = find_cases(task=make_task(["T1"], ["T2"], SIX), datalist=raw / "index.json", split="test")
    assert len(cases.subjects) == 2
    cases = find_cases(task=make_task(None, SIX, SIX), datalist=raw / "index.json", split="test")
    assert not cases.subjects
    assert all("no contrast is available" in fault.reason for fault in cases.failures)
    done = bundle_run(PMM, "inference", check=False, **ids, target=str(list(SIX)),
                      output_dir=tmp_path / "out")  # fmt: skip
    assert done.returncode == 1
    assert "no contrast is available" in done.stderr


@pytest.mark.long
def test_real_patients_of_two_diseases_go_through_one_model(
    trained_pmm: Path, bundle_run: Callable, real_data: Path, tmp_path: Path
):
    stroke = {"DWI": "dwi.nii.gz", "ADC": "adc.nii.gz"}
    images = {contrast: str(real_data / "stroke_isles0001" / name) for contrast, name in stroke.items()}
    cases = {"ms": ({"dataset_dir": real_data / "ms_patient26"}, 4), "stroke": ({"images": images}, 2)}
    for case, (data, there) in cases.items():
        ids = {**data, "weights": trained_pmm, **WIDTH, "register": "rigid"}
        bundle_run(PMM, "inference", **ids, output_dir=tmp_path / case)
        assert len(list((tmp_path / case).rglob("*_synthetic.nii.gz"))) == 6 - there
