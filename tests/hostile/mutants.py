"""Inputs that somebody may send: made from a seed, so that one that once did harm can be made again."""

import gzip
import hashlib
import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import torch
from dicom_study import write_study

SHAPE = (12, 14, 6)
AFFINE = np.diag([6.0, 6, 6, 1])
NUMBERS = [0, 1, -1, 2, 7, 8, 255, 32767, -32768, 65535, 2**31 - 1, -(2**31), 2**63 - 1]
REALS = [0.0, -0.0, 1e-30, -1.0, 0.001, 50.0, 1e6, 1e30, 3e38, float("inf"), float("-inf"), float("nan")]
HARMFUL = "$__import__('pathlib').Path('outside/pwned').touch() or 1"
TEXTS = [
    *("", " ", ".", "..", "../outside/x", "../../x", "/etc/passwd", "a/../../outside", ".preparing-good", "good"),
    *(".replaced-good", "datalist.json", "b" * 250, "\u00e9" * 120, "a\0b", "a\nb", "\x1b[31mred", "\ud800", "NUL"),
    *("\u202etxt", HARMFUL, "@weights", "%bundle_root", "{subject}", "x" * 100_000, "nan", "pipe.nii", "loop.nii"),
]


def good_image(path: Path, *, seed: int) -> Path:
    """A bright ball with some noise on a background of zeros."""
    path.parent.mkdir(parents=True, exist_ok=True)
    at = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij"))
    noise = np.random.default_rng(seed).integers(500, 900, SHAPE)
    nib.save(nib.Nifti1Image(np.where((at**2).sum(0) < 0.8, noise, 0).astype(np.int16), AFFINE), path)
    return path


def json_value(rng: random.Random, depth: int = 0) -> Any:
    """Anything that JSON can say, of the kinds that programs forget."""
    plain: list[Callable[[], Any]] = [
        lambda: rng.choice(TEXTS),
        lambda: rng.choice([None, True, False]),
        lambda: rng.choice([*NUMBERS, 10**40]),
        lambda: rng.choice(REALS[:9]),
        lambda: {"_target_": "pathlib.Path.touch", "self": "outside/pwned"},
    ]
    nested: list[Callable[[], Any]] = [
        lambda: [json_value(rng, depth + 1) for _ in range(rng.randrange(4))],
        lambda: {rng.choice(TEXTS[:20]): json_value(rng, depth + 1) for _ in range(rng.randrange(4))},
    ]
    return rng.choice(plain + (nested if depth < 3 else []))()


def flipped(data: bytes, rng: random.Random, *, first: int = 0, last: int | None = None) -> bytes:
    """A few bytes changed between two places."""
    content = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(first, min(last or len(content), len(content)))
        content[at] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256), content[at] ^ (1 << rng.randrange(8))])
    return bytes(content)


def special(path: Path, rng: random.Random) -> None:
    """Something of that name that is no regular file, or holds nothing of use."""
    kind = rng.randrange(7)
    path.unlink(missing_ok=True)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    elif kind == 2:
        path.symlink_to(path.name)
    elif kind == 3:
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes([b"", b"<html>404</html>", rng.randbytes(400)][kind - 4])


