"""python -m monai_ext package BUNDLE --weights FILE --out DIR: a folder and a zip that work alone.

What the bundle takes from this package comes along inside it, the kernels' sources too: a machine needs no more than
the packages that the metadata name.
"""

import argparse
import json
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from monai_ext.files import absolute, sha256, whole_file, write_json
from monai_ext.ops.building import PACKAGE
from monai_ext.weights import RoomFor, about_weights, load_weights, save_weights
from monai_ext.workflow import fitted, opened, unwrapped
from monai_ext.zoo import rules

WORKFLOWS = ("train", "inference", "evaluate")
LABEL_MAKES = ("bin", "lib", "logs", "model")  # folders of MONAI Label's server in its app's
# What the zoo's linters are told of our code: imports are sorted with this package as a group of its own, A, B, C and D
# are a paper's names, and quotes that stand in a string are HTML's.
LINTERS = "# isort: skip_file\n# flake8: noqa: N803, N806, B907\n"
LEFT_BEHIND = shutil.ignore_patterns("__pycache__", ".*", "*.pyc", *LABEL_MAKES)


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="a bundle's folder, such as bundles/NAME")
    add("--weights", type=Path, required=True, metavar="FILE", help="its model.pt, with the JSON beside it")
    add("--out", type=Path, required=True, metavar="DIR", help="where NAME/ and NAME_vVERSION.zip are written")
    add("--url", metavar="ADDRESS", help="the folder that files over 25 MB are downloaded from")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    folder, archive = package(args.bundle, weights=args.weights, out=args.out, url=args.url)
    print(f"{folder}\n{archive} ({archive.stat().st_size / 1e6:.1f} MB)\nnow: python -m monai_ext verify {folder}")
    return 0


def package(bundle: Path, *, weights: Path, out: Path, url: str | None = None) -> tuple[Path, Path]:
    """The folder and the zip, written whole or not at all; whatever the zoo would refuse is refused first."""
    bundle, weights, out = absolute(bundle), absolute(weights), absolute(out)
    version = rules.metadata(bundle).get("version")
    if not weights.is_file():
        raise ValueError(f"{weights}: there are no weights; train first, or say with --weights where they are")
    folder, archive = out / bundle.name, out / f"{bundle.name}_v{version}.zip"
    for path in (folder, archive):
        if path.exists():
            raise ValueError(f"{path} is there already and is kept: give another --out, or remove it")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".package-") as work:
        packed = Path(work) / bundle.name
        try:
            _gather(packed, bundle, weights)
        except shutil.Error as error:  # a list with a line for every file of the tree
            first = error.args[0][0]
            raise OSError(f"nothing was packed: {first[0]} could not be copied to {out}: {first[2]}") from error
        _name_large_files(packed, url)
        faults = [fault for rule in rules.RULES.values() for fault in rule(packed)]
        if faults:
            raise ValueError(f"{bundle.name} cannot be packaged:\n  " + "\n  ".join(faults))
        with whole_file(archive) as partial:
            _zip(packed, partial)
            packed.rename(folder)
    return folder, archive


