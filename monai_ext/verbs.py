"""monai-ext train, evaluate: a bundle's configs with ids on the command line, as MONAI's runner takes them."""

import argparse
import ast
import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from monai_ext.catalogue import bundle_names, config_files, find_bundle

NULLABLE = ("seed", "canvas")  # null though the config has a value: a run not to be repeated, heads without a canvas
LISTS = ("sources", "modalities")  # of contrasts: T1,T2 is a list though the config's own value may be null
NAMED = ("amp", "slices")  # that may be a word too: bf16, nonempty
OPTIONS = ("size", "tracking", "tracking_uri", "experiment_name", "run_name")


def configure(command: argparse.ArgumentParser) -> None:
    """Say what the command takes: a bundle, then `--id value` as often as wanted."""
    verb = command.prog.split()[-1]
    command.usage = "%(prog)s BUNDLE [--size compact] [--ID VALUE ...]\n       %(prog)s BUNDLE --help"
    command.add_argument("bundle", metavar="BUNDLE", help=f"one of {', '.join(bundle_names())}, or a bundle's folder")
    command.add_argument("ids", nargs=argparse.REMAINDER, help="what is changed, by the config's id")
    command.set_defaults(run=lambda args: run(verb, args))


def run(verb: str, args: argparse.Namespace) -> int:
    """Do what the command line says.

    Args:
        verb: "train" or "evaluate".
        args: of the parser that `configure` filled.

    Returns:
        0, for what cannot be done raises.
    """
    root = find_bundle(args.bundle)
    config = json.loads(config_files(root, verb)[0].read_text(encoding="utf-8"))
    # MONAI's runner writes below the bundle, which may be an installed package: we where the person stands.
    here = {"runs": f"runs/{root.name}"} if "runs" in config else {}
    config |= here
    if {"-h", "--help"} & set(args.ids):
        print(described(root.name, verb, config))
        return 0
    options, ids = parsed(args.ids, config)

    from monai_ext.workflow import run_verb  # imports monai and torch, which --help does not need

    size = options.pop("size", None)
    tracking = options.pop("tracking", None)
    run_verb(root, verb, overlays=size.split(",") if size else (), tracking=tracking, ids={**here, **ids, **options})
    return 0


def parsed(words: Sequence[str], config: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """Read `--id value` and `--id=value`.

    Args:
        words: of the command line.
        config: whose ids they are.

    Returns:
        Our own options, and the config's ids with values of their own kind.

    Raises:
        ValueError: a word without its value, an id given twice, or a value of another kind than the config's.
    """
    options: dict[str, str] = {}
    ids: dict[str, Any] = {}
    unread = list(words)
    while unread:
        word = unread.pop(0)
        if not word.startswith("--") or word == "--":
            raise ValueError(f"expected --ID VALUE, got {word!r}; --help lists the ids")
        name, equals, text = word[2:].partition("=")
        if not equals:
            if not unread:
                raise ValueError(f"--{name} has no value")
            text = unread.pop(0)
        if not text.strip():
            raise ValueError(f"--{name} has no value")
        if name in options or name in ids:
            raise ValueError(f"--{name} is given twice")
        if name in OPTIONS:
            options[name] = text
        else:
            ids[name] = value_of(name, text, default=_default(config, name))
    return options, ids


def value_of(name: str, text: str, *, default: Any) -> Any:
    """Read what a text means where the config has `default`.

    Args:
        name: of the id, for the message.
        text: what was given.
        default: whose kind the value is to have.

    Raises:
        ValueError: the text is no number, list or yes and no where one is wanted, or null where the config has a value.
    """
    if name in LISTS and not text.startswith(("[", "(", "$", "@")) and text != "null":
        names = [part.strip() for part in text.split(",")]
        if not all(names):
            raise ValueError(f"--{name} must be contrasts with commas between them, such as T1,T2; got {text!r}")
        return names
    if text.startswith(("$", "@", "%")):
        return text  # an expression or a reference, as on MONAI's command line
    value = _literal(text)
    computed = isinstance(default, str) and default.startswith(("$", "@"))
    if value is None and default is not None and name not in NULLABLE:
        raise ValueError(f"--{name} must not be null, for its default is {json.dumps(default)}; leave it out for that")
    if value is None or default is None or computed:
        return value
    if isinstance(default, str):
        return value if isinstance(value, list | dict) else text
    kind, fits = _fits(value, default)
    if not fits and not (name in NAMED and isinstance(value, str)):
        raise ValueError(f"--{name} must be {kind}, as its default {json.dumps(default)} is; got {text!r}")
    return value


def _fits(value: Any, default: Any) -> tuple[str, bool]:
    """The kind that a default is, in words, and whether the value is of it."""
    if isinstance(default, bool):
        return "true or false", isinstance(value, bool)
    if isinstance(default, int):
        return "a whole number", isinstance(value, int) and not isinstance(value, bool)
    if isinstance(default, float):
        return "a number", isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, list):
        return "a list", isinstance(value, list)
    return "a dictionary", isinstance(value, dict)


def described(name: str, verb: str, config: Mapping[str, Any]) -> str:
    """List the ids that a person may set, with their defaults, as text for --help.

    Args:
        name: of the bundle.
        verb: "train" or "evaluate".
        config: of that verb.
    """
    lines = [f"monai-ext {verb} {name} [--size compact] [--tracking mlflow] [--ID VALUE ...]", "", "ids and defaults:"]
    for key, value in config.items():
        if key in ("imports", "initialize", "run", "finalize") or isinstance(value, dict):
            continue
        if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
            continue
        lines.append(f"  --{key:20} {json.dumps(value)}")
    parts = [key for key, value in config.items() if isinstance(value, dict)]
    lines += ["", f"and within {', '.join(parts)}: --network_def#width 32"]
    return "\n".join(lines)


def _literal(text: str) -> Any:
    """JSON or a Python literal, a tuple as a list; else the text itself."""
    for reader in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            value = reader(text)
            return list(value) if isinstance(value, tuple) else value
    return text


def _default(config: Mapping[str, Any], name: str) -> Any:
    """The config's own value at an id; None where there is none, which is said when the workflow is made."""
    value: Any = config
    for step in name.replace("::", "#").split("#"):
        if isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        elif isinstance(value, Mapping):
            value = value.get(step)
        else:
            return None
    return value
