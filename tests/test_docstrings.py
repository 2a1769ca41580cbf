"""Every public item of the rooms that people call says what it takes and what it gives."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "monai_ext"
ROOMS = ("networks", "ops", "data", "inference", "evaluation", "training", "synthesis", "serve")
ARGS = re.compile(r"^Args:\n((?: +.*\n|\n)+)", re.MULTILINE)
NAMES = re.compile(r"^ {4}([\w*]+(?:, [\w*]+)*): \S", re.MULTILINE)

Item = ast.FunctionDef | ast.ClassDef


def public_items() -> Iterator[tuple[str, Item]]:
    """(module's path and name, the class, function or method); a network's forward states shapes instead."""
    for path in sorted(file for room in ROOMS for file in (PACKAGE / room).rglob("*.py")):
        where = path.relative_to(PACKAGE).as_posix()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, Item) or node.name.startswith("_"):
                continue
            yield f"{where}: {node.name}", node
            for member in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(member, ast.FunctionDef) and not member.name.startswith("_") and member.name != "forward":
                    yield f"{where}: {node.name}.{member.name}", member


def arguments(item: Item) -> set[str]:
    """What a caller may pass, to a class's constructor for a class."""
    if isinstance(item, ast.ClassDef):
        made = [one for one in item.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
        return set().union(*map(arguments, made))
    given = item.args
    several = [one for one in (given.vararg, given.kwarg) if one is not None]
    named = {one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs, *several)}
    return named - {"self", "cls"}


def told_arguments(docstring: str) -> set[str]:
    """Those that stand under Args."""
    section = ARGS.search(docstring + "\n")
    lists = NAMES.findall(section[1]) if section else []
    return {name.lstrip("*") for names in lists for name in names.split(", ")}


def gives_something(item: Item) -> bool:
    if isinstance(item, ast.ClassDef) or item.returns is None:
        return False
    is_property = any("property" in ast.unparse(one) for one in item.decorator_list)
    return not is_property and ast.unparse(item.returns) != "None"


def test_every_public_item_has_a_docstring() -> None:
    bare = [name for name, item in public_items() if not ast.get_docstring(item)]
    assert not bare, f"no docstring: {', '.join(bare)}"


def test_args_name_every_argument_and_no_other() -> None:
    wrong = []
    for name, item in public_items():
        differing = arguments(item) ^ told_arguments(ast.get_docstring(item) or "")
        if differing:
            wrong.append(f"{name} ({', '.join(sorted(differing))})")
    assert not wrong, f"Args and the signature differ: {'; '.join(wrong)}"


def test_what_gives_something_says_what() -> None:
    said = ((name, ast.get_docstring(item) or "") for name, item in public_items() if gives_something(item))
    silent = [name for name, docstring in said if not re.search(r"^(Returns|Yields):\n {4}\S", docstring, re.MULTILINE)]
    assert not silent, f"neither Returns nor Yields: {'; '.join(silent)}"
