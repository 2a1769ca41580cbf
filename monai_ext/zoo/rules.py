"""What the model zoo asks of a bundle's files, read without running any: each rule yields what is wrong, in words."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from monai_ext.files import sha256

SCHEMA = Path(__file__).with_name("metadata_schema.json")
LARGEST = 25_000_000  # bytes; the zoo takes what is larger by its address and hash
SECTIONS = (
    "authors", "tags", "model description", "data", "performance", "additional usage steps", "system configuration",
    "limitations", "citation", "references", "bundle commands",
)  # fmt: skip
WARNING = "not to be used clinically"
NEEDED = (
    "LICENSE", "configs/metadata.json", "configs/train.json", "configs/inference.json", "configs/logging.conf",
    "docs/README.md", "models/model.pt",
)  # fmt: skip
TEXTS = (".json", ".md", ".py", ".conf", ".yml", ".yaml", ".txt", ".cpp", ".cu", ".h", ".js", ".css", "")
PERSONAL = re.compile(r"(?:/home/|/Users/|/root/|[A-Z]:\\+Users\\+)[\w.-]+")
PLAIN_VERSION = re.compile(r"\d+\.\d+\.\d+")


def files(bundle: Path) -> Iterator[str]:
    large = {entry["path"] for entry in large_files(bundle)}
    for name in NEEDED:
        path = bundle / name
        if not path.is_file() and name not in large:
            yield f"{name} is missing"
        elif path.is_file() and path.stat().st_size == 0:
            yield f"{name} is empty"


def schema(bundle: Path) -> Iterator[str]:
    try:
        from jsonschema import Draft7Validator
    except ImportError:
        raise ValueError("metadata are checked with jsonschema, which is not here: pip install jsonschema") from None
    content = metadata(bundle)
    for fault in Draft7Validator(json.loads(SCHEMA.read_text(encoding="utf-8"))).iter_errors(content):
        where = "#".join(str(part) for part in fault.absolute_path)
        yield f"configs/metadata.json{f', {where}' if where else ''}: {fault.message}"


def version(bundle: Path) -> Iterator[str]:
    """The version is a plain one, has its line in the changelog, and no later one has."""
    content = metadata(bundle)
    own, changelog = str(content.get("version", "")), content.get("changelog", {})
    if not PLAIN_VERSION.fullmatch(own):
        yield f"configs/metadata.json: version must be three numbers such as 0.1.0, got {own!r}"
        return
    if own not in changelog:
        yield f"configs/metadata.json: changelog has no line for version {own}, only for {', '.join(changelog)}"
    later = [
        released for released in changelog if PLAIN_VERSION.fullmatch(released) and _numbers(released) > _numbers(own)
    ]
    if later:
        yield f"configs/metadata.json: version is {own}, but changelog goes on to {', '.join(later)}"


def readme(bundle: Path) -> Iterator[str]:
    path = bundle / "docs" / "README.md"
    if not path.is_file():
        return  # which `files` says
    text = path.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = [line.lstrip("# ").strip().lower() for line in prose.splitlines() if line.startswith("#")]
    if not prose.lstrip().startswith("# "):
        yield "docs/README.md does not begin with a title"
    for section in SECTIONS:
        if section not in headings:
            yield f"docs/README.md lacks the section {section.title()!r}"
    if WARNING not in text:
        yield f"docs/README.md does not say {WARNING!r}"


def weights(bundle: Path) -> Iterator[str]:
    """The weights are those that their JSON speaks of, and of this version of the bundle."""
    path = bundle / "models" / "model.pt"
    beside = path.with_suffix(".json")
    if not path.is_file():
        return
    if not beside.is_file():
        yield "models/model.json is missing: nothing says what made the weights"
        return
    about = json.loads(beside.read_text(encoding="utf-8"))
    if about.get("sha256") != sha256(path):
        yield "models/model.json speaks of other weights than models/model.pt: the sha256 differ"
    if about.get("version") != metadata(bundle).get("version"):
        own = metadata(bundle).get("version")
        yield f"models/model.json says version {about.get('version')}, configs/metadata.json {own}"


def sizes(bundle: Path) -> Iterator[str]:
    """What is too large for the zoo's repository is named in large_files.yml, with its address and hash."""
    named = {entry["path"]: entry for entry in large_files(bundle)}
    for path in contents(bundle):
        name = path.relative_to(bundle).as_posix()
        if path.stat().st_size > LARGEST and name not in named:
            yield f"{name} has {path.stat().st_size / 1e6:.1f} MB, over {LARGEST / 1e6:g}: large_files.yml must name it"
    for name, entry in named.items():
        lacking = [key for key in ("url", "hash_val", "hash_type") if not entry.get(key)]
        if lacking:
            yield f"large_files.yml: {name} lacks {', '.join(lacking)}"
        elif (bundle / name).is_file() and entry["hash_val"] != sha256(bundle / name):
            yield f"large_files.yml: {name} has another {entry['hash_type']} than is written there"


def paths(bundle: Path) -> Iterator[str]:
    """No file tells of the machine or the person that it comes from."""
    for path in contents(bundle):
        if path.suffix not in TEXTS:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            match = PERSONAL.search(line)
            if match:
                yield f"{path.relative_to(bundle).as_posix()}:{number} holds a personal path: {match[0]}"


RULES: dict[str, Callable[[Path], Iterator[str]]] = {
    "files": files,
    "metadata schema": schema,
    "version and changelog": version,
    "README": readme,
    "weights": weights,
    "large files": sizes,
    "no personal path": paths,
}


def metadata(bundle: Path) -> dict[str, Any]:
    path = bundle / "configs" / "metadata.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{bundle} is no bundle: it has no configs/metadata.json") from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected an object")
    return content


def large_files(bundle: Path) -> list[dict[str, str]]:
    path = bundle / "large_files.yml"
    if not path.is_file():
        return []
    import yaml

    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    entries = content.get("large_files", []) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(
        isinstance(e, dict) and isinstance(e.get("path"), str) for e in entries
    ):
        raise ValueError(f"{path.name} must list large_files, each with its path")
    return entries


def contents(bundle: Path) -> list[Path]:
    """Its files, without what running it leaves behind."""
    return [path for path in sorted(bundle.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
