"""A bundle's workflow: its ids checked before anything is built, its faults told in one line.

`Workflow` is what a command runs from beginning to end; `opened` gives a config whose parts are asked for one by one,
as servers and packing do, with values that are never evaluated. `check_config` is the first thing that every config
runs: it gives MONAI's own runner, which knows nothing of `Workflow`, the same checks.
"""

import copy
import difflib
import inspect
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.config_item import ComponentLocator
from monai.utils.module import locate

from monai_ext.catalogue import config_files, find_bundle
from monai_ext.claims import checked
from monai_ext.runtime import keep_freed_memory

# MONAI puts these into a config itself, where runs are tracked.
TRACKING = ("tracking_uri", "experiment_name", "run_name", "save_execute_config", "is_not_rank0", "_meta_")
WORDS = {"true": True, "false": False, "null": None}
# What an overlay of sizes says to every verb, though not all of them have a use for each.
SIZES = ("width", "discriminator_width", "image_size", "slices", "batch_size", "epochs", "learning_rate")
COMPONENT = ("_target_", "_disabled_", "_requires_", "_desc_", "_mode_", "_imports_")


class Workflow(ConfigWorkflow):
    """MONAI's `ConfigWorkflow` that refuses an id its configs do not have, where MONAI would ignore it.

    `python -m monai.bundle run_workflow --workflow_name monai_ext.workflow.Workflow` takes it too.

    Args:
        config_file: the verb's config, then what is laid over it.
        ids: what is changed, by id; "a#b" is b within a. The words "true", "false" and "null" mean what JSON means.
        The rest is as in `ConfigWorkflow`.

    Raises:
        ValueError: an id that none of the configs has; the message names the nearest.

    Example:
        >>> files = [str(file) for file in config_files(find_bundle("agi_net"), "train")]
        >>> workflow = Workflow(files, workflow_type="train", target="PD")
        >>> workflow.parser["target"]
        'PD'
        >>> Workflow(files, workflow_type="train", targte="PD")
        Traceback (most recent call last):
        ValueError: no config of this bundle has the id 'targte'; did you mean 'target'?
    """

    def __init__(self, config_file: str | Sequence[str], **ids: Any) -> None:
        files = [config_file] if isinstance(config_file, str) else list(config_file)
        laid = ConfigParser.load_config_files(files)
        own = {key: ids.pop(key) for key in _arguments_of_monai() & set(ids)}
        ids = {key: WORDS.get(value, value) if isinstance(value, str) else value for key, value in ids.items()}
        refuse_unknown_ids(_nested(ids, laid), [laid])
        keep_freed_memory()
        super().__init__(config_file=files, **own, **ids)
        _tell_network(self.parser)


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
    with unwrapped():
        workflow = Workflow(
            [str(path) for path in files],
            workflow_type="train" if verb == "train" else "infer",
            **extra,
            **{"bundle_root": str(root), **(ids or {})},
        )
        workflow.initialize()
        workflow.run()
        workflow.finalize()


def opened(config: Mapping[str, Any], values: Mapping[str, Any] | None = None) -> ConfigParser:
    """Open a config for its parts to be asked for, one by one.

    MONAI's parser runs a text that begins with "$", follows one with "@" or "%" and builds a dictionary with
    "_target_". The values are not read by it: one that has parsed looks an id up among its results before it looks at
    its config, and reads no result again.

    Args:
        config: of a bundle; it is left as it is.
        values: by id, what stays what it is, whatever it looks like: texts, paths and dictionaries too.

    Returns:
        The parser, which has done the config's imports.

    Example:
        >>> opened({"name": None, "said": "$'hello ' + @name"}, {"name": "$1 + 1"}).get_parsed_content("said")
        'hello $1 + 1'
    """
    keep_freed_memory()
    parser = ConfigParser(copy.deepcopy(dict(config)))
    parser.parse()
    parser.ref_resolver.resolved_content.update(values or {})
    if "imports" in parser:
        parser.get_parsed_content("imports")
    return parser


@contextmanager
def unwrapped() -> Iterator[None]:
    """Raise what a component raised, and not what MONAI makes of it."""
    try:
        yield
    except RuntimeError as error:
        raise root_cause(error) from None


def root_cause(error: BaseException) -> BaseException:
    """Find the error that MONAI wrapped, which is a RuntimeError each time; what it came from in turn is its own."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
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
        branch, within = tree, config
        for step in way:
            within = within.get(step, {}) if isinstance(within, Mapping) else {}
            inner = branch.setdefault(step, {"_target_": within["_target_"]} if _is_component(within) else {})
            if not isinstance(inner, dict):
                raise ValueError(f"{path} is within {step}, which is given as {inner!r} too: give one of them")
            branch = inner
        branch[last] = value
    return tree


def _is_component(config: Any) -> bool:
    return isinstance(config, Mapping) and "_target_" in config


def check_config(verb: str) -> None:
    """What every config runs first, so that `python -m monai.bundle run` refuses what `Workflow` refuses.

    MONAI's runner takes a misspelt id, or one of another verb, in silence; and where JSON has true, false and null,
    it takes the words. It tells an expression nothing of the workflow that evaluates it: that is looked up.

    Args:
        verb: the config's own name. Its ids are known, those of overlays beside it, and the sizes.

    Raises:
        ValueError: an id that is none of these; the message names the nearest.
    """
    keep_freed_memory()
    workflow = current_workflow()
    if workflow is None or isinstance(workflow, Workflow):
        return
    if _is_command_line():
        sys.excepthook = say
    each = {path.stem: ConfigParser.load_config_file(path) for path in workflow.config_root_path.glob("*.json")}
    each.pop("metadata", None)  # MONAI keeps them apart, under "_meta_": their ids are none of a config's
    own = [config for name, config in each.items() if name == verb or "imports" not in config]
    refuse_unknown_ids(workflow.parser.get(), [*own, dict.fromkeys(SIZES)])
    words = {path: WORDS[value] for path, value in _texts(workflow.parser.get()) if value in WORDS}
    workflow.parser.update(words)
    _tell_network(workflow.parser)
    workflow.parser.parse(reset=True)


def _tell_network(parser: ConfigParser) -> None:
    """Give the config's `about` what `network_def` says, as values: of a macro MONAI would build a second network."""
    about, definition = parser.get("about"), parser.get("network_def")
    if isinstance(about, Mapping) and "network_def" in about and _is_component(definition):
        arguments = {key: value for key, value in definition.items() if key != "_target_"}
        parser["about::network_def"] = {"target": definition["_target_"], "arguments": arguments}


