"""Run folders of methods whose errors are known, written by the evaluation itself from phantoms."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from monai_ext.data.phantom import make_phantom
from monai_ext.data.sites import SITES
from monai_ext.evaluation import Evaluation

SOURCES, TARGET = ("T1", "T2"), ("PD",)
SPACING = (3.5, 3.5, 5.0)


@dataclass(frozen=True)
class Method:
    """The truth, blurred (voxels), noisy, each slice off by `stripes`, and worse with every harm to a source."""

    name: str
    blur: float = 0.0
    noise: float = 0.02
    stripes: float = 0.0
    fragile: float = 0.5

    def predict(self, image: Tensor, item: Mapping[str, Any]) -> Tensor:
        rng = np.random.default_rng([sum(item["subject"].encode()), sum(self.name.encode())])
        truth = item["target"][0].numpy()
        skill = 1 + 0.4 * rng.standard_normal()  # of the method with this subject
        made = gaussian_filter(truth, (self.blur, self.blur, 0)) + self.noise * skill * rng.standard_normal(truth.shape)
        made += self.stripes * rng.standard_normal(truth.shape[2]) * (truth > 0.05)
        harm = (image - item["image"]).abs().mean(0).numpy()
        return torch.from_numpy((made + self.fragile * harm)[None].astype(np.float32))


class Phantoms:
    """Subjects as prepared ones come: in [0, 1], with a mask of the brain."""

    protocol: Mapping[str, Any] = {"slices": ["middle", 20]}

    def __init__(self, items: Sequence[Mapping[str, Any]]) -> None:
        self.items = items
        self.current: Mapping[str, Any] = {}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        self.current = self.items[index]
        return self.current


@pytest.fixture(scope="session")
def phantoms() -> list[dict[str, Any]]:
    """Twelve subjects of three phantoms: turned, brighter and darker, so that no two are alike."""
    items = []
    for index in range(12):
        if index < 3:
            phantom = make_phantom(
                SITES["healthy"], index=index, spacing=SPACING, contrasts=(*SOURCES, *TARGET), misalign=(0, 0)
            )
            whole = np.stack([phantom.images[name].array for name in (*SOURCES, *TARGET)])
            whole = np.clip(whole / np.percentile(whole, 99.5, axis=(1, 2, 3), keepdims=True), 0, 1)
            base = (whole.astype(np.float32), phantom.brain.array > 0, phantom.brain.affine)
            items.append(base)
        else:
            whole, brain, affine = items[index % 3]
            items.append((whole ** (0.8 + 0.06 * index), np.roll(brain, 0), affine))
    return [
        {
            "image": torch.from_numpy(whole[:2].copy()),
            "target": torch.from_numpy(whole[2:].copy()),
            "mask": torch.from_numpy(brain.copy())[None],
            "affine": torch.from_numpy(affine.copy()),
            "slices": np.arange(brain.shape[2] // 2 - 10, brain.shape[2] // 2 + 10),
            "subject": f"sub-{index + 1:02d}",
            "dataset": "healthy",
        }
        for index, (whole, brain, affine) in enumerate(items)
    ]


HARMS = ({"kind": "translate", "contrast": "T2", "levels": [0, 1, 2, 3]},)
BETTER = Method("AGI-Net", blur=0.4, noise=0.015, fragile=0.3)
WORSE = Method("ResUnet", blur=0.8, noise=0.03, stripes=0.04, fragile=0.6)


@pytest.fixture(scope="session")
def evaluate(phantoms: list[dict[str, Any]]) -> Callable[..., Path]:
    """evaluate(folder, method, subjects=..., ...) -> the run folder of a method on the first subjects."""

    def make(folder: Path, method: Method, *, subjects: int = 12, **options: Any) -> Path:
        items = options.pop("items", phantoms[:subjects])
        data = Phantoms(items)
        about = {
            "bundle": "fake",
            "name": method.name,
            "version": "0.1.0",
            "split": "test",
            "datalist_sha256": "ab" * 32,
            "weights": {"file": "model.pt", "sha256": method.name.encode().hex().ljust(64, "0")[:64]},
            "parameters": 19_150_000,
            "amp": "float32",
            "device": "test",
            "software": {"torch": torch.__version__},
        } | options.pop("about", {})
        Evaluation(
            data=data,
            predictor=lambda image: method.predict(image, data.current),
            sources=options.pop("sources", SOURCES),
            target=TARGET,
            output_dir=folder,
            about=about,
            perturbations=options.pop("perturbations", HARMS),
            **options,
        ).run()
        return folder

    return make


@pytest.fixture(scope="session")
def two_runs(evaluate: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("runs")
    return evaluate(root / "agi_net", BETTER), evaluate(root / "resunet", WORSE)
