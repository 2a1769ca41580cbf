"""Every example in a docstring does what it shows."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "monai_ext"
FILES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path.read_text(encoding="utf-8")
    for path in sorted(PACKAGE.rglob("*.py"))
}
# Those that need somebody's scans are for reading: marked SKIP, they do not count.
WITH_EXAMPLES = [
    module
    for module, text in FILES.items()
    if any(">>> " in line and "+SKIP" not in line for line in text.splitlines())
]
# What people call most, whose docstrings are to show how.
CALLED_MOST = {
    "monai_ext.ops.float_roll": ("float_roll", "rolled_conv"),
    "monai_ext.ops.group_pool": ("group_pool",),
    "monai_ext.ops.selective_scan": ("selective_scan",),
    "monai_ext.networks.adapters": ("add_site",),
    "monai_ext.networks.agi_net": ("AGINet", "with_cagr"),
    "monai_ext.networks.baselines": ("ResNet",),
    "monai_ext.networks.discriminators": ("ContrastDiscriminators",),
    "monai_ext.networks.fd_gan": ("FDGAN",),
    "monai_ext.networks.hmf_mambainr": ("HMFMambaINR",),
    "monai_ext.networks.pmm_synth": ("PMMSynth",),
    "monai_ext.data.batching": ("ModalityConsistentBatches", "most_missing"),
    "monai_ext.data.datalist": ("read_datalist",),
    "monai_ext.data.layouts": ("index",),
    "monai_ext.data.masks": ("foreground",),
    "monai_ext.data.naming": ("bids", "folder"),
    "monai_ext.data.perturbations": ("perturb",),
    "monai_ext.data.prepare": ("prepare",),
    "monai_ext.data.resampling": ("resample", "to_ras"),
    "monai_ext.data.selection": ("select_subjects",),
    "monai_ext.data.slices": ("SliceDataset", "parse_rule"),
    "monai_ext.data.splits": ("parse_split", "split_subjects"),
    "monai_ext.data.volumes": ("read_volume",),
    "monai_ext.evaluation.metrics": ("compare_volumes",),
    "monai_ext.evaluation.protocol": ("chosen",),
    "monai_ext.inference.coarse": ("glance",),
    "monai_ext.inference.inferers": ("SlicesInferer",),
    "monai_ext.inference.maker": ("load_maker",),
    "monai_ext.synthesis.bundle": ("BundleSynthesiser",),
    "monai_ext.synthesis.options": ("asked", "as_words"),
    "monai_ext.training.checkpoints": ("random_state",),
    "monai_ext.training.description": ("describe",),
    "monai_ext.training.objectives": ("Pix2Pix", "weighted_l1"),
    "monai_ext.training.schedules": ("constant_then_linear",),
    "monai_ext.catalogue": ("find_bundle",),
    "monai_ext.modalities": ("canonical", "make_task"),
    "monai_ext.weights": ("save_weights", "load_weights"),
    "monai_ext.workflow": ("Workflow",),
}


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_do_what_they_show(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # where examples put their files
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert tried > 0
    assert failed == 0


@pytest.mark.parametrize(("module", "names"), CALLED_MOST.items())
def test_what_people_call_most_has_an_example(module: str, names: tuple[str, ...]) -> None:
    kinds = (ast.FunctionDef, ast.ClassDef)
    shown = [
        item.name
        for item in ast.parse(FILES[module]).body
        if isinstance(item, kinds) and doctest.DocTestParser().get_examples(ast.get_docstring(item) or "")
    ]
    assert set(names) <= set(shown)


def test_dozens_of_items_have_an_example_that_runs() -> None:
    several = (ast.FunctionDef, ast.ClassDef)
    items = [
        item for module in WITH_EXAMPLES for item in ast.walk(ast.parse(FILES[module])) if isinstance(item, several)
    ]
    runs = [
        item.name
        for item in items
        if any(
            doctest.SKIP not in example.options
            for example in doctest.DocTestParser().get_examples(ast.get_docstring(item) or "")
        )
    ]
    assert len(runs) >= 50, f"{len(runs)} items have one: {', '.join(runs)}"
