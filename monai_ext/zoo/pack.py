"""monai-ext pack BUNDLE --weights FILE --pool DIR: trained weights as they are shipped, in half precision, described.

Half precision halves the file; it is taken where the network's output on the pool's validation slices stays within
60 dB of what the full weights give, and full precision where it does not. PMM-Synth that was trained without PFM gets
it as the identity that it begins as, so that sites can be added.
"""

import argparse
import copy
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from monai_ext.catalogue import find_bundle
from monai_ext.data.phantoms.pool import SIDECAR
from monai_ext.data.phantoms.protocols import USUAL
from monai_ext.data.presets import Preset
from monai_ext.data.volumes import read_volume
from monai_ext.files import absolute, read_json, sha256, write_json
from monai_ext.networks import PMMSynth
from monai_ext.networks.adapters import personalised
from monai_ext.training.pool import PoolSlices, pool
from monai_ext.weights import about_weights, load_weights, read, write_tensors
from monai_ext.workflow import fitted, opened
from monai_ext.zoo import rules

AGREEMENT = 60.0  # dB
LARGEST = 20e6  # bytes
COMPARED = 8  # slices
LICENCE = "Apache-2.0"


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", help="a bundle's name or folder")
    add("--weights", type=Path, required=True, metavar="FILE", help="as training wrote them, with the JSON beside them")
    add("--pool", type=Path, required=True, metavar="DIR", help="the pool of phantoms that they were trained on")
    add("--out", type=Path, metavar="FILE", help="default: models/model.pt of the bundle")
    add(
        "--with", dest="others", action="append", default=[], metavar="FILE=SHARE",
        help="the mean with another point of a training, of which so much is taken (0 to 1)",
    )  # fmt: skip
    add("--note", action="append", default=[], metavar="KEY=TEXT", help="a fact of the training for the card")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    root = find_bundle(args.bundle)
    out = args.out or root / "models" / "model.pt"
    notes = {}
    for note in args.note:
        key, equals, text = note.partition("=")
        if not equals:
            raise ValueError(f"--note must be KEY=TEXT, got {note!r}")
        notes[key] = text
    others = {}
    for other in args.others:
        file, equals, share = other.rpartition("=")
        if not equals or not _is_share(share):
            raise ValueError(f"--with must be FILE=SHARE with a share from 0 to 1, got {other!r}")
        others[Path(file)] = float(share)
    about = pack(root, weights=args.weights, datalist=args.pool / "datalist.json", out=out, notes=notes, others=others)
    size = out.stat().st_size / 1e6
    print(f"{out}: {size:.1f} MB, {about['precision']}, {about['agreement_db']} dB, sha256 {about['sha256']}")
    return 0


