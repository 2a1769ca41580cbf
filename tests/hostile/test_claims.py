"""What weights say of themselves is data: no key of model.json and no text of an archive's configs is ever run."""

import json
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
from running import BUNDLES, smallest_weights

from monai_ext.serve.synthesis import Synthesiser
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
    with pytest.raises(ValueError, match=r"is refused|made with"):
        Synthesiser(bundle, weights=weights)
    with pytest.raises(ValueError, match=r"is refused|made with|made by"):
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
        (("network_def", "nonsense"), 1),
        (("preset", "brain_mask"), "../../etc/*"),
        (("preset", "percentile_of"), "all"),
        (("preset", "spacing"), [0, 1, 1]),
        (("sources",), ["nose"]),
        (("target",), "T1; T2"),
        (("network_def",), 5),
    ],
)
def test_a_plain_value_that_cannot_be_is_refused_too(bundle, weights, tmp_path, place, value):
    said = weights.with_suffix(".json").read_text()
    try:
        saying(weights, place, value)
        refused_everywhere(bundle, weights, tmp_path / "out")
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
            Synthesiser(path)
        assert not pwned.exists(), place


def test_a_component_that_the_bundle_does_not_have_is_refused(bundle, tmp_path):
    config = json.loads((bundle / "configs" / "inference.json").read_text())
    for change in ({"images": {"_target_": "os.getcwd"}}, {"extra": {"_target_": "os.getcwd"}}):
        with pytest.raises(ValueError, match=r"would run 'os.getcwd'"):
            Synthesiser(archive(bundle, tmp_path / "model.ts", {**config, **change}))