def nifti(path: Path, seed: int) -> None:
    """A NIfTI with a few of its header's fields, its bytes, its voxels or its compression changed."""
    rng = random.Random(seed)
    if rng.random() < 0.04:
        special(path, rng)
        return
    kind = rng.choice([np.int16, np.uint8, np.float32, np.float64, np.int32])
    values = np.random.default_rng(seed).integers(0, 200, SHAPE).astype(kind)
    if kind in (np.float32, np.float64) and rng.random() < 0.3:
        values[tuple(rng.randrange(size) for size in SHAPE)] = rng.choice(REALS)
    version: Any = nib.Nifti2Image if rng.random() < 0.2 else nib.Nifti1Image
    header = version(values, AFFINE).header
    header["vox_offset"] = 352 if version is nib.Nifti1Image else 544
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        field = rng.choice(header.keys())
        old = np.atleast_1d(header[field])
        if old.dtype.kind in "SV":
            continue
        new = rng.choice(NUMBERS if old.dtype.kind in "iu" else REALS)
        new = np.array(new % 2 ** (8 * old.dtype.itemsize) if old.dtype.kind in "iu" else new)
        if old.dtype.kind in "iu":
            new = np.array([int(new)], dtype=f"u{old.dtype.itemsize}").view(f"i{old.dtype.itemsize}")[0]
        if header[field].ndim:
            header[field][rng.randrange(old.size)] = new
        else:
            header[field] = new
    body = header.binaryblock + bytes(4) + values.tobytes(order="F")
    choice = rng.random()
    if choice < 0.25:
        body = flipped(body, rng, last=len(header.binaryblock))
    elif choice < 0.4:
        body = body[: rng.randrange(len(body))]
    elif choice < 0.5:
        at = len(header.binaryblock)
        body = body[:at] + bytes([1, 0, 0, 0]) + rng.randbytes(rng.randrange(64)) + body[at + 4 :]
    elif choice < 0.55:
        body = body[: len(header.binaryblock) + 4] + bytes(rng.choice([0, 25_000, 400_000]))
    if path.suffix == ".gz":
        body = gzip.compress(body, 1)
        choice = rng.random()
        if choice < 0.1:
            body = flipped(body, rng)
        elif choice < 0.2:
            body = body[: rng.randrange(len(body))]
        elif choice < 0.25:
            body += rng.randbytes(rng.randrange(64))
    path.write_bytes(body)


def damaged_json(content: Any, rng: random.Random) -> bytes:
    """`content` with values replaced anywhere in it, as text that may be damaged too."""
    for _ in range(rng.choice([0, 1, 1, 2])):
        place, deeper = content, 0
        while isinstance(place, dict | list) and place:
            key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
            if not isinstance(place[key], dict | list) or deeper > 3 or rng.random() < 0.3:
                if isinstance(place, dict) and rng.random() < 0.2:
                    place[rng.choice(TEXTS[:20])] = place.pop(key)
                else:
                    place[key] = json_value(rng)
                break
            place, deeper = place[key], deeper + 1
    text = json.dumps(content)
    choice = rng.random()
    if choice < 0.06:
        deep = "[" * 100_000 + "]" * 100_000
        text = text.replace('"', f'"x": {deep}, "', 1) if rng.random() < 0.5 else deep
    elif choice < 0.1:
        text = text.replace("{", '{"name": 1, "name": 2, ', 1)
    elif choice < 0.14:
        text = text.replace("1", "1" * 6000, 1)
    data = text.encode()
    if choice > 0.9:
        data = flipped(data, rng)
    elif choice > 0.84:
        data = data[: rng.randrange(len(data))]
    elif choice > 0.82:
        data = text.encode("utf-16")
    return data


def entries(rng: random.Random) -> list[dict[str, Any]]:
    """A few subjects, some of them with what nobody should have written."""
    made = []
    for number in range(rng.randrange(1, 5)):
        entry: dict[str, Any] = {"subject": f"s{number}", "T1": "good/T1.nii.gz", "T2": "good/T2.nii.gz"}
        for _ in range(rng.randrange(3)):
            key = rng.choice(["subject", "session", "dataset", "T1", "T2", "label", "FLAIR", "targets", "masks", "x"])
            entry[key] = rng.choice([*TEXTS, json_value(rng)])
        if rng.random() < 0.1:
            entry.pop(rng.choice(list(entry)))
        made.append(entry)
    return made


class _Code:
    """What a pickle of runs when it is read."""

    def __reduce__(self) -> Any:
        return os.makedirs, ("outside/pwned",)


