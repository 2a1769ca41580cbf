"""What weights say of themselves is data: no key of model.json and no text of an archive's configs is ever run."""

import json
import os
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from running import BUNDLES, smallest_weights

from monai_ext.files import sha256
from monai_ext.synthesis.bundle import BundleSynthesiser
from monai_ext.synthesis.installed import methods_to_choose_from
from monai_ext.weights import about_weights
from monai_ext.zoo.package import package

KEYS = ("sources", "target", "preset", "sites", "bundle", "version", "network_def")
FIELDS = ("reference", "spacing", "crop", "size", "register", "brain_mask", "more")


@pytest.fixture
def pwned(tmp_path: Path) -> Path:
    return tmp_path / "pwned"


@pytest.fixture(scope="module", params=BUNDLES, ids=[bundle.name for bundle in BUNDLES])
def bundle(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def weights(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smallest_weights(bundle, tmp_path_factory.mktemp("weights"))


def attacks(pwned: Path) -> list[Any]:
    code = f"$__import__('pathlib').Path({str(pwned)!r}).touch() or 16"
    component = {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": [str(pwned)]}}
    plain: list[Any] = [code, "@weights", "%bundle_root", component]
    return [*plain, *([one] for one in plain), *({"a": one} for one in plain)]


def saying(weights: Path, path: tuple[str, ...], value: Any) -> None:
    """Let model.json say this at a path."""
    file = weights.with_suffix(".json")
    about = branch = json.loads(file.read_text())
    for step in path[:-1]:
        branch = branch.setdefault(step, {})
    branch[path[-1]] = value
    file.write_text(json.dumps(about))


def refused_everywhere(bundle: Path, weights: Path, out: Path) -> None:
    with pytest.raises(ValueError, match=r"is refused|made with|cannot be made"):
        BundleSynthesiser(bundle, weights=weights)
    with pytest.raises(ValueError, match=r"is refused|made with|made by|cannot be made"):
        package(bundle, weights=weights, out=out)
    assert not out.exists() or not any(out.iterdir())


def places(weights: Path) -> list[tuple[str, ...]]:
    definition = json.loads(weights.with_suffix(".json").read_text())["network_def"]
    return [*((key,) for key in KEYS), *(("network_def", key) for key in (*definition, "_mode_", "hook")),
            *(("preset", key) for key in FIELDS)]  # fmt: skip


def test_no_key_of_what_weights_say_is_run(bundle, weights, tmp_path, pwned):
    said = weights.with_suffix(".json").read_text()
    draw = random.Random(0)
    try:
        for place in places(weights):
            for attack in draw.sample(attacks(pwned), 4):
                weights.with_suffix(".json").write_text(said)
                saying(weights, place, attack)
                refused_everywhere(bundle, weights, tmp_path / "out")
                assert not pwned.exists(), (place, attack)
    finally:
        weights.with_suffix(".json").write_text(said)
    assert about_weights(weights)["bundle"] == bundle.name


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("network_def", "_target_"), "torch.nn.Linear"),
        (("network_def", "width"), 10**9),
        (("network_def", "width"), 10**400),
        (("rank",), "4"),
        (("canvas",), 10**6),
        (("canvas",), True),
        (("site",), ["a"]),
        (("network_def", "nonsense"), 1),
        (("preset", "brain_mask"), "../../etc/*"),
        (("preset", "percentile_of"), "all"),
        (("preset", "spacing"), [0, 1, 1]),
        (("sources",), ["nose"]),
        (("target",), "T1; T2"),
        (("network_def",), 5),
        (("network_def", "modalities"), [0.5, "T1"]),
        (("network_def", "width"), "wide"),
        (("network_def", "residual"), 3),
        (("network_def", "residual"), "T1C over T1"),
        (("network_def", "residual"), ["T1C over CT"]),
    ],
)
def test_a_plain_value_that_cannot_be_is_refused_too(bundle, weights, tmp_path, place, value):
    said = weights.with_suffix(".json").read_text()
    try:
        saying(weights, place, value)
        refused_everywhere(bundle, weights, tmp_path / "out")
    finally:
        weights.with_suffix(".json").write_text(said)


@pytest.mark.parametrize("key", ["preset", "sites", "bundle", "version", "network_def"])
def test_a_claim_of_null_says_nothing(bundle, weights, tmp_path, key):
    said = weights.with_suffix(".json").read_text()
    try:
        saying(weights, (key,), None)
        assert key not in about_weights(weights)
        if key == "network_def":  # of the bundle's own width, which is another
            with pytest.raises(ValueError, match=r"model\.pt"):
                package(bundle, weights=weights, out=tmp_path / "out")
    finally:
        weights.with_suffix(".json").write_text(said)


