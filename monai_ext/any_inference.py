"""From whatever contrasts a subject has to those that it lacks: what each subject's maker, image and files are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Transform
from torch import Tensor

from monai_ext.any_contrasts import trained
from monai_ext.data.datalist import Subject, SubjectError
from monai_ext.files import absolute, sha256
from monai_ext.inference.inferers import SlicesInferer
from monai_ext.inference.subjects import Cases, find_subjects
from monai_ext.inference.transforms import KeepResultsd, PrepareSubjectd, SaveSyntheticd
from monai_ext.modalities import canonical
from monai_ext.networks import PMMSynth
from monai_ext.provenance import UNTRAINED, Maker, load_maker


@dataclass(frozen=True)
class PersonalMaker(Maker):
    """A maker that says for which dataset it synthesises, None for none, and which adapters it has."""

    dataset: str | None = None
    adapters: tuple[str, ...] = ()

    def sidecar(self, target: str) -> dict[str, Any]:
        return {**super().sidecar(target), "dataset": self.dataset, "adapters_sha256": list(self.adapters)}


@dataclass(frozen=True)
class Task:
    """What may be used and what is to be made; None is everything there, and everything missing."""

    modalities: tuple[str, ...]
    sources: tuple[str, ...] | None
    targets: tuple[str, ...] | None

    def of(self, subject: Subject) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """A subject's sources and targets."""
        has = [contrast for contrast in self.modalities if contrast in subject.images]
        targets = tuple(c for c in self.modalities if c not in has) if self.targets is None else self.targets
        return tuple(c for c in has if c not in targets and (self.sources is None or c in self.sources)), targets


@dataclass(frozen=True)
class Makers:
    """A maker a subject, for each has sources of its own."""

    whole: PersonalMaker
    task: Task

    def of(self, subject: Subject) -> PersonalMaker:
        sources, targets = self.task.of(subject)
        preset = replace(self.whole.preset, reference=tuple(c for c in self.whole.preset.reference if c in sources))
        return replace(self.whole, sources=sources, target=targets, preset=preset)


def make_task(modalities: Sequence[str], sources: Sequence[str] | None, targets: str | Sequence[str] | None) -> Task:
    every = tuple(canonical(contrast) for contrast in modalities)
    lists: list[tuple[str, ...] | None] = []
    for what, names in (("source", sources), ("target", [targets] if isinstance(targets, str) else targets)):
        if isinstance(names, str):
            raise ValueError(f"{what}s must be a list of contrasts such as ['T1', 'T2'], got {names!r}")
        found = None if names is None else tuple(canonical(contrast) for contrast in names)
        for contrast in found or ():
            if contrast not in every:
                raise ValueError(f"{contrast} is none of the contrasts that these weights know: {', '.join(every)}")
            if (found or ()).count(contrast) > 1:
                raise ValueError(f"each {what} is given once, got {contrast} twice: {', '.join(found or ())}")
        if found == ():
            raise ValueError(f"{what}s is empty: name one, or null for all that there are to choose from")
        lists.append(found)
    both = [contrast for contrast in lists[0] or () if contrast in (lists[1] or ())]
    if both:
        raise ValueError(f"{both[0]} is a source and the target: what is to be synthesised cannot be a source")
    return Task(every, lists[0], lists[1])


def find_cases(
    *,
    modalities: Sequence[str],
    sources: Sequence[str] | None = None,
    targets: str | Sequence[str] | None = None,
    images: Mapping[str, Path | str] | None = None,
    folder: Path | str | None = None,
    datalist: Path | str | None = None,
    split: str | None = None,
    name: str | None = None,
    only_missing: bool = False,
) -> Cases:
    """As `subjects.find_cases`, but of the subjects that have any source; one that lacks nothing is told and left.

    A contrast in `images` that these weights do not know is refused; in a folder or a datalist it is not used.
    """
    task = make_task(modalities, sources, targets)
    for contrast in images or {}:
        if canonical(contrast) not in task.modalities:
            known = ", ".join(task.modalities)
            raise ValueError(f"{canonical(contrast)} is none of the contrasts that these weights know: {known}")
    cases = find_subjects(images=images, folder=folder, datalist=datalist, split=split, name=name)
    subjects = []
    for subject in cases.subjects:
        has, wants = task.of(subject)
        if not wants or (only_missing and all(contrast in subject.images for contrast in wants)):
            what = "every contrast" if not wants else ", ".join(wants)
            print(f"{subject.name}: has {what}, so there is nothing to synthesise; name targets to compare with")
        elif not has:
            there = ", ".join(subject.images) or "none"
            asked = ", ".join(task.sources or task.modalities)
            cases.failures.append(SubjectError(
                subject.name, None, f"no contrast is available: has {there}, lacks all that may be a source, {asked}"
            ))  # fmt: skip
        else:
            subjects.append(subject)
    return replace(cases, subjects=subjects)