def _gather(packed: Path, bundle: Path, weights: Path) -> None:
    about = about_weights(weights)
    version = rules.metadata(bundle)["version"]
    if about.get("bundle", bundle.name) != bundle.name:
        raise ValueError(f"{weights} was made by {about['bundle']}, not by {bundle.name}")
    if about.get("version", version) != version:
        raise ValueError(f"{weights} was made by version {about['version']} of {bundle.name}, which is now {version}")
    for part in ("configs", "docs"):
        if (bundle / part).is_dir():
            shutil.copytree(bundle / part, packed / part, ignore=LEFT_BEHIND)
    if (bundle / "LICENSE").is_file():
        shutil.copy(bundle / "LICENSE", packed / "LICENSE")
    shutil.copytree(PACKAGE, packed / "monai_ext", ignore=_left_behind)
    if not (packed / "monai_ext" / "cuda_ops").is_dir():  # a checkout has them beside the package, a wheel within
        shutil.copytree(PACKAGE.parent / "cuda_ops", packed / "monai_ext" / "cuda_ops", ignore=LEFT_BEHIND)
    for path in (packed / "monai_ext").rglob("*.py"):
        path.write_text(LINTERS + path.read_text(encoding="utf-8"), encoding="utf-8")
    for name in WORKFLOWS:
        path = packed / "configs" / f"{name}.json"
        if path.is_file():
            config = ConfigParser.load_config_file(path)
            if (wanted := fitted(config, about)) != config:
                write_json(path, wanted)
    _describe_channels(packed / "configs" / "metadata.json", about)
    _own_commands(packed, bundle)
    inference = opened(ConfigParser.load_config_file(packed / "configs" / "inference.json"))
    with unwrapped(), RoomFor(weights):
        network = inference.get_parsed_content("network_def")
    load_weights(network, weights)  # refuses what does not fit, by name
    save_weights(packed / "models" / "model.pt", network, {"bundle": bundle.name, "version": version, **about})


def _left_behind(folder: str, names: list[str]) -> set[str]:
    """What nobody needs there, and the other bundles, which an installed package holds."""
    return LEFT_BEHIND(folder, names) | ({"bundles"} & set(names) if Path(folder) == PACKAGE else set())


def _describe_channels(path: Path, about: Mapping[str, Any]) -> None:
    """The metadata's channels by name, where these weights have other contrasts than the paper's."""
    content = json.loads(path.read_text(encoding="utf-8"))
    for direction, key, names in (("inputs", "image", about.get("sources")), ("outputs", "pred", about.get("target"))):
        tensor = content["network_data_format"][direction][key]
        if names and len(names) == tensor["num_channels"]:
            tensor["channel_def"] = {str(number): name for number, name in enumerate(names)}
        elif names and list(tensor["channel_def"].values()) != list(names):
            tensor["num_channels"] = len(names)
            tensor["channel_def"] = {str(number): name for number, name in enumerate(names)}
    write_json(path, content)


def _own_commands(packed: Path, bundle: Path) -> None:
    """The commands in the README begin in the bundle's own folder now."""
    for shared in (bundle.parent / "compact.json", bundle.parent / "phantoms.json"):
        if shared.is_file():
            shutil.copy(shared, packed / "configs" / shared.name)
    readme = packed / "docs" / "README.md"
    if readme.is_file():
        text = readme.read_text(encoding="utf-8")
        for before, after in (
            (f"--bundle_root bundles/{bundle.name}", "--bundle_root ."),
            (f"--bundle bundles/{bundle.name}", "--bundle ."),
            (f"bundles/{bundle.name}/", ""),
            (f"bundles/{shared.name}", f"configs/{shared.name}"),
        ):
            text = text.replace(before, after)
        readme.write_text(text, encoding="utf-8")


def _name_large_files(packed: Path, url: str | None) -> None:
    large = [path for path in rules.contents(packed) if path.stat().st_size > rules.LARGEST]
    if not large:
        return
    names = [path.relative_to(packed).as_posix() for path in large]
    if not url:
        raise ValueError(
            f"{', '.join(names)}: over {rules.LARGEST / 1e6:g} MB, which the zoo takes by address alone: "
            "say with --url which folder it will be downloaded from"
        )
    lines = ["large_files:"]
    for path, name in zip(large, names, strict=True):
        lines += [f'- path: "{name}"', f'  url: "{url.rstrip("/")}/{path.name}"']
        lines += [f'  hash_val: "{sha256(path)}"', '  hash_type: "sha256"']
    (packed / "large_files.yml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _zip(folder: Path, path: Path) -> None:
    """The same files give the same zip, byte for byte, whenever it is made."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in rules.contents(folder):
            info = zipfile.ZipInfo(file.relative_to(folder.parent).as_posix(), date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(info, file.read_bytes())
