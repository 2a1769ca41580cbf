"""python -m monai_ext phantom: brain phantoms, written as a real dataset is, and the truth beside them."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from monai_ext.data.datalist import Datalist, Subject, write_datalist
from monai_ext.data.montage import montage
from monai_ext.data.phantoms import stream
from monai_ext.data.phantoms.anatomy import label_maps, step_for
from monai_ext.data.phantoms.patients import Phantom, make_phantom
from monai_ext.data.phantoms.sites import SITES
from monai_ext.data.phantoms.workers import workers
from monai_ext.data.splits import split_subjects
from monai_ext.data.volumes import Volume, read_volume, write_volume
from monai_ext.files import absolute, write_json
from monai_ext.modalities import MODALITIES, canonical
from monai_ext.runtime import named_device

SPLIT = (0.7, 0.15, 0.15)
BRAIN = ".brain/{name}.nii.gz"  # where the reference has it; hidden, so that index passes it over
CONVENTION = (
    "offsets are 4x4 matrices in RAS mm world coordinates; what the reference contrast shows at x, "
    "the other contrast shows at M x; headers know nothing of it"
)
_BRATS = {"T1": "t1n", "T2": "t2w", "T1C": "t1c", "FLAIR": "t2f"}
_BIDS = {
    "T1": "anat/T1w", "T2": "anat/T2w", "PD": "anat/PDw", "T1C": "anat/ce-gadolinium_T1w",
    "FLAIR": "anat/FLAIR", "DWI": "dwi/dwi", "ADC": "dwi/adc",
}  # fmt: skip
LAYOUTS = {"ixi": ("T1", "T2", "PD"), "brats2023": tuple(_BRATS), "bids": MODALITIES, "folder": MODALITIES}


@dataclass(frozen=True)
class Job:
    """Everything that one subject's files depend on."""

    out: Path
    site: str
    layout: str
    index: int
    seed: int
    spacing: tuple[float, float, float]
    contrasts: tuple[str, ...] | None
    misalign: tuple[float, float]
    randomize: bool
    anatomies: tuple[Path, ...] = ()
    masks: tuple[Path, ...] = ()
    device: str = "cpu"


