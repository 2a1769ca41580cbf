"""A bundle's workflow: found by name, its ids checked before anything is built, its faults told in one line."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from monai_ext.bundle import refuse_unknown_ids
from monai_ext.catalogue import config_files, find_bundle
from monai_ext.runtime import keep_freed_memory

WORDS = {"true": True, "false": False, "null": None}


class Workflow(ConfigWorkflow):
    """MONAI's `ConfigWorkflow` that refuses an id its configs do not have, where MONAI would ignore it.

    `python -m monai.bundle run_workflow --workflow_name monai_ext.workflow.Workflow` takes it too.

    Args:
        config_file: the verb's config, then what is laid over it.
        ids: what is changed, by id; "a#b" is b within a. The words "true", "false" and "null" mean what JSON means.
        The rest is as in `ConfigWorkflow`.

    Raises:
        ValueError: an id that none of the configs has; the message names the nearest.
    """

    def __init__(self, config_file: str | Sequence[str], **ids: Any) -> None:
        files = [config_file] if isinstance(config_file, str) else list(config_file)
        known = [ConfigParser.load_config_file(path) for path in files]
        own = {key: ids.pop(key) for key in _arguments_of_monai() & set(ids)}
        ids = {key: WORDS.get(value, value) if isinstance(value, str) else value for key, value in ids.items()}
        refuse_unknown_ids(_nested(ids, known[0]), known)
        keep_freed_memory()
        super().__init__(config_file=files, **own, **ids)


def run_verb(
    bundle: Path | str,
    verb: str,
    *,
    overlays: Sequence[str] = (),
    tracking: str | None = None,
    ids: Mapping[str, Any] | None = None,
) -> None:
    """Run a verb of a bundle to its end, as MONAI's runner does with the same configs and ids.

    Args:
        bundle: a bundle's name, or the path of its folder.
        verb: "train", "evaluate" or "inference".
        overlays: configs laid over the verb's, by name ("compact") or path.
        tracking: "mlflow", or MONAI's settings for it.
        ids: what is changed, by id.

    Raises:
        ValueError: something that a person can put right; the message says what.
    """
    root = find_bundle(bundle)
    files = config_files(root, verb, overlays)
    if verb == "train" and int(os.environ.get("WORLD_SIZE", "1")) > 1:  # torchrun started us
        files.append(root / "configs" / "multi_gpu_train.json")
    extra: dict[str, Any] = {} if tracking is None else {"tracking": tracking}
    try:
        workflow = Workflow(
            [str(path) for path in files],
            workflow_type="train" if verb == "train" else "infer",
            **extra,
            **{"bundle_root": str(root), **(ids or {})},
        )
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    except RuntimeError as error:  # MONAI wraps what a component raises
        raise root_cause(error) from error


def root_cause(error: BaseException) -> BaseException:
    """What lies behind an error that others were raised from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _arguments_of_monai() -> set[str]:
    """What `ConfigWorkflow` and MONAI's tracking take beside a config's ids."""
    own = {"meta_file", "logging_file", "init_id", "run_id", "final_id", "tracking", "workflow_type", "properties_path"}
    return own | {"tracking_uri", "experiment_name", "run_name", "save_execute_config"}


def _nested(ids: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """{"a#b": 1} as {"a": {"_target_": ..., "b": 1}}, with the targets that the config has on the way."""
    tree: dict[str, Any] = {}
    for path, value in ids.items():
        *way, last = path.replace("::", "#").split("#")
        branch, there = tree, config
        for step in way:
            there = there.get(step, {}) if isinstance(there, Mapping) else {}
            made = branch.setdefault(step, {"_target_": there["_target_"]} if _is_component(there) else {})
            if not isinstance(made, dict):
                raise ValueError(f"{path} is within {step}, which is given as {made!r} too: give one of them")
            branch = made
        branch[last] = value
    return tree


def _is_component(config: Any) -> bool:
    return isinstance(config, Mapping) and "_target_" in config