def pack(
    root: Path,
    *,
    weights: Path,
    datalist: Path,
    out: Path,
    notes: Mapping[str, Any] | None = None,
    others: Mapping[Path, float] | None = None,
) -> dict[str, Any]:
    """Write `out` and its JSON, and return what that says.

    Args:
        root: the bundle's folder.
        weights: what training wrote.
        datalist: of the pool, whose validation slices the two precisions are compared on.
        out: the file to write.
        notes: more for the JSON; "data" there replaces what the pool's phantoms say of themselves.
        others: other points of a training, and the share of each in a mean; the rest is the share of `weights`.

    Raises:
        ValueError: the weights are another bundle's or do not fit its network or each other, shares above 1, or the
            file would be over 20 MB.
    """
    about = about_weights(weights)
    if not about:
        raise ValueError(f"{weights} has no JSON of its own beside it, so nobody can say what made it")
    if about.get("bundle") != root.name:
        raise ValueError(f"{weights} was made by {about.get('bundle')}, not by {root.name}")
    network = _network(root, about)
    load_weights(network, weights)
    slices = pool(datalist, "validation", sources=about["sources"], target=about["target"], varied=False)
    step = max(1, len(slices) // COMPARED)
    images = torch.stack([slices[number]["sources"] for number in range(0, len(slices), step)])
    full = _mean(read(absolute(weights)), others or {})
    network.load_state_dict(full)
    if about["network_def"].get("personalized") is False:
        about["network_def"]["personalized"] = True
        network = _network(root, about)
        assert isinstance(network, PMMSynth)
        full = personalised(network, full)
        network.load_state_dict(full)
    half = {name: value.half() if value.is_floating_point() else value for name, value in full.items()}
    agreement = _agreement(network, half, images)
    taken, precision = (half, "float16") if agreement >= AGREEMENT else (full, "float32")
    out = absolute(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    size = sum(value.numel() * value.element_size() for value in taken.values())
    if size > LARGEST:
        raise ValueError(
            f"{weights} would take {size / 1e6:.0f} MB, the most is {LARGEST / 1e6:.0f}: train a narrower one"
        )
    write_tensors(out, taken)
    card = {
        **about,
        "version": rules.metadata(root)["version"],  # whose network they fit
        "preset": about.get("preset") or asdict(_preset(slices)),
        "precision": precision,
        "agreement_db": round(agreement, 1),
        "licence": LICENCE,
        **({"averaged": {sha256(path)[:16]: share for path, share in others.items()}} if others else {}),
        **_data(slices),
        **(notes or {}),
        "sha256": sha256(out),
    }
    write_json(out.with_suffix(".json"), card)
    return about_weights(out)


def _network(root: Path, about: Mapping[str, Any]) -> nn.Module:
    """The bundle's, as wide and for as many contrasts as the weights."""
    config = fitted(ConfigParser.load_config_file(root / "configs" / "inference.json"), about)
    network: nn.Module = opened(config).get_parsed_content("network_def")
    return network


def _preset(slices: PoolSlices) -> Preset:
    """Pixels as large as the pool's; slices wherever a patient has them."""
    image = slices.subjects[0].images[slices.sources[0]]
    i, j, _ = (round(float(step), 3) for step in read_volume(image).spacing)
    return Preset(spacing=(i, j, None), trained_spacing=(i, j, None))


def _is_share(text: str) -> bool:
    """Say whether a text is a number from 0 to 1."""
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


def _mean(weights: dict[str, Tensor], others: Mapping[Path, float]) -> dict[str, Tensor]:
    """Counts, which are no floating-point numbers, are those of `weights`."""
    if sum(others.values()) > 1:
        raise ValueError(f"the shares of other weights come to {sum(others.values()):g}, 1 is all there is")
    mean = dict(weights)
    for path, share in others.items():
        other = read(absolute(path))
        if {name: value.shape for name, value in other.items()} != {name: v.shape for name, v in weights.items()}:
            raise ValueError(f"{path} is of another network: it cannot be averaged with these weights")
        for name, value in weights.items():
            if value.is_floating_point():
                mean[name] = mean[name].float() + share * (other[name].float() - value.float())
    return mean


def _data(slices: PoolSlices) -> dict[str, str]:
    """What a pool's phantoms say of themselves; nothing where its subjects do not say that they are phantoms."""
    folders = [next(iter(subject.images.values())).parent for subject in slices.subjects]
    facts = [dict(read_json(folder / SIDECAR)) for folder in folders if (folder / SIDECAR).is_file()]
    if len(facts) < len(folders):
        return {}
    people = {str(one.get("anatomy")) for one in facts}
    made = ", ".join(sorted({str(one.get("software")) for one in facts}))
    data = f"phantoms, no image of a patient, simulated by {made} on label maps such as {min(people)}"
    usual = {"target_flair_echo_ms": USUAL.flair, "shortest_t2_echo_ms": USUAL.t2}
    flair, t2 = (sorted({float(one.get(name, echo)) for one in facts}) for name, echo in usual.items())
    if flair + t2 != list(usual.values()):
        flair_ms, t2_ms = (" or ".join(f"{echo:g}" for echo in echoes) for echoes in (flair, t2))
        data += f" with an echo of {flair_ms} ms in the FLAIR to be made and of {t2_ms} ms or more in T2"
    return {"data": data}


@torch.no_grad()
def _agreement(network: nn.Module, weights: Mapping[str, Tensor], images: Tensor) -> float:
    """PSNR in dB between what the network makes of (B, M, H, W) and what it makes with other weights, in [0, 1]."""
    other = copy.deepcopy(network)
    other.load_state_dict(dict(weights))
    full, rounded = (
        torch.cat([model.eval()(part).clamp(0, 1) for part in images.split(4)]) for model in (network, other)
    )
    if not bool(full.isfinite().all()):
        raise ValueError("the network makes values that are not finite of these weights: train again")
    error = float((full - rounded).square().mean())
    return min(120.0, -10 * math.log10(max(error, 1e-12))) if math.isfinite(error) else 0.0