def configure(parser: argparse.ArgumentParser) -> None:
    """Give the command its options, those that go with --stream too.

    Args:
        parser: of the command; it is told to call `run`.
    """
    add = parser.add_argument
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, metavar="DIR", help="the dataset's folder; must not hold anything yet")
    where.add_argument("--stream", type=Path, metavar="POOL", help="prepared subjects for training, renewed on and on")
    add(
        "--anatomy", type=stream.existing_folder, metavar="DIR", help="label maps in FreeSurfer's or SynthSeg's numbers"
    )
    add("--lesions", type=stream.existing_folder, metavar="DIR", help="masks of real infarcts on an MNI-like grid")
    add("--site", choices=sorted(SITES), default="healthy", help="whose contrasts, disease, scanner, protocol")
    add("--subjects", type=int, default=10, metavar="N")
    add("--spacing", type=_spacing, default="2", metavar="MM", help="voxel size: one number, or I,J,K")
    add("--seed", type=int, default=0, help="same seed, same voxels, whatever N and J")
    add("--contrasts", type=_contrasts, metavar="T1,T2,...", help="instead of the site's own")
    add("--layout", choices=sorted(LAYOUTS), help="file names as in this dataset; the site's own by default")
    add(
        "--misalign", type=_misalign, default="0,0", metavar="MM,DEG",
        help="move the head between contrasts by up to this; truth/*.json has the offsets",
    )  # fmt: skip
    add("--randomize", action="store_true", help="tissues, sequences and artefacts beyond any one scanner's")
    add("--jobs", type=int, default=1, metavar="J", help="processes")
    add("--device", default="cpu", metavar="NAME", help="where they are rendered: cpu, cuda, cuda:1; to 1e-4 the same")
    add("--montage", type=Path, metavar="PNG", help="a picture of the first three subjects")
    stream.configure(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Make the subjects, then the datalist, which a dataset that was not finished lacks; with --stream, a pool.

    Args:
        args: what `configure`'s parser read.

    Returns:
        The exit status, 0.

    Raises:
        ValueError: a number that may not be, a device that is not here, a contrast that the layout has no name for,
            --out that is not empty, or an option of --stream without it.
    """
    named_device(args.device)
    if args.stream is not None:
        return stream.run(args, contrasts=args.contrasts or (), spacing=args.spacing)
    if typed := stream.given(args):
        raise ValueError(f"--{', --'.join(typed)} go with --stream, not with --out")
    anatomies = tuple(label_maps(args.anatomy)) if args.anatomy else ()
    masks = tuple(label_maps(args.lesions)) if args.lesions else ()
    args.out = absolute(args.out)
    site = SITES[args.site]
    layout = args.layout or site.layout
    if args.subjects < 1 or args.jobs < 1:
        raise ValueError(f"--subjects and --jobs must be at least 1, got {args.subjects} and {args.jobs}")
    if args.seed < 0:
        raise ValueError(f"--seed must be 0 or more, got {args.seed}")
    unnamed = [name for name in args.contrasts or site.contrasts if name not in LAYOUTS[layout]]
    if unnamed:
        raise ValueError(f"the layout {layout} has no names for {', '.join(unnamed)}; take --layout bids or folder")
    if args.out.exists() and any(args.out.iterdir()):  # a stopped run's files would join this one's in an index
        what = "holds a dataset already" if (args.out / "datalist.json").exists() else "is not empty"
        raise ValueError(f"--out {args.out} {what}: remove it or choose another folder")
    jobs = [
        Job(
            args.out, site.name, layout, index, args.seed, args.spacing, args.contrasts, args.misalign, args.randomize,
            anatomies, masks, args.device,
        )
        for index in range(args.subjects)
    ]  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    if layout == "bids":
        description = {"Name": f"{site.name} phantoms", "BIDSVersion": "1.9.0", "DatasetType": "raw"}
        write_json(args.out / "dataset_description.json", description)
    began = time.perf_counter()
    with workers(anatomies, step=step_for(args.spacing), count=min(args.jobs, len(jobs))) as each:
        finished = list(tqdm(each(make_subject, jobs), total=len(jobs), desc=site.name, unit="subject"))
    wall = time.perf_counter() - began
    subjects = [subject for subject, _ in sorted(finished, key=lambda pair: pair[0].name)]
    datalist = Datalist(site.name, args.out, split_subjects(subjects, split=SPLIT, seed=args.seed))
    write_datalist(args.out / "datalist.json", datalist)
    seconds = np.mean([seconds for _, seconds in finished])
    print(f"{len(jobs)} subjects in {wall:.1f} s, {seconds:.1f} s each on its core: {args.out / 'datalist.json'}")
    if args.montage:
        print(f"picture: {picture(subjects[:3], args.montage)}")
    return 0


def make_subject(job: Job) -> tuple[Subject, float]:
    """Render one subject and write its images, label, brain mask and truth.

    Args:
        job: everything that they depend on: the same job writes the same voxels.

    Returns:
        The subject as a datalist has it, and the seconds that it took.
    """
    began = time.perf_counter()
    site = SITES[job.site]
    phantom = make_phantom(
        site,
        index=job.index,
        seed=job.seed,
        spacing=job.spacing,
        contrasts=job.contrasts,
        misalign=job.misalign,
        randomize=job.randomize,
        anatomies=job.anatomies,
        masks=job.masks,
        device=job.device,
    )
    subject = _named(job, phantom)
    for name, path in subject.images.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = site.level.get(name, 400.0) > 10
        volume = _oriented(phantom.images[name], site.orientation)
        if whole:
            volume = Volume(np.clip(volume.array, 0, np.iinfo(np.int16).max), volume.affine)
        write_volume(path, volume, dtype=np.int16 if whole else np.float32)
    if subject.label is not None and phantom.label is not None:
        subject.label.parent.mkdir(parents=True, exist_ok=True)
        write_volume(subject.label, _oriented(phantom.label, site.orientation), dtype=np.uint8)
    brain = job.out / BRAIN.format(name=subject.name)
    brain.parent.mkdir(parents=True, exist_ok=True)
    write_volume(brain, _oriented(phantom.brain, site.orientation), dtype=np.uint8)
    truth = {
        "subject": subject.subject,
        "session": subject.session,
        **phantom.facts,
        "convention": CONVENTION,
        "reference": phantom.reference,
        "offsets": {name: phantom.offsets[name].tolist() for name in phantom.images},
    }
    write_json(job.out / "truth" / f"{subject.name}.json", truth)
    return subject, time.perf_counter() - began


def _named(job: Job, phantom: Phantom) -> Subject:
    """Whose files these are, and what they are called in the layout."""
    number = job.index + 1
    label: Path | None = None
    session = ""
    if job.layout == "ixi":
        subject = f"IXI{number:03d}"
        hospital = "HH" if phantom.facts["field_tesla"] == 3.0 else ("Guys", "IOP")[job.index % 2]
        stem = f"{subject}-{hospital}-{1000 + job.index}"
        images = {name: job.out / f"IXI-{name}" / f"{stem}-{name}.nii.gz" for name in phantom.images}
        label = job.out / "IXI-label" / f"{stem}-label.nii.gz"  # the real dataset has none
    elif job.layout == "brats2023":
        subject, session = f"BraTS-GLI-{job.index:05d}", "000"
        folder = job.out / f"{subject}-{session}"
        images = {name: folder / f"{folder.name}-{_BRATS[name]}.nii.gz" for name in phantom.images}
        label = folder / f"{folder.name}-seg.nii.gz"
    elif job.layout == "bids":
        long = job.site == "stroke"  # named as in ISLES'22
        subject = f"sub-strokecase{number:04d}" if long else f"sub-{job.site}{number:03d}"
        session = "0001" if long else "01"
        stem, folder = f"{subject}_ses-{session}", Path(subject) / f"ses-{session}"
        images = {}
        for name in phantom.images:
            kind, suffix = _BIDS[name].split("/")
            images[name] = job.out / folder / kind / f"{stem}_{suffix}.nii.gz"
        label = job.out / "derivatives" / folder / f"{stem}_msk.nii.gz"
    else:
        subject = f"{job.site}-{number:03d}"
        images = {name: job.out / subject / f"{name}.nii.gz" for name in phantom.images}
        label = job.out / subject / "label.nii.gz"
    label_file = label if phantom.label is not None else None
    return Subject(subject=subject, dataset=job.site, images=images, session=session, label=label_file)


def _oriented(volume: Volume, axes: str) -> Volume:
    """The same image in the world, stored along the axes that the site's scanner uses."""
    image = nib.Nifti1Image(volume.array, volume.affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(volume.affine), nib.orientations.axcodes2ornt(axes))
    turned = image.as_reoriented(turn)
    return Volume(np.ascontiguousarray(turned.dataobj), np.asarray(turned.affine))


def picture(subjects: Sequence[Subject], path: Path) -> Path:
    """Draw subjects, one a row: every contrast and the label, in the axial slice that shows most of the lesion.

    Args:
        subjects: one or more, whose files are there.
        path: the picture's, a PNG.

    Returns:
        The path.
    """
    rows, titles = [], []
    columns = [name for name in MODALITIES if any(name in subject.images for subject in subjects)]
    columns += ["label"] if any(subject.label for subject in subjects) else []
    for subject in subjects:
        files = dict(subject.images)
        volumes = {name: _oriented(read_volume(file), "RAS").array for name, file in files.items()}
        best = round(0.56 * next(iter(volumes.values())).shape[2])
        if subject.label is not None:
            label = _oriented(read_volume(subject.label, allow_constant=True), "RAS").array
            volumes["label"] = label
            if label.any():
                best = int((label > 0).sum(axis=(0, 1)).argmax())
        shown = np.stack([v[:, :, best] > 0.12 * v.max() for n, v in volumes.items() if n != "label"]).any(axis=0)
        box = tuple(slice(max(int(a.min()) - 2, 0), int(a.max()) + 3) for a in np.nonzero(shown))
        # As radiologists look: from the feet, the nose upwards.
        tiles = {name: volume[:, :, best][box][::-1, ::-1].T for name, volume in volumes.items()}
        blank = np.zeros_like(next(iter(tiles.values())))
        rows.append([tiles.get(name, blank) for name in columns])
        titles.append([name if name in tiles else "" for name in columns])
    return montage(rows, titles=titles, path=path, height=140)


def _spacing(text: str) -> tuple[float, float, float]:
    numbers = _numbers(text, "--spacing", "one number or three, I,J,K")
    if len(numbers) not in (1, 3) or not all(0.5 <= number <= 12 for number in numbers):
        raise argparse.ArgumentTypeError(f"must be one number or three, each of 0.5 to 12 mm, got {text!r}")
    i, j, k = numbers * 3 if len(numbers) == 1 else numbers
    return i, j, k


def _misalign(text: str) -> tuple[float, float]:
    numbers = _numbers(text, "--misalign", "MM,DEG")
    if len(numbers) != 2 or not (0 <= numbers[0] <= 60 and 0 <= numbers[1] <= 90):
        raise argparse.ArgumentTypeError(f"must be MM,DEG within 60 mm and 90 degrees, got {text!r}")
    return numbers[0], numbers[1]


def _numbers(text: str, option: str, form: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{option} takes {form}, got {text!r}") from None


def _contrasts(text: str) -> tuple[str, ...]:
    try:
        names = [canonical(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return tuple(name for name in MODALITIES if name in names)
