"""One phantom: a person's anatomy, bent, diseased, and scanned; and the canonical image of each contrast beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from monai_ext.data.phantoms.acquisition import Acquisition, apparent_diffusion, scan, stripped
from monai_ext.data.phantoms.anatomy import BRAIN, CLASSES, FAR
from monai_ext.data.phantoms.drawing import Subject
from monai_ext.data.phantoms.protocols import ADC_TOP, CANONICAL_FLOW, FIELD, WHITE, WIDE_FLUID
from monai_ext.data.phantoms.sequences import Sequence as Played
from monai_ext.data.phantoms.sequences import fresh, signal
from monai_ext.data.phantoms.shapes import Sampled, enlarged, posed
from monai_ext.data.phantoms.tissues import Tissue, diseased, slower, tissues, wetter

TOP = 99.5  # percentile of the foreground that becomes 1 in what was scanned, as `prepare` does
FLUID = ("ventricle", "csf")
VARIED = ("gm", "wm", "deep", "muscle")  # tissues whose water varies from place to place


@dataclass(frozen=True)
class Rendered:
    """On the grid: images as scanned, unscaled; targets in [0, 1]; masks and a label map, boolean and whole numbers."""

    images: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]
    brain: Tensor
    foreground: Tensor
    lesion: Tensor
    label: Tensor


@dataclass(frozen=True)
class _Body:
    """Tissue in N voxels of the rendering grid, `at`: shares (C, N), how water and T2 vary (N,), what is diseased."""

    names: tuple[str, ...]
    at: Sampled
    shares: Tensor
    water: Tensor
    relaxation: Tensor  # more T2 than the tissue's, as a fraction: iron, myelin and fibres' order, at the same T1
    flow: Tensor  # (N,) how open the fluid is to motion, 0 to 1
    where: Tensor  # (D,) which of the N are diseased
    weight: Tensor  # (D,)
    disease: tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class _Scene:
    """A head in one pose, on the rendering grid; `mask`, which is on the grid, is all that an image shows of it."""

    body: _Body
    depth: Tensor  # mm below the brain's surface
    parts: Tensor  # of the label map, one a number
    mask: Tensor


@torch.no_grad()
def render(subject: Subject, *, device: torch.device | str = "cpu", targets: bool = True) -> Rendered:
    """The subject's images, on any device to 1e-4 the same.

    Args:
        subject: what was drawn.
        device: where it is computed.
        targets: whether the canonical images are made too.

    Returns:
        Everything on the subject's grid; masks and targets are those of contrasts that keep still.
    """
    grid, lesions = subject.grid, subject.lesions
    ill = bool(lesions.maps[0].any())
    maps = [subject.anatomy.channels(head=subject.stripping is None, device=device)]
    if ill:
        maps.append(torch.from_numpy(lesions.maps).to(device).float())
    labels = [] if lesions.label is None else [int(value) for value in np.unique(lesions.label) if value]
    if labels:
        parted = np.stack([lesions.label == value for value in labels])
        maps.append(torch.from_numpy(parted).to(device).float())
    if grid.step > subject.anatomy.step:  # a voxel that is larger than the anatomy's shows the mean of what is in it
        maps = [_box_mean(one, grid.step / subject.anatomy.step) for one in maps]

    still = _scene(subject, maps, ill=ill, parts=len(labels))
    poses: dict[bytes, list[str]] = {}
    for name in subject.contrasts:
        poses.setdefault(subject.poses[name].tobytes() if name in subject.poses else b"", []).append(name)
    images: dict[str, Tensor] = {}
    for names in poses.values():
        pose = subject.poses.get(names[0])
        scene = still if pose is None else _scene(subject, maps, ill=ill, parts=len(labels), pose=pose)
        images |= _scans(subject, scene, names)
    lesion = torch.zeros(grid.rendered, device=maps[0].device)
    lesion.view(-1)[still.body.at.where[still.body.where]] = still.body.weight
    lesion = (grid.average(lesion) > 0.3) & still.mask
    label = lesion.to(torch.uint8)  # of diseases that have no parts
    if labels:
        parts = grid.average(still.parts)
        largest, which = parts.max(dim=0)
        values = torch.tensor(labels, dtype=torch.uint8, device=which.device)
        label = values[which] * ((parts.sum(dim=0) > 0.5) & (largest > 0) & still.mask)
    return Rendered(
        images={name: images[name] for name in subject.contrasts},
        targets=_targets(subject, still) if targets else {},
        brain=grid.average((still.depth > 0).float()) > 0.5,
        foreground=still.mask,
        lesion=lesion,
        label=label,
    )


def _scene(
    subject: Subject, maps: Sequence[Tensor], *, ill: bool, parts: int, pose: NDArray[np.float64] | None = None
) -> _Scene:
    grid, anatomy = subject.grid, subject.anatomy
    sampled = subject.placement.sample(
        maps, centre=anatomy.centre, step=anatomy.step, shape=grid.rendered, spacing=grid.step, pose=pose
    )
    body, depth = _body(subject, sampled, CLASSES if subject.stripping is None else BRAIN, ill=ill, pose=pose)
    if subject.stripping is not None:
        mask = grid.average(stripped(depth, subject.stripping).float()) > 0.5
    else:
        mask = _outline(grid.average(sampled.whole(body.shares.sum(0))))
    return _Scene(body, depth, sampled.whole(sampled.values[len(sampled.values) - parts :]), mask)


def _scans(subject: Subject, scene: _Scene, names: Sequence[str]) -> dict[str, Tensor]:
    """What the scanner gives of contrasts that were taken in one pose."""
    grid = subject.grid
    played = _played(subject.protocol, names)
    signals = _signals(scene.body, subject.table, played)
    images = {}
    for name in names:
        acquisition = subject.acquisitions[name]
        source = "DWI" if name == "ADC" else name
        white = abs(float(signal(subject.table["wm"], played[source])))
        clean = signals[source]
        if name in ("T1", "T1C"):  # reconstructed with its sign: fluid still inverted is black and has no outline
            clean = clean.clamp(min=0)
        image = scan(clean, acquisition, white=white, spacing=grid.step, grid=grid)
        if name == "ADC":
            still = scan(signals["b0"], _replaced_seed(acquisition), white=white, spacing=grid.step, grid=grid)
            image = apparent_diffusion(still, image, played["DWI"].b) * (still > 8 * acquisition.noise * white)
        else:
            image = image**acquisition.gamma
        images[name] = image if subject.stripping is None else image * scene.mask
    return images


def _targets(subject: Subject, scene: _Scene) -> dict[str, Tensor]:
    """The canonical image of each contrast."""
    grid, pure = subject.grid, tissues(FIELD)
    played = _played(subject.canonical, subject.contrasts)
    ideal = _signals(scene.body, pure, played, target=True)
    targets = {}
    for name in subject.contrasts:
        if name == "ADC":
            still, weighted = (grid.average(ideal[source]) for source in ("b0", "DWI"))
            diffusion = apparent_diffusion(still.abs(), weighted.abs(), subject.canonical["ADC"].b)
            target = diffusion * (still > 0.05 * float(signal(pure["wm"], played["b0"]))) / ADC_TOP
        else:
            target = grid.average(ideal[name]).abs() * (WHITE[name] / abs(float(signal(pure["wm"], played[name]))))
        targets[name] = (target if subject.stripping is None else target * scene.mask).clamp(0, 1)
    return targets


def _played(protocol: Mapping[str, Played], names: Sequence[str]) -> dict[str, Played]:
    """What is scanned for these contrasts: ADC takes an image with diffusion weighting and one without, b0."""
    played = {name: protocol[name] for name in names if name != "ADC"}
    if "ADC" in names:
        played["b0"], played["DWI"] = replace(protocol["ADC"], b=0.0), protocol["ADC"]
    return played


def _body(
    subject: Subject, sampled: Sampled, names: tuple[str, ...], *, ill: bool, pose: NDArray[np.float64] | None
) -> tuple[_Body, Tensor]:
    shape = subject.grid.rendered
    device = sampled.values.device
    count = len(names)
    shares, depth = sampled.values[:count], sampled.values[count] - FAR
    smooth, fine, folds, broad, narrow = (
        sampled.of(posed(noise.to(device), shape, pose=pose, spacing=subject.grid.step)) for noise in subject.texture
    )
    # Sulci as wide as this person's: shift the balance where the brain is, keep the sum.
    brain = shares[: len(BRAIN)]
    index = {name: number for number, name in enumerate(names)}
    total = brain.sum(dim=0)
    inside = depth > -2
    factor = torch.exp((subject.atrophy + 0.35 * folds).clamp(-1.2, 1.6))
    shares[index["csf"]] = torch.where(inside, shares[index["csf"]] * factor, shares[index["csf"]])
    change = total / shares[: len(BRAIN)].sum(dim=0).clamp(min=1e-6)
    shares[: len(BRAIN)] *= change
    if count > len(BRAIN):
        mottled = (1 + 0.5 * folds + 0.3 * fine).clamp(0, 2)
        moved = shares[index["muscle"]] * (0.25 * (mottled - 1)).clamp(-0.2, 0.5)
        shares[index["muscle"]] -= moved.clamp(min=0)
        shares[index["fat"]] += moved.clamp(min=0)
    water = 0.045 * smooth + 0.02 * fine
    relaxation = 0.05 * broad + 0.03 * narrow
    fluid = sampled.whole(shares[index["csf"]])
    wide = functional.avg_pool3d(
        fluid[None, None],
        _odd(7 / subject.grid.step),
        stride=max(round(3 / subject.grid.step), 1),
        padding=_odd(7 / subject.grid.step) // 2,
    )
    openness = sampled.of(enlarged(wide[0, 0], shape)).clamp(0, 1)
    none = torch.zeros(0, device=device)
    where, weight, disease = none.long(), none, (none,) * 4
    if ill:
        maps = sampled.values[count + 1 : count + 6]
        where = torch.nonzero(maps[0] > 0.01)[:, 0]
        lesion_maps = maps[:, where]
        weight = lesion_maps[0]
        disease = (lesion_maps[1] / weight, lesion_maps[2] / weight, lesion_maps[3] / weight, lesion_maps[4] / weight)
    return (
        _Body(
            names=names,
            at=sampled,
            shares=shares,
            water=water,
            relaxation=relaxation,
            flow=openness,
            where=where,
            weight=weight,
            disease=disease,
        ),
        sampled.whole(depth, else_=-FAR),
    )


def _box_mean(maps: Tensor, width: float) -> Tensor:
    """The mean over a cube of this many voxels around each, those that it cuts counted by their share; (C, I, J, K)."""
    shares = [min(width / 2 + 0.5 - offset, 1) / width for offset in range(int(np.ceil((width + 1) / 2)))]
    for axis in (1, 2, 3):
        total = maps * shares[0]
        for offset, share in enumerate(shares[1 : maps.shape[axis]], 1):  # which a convolution takes far longer for
            remaining = maps.shape[axis] - offset
            total.narrow(axis, offset, remaining).add_(maps.narrow(axis, 0, remaining), alpha=share)
            total.narrow(axis, 0, remaining).add_(maps.narrow(axis, offset, remaining), alpha=share)
        maps = total
    return maps


def _odd(size: float) -> int:
    return 2 * int(size // 2) + 1


def _signals(
    body: _Body, table: Mapping[str, Tissue], played: Mapping[str, Played], *, target: bool = False
) -> dict[str, Tensor]:
    """Each sequence's signal (I, J, K), signed: the sum of its tissues', for a voxel averages over what it holds."""
    device = body.shares.device
    rows, wetness, slowness, lifts = [], [], [], []
    for name, sequence in played.items():
        levels, by_water, by_t2 = [], [], []
        for tissue in body.names:
            share = sequence.fat if tissue in ("fat", "marrow") else 1.0
            level = (
                _fluid_level(table[tissue], sequence, still=not (target and tissue in FLUID))
                if tissue in FLUID
                else signal(table[tissue], sequence)
            )
            levels.append(share * float(level))
            by_water.append(share * _slope(table[tissue], wetter(table[tissue], 0.01), sequence, of=tissue))
            by_t2.append(share * _slope(table[tissue], slower(table[tissue], 0.01), sequence, of=tissue))
        rows.append(levels)
        wetness.append(by_water)
        slowness.append(by_t2)
        lifts.append(_lift(table, sequence, target=target and name == "FLAIR"))
    shares = body.shares
    total = torch.tensor(rows, device=device) @ shares
    total += body.water * (torch.tensor(wetness, device=device) @ shares)
    total += body.relaxation * (torch.tensor(slowness, device=device) @ shares)
    fluid = shares[body.names.index("csf")]
    result = {}
    for number, (name, sequence) in enumerate(played.items()):
        image = total[number]
        narrow, wide = lifts[number]
        if narrow or wide:
            image = image + fluid * (narrow + (wide - narrow) * body.flow)
        if len(body.where):
            ill = diseased(table, *body.disease)
            image[body.where] += body.weight * (signal(ill, sequence) - image[body.where])
        result[name] = body.at.whole(image)
    return result


def _slope(tissue: Tissue, changed: Tissue, sequence: Played, *, of: str) -> float:
    """What a hundredth's change does to the signal, a hundredfold; tissues that do not vary give 0."""
    if of not in VARIED:
        return 0.0
    return (float(signal(changed, sequence)) - float(signal(tissue, sequence))) / 0.01


