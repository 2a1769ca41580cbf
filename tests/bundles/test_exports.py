"""What docs/exports.md says: programs of torch.export need torch alone, and its snippets run as they stand."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running import BUNDLES, ROOT, here, options, python, smallest_weights

from monai_ext.__main__ import main
from monai_ext.synthesis.bundle import BundleSynthesiser


def snippet(name: str) -> str:
    """A block of the page, for small images."""
    page = (ROOT / "docs" / "exports.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^```python {name}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return found.replace("256", "32")


@pytest.mark.long
def test_programs_of_torch_export_need_torch_alone_and_give_the_same(tmp_path: Path):
    """Every bundle's, in one Python that has torch and nothing of ours."""
    expected = {}
    for bundle in BUNDLES:
        (tmp_path / bundle.name).mkdir()
        maker = BundleSynthesiser(bundle, weights=smallest_weights(bundle, tmp_path / bundle.name))
        network, image = maker.network.cpu().eval(), torch.rand(2, len(maker.contrasts), 40, 36)
        torch.export.save(torch.export.export(network, (image,)), tmp_path / f"{bundle.name}.pt2")
        torch.save(image, tmp_path / f"{bundle.name}.image")
        with torch.no_grad():
            expected[bundle.name] = network(image).numpy()
    code = (
        "import sys, torch\n"
        "for name in sys.argv[1:]:\n"
        "    net = torch.export.load(f'{name}.pt2').module(); assert 'monai_ext' not in sys.modules\n"
        "    torch.save(net(torch.load(f'{name}.image')).detach(), f'{name}.answer')"
    )
    python("-c", code, *expected, cwd=tmp_path)
    for name, wanted in expected.items():
        answer = torch.load(tmp_path / f"{name}.answer").numpy()
        np.testing.assert_allclose(answer, wanted, atol=2e-5, err_msg=name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With packed/agi_net in it, as the page has it."""
    folder = tmp_path_factory.mktemp("exports")
    (bundle,) = (path for path in BUNDLES if path.name == "agi_net")
    weights = smallest_weights(bundle, folder)
    assert main(["package", *map(str, (bundle, "--weights", weights, "--out", folder / "packed"))]) == 0
    return folder


@pytest.mark.long
def test_the_pages_export_runs_and_its_program_takes_other_sizes(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    exec(compile(snippet("export"), "export", "exec"), {"__name__": "__main__"})
    other = snippet("load").replace("rand(2, 2, 32, 32)", "rand(3, 2, 48, 40)")
    python("-c", other + "assert synthetic.shape == (3, 1, 48, 40)", cwd=folder)


def test_the_pages_onnx_file_answers_onnxruntime_as_the_network_does(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    packed = folder / "packed" / "agi_net"
    ids = {"bundle_root": packed, "config_file": packed / "configs/inference.json", "filepath": folder / "model.onnx"}
    ids |= {"ckpt_file": packed / "models/model.pt", "input_shape": [1, 2, 32, 32]}
    here("monai.bundle", "onnx_export", "network_def", *options(ids), cwd=folder)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(snippet("onnxruntime"), "onnxruntime", "exec"), names)
    image = torch.from_numpy(np.random.default_rng(0).random((1, 2, 32, 32), dtype=np.float32))
    with torch.no_grad():
        expected = BundleSynthesiser(packed).network.cpu().eval()(image)
    np.testing.assert_allclose(names["synthetic"], expected.numpy(), atol=1e-4)