def _is_command_line() -> bool:
    """Whether this process is MONAI's runner: a notebook or a server keeps its own way of telling errors."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name.startswith("monai.bundle")


def say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what we refuse as one line at the end of a run; a traceback is for faults in code.

    Args:
        kind, error, trace: as `sys.excepthook` gets them.
    """
    root = root_cause(error)
    frames = traceback.extract_tb(root.__traceback__)
    ours = bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parent)
    if isinstance(root, OSError) or (ours and isinstance(root, ValueError | ArithmeticError)):
        print(f"error: {root}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def current_workflow() -> ConfigWorkflow | None:
    """Find the workflow that evaluates the expression we are called from. It is not told, so the stack is asked."""
    frame = inspect.currentframe()
    while frame is not None:
        workflow = frame.f_locals.get("self")
        if isinstance(workflow, ConfigWorkflow):
            return workflow
        frame = frame.f_back
    return None


def refuse_unknown_ids(config: Mapping[str, Any], configs: Sequence[Mapping[str, Any]]) -> None:
    """Make sure that every id of `config` is one of those in `configs`, or an argument of the component it belongs to.

    Args:
        config: what was given, ids within ids.
        configs: a bundle's own.

    Raises:
        ValueError: one is none; the message names the nearest.
    """
    for path, allowed in _unknown(config, configs, path=""):
        near = difflib.get_close_matches(path.rpartition("::")[2], allowed, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(allowed))}"
        raise ValueError(f"no config of this bundle has the id {path.replace('::', '#')!r}; {hint}")


def _unknown(config: Any, configs: Sequence[Any], *, path: str) -> Iterator[tuple[str, list[str]]]:
    """Paths that are not known, each with what could have stood there."""
    if not isinstance(config, Mapping):
        return
    dictionaries = [other for other in configs if isinstance(other, Mapping)]
    allowed = {key for other in dictionaries for key in other}
    target = config.get("_target_")
    if target is not None:
        arguments = _arguments(target)
        if arguments is None:  # takes any
            return
        allowed |= {*arguments, *COMPONENT}
    elif path == "":
        allowed |= set(TRACKING)
    elif not dictionaries:
        return  # a plain dictionary that is a value: whoever it is given to judges it
    for key, value in config.items():
        where = f"{path}::{key}" if path else key
        if key not in allowed:
            yield where, sorted(allowed)
        elif key != "_meta_":
            yield from _unknown(value, [other[key] for other in dictionaries if key in other], path=where)


def _texts(config: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a config, with its id."""
    pairs = config.items() if isinstance(config, Mapping) else enumerate(config) if isinstance(config, list) else ()
    for key, value in pairs:
        where = f"{path}::{key}" if path else str(key)
        if isinstance(value, str):
            yield where, value
        elif key != "_meta_":
            yield from _texts(value, where)


def _arguments(target: Any) -> set[str] | None:
    """The names that a component's `_target_` takes, None if it takes any or cannot be asked."""
    if not isinstance(target, str) or target.startswith(("$", "@", "%")):
        return None
    component: Any = locate(target)
    if component is None:
        modules = ComponentLocator().get_component_module_name(target)
        component = locate(f"{modules[0] if isinstance(modules, list) else modules}.{target}") if modules else None
    try:
        parameters = inspect.signature(component).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters}


def fitted(config: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """Give the config with what these weights were trained with where its own values are others: contrasts and
    widths.

    Args:
        config: of the bundle.
        about: what the weights say, checked.

    Raises:
        ValueError: the weights were made with another network, or with arguments that this one does not have.
    """
    about = checked(about, of="what the weights say")
    config = dict(config)
    for name in ("sources", "target"):
        if name in about and config.get(name) is not None:  # null is any, whatever the weights
            single = isinstance(config[name], str) and len(about[name]) == 1
            config[name] = about[name][0] if single else about[name]
    if "preset" in config and config["preset"] is None and about.get("preset"):
        config["preset"] = about["preset"]  # for the archive that is made of this config has no JSON beside it
    if "canvas" in config and about.get("canvas"):
        config["canvas"] = about["canvas"]
    definition = dict(config["network_def"])
    arguments = _arguments(definition.get("_target_"))
    for key, value in about.get("network_def", {}).items():
        own = definition.get(key)
        if key == "_target_":
            if value != own:
                raise ValueError(f"the weights were made with the network {value!r}, this bundle's is {own!r}")
            continue
        if arguments is not None and key not in arguments:
            raise ValueError(f"the weights were made with {key!r}, which {definition['_target_']} does not have")
        reference = own[1:] if isinstance(own, str) and own.startswith("@") else None
        if reference in config:
            config[reference] = value
        elif not (isinstance(own, str) and own.startswith("$")):  # an expression of the contrasts, which were set
            definition[key] = value
    if about.get("sites"):
        definition["sites"] = about["sites"]
    return {**config, "network_def": definition}
