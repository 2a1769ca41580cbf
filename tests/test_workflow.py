"""A workflow's ids are checked before anything is built, and its faults are one line."""

import sys
from pathlib import Path

import pytest
from monai.bundle import ConfigParser, create_workflow

from monai_ext import workflow
from monai_ext.catalogue import config_files, find_bundle
from monai_ext.workflow import SIZES, Workflow, refuse_unknown_ids

KNOWN = {
    "sources": ["T1"],
    "epochs": 3,
    "network_def": {"_target_": "torch.nn.Conv2d", "in_channels": 2},
    "train": {"trainer": {"_target_": "monai_ext.training.engine.PairedAdversarialTrainer"}, "handlers": [{"a": 1}]},
    "options": {"depth": 2},
}


def test_a_config_whose_ids_are_all_known_passes():
    refuse_unknown_ids(KNOWN, [KNOWN])
    refuse_unknown_ids({**KNOWN, "tracking_uri": "sqlite:///x", "_meta_": {"any": 1}}, [KNOWN])


@pytest.mark.parametrize(
    ("change", "path", "near"),
    [
        ({"sorces": ["T2"]}, "sorces", "sources"),
        ({"epoch": 4}, "epoch", "epochs"),
        ({"train": {"trainr": {}}}, "train#trainr", "trainer"),
        (
            {"train": {**KNOWN["train"], "trainer": {**KNOWN["train"]["trainer"], "acumulate": 2}}},
            "train#trainer#acumulate",
            "accumulate",
        ),
        ({"network_def": {**KNOWN["network_def"], "in_chanels": 2}}, "network_def#in_chanels", "in_channels"),
        ({"options": {"dept": 2}}, "options#dept", "depth"),
    ],
)
def test_a_misspelt_id_is_refused_with_the_nearest(change: dict, path: str, near: str):
    with pytest.raises(ValueError, match=f"has the id '{path}'; did you mean '{near}'"):
        refuse_unknown_ids({**KNOWN, **change}, [KNOWN])


def test_an_argument_that_the_config_leaves_to_its_default_may_be_overridden():
    refuse_unknown_ids({**KNOWN, "network_def": {**KNOWN["network_def"], "dilation": 2}}, [KNOWN])


def test_another_bundle_configs_ids_are_known_too():
    refuse_unknown_ids({**KNOWN, "overwrite": True}, [KNOWN, {"overwrite": False}])


def test_an_overlay_of_sizes_may_say_to_any_verb_what_the_compact_one_says():
    compact = ConfigParser.load_config_file(Path(__file__).parents[1] / "bundles" / "compact.json")
    assert set(compact) == set(SIZES)


def test_a_workflow_in_a_notebook_or_a_server_leaves_the_handler_of_errors_as_it_was():
    before = sys.excepthook
    files = str(find_bundle("agi_net") / "configs" / "inference.json")
    create_workflow(config_file=files, logging_file=False, weights="untrained", workflow_type="infer", images={})
    assert sys.excepthook is before


def test_weights_are_told_of_their_network_by_arguments_and_nothing_is_looked_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workflow, "current_workflow", lambda: pytest.fail("the interpreter's stack was walked"))
    files = [str(path) for path in config_files(find_bundle("agi_net"), "train")]
    ids = {"width": 8, "network_def#stages": ["down1"], "sources": ["T1", "T2", "PD"]}
    parser = Workflow(files, workflow_type="train", logging_file=False, bundle_root="/bundle", **ids).parser
    arguments = {"spatial_dims": 2, "in_channels": 3, "width": 8, "stages": ["down1"]}
    assert parser.get_parsed_content("about::network_def") == {
        "target": "monai_ext.networks.AGINet",
        "arguments": arguments,
    }
    assert parser.get_parsed_content("about::bundle_root") == "/bundle"


def test_an_id_within_what_an_overlay_put_there_is_known(tmp_path: Path):
    overlay = tmp_path / "phantoms.json"
    overlay.write_text('{"train#sampler": {"_target_": "torch.utils.data.SequentialSampler", "data_source": [1]}}')
    files = [str(path) for path in (*config_files(find_bundle("agi_net"), "train"), overlay)]
    made = Workflow(files, workflow_type="train", **{"train#sampler#data_source": [1, 2]})
    assert made.parser.get("train::sampler::data_source") == [1, 2]
    with pytest.raises(ValueError, match="no config of this bundle has the id 'train#sampler#rank'"):
        Workflow(files, workflow_type="train", **{"train#sampler#rank": 0})
