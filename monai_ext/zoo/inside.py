"""The zoo's rules that run a bundle. A process of its own, started in the bundle's folder, so that what comes with the
bundle is what is run: `python -m monai_ext.zoo.inside` prints one JSON object, rule -> what is wrong.
"""

import contextlib
import io
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from monai.bundle import ConfigParser, ckpt_export, create_workflow, verify_net_in_out
from monai.bundle.properties import InferProperties, MetaProperties, TrainProperties

import monai_ext
from monai_ext.weights import load_weights
from monai_ext.workflow import opened

INFERENCE, METADATA, WEIGHTS = "configs/inference.json", "configs/metadata.json", "models/model.pt"
LOGGING = "configs/logging.conf"
SAME = 1e-4  # script and eager, float32


def vendored() -> Iterator[str]:
    """What is imported is what came along."""
    own = Path("monai_ext/__init__.py").is_file()
    for path in sorted(Path("configs").glob("*.json")):
        if not own and "monai_ext." in path.read_text(encoding="utf-8"):
            yield f"{path} needs monai_ext, which did not come along"
            return
    if own and not Path(monai_ext.__file__).is_relative_to(Path.cwd()):
        yield f"monai_ext comes from {monai_ext.__file__}, not from the bundle"


def properties() -> Iterator[str]:
    """As the zoo asks: training's ids are there; inference, made where there are no data, has what MONAI's check wants.

    The zoo checks for the applications that the metadata name, and so for none if they name none.
    """
    parser = ConfigParser(ConfigParser.load_config_file("configs/train.json"))
    for needed in ({str(key): value for key, value in entry.items()} for entry in TrainProperties.values()):
        identity = str(needed["id"])
        if needed["required"] and identity not in parser:
            yield f"configs/train.json lacks {identity.replace('::', '#')!r}, which MONAI asks for"
    if not ConfigParser.load_config_file(METADATA).get("supported_apps"):
        yield f"{METADATA} names no application in supported_apps, so that the zoo would check no property"
    workflow = create_workflow(  # MONAI's, not our own: as the zoo makes it
        config_file=INFERENCE, workflow_type="inference", bundle_root=".", meta_file=METADATA, logging_file=LOGGING
    )
    workflow.properties = {**MetaProperties, **InferProperties}
    for name in workflow.check_properties():
        yield f"{INFERENCE} lacks {name!r}, or has it where MONAI does not look for it"


def network() -> Iterator[str]:
    load_weights(_network(), WEIGHTS)  # raises, by name, what does not fit
    yield from ()


def net_in_out() -> Iterator[str]:
    verify_net_in_out("network_def", meta_file=METADATA, config_file=INFERENCE, device="cpu", p=1, n=5)
    yield from ()


def script() -> Iterator[str]:
    """The archive is made by scripting, loads, and gives what the network gives."""
    channels = ConfigParser.load_config_file(METADATA)["network_data_format"]["inputs"]["image"]["num_channels"]
    image = torch.rand(1, channels, 40, 36, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        archive = f"{folder}/model.ts"
        ckpt_export("network_def", archive, ckpt_file=WEIGHTS, meta_file=METADATA, config_file=INFERENCE)
        loaded = torch.jit.load(archive, map_location="cpu").eval()
    own = _network()
    load_weights(own, WEIGHTS)
    with torch.no_grad():
        made = own.eval()(image)
        apart = (loaded(image) - made).abs().max().item()
    if not bool(made.isfinite().all()):
        yield "the network makes values that are not finite: its weights are damaged"
    elif not apart <= SAME:
        yield f"the script archive's result is {apart:.2g} away from the network's, {SAME:g} is allowed"


def _network() -> torch.nn.Module:
    component = opened(ConfigParser.load_config_file(INFERENCE)).get_parsed_content("network_def")
    if not isinstance(component, torch.nn.Module):
        raise ValueError(f"{INFERENCE}: network_def is a {type(component).__name__}, expected a network")
    return component


RULES: dict[str, Callable[[], Iterator[str]]] = {
    "its own code": vendored,
    "properties": properties,
    "network_def and its weights": network,
    "verify_net_in_out": net_in_out,
    "script archive": script,
}


def main() -> int:
    """MONAI prints much: what counts goes to standard output alone, at the end."""
    logging.disable(logging.ERROR)
    answers: dict[str, list[str]] = {}
    for name, rule in RULES.items():
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                answers[name] = list(rule())
            except Exception as error:  # whatever a bundle's code raises is the answer
                root: BaseException = error
                while root.__cause__ is not None:
                    root = root.__cause__
                answers[name] = [" ".join(f"{type(root).__name__}: {root}".split())[:600]]
    print(json.dumps(answers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
