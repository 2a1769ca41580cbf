"""What every bundle under bundles/ keeps, without naming one: files, metadata, ids, MONAI's verbs, exports."""

import inspect
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, create_workflow, load
from monai.bundle.properties import InferProperties, TrainProperties
from running import BUNDLES, COMPACT, ROOT, TINY, here, options, python

from monai_ext.weights import load_weights
from monai_ext.workflow import refuse_unknown_ids

WORKFLOWS = ("train", "inference", "evaluate")
SAME_IDS = (
    "bundle_root", "dataset_dir", "datalist", "sources", "target", "network_def", "network", "discriminator_def",
    "objective", "output_dir", "device", "seed", "amp", "epochs", "batch_size", "image_size", "resume", "weights",
)  # fmt: skip
SECTIONS = (
    "authors", "tags", "model description", "data", "performance", "additional usage steps", "system configuration",
    "limitations", "citation", "references", "bundle commands",
)  # fmt: skip


def config(bundle: Path, name: str) -> dict:
    return ConfigParser.load_config_file(bundle / "configs" / f"{name}.json")


def tiny() -> dict[str, int]:
    return {"width": TINY["width"]}


def test_there_are_bundles():
    assert BUNDLES


def test_its_files_are_those_of_a_zoo_bundle(bundle: Path):
    wanted = [f"configs/{name}.json" for name in ("metadata", *WORKFLOWS, "multi_gpu_train")]
    for name in (*wanted, "configs/logging.conf", "docs/README.md", "LICENSE"):
        assert (bundle / name).is_file(), name
    assert (bundle / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_its_metadata_keep_the_schema(bundle: Path, tmp_path: Path):
    schema = tmp_path / "schema.json"  # MONAI downloads the one that is named unless it is there
    schema.write_text((ROOT / "monai_ext/zoo/metadata_schema.json").read_text())
    metadata = bundle / "configs" / "metadata.json"
    here("monai.bundle", "verify_metadata", "--meta_file", metadata, "--filepath", schema, cwd=tmp_path)
    content = config(bundle, "metadata")
    assert content["version"] in content["changelog"]
    assert re.search(r"not .*clinical", content["intended_use"])
    for key, direction in (("image", "inputs"), ("pred", "outputs")):
        tensor = content["network_data_format"][direction][key]
        assert len(tensor["channel_def"]) == tensor["num_channels"]
        assert tensor["value_range"] == [0, 1]


def test_its_metadata_name_the_versions_that_are_tested(bundle: Path):
    pinned = dict(re.findall(r"^([\w-]+)==([^;\s]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    content = config(bundle, "metadata")
    named = {
        **content["required_packages_version"],
        "monai": content["monai_version"],
        "torch": content["pytorch_version"],
    }
    assert {name: version for name, version in named.items() if pinned.get(name, version) != version} == {}


@pytest.mark.parametrize("section", SECTIONS)
def test_its_readme_has_the_zoos_sections(bundle: Path, section: str):
    text = (bundle / "docs" / "README.md").read_text()
    headings = [line.lstrip("# ").strip().lower() for line in text.splitlines() if line.startswith("#")]
    assert section in headings
    assert "not to be used clinically" in text


def test_its_ids_are_those_of_every_bundle(bundle: Path):
    there = config(bundle, "train")
    assert [name for name in SAME_IDS if name not in there] == []
    assert [name for name in ("trainer", "dataset", "handlers", "inferer") if name not in there["train"]] == []
    assert [name for name in ("evaluator", "dataset", "handlers") if name not in there["validate"]] == []


def test_a_training_writes_below_its_output_folder_and_never_over_shipped_weights(bundle: Path):
    train, adapt = (bundle / "configs" / f"{name}.json" for name in ("train", "adapt"))
    trainings = {"train": ([train], "model.pt")} | (
        {"adapt": ([train, adapt], "adapter.pt")} if adapt.is_file() else {}
    )
    for run, (files, name) in trainings.items():
        parser = ConfigParser(ConfigParser.load_config_files([str(path) for path in files]))
        parser["bundle_root"] = "/bundle"
        written = [parser.get_parsed_content(f"train#handlers#4#{key}") for key in ("folder", "weights")]
        assert written == [f"/bundle/runs/{run}/checkpoints", f"/bundle/runs/{run}/{name}"]
    assert config(bundle, "evaluate")["weights"] == "$@bundle_root + '/models/model.pt'"


def test_one_network_is_trained_evaluated_and_used(bundle: Path):
    definitions = [config(bundle, name)["network_def"] for name in WORKFLOWS]
    assert definitions[0] == definitions[1] == definitions[2]


def test_every_overlay_has_known_ids_alone(bundle: Path):
    own = {name.stem: ConfigParser.load_config_file(name) for name in (bundle / "configs").glob("*.json")}
    whole = [own[name] for name in WORKFLOWS]
    for name, overlay in {**own, "compact": ConfigParser.load_config_file(COMPACT)}.items():
        if "run" in overlay or name == "metadata":  # stands on its own
            continue
        refuse_unknown_ids(_merged(whole[0], overlay), whole)


def _merged(base: dict, overlay: dict) -> dict:
    parser = ConfigParser(json.loads(json.dumps(base)))
    parser.update({key.lstrip("+"): value for key, value in overlay.items()})
    return parser.get()


def test_every_id_that_stands_in_it_is_used(bundle: Path):
    for name in WORKFLOWS:
        content = config(bundle, name)
        text = json.dumps(content)
        entries = {"imports", "initialize", "run", "finalize"}
        properties = TrainProperties if name == "train" else InferProperties
        entries |= {value["id"].split("::")[0].split("#")[0] for value in properties.values()}
        dead = [key for key in content if key not in entries and not re.search(rf"[@%]{key}\b", text)]
        assert dead == [], f"{name}.json: nothing reads {dead}"


@pytest.mark.parametrize(("name", "kind"), [("train", "train"), ("inference", "inference"), ("evaluate", "inference")])
def test_it_has_the_properties_that_monai_asks_for(bundle: Path, name: str, kind: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parser = ConfigParser(config(bundle, name))
    properties = TrainProperties if kind == "train" else InferProperties
    required = [value["id"] for value in properties.values() if value["required"]]
    assert [one for one in required if one not in parser] == []


def test_its_network_takes_and_gives_what_the_metadata_say(bundle: Path, tmp_path: Path):
    configs = {name: bundle / f"configs/{name}.json" for name in ("inference", "metadata")}
    for any_size in (1, 37):
        pairs = {"config_file": configs["inference"], "meta_file": configs["metadata"], "any": any_size, **tiny()}
        here("monai.bundle", "verify_net_in_out", "network_def", *options(pairs), cwd=tmp_path)


def image_for(bundle: Path) -> torch.Tensor:
    channels = config(bundle, "metadata")["network_data_format"]["inputs"]["image"]["num_channels"]
    return torch.rand(1, channels, 40, 36, generator=torch.Generator().manual_seed(0))


def answer_of(bundle: Path, weights: Path) -> np.ndarray:
    """What the bundle's network makes of that image."""
    parser = ConfigParser({**config(bundle, "inference")})
    for key, value in tiny().items():
        parser[key] = value
    network = parser.get_parsed_content("network_def").eval()
    load_weights(network, weights)
    with torch.no_grad():
        return network(image_for(bundle)).numpy()


@pytest.fixture(scope="session")
def image(bundle: Path) -> torch.Tensor:
    return image_for(bundle)


@pytest.fixture(scope="session")
def expected(bundle: Path, trained: Path) -> np.ndarray:
    return answer_of(bundle, trained / "model.pt")


def test_script_archives_need_torch_alone_and_give_the_same(trained_of: Callable[[Path], Path], tmp_path: Path):
    """Every bundle's, in one Python that has torch and nothing of ours."""
    for one in BUNDLES:
        weights = trained_of(one) / "model.pt"
        pairs = {"filepath": tmp_path / f"{one.name}.ts", "ckpt_file": weights, **tiny()}
        pairs |= {"config_file": one / "configs/inference.json", "meta_file": one / "configs/metadata.json"}
        here("monai.bundle", "ckpt_export", "network_def", *options(pairs), cwd=tmp_path)
        torch.save(image_for(one), tmp_path / f"{one.name}.image")
    code = (
        "import sys, torch\n"
        "for name in sys.argv[1:]:\n"
        "    net = torch.jit.load(f'{name}.ts').eval(); assert 'monai' not in sys.modules\n"
        "    torch.save(net(torch.load(f'{name}.image')), f'{name}.answer')"
    )
    python("-c", code, *(one.name for one in BUNDLES), cwd=tmp_path)
    for one in BUNDLES:
        answer = torch.load(tmp_path / f"{one.name}.answer").detach().numpy()
        expected = answer_of(one, trained_of(one) / "model.pt")
        np.testing.assert_allclose(answer, expected, atol=1e-5, err_msg=one.name)


@pytest.mark.long
def test_its_onnx_archive_gives_the_same_to_onnxruntime(
    bundle: Path, trained: Path, image: torch.Tensor, expected: np.ndarray, tmp_path: Path
):
    import onnxruntime

    pairs = {"filepath": tmp_path / "model.onnx", "ckpt_file": trained / "model.pt", **tiny()}
    pairs |= {"config_file": bundle / "configs/inference.json", "input_shape": list(image.shape)}
    here("monai.bundle", "onnx_export", "network_def", *options(pairs), cwd=tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (answer,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    np.testing.assert_allclose(answer, expected, atol=1e-4)


def test_monai_loads_it_with_its_weights(
    bundle: Path, trained: Path, image: torch.Tensor, expected: np.ndarray, tmp_path: Path, monkeypatch
):
    here = tmp_path / bundle.name
    (here / "models").mkdir(parents=True)
    (here / "configs").symlink_to(bundle / "configs")
    for name in ("model.pt", "model.json"):
        (here / "models" / name).write_bytes((trained / name).read_bytes())
    monkeypatch.chdir("/")
    logging.getLogger("monai").setLevel(logging.ERROR)
    network = load(
        bundle.name,
        bundle_dir=str(tmp_path),
        source="github",
        repo="a/b/c",
        workflow_type="inference",
        net_override=tiny(),
        device="cpu",
    )
    with torch.no_grad():
        np.testing.assert_allclose(network.eval()(image).numpy(), expected, atol=1e-6)


def test_a_workflow_made_in_python_has_its_network(bundle: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workflow = create_workflow(
        config_file=str(bundle / "configs/inference.json"), workflow_type="inference", logging_file=False,
        bundle_root=str(bundle), **tiny(),
    )  # fmt: skip
    assert isinstance(workflow.network_def, torch.nn.Module)


def test_its_network_is_ours_and_its_arguments_are_named(bundle: Path):
    definition = config(bundle, "train")["network_def"]
    module, _, name = definition["_target_"].rpartition(".")
    assert module == "monai_ext.networks"
    network = getattr(__import__(module, fromlist=[name]), name)
    parameters = list(inspect.signature(network).parameters.values())
    assert all(one.kind is one.KEYWORD_ONLY and one.default is not one.empty for one in parameters)