def weights(folder: Path, good: Path, bundle: Path, rng: random.Random) -> Path:
    """Weights with what their JSON says, or their bytes, changed; or an archive with its configs or bytes changed."""
    path, said = folder / "model.pt", json.loads(good.with_suffix(".json").read_text())
    data, choice = good.read_bytes(), rng.random()
    if choice < 0.25:
        return archive(folder / "model.ts", bundle, rng)
    if choice < 0.3:
        data = pickle.dumps({"weight": _Code()})
    elif choice < 0.6:
        data = flipped(data, rng, last=rng.choice([200, 4000, None])) if rng.random() < 0.6 else cut(data, rng)
    path.write_bytes(data)
    if rng.random() < 0.03:
        special(path, rng)
    if path.is_file() and path.stat().st_size < 1e8:
        said["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    text = damaged_json(said, rng) if choice > 0.6 else json.dumps(said).encode()
    if choice > 0.95:
        special(path.with_suffix(".json"), rng)
    else:
        path.with_suffix(".json").write_bytes(text)
    return path


def archive(path: Path, bundle: Path, rng: random.Random) -> Path:
    """A TorchScript archive that says that it is a bundle's."""
    texts = {}
    for name in ("inference.json", "metadata.json"):
        content = json.loads((bundle / "configs" / name).read_text())
        texts[name] = damaged_json(content, rng) if rng.random() < 0.5 else json.dumps(content).encode()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 1)), str(path), _extra_files=texts)
    if rng.random() < 0.3:
        path.write_bytes(flipped(path.read_bytes(), rng) if rng.random() < 0.5 else cut(path.read_bytes(), rng))
    return path


def cut(data: bytes, rng: random.Random) -> bytes:
    """What is left where a copy ended early."""
    return data[: rng.randrange(len(data))]


IDENTITY = ("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID")
ATTRIBUTES = (
    *("Rows", "Columns", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope"),
    *("RescaleIntercept", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"),
    *("PhotometricInterpretation", "SeriesNumber", "SeriesDescription", "EchoTime", "RepetitionTime"),
    *("InversionTime", "ImageType", "ScanningSequence", "SequenceName", "SeriesInstanceUID", "SOPInstanceUID"),
    *("SOPClassUID", "Modality", "FrameOfReferenceUID", "NumberOfFrames", "PixelData", "SpecificCharacterSet"),
)
VALUES: list[Any] = [
    *(None, "", "0", "-1", "1e400", "nan", "inf", "abc", "\\", "1\\2", "0\\0", "1\\0\\0\\1\\0\\0", "65535", "9" * 40),
    *("1.2.3", "../x", "ISO_IR 192", "ISO 2022 IR 6", "MR", "CT", "\u00e9", "x" * 5000),
]


def study(folder: Path, seed: int) -> str | None:
    """Two series with attributes or bytes changed; the attribute of identity that one file alone now has otherwise."""
    rng = random.Random(seed)
    files = sorted(write_study(folder, "T1", "T2").rglob("*.dcm"))
    other = None
    for _ in range(rng.choice([1, 1, 2])):
        chosen = files if rng.random() < 0.3 else [rng.choice(files)]
        keyword = rng.choice([*ATTRIBUTES, *IDENTITY])
        if keyword in IDENTITY and len(chosen) == 1:
            other = keyword
        value = rng.choice(VALUES)
        raw = b"" if value is None else str(value).encode()
        for path in chosen:
            image = pydicom.dcmread(path)
            if rng.random() < 0.1:
                image.pop(keyword, None)
            else:
                tag = pydicom.datadict.tag_for_keyword(keyword)
                kind = pydicom.datadict.dictionary_VR(tag)
                raw_value = raw + b" " * (len(raw) % 2)
                if kind in ("US", "US or SS"):
                    kind, raw_value = "US", rng.choice([0, 1, 3, 8, 16, 999, 65535]).to_bytes(2, "little")
                kind = "OW" if kind == "OB or OW" else kind
                image[tag] = pydicom.dataelem.RawDataElement(
                    pydicom.tag.Tag(tag), kind, len(raw_value), raw_value, 0, False, True
                )
            image.save_as(path)
    if rng.random() < 0.2:
        path = rng.choice(files)
        data = path.read_bytes()
        path.write_bytes(flipped(data, rng) if rng.random() < 0.5 else data[: rng.randrange(len(data))])
        other = None
    elif rng.random() < 0.05:
        special(rng.choice(files), rng)
        other = None
    return other
