"""A viewer of volumes inside the page: NiiVue, whose script the installed nilearn carries, and volumes made small."""

import base64
import gzip
import json
from collections.abc import Sequence
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from monai_ext.report.cases import Shown, ShownCase
from monai_ext.report.pictures import ERROR_TOP, Stored, palette

SCRIPT = "_assets/js/niivue.umd.js"  # in nilearn
MOST_VOXELS = 2_000_000  # of a volume; larger ones are halved along each axis
MOST_BYTES = 40_000_000  # of all volumes in the page; further subjects are left out
LICENCE = """NiiVue (https://github.com/niivue/niivue), embedded from the nilearn package.

BSD 2-Clause License

Copyright (c) 2021, Niivue
All rights reserved.

Redistribution and use in source and binary forms, with or without modification, are permitted provided that the \
following conditions are met:

1. Redistributions of source code must retain the above copyright notice, this list of conditions and the following \
disclaimer.

2. Redistributions in binary form must reproduce the above copyright notice, this list of conditions and the \
following disclaimer in the documentation and/or other materials provided with the distribution.

THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR IMPLIED WARRANTIES, \
INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE ARE \
DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT HOLDER OR CONTRIBUTORS BE LIABLE FOR ANY DIRECT, INDIRECT, INCIDENTAL, \
SPECIAL, EXEMPLARY, OR CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR \
SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY, \
WHETHER IN CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE \
OF THIS SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE."""


def niivue() -> str | None:
    """NiiVue's script, if nilearn is installed and has it; nilearn itself is not imported."""
    spec = find_spec("nilearn")
    places = [Path(place) / SCRIPT for place in (spec.submodule_search_locations or [])] if spec else []
    script = next((place.read_text(encoding="utf-8") for place in places if place.is_file()), None)
    return None if script is None or "</script" in script.lower() else script


class Volumes:
    """The cases' images as NiiVue takes them, until the page is full."""

    def __init__(self) -> None:
        self.cases: list[dict[str, Any]] = []
        self.size = 0
        self.halved = False
        self.left_out: list[str] = []

    def add(self, case: ShownCase, images: Sequence[Shown]) -> None:
        entries = []
        for shown in images:
            small = halve(shown.volume)
            self.halved |= small is not shown.volume
            entries.append({"kind": shown.kind, "text": shown.text, "nifti": packed(small)})
        size = sum(len(entry["nifti"]) for entry in entries)
        if self.size + size > MOST_BYTES:
            self.left_out.append(case.subject)
            return
        self.size += size
        self.cases.append({"text": f"{case.subject}, {case.target}", "images": entries})

    def json(self) -> str:
        """For a script element, which no text in it may end."""
        red, green, blue = palette()[::5].T.tolist()
        n = len(red)
        colours = {"R": red, "G": green, "B": blue, "A": [255] * n, "I": [5 * index for index in range(n)]}
        content = {"errorTop": ERROR_TOP, "errorColours": colours, "cases": self.cases}
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def halve(volume: Stored) -> Stored:
    """Means of 2 x 2 x 2 voxels, as often as it takes to be small enough; an odd edge is repeated."""
    while volume.array.size > MOST_VOXELS:
        padded = np.pad(volume.array, [(0, size % 2) for size in volume.array.shape], mode="edge")
        i, j, k = (size // 2 for size in padded.shape)
        array = padded.reshape(i, 2, j, 2, k, 2).mean(axis=(1, 3, 5))
        affine = volume.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
        affine[:3, 3] += volume.affine[:3, :3] @ np.full(3, 0.5)  # the middle of the first eight voxels
        volume = Stored(array, affine)
    return volume


def packed(volume: Stored) -> str:
    """A compressed NIfTI of 8 bits, base64; from 0 to 1, or to the volume's own maximum where that is less."""
    slope = min(1.0, float(volume.array.max(initial=0)) or 1.0) / 255
    image = nib.Nifti1Image(np.rint(np.clip(volume.array, 0, 1) / slope).astype(np.uint8), volume.affine)
    image.header.set_slope_inter(slope, 0)
    image.header.set_xyzt_units("mm")
    return base64.b64encode(gzip.compress(image.to_bytes(), 6, mtime=0)).decode()


def asset(name: str) -> str:
    """A file of this package."""
    return resources.files("monai_ext.report").joinpath(name).read_text(encoding="utf-8")
