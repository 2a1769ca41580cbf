"""Arrows run down: no room imports a higher one, no folder another's private names, no package imports a bundle."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "monai_ext"
# Rooms of one height do not import each other, but for those of one folder.
HEIGHTS = (
    ("__main__", "verbs"),
    ("serve", "zoo"),
    ("synthesis",),
    ("report",),
    ("training", "inference", "evaluation"),
    ("networks", "data", "workflow"),
    ("weights", "ops", "provenance", "catalogue"),
    ("claims", "files", "runtime"),
    ("modalities",),
)
HEIGHT = {room: len(HEIGHTS) - number for number, rooms in enumerate(HEIGHTS) for room in rooms}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room_of(dotted: str) -> str:
    """monai_ext.data.slices -> data"""
    return dotted.split(".")[1]


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of everything of ours that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "monai_ext":
            for alias in node.names:
                if node.module != "monai_ext":
                    yield node.module, alias.name
                elif not alias.name.startswith("__"):
                    yield f"monai_ext.{alias.name}", ""
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("monai_ext."):
                    yield alias.name, ""


def test_every_room_has_its_height():
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in modules()}
    assert rooms == set(HEIGHT)


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_run_down_and_take_no_private_names(path: Path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    up = [module for module, _ in imports(path) if room_of(module) != own and HEIGHT[room_of(module)] >= HEIGHT[own]]
    assert not up, f"{own} imports what is not below it: {', '.join(up)}"
    private = [
        f"{module}.{name}"
        for module, name in imports(path)
        if (name.startswith("_") or module.rpartition(".")[2].startswith("_")) and room_of(module) != own
    ]
    assert not private, f"{own} imports private names: {', '.join(private)}"