def archive(bundle: Path, path: Path, config: dict[str, Any]) -> Path:
    """The configs of an archive; its weights are never reached."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model/extra/inference.json", json.dumps(config))
        file.writestr("model/extra/metadata.json", (bundle / "configs" / "metadata.json").read_text())
    return path


def leaves(config: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    pairs = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    found = [leaf for key, value in pairs for leaf in leaves(value, (*path, key))]
    return found or [path]


def test_no_text_of_an_archives_config_is_run(bundle, tmp_path, pwned):
    original = json.loads((bundle / "configs" / "inference.json").read_text())
    original["network_def"]["extra"] = None
    original["unheard_of"] = None
    for place in leaves(original):
        if place[0] == "_meta_":
            continue
        config = json.loads(json.dumps(original))
        branch = config
        for step in place[:-1]:
            branch = branch[step]
        branch[place[-1]] = attacks(pwned)[0]
        path = archive(bundle, tmp_path / "model.ts", config)
        with pytest.raises(ValueError, match=r"model\.ts.* is refused"):
            BundleSynthesiser(path)
        assert not pwned.exists(), place


def test_a_component_that_the_bundle_does_not_have_is_refused(bundle, tmp_path):
    config = json.loads((bundle / "configs" / "inference.json").read_text())
    for change in ({"images": {"_target_": "os.getcwd"}}, {"extra": {"_target_": "os.getcwd"}}):
        with pytest.raises(ValueError, match=r"would run 'os.getcwd'"):
            BundleSynthesiser(archive(bundle, tmp_path / "model.ts", {**config, **change}))


def test_weights_do_not_say_which_configs_are_run(bundle, weights, tmp_path):
    """A bundle's name that is a path leads to no bundle."""
    other = tmp_path / "other" / "configs"
    shutil.copytree(bundle / "configs", other)
    copy = shutil.copytree(weights.parent, tmp_path / "copy") / "model.pt"
    for name in (str(other.parent), "../other", "agi_net/../../other"):
        saying(copy, ("bundle",), name)
        with pytest.raises(ValueError, match=r"says that it is of .*, which is none of agi_net"):
            methods_to_choose_from(weights=copy)
    saying(copy, ("bundle",), bundle.name)
    assert methods_to_choose_from(weights=copy)[0].bundle == bundle


@pytest.mark.parametrize("width", [1024, 99_992])
def test_no_memory_is_taken_for_a_network_that_the_weights_are_too_small_for(bundle, weights, tmp_path, width):
    copy = shutil.copytree(weights.parent, tmp_path / "copy") / "model.pt"
    saying(copy, ("network_def", "width"), width)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    for refused in (
        lambda: BundleSynthesiser(bundle, weights=copy),
        lambda: package(bundle, weights=copy, out=tmp_path),
    ):
        with pytest.raises(ValueError, match="bytes, too few for the network that it is said to be of"):
            refused()
    assert memory("VmHWM") - before < 300 * 1024


def memory(key: str) -> int:
    """kB of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


@pytest.mark.parametrize("keep", [0, 100, 0.5, -1, "pickle"])
def test_damaged_weights_are_refused_in_a_line_of_ours(bundle, weights, tmp_path, keep):
    copy = shutil.copytree(weights.parent, tmp_path / "copy") / "model.pt"
    data = copy.read_bytes()
    at = data.index(b"_rebuild_tensor_v2")
    cut = data[: int(keep * len(data)) if isinstance(keep, float) else keep] if keep != "pickle" else None
    copy.write_bytes(data[:at] + b"q" + data[at + 1 :] if cut is None else cut)
    saying(copy, ("sha256",), sha256(copy))
    with pytest.raises(ValueError, match=r"model\.pt (is cut short|is no file of weights|is refused: it would run)"):
        BundleSynthesiser(bundle, weights=copy)


def test_an_archives_config_is_unpacked_no_further_than_a_config_is_long(bundle, tmp_path):
    path = tmp_path / "model.ts"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("model/extra/inference.json", b" " * 200_000_000 + b"{}")
        file.writestr("model/extra/metadata.json", (bundle / "configs" / "metadata.json").read_text())
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    with pytest.raises(ValueError, match=r"model\.ts is no archive of a bundle"):
        BundleSynthesiser(path)
    assert memory("VmHWM") - before < 100 * 1024


def test_what_stands_beside_weights_and_is_no_file_is_not_waited_for(weights, tmp_path, caplog):
    copy = shutil.copytree(weights.parent, tmp_path / "copy") / "model.pt"
    copy.with_suffix(".json").unlink()
    os.mkfifo(copy.with_suffix(".json"))
    assert about_weights(copy) == {}
    assert "is not a regular file" in caplog.text
