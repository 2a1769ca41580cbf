"""What a request says is data: none of it is evaluated, followed or built, and each option is refused by name."""

import contextlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from dicom_study import write_study
from installed_weights import scan
from running import BUNDLES, options, smallest_weights

from monai_ext.__main__ import main
from monai_ext.synthesis.bundle import BundleSynthesiser
from monai_ext.synthesis.options import INFERENCE, TRAINING, asked, asked_of_training, named_images, yes_or_no
from monai_ext.synthesis.study import named_series
from monai_ext.workflow import opened

CODE = "__import__('pathlib').Path({pwned!r}).touch() or 'T1'"


@pytest.fixture
def pwned(tmp_path: Path) -> Path:
    return tmp_path / "pwned"


def attacks(pwned: Path) -> list[Any]:
    """A code to run, a component to build, a reference and a macro; each alone and within a list or a dictionary."""
    code = CODE.format(pwned=str(pwned))
    component = {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": [str(pwned)]}}
    plain: list[Any] = [f"${code}", "@weights", "@bundle_root", "%bundle_root", f"%{pwned}#x", component]
    return [*plain, *([one] for one in plain), *({"a": one} for one in plain)]


@pytest.fixture(scope="module", params=BUNDLES, ids=[bundle.name for bundle in BUNDLES])
def synthesiser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BundleSynthesiser:
    weights = smallest_weights(request.param, tmp_path_factory.mktemp("weights"))
    return BundleSynthesiser(request.param, weights=weights, amp=False)


def write_scans(folder: Path, *, form: str = "{}.nii.gz") -> dict[str, Path]:
    return {contrast: scan(folder / form.format(contrast), seed=len(contrast)) for contrast in ("T1", "T2")}


@pytest.mark.parametrize("option", INFERENCE)
def test_nothing_that_a_request_says_is_run_or_followed(synthesiser: BundleSynthesiser, tmp_path, pwned, option):
    images = write_scans(tmp_path / "study")
    for attack in attacks(pwned):
        with pytest.raises(ValueError, match=r"^(?!.*(model\.pt|/bundles/))"):
            synthesiser(images, tmp_path / "out", **{option: attack})
        assert not pwned.exists(), attack
    assert not (tmp_path / "out").exists()


def test_only_a_requests_own_options_can_be_chosen(synthesiser: BundleSynthesiser, tmp_path):
    images = write_scans(tmp_path / "study")
    for name in ("device", "network_def", "imports", "weights", "bundle_root", "output"):
        with pytest.raises(ValueError, match=name):
            synthesiser(images, tmp_path / "out", **{name: "cpu"})


@pytest.mark.parametrize("option", TRAINING)
def test_nothing_that_a_training_request_says_becomes_a_word_that_runs(pwned, option):
    for attack in attacks(pwned):
        with pytest.raises(ValueError, match=r"must be|unknown contrast"):
            asked_of_training({option: attack})


@pytest.mark.parametrize(
    ("command", "option"),
    [*(("dicom", one) for one in ("target", "series", "uid-root", "register")),
     *(("synthesise", one) for one in ("target", "site", "method", "device", "register", "brain-mask"))],
)  # fmt: skip
def test_no_word_of_a_command_is_run(tmp_path, pwned, capsys, command, option):
    weights = smallest_weights(BUNDLES[0], tmp_path)
    given = {"weights": weights, "out": tmp_path / "out", "target": "FLAIR"}
    if command == "dicom":
        given |= {"study": write_study(tmp_path / "study", "T1", "T2"), "bundle": BUNDLES[0]}
        first = []
    else:
        first = [f"{contrast}={path}" for contrast, path in write_scans(tmp_path / "study").items()]
    for attack in (f"${CODE.format(pwned=str(pwned))}", "@weights", "%bundle_root"):
        words = [command, *first, *options({**given, option: f"T1={attack}" if option == "series" else attack})]
        with contextlib.suppress(SystemExit):  # of argparse, which knows the choices
            assert main(words) == 2
        assert not pwned.exists(), attack
        assert not [*(tmp_path / "out").rglob("*")], attack
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["$print(1) {}.nii.gz", "@weights#{}.nii.gz", "%bundle_root{}.nii.gz", "a#b::{}.nii"])
def test_a_file_is_read_by_the_name_that_it_has(synthesiser: BundleSynthesiser, tmp_path, name):
    target = synthesiser.targets[-1]
    out = {}
    for form in ("{}.nii.gz", name):
        images = write_scans(tmp_path / ("$1+1" if form == name else "study"), form=form)
        made = synthesiser(images, tmp_path / f"@out {len(form)}", subject="$subject", target=target, trust_names=True)
        assert made[target].parent.name == "$subject"
        out[form] = np.asarray(nib.load(made[target]).dataobj)
    np.testing.assert_array_equal(*out.values())


def test_what_enters_a_parser_stays_what_it_is(pwned):
    for attack in attacks(pwned):
        config = {"a": None, "b": "@a", "c": {"_target_": "builtins.dict", "given": "@a"}, "d": "$@a"}
        parser = opened(config, {"a": attack})
        assert parser.get_parsed_content("b") is attack
        assert parser.get_parsed_content("c") == {"given": attack}
        assert parser.get_parsed_content("d") is attack
        assert not pwned.exists()


def test_what_may_be_chosen_passes_as_it_is():
    given = {"target": "t1ce", "register": "rigid", "brain_mask": "otsu", "amp": False, "reference": "T2"}
    assert asked(given, INFERENCE) == {**given, "target": "T1C"}
    given = {"sources": "T1, T2", "target": "flair", "epochs": 2, "slices": ["middle", 6], "learning_rate": 1e-4}
    assert asked_of_training(given) == {**given, "sources": ["T1", "T2"], "target": "FLAIR"}
    assert named_images('{"t1": "a.nii.gz"}') == {"T1": "a.nii.gz"}


@pytest.mark.parametrize("given", [5, [1, 2], None, "x", "[" * 100_000, {}, {"T1": 5}, {"T1": ""}, {"nose": "a"}])
def test_images_that_are_none_are_refused(given):
    with pytest.raises(ValueError, match=r"images must be|unknown contrast"):
        named_images(given)


def test_a_contrast_that_is_named_twice_is_refused_and_neither_is_taken():
    with pytest.raises(ValueError, match=r"images names T1 twice: 'a\.nii\.gz' and 'b\.nii\.gz'; give one"):
        named_images({"T1": "a.nii.gz", "t1w": "b.nii.gz"})
    with pytest.raises(ValueError, match="--series names T1 twice: 5 and 6"):
        named_series(["T1=5", "t1w=6"])
    with pytest.raises(ValueError, match="unknown contrast"):
        named_series(["nose=5"])


def test_trust_is_given_or_not_and_is_nothing_else(pwned):
    assert yes_or_no("trust_names", True) is True
    for attack in [*attacks(pwned), "true", 1, None, []]:
        with pytest.raises(ValueError, match="trust_names must be true or false"):
            yes_or_no("trust_names", attack)


def test_numbers_have_bounds():
    for given in ({"epochs": 0}, {"epochs": True}, {"epochs": 1.5}, {"seed": -1}, {"learning_rate": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(given))):
            asked_of_training(given)