def load_makers(
    network: PMMSynth,
    weights: Path | str | None,
    *,
    adapters: Path | str | Sequence[Path | str] | None,
    dataset: str | None,
    sources: Sequence[str] | None,
    targets: str | Sequence[str] | None,
    **options: Any,
) -> Makers:
    """Put the weights and the adapters into the network, personalised for `dataset`; options are `load_maker`'s."""
    task = make_task(network.modalities, sources, targets)
    every = task.modalities
    whole = load_maker(network, weights, sources=every, target=every, **options)
    files = [adapters] if isinstance(adapters, str | Path) else list(adapters or ())
    if weights not in (None, UNTRAINED):
        assert weights is not None
        trained(network, weights, adapters=files)
    if dataset is not None:
        network.dataset_index(dataset)
    return Makers(
        PersonalMaker(**vars(whole), dataset=dataset, adapters=tuple(sha256(absolute(Path(f))) for f in files)), task
    )


class KeepOwnResultsd(Transform):
    """`KeepResultsd` with the subject's own maker."""

    def __init__(self, makers: Makers, *, output_dir: Path | str, overwrite: bool = False) -> None:
        self.makers, self.options = makers, dict[str, Any](output_dir=output_dir, overwrite=overwrite)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        return KeepResultsd(self.makers.of(data["subject"]), **self.options)(data)


class PrepareWhatIsThered(Transform):
    """`PrepareSubjectd` of the subject's own sources, each then in its own of all channels, zeros in the others."""

    def __init__(self, makers: Makers) -> None:
        self.makers = makers

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        maker = self.makers.of(data["subject"])
        item = PrepareSubjectd(maker)(data)
        every = self.makers.task.modalities
        image = torch.zeros(len(every), *item["image"].shape[1:])
        image[[every.index(contrast) for contrast in maker.sources]] = item["image"]
        return {**item, "image": image, "maker": maker}


class AnyContrastsInferer(SlicesInferer):
    """All slices of the contrasts that are there, for the makers' dataset; what nobody asks for is not computed."""

    def __init__(self, *, makers: Makers, **options: Any) -> None:
        super().__init__(**options)
        self.makers = makers

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """(1, M, I, J, K) -> (1, M, I, J, K), zeros where nothing was wanted"""
        given = (inputs[0] != 0).flatten(1).any(1)
        targets, name = self.makers.task.targets, self.makers.whole.dataset
        wanted = ~given
        if targets is not None:
            wanted = torch.tensor([c in targets for c in self.makers.task.modalities], device=inputs.device)

        def through(x: Tensor) -> Tensor:
            number = None if name is None else torch.full((len(x),), network.dataset_index(name), device=x.device)
            return network(x, given.expand(len(x), -1), number, wanted)

        return super().__call__(inputs, through, *args, **kwargs)


class SaveWhatWasMissingd(Transform):
    """`SaveSyntheticd` with the subject's own maker, of its own sources and targets."""

    def __init__(self, makers: Makers, *, output_dir: Path | str, quick_look: bool = False) -> None:
        self.makers, self.options = makers, dict[str, Any](output_dir=output_dir, quick_look=quick_look)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        maker: PersonalMaker = data["maker"]
        every = self.makers.task.modalities
        sources, targets = ([every.index(c) for c in names] for names in (maker.sources, maker.target))
        chosen = {"image": data["image"][sources]}
        chosen |= {key: data[key][targets] for key in ("pred", "prepared_pred")}
        return SaveSyntheticd(maker, **self.options)({**data, **chosen})