def _fluid_level(tissue: Tissue, sequence: Played, *, still: bool) -> float:
    """Fluid, a share of it fresh."""
    level = float(signal(tissue, sequence))
    if still and sequence.flow:
        level += sequence.flow * (float(signal(tissue, fresh(sequence))) - level)
    return level


def _lift(table: Mapping[str, Tissue], sequence: Played, *, target: bool) -> tuple[float, float]:
    """What fluid of narrow and of wide spaces around the brain gives more than its own signal."""
    if target:
        white = float(signal(table["wm"], sequence))
        null = float(signal(table["csf"], sequence))
        return CANONICAL_FLOW * white - null, WIDE_FLUID * white - null
    if sequence.kind == "ir" and sequence.flow:
        more = float(signal(table["csf"], fresh(sequence))) - float(signal(table["csf"], sequence))
        return 0.6 * sequence.flow * more, 0.0
    return 0.0, 0.0


def _replaced_seed(acquisition: Acquisition) -> Acquisition:
    return replace(acquisition, seed=acquisition.seed ^ 1)


def _outline(total: Tensor) -> Tensor:
    """The head: what holds tissue, holes of air and bone filled, at 4 voxels."""
    coarse = functional.avg_pool3d(total[None, None], 4, ceil_mode=True)[0, 0].cpu().numpy() > 0.3
    filled = ndimage.binary_fill_holes(ndimage.binary_closing(coarse, iterations=2) | coarse)
    fine = torch.from_numpy(filled.astype(np.float32))[None, None]
    grown = functional.interpolate(fine, scale_factor=4, mode="trilinear")[0, 0] > 0.5
    return grown[tuple(slice(n) for n in total.shape)].to(total.device) | (total > 0.3)


def scaled(image: Tensor, foreground: Tensor) -> Tensor:
    """Scale an image as `prepare` does: the foreground's percentile TOP becomes 1, nothing is below 0 or above 1.

    Args:
        image: of any shape and units.
        foreground: boolean, of the image's shape; what is 0 or less in it does not count.

    Returns:
        Values from 0 to 1, of the image's shape; zeros where the foreground has nothing above 0.
    """
    values = image[foreground & (image > 0)]
    if not values.numel():
        return torch.zeros_like(image)
    values = values[:: max(1, values.numel() // 2_000_000)]
    rank = max(int(np.ceil(values.numel() * TOP / 100)), 1)
    top = values.kthvalue(rank).values.clamp(min=1e-9)
    return (image / top).clamp(0, 1)
