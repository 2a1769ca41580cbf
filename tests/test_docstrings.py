"""Every public item of the rooms that people call has a docstring; those without Args become fewer, never more."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "monai_ext"
ROOMS = ("networks", "ops", "data", "inference", "evaluation", "training", "synthesis", "serve")
WITHOUT_ARGS = 196  # of public items that take arguments: lower it when some are mended, do not raise it

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


def takes_arguments(item: Item) -> bool:
    """Whether a caller passes anything, to a class's constructor for a class."""
    if isinstance(item, ast.ClassDef):
        made = [one for one in item.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
        return any(takes_arguments(one) for one in made)
    return any(one.arg not in ("self", "cls") for one in (*item.args.args, *item.args.kwonlyargs))


def test_every_public_item_has_a_docstring() -> None:
    bare = [name for name, item in public_items() if not ast.get_docstring(item)]
    assert not bare, f"no docstring: {', '.join(bare)}"


def test_items_without_args_become_fewer() -> None:
    asking = [(name, ast.get_docstring(item) or "") for name, item in public_items() if takes_arguments(item)]
    lacking = [name for name, said in asking if "Args:" not in said]
    assert len(lacking) <= WITHOUT_ARGS, f"{len(lacking)} do not say Args: {'; '.join(lacking)}"
