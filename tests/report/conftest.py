"""Run folders of methods whose errors are known, written by the evaluation itself from phantoms."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from methods import BETTER, HARMS, WORSE, Method, Phantoms

from monai_ext.data.phantoms.patients import make_phantom
from monai_ext.data.phantoms.sites import SITES
from monai_ext.evaluation.evaluation import Evaluation

SOURCES, TARGET = ("T1", "T2"), ("PD",)
SPACING = (3.5, 3.5, 5.0)


@pytest.fixture(scope="session")
def phantoms() -> list[dict[str, Any]]:
    """Twelve subjects of three phantoms, each of its own brightness."""
    items = []
    for index in range(12):
        if index < 3:
            phantom = make_phantom(
                SITES["healthy"], index=index, spacing=SPACING, contrasts=(*SOURCES, *TARGET), misalign=(0, 0)
            )
            whole = np.stack([phantom.images[name].array for name in (*SOURCES, *TARGET)])
            whole = np.clip(whole / np.percentile(whole, 99.5, axis=(1, 2, 3), keepdims=True), 0, 1)
            items.append((whole.astype(np.float32), phantom.brain.array > 0, phantom.brain.affine))
        else:
            whole, brain, affine = items[index % 3]
            items.append((whole ** (0.8 + 0.06 * index), brain, affine))
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
