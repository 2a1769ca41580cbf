"""What the bundles share of their configs is the same in all of them, though each config stands alone."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from running import BUNDLES

# Of the ids that every bundle has, those that are a bundle's own: its contrasts, network, sizes and objective.
OWN = {
    "train": {
        "about#target", "batch_size", "discriminator_def#_target_", "epochs", "image_size", "imports", "learning_rate",
        "network_def#_target_", "objective#_target_", "slices", "sources", "target", "train#dataset#sources",
        "train#dataset#target", "train#handlers#3#titles", "validate#dataset#_target_", "width",
    },
    "inference": {
        "imports", "inferer#_target_", "inferer#margin", "network_def#_target_", "sources", "target", "width",
    },
    "evaluate": {
        "evaluator#predictor", "inferer#margin", "measured#paper#peak", "name", "network#_target_",
        "network_def#_target_", "run", "slices", "width",
    },
    "multi_gpu_train": set(),
    "phantom_train": {"epochs", "width"},
}  # fmt: skip


def leaves(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(id, value) of everything in a config that is neither a dictionary nor a list of them."""
    if isinstance(config, dict) and config:
        pairs = list(config.items())
    elif isinstance(config, list) and any(isinstance(one, dict) for one in config):
        pairs = [(str(number), one) for number, one in enumerate(config)]
    else:
        yield path, config
        return
    for key, value in pairs:
        yield from leaves(value, f"{path}#{key}" if path else key)


@pytest.mark.parametrize("verb", OWN)
def test_what_all_bundles_have_is_the_same_but_for_what_is_their_own(verb: str) -> None:
    configs = {root.name: json.loads((root / "configs" / f"{verb}.json").read_text()) for root in BUNDLES}
    each = {name: dict(leaves(config)) for name, config in configs.items()}
    everywhere = set.intersection(*(set(one) for one in each.values()))
    differing = {path for path in everywhere if len({json.dumps(one[path]) for one in each.values()}) > 1}
    apart = {path: {name: one[path] for name, one in each.items()} for path in sorted(differing - OWN[verb])}
    assert not apart, f"{verb}.json differs where the bundles share it: {apart}"
    assert differing == OWN[verb], f"{', '.join(OWN[verb] - differing)} no longer differ: they are shared now"
    assert len(everywhere - differing) >= {"train": 87, "inference": 60, "evaluate": 45}.get(verb, 3)
