"""How fast a random slice is read, and whether memory grows with the number of subjects.

    python tests/benchmarks/slices.py

One subject of 256x256x150 is written and linked under other names, so the files come from the page cache: the
figure is that of the reader, not of a disk. Each measurement is a process of its own with one thread. Linux.
"""

import multiprocessing
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from monai_ext.data.datalist import Subject
from monai_ext.data.slices import SliceDataset

CONTRASTS = ("T1", "T2", "PD", "FLAIR")


def write_subject(folder: Path, contrasts: tuple[str, ...], shape: tuple[int, int, int]) -> None:
    """Files as `prepare` writes them, uncompressed uint16 of [0, 1]: an ellipsoid of noise and its mask."""
    folder.mkdir(parents=True)
    axes = np.meshgrid(*(np.linspace(-1.1, 1.1, length) for length in shape), indexing="ij")
    mask = sum(axis**2 for axis in axes) < 1
    rng = np.random.default_rng(0)
    images = {name: (rng.integers(1, 2**16, shape) * mask).astype(np.uint16) for name in contrasts}
    for name, stored in {**images, "mask": mask.astype(np.uint8)}.items():
        header = nib.Nifti1Header()
        header.set_data_shape(shape)
        header.set_data_dtype(stored.dtype)
        header.set_sform(np.eye(4), code=1)
        header.set_slope_inter(1 if name == "mask" else 1 / 65535, 0)
        header["vox_offset"] = 352
        (folder / f"{name}.nii").write_bytes(header.binaryblock + bytes(4) + stored.tobytes("F"))


def link_subjects(root: Path, folder: Path, number: int, contrasts: tuple[str, ...]) -> list[Subject]:
    """`number` subjects of one folder's files."""
    subjects = []
    for index in range(number):
        link = root / f"subject{index:03}"
        if not link.exists():
            link.symlink_to(folder)
        images = {name: link / f"{name}.nii" for name in contrasts}
        subjects.append(Subject(subject=link.name, dataset="linked", images=images))
    return subjects


def measure(root: Path, number: int, sources: int, reads: int) -> dict[str, float]:
    """Start-up time, items a second over random ones, peak memory and open files, in this process."""
    torch.set_num_threads(1)
    contrasts = CONTRASTS[: sources + 1]
    subjects = link_subjects(root, root / "one", number, contrasts)
    start = time.perf_counter()
    dataset = SliceDataset(subjects, sources=contrasts[:-1], target=contrasts[-1:])
    ready = time.perf_counter()
    order = np.random.default_rng(0).integers(len(dataset), size=reads).tolist()
    dataset[order[0]]
    begin = time.perf_counter()
    for index in order:
        dataset[index]
    end = time.perf_counter()
    # Not getrusage: its peak survives an exec, so a child would report its parent's.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {
        "start": ready - start,
        "rate": reads / (end - begin),
        "peak": int(peak.split()[1]) / 1024,
        "files": len(list(Path("/dev/fd").iterdir())),
    }


def main() -> None:
    """Print the two figures, each against its goal."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_subject(root / "one", CONTRASTS, (256, 256, 150))
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            pair = pool.apply(measure, (root, 10, 1, 4000))
            few, many = (pool.apply(measure, (root, number, 3, 4000)) for number in (10, 500))
    print(f"2 contrasts of 256x256, random, one core: {pair['rate']:.0f} items a second (goal: at least 400)")
    print(f"4 contrasts, 500 subjects: {many['rate']:.0f} items a second, ready after {many['start']:.1f} s")
    print(f"peak memory, MB: 10 subjects {few['peak']:.0f}, 500 subjects {many['peak']:.0f}", end=", ")
    print(f"difference {many['peak'] - few['peak']:+.1f} (goal: within 200)")
    print(f"open files: 10 subjects {few['files']}, 500 subjects {many['files']}")


if __name__ == "__main__":
    main()
