"""Scans in, the missing contrast out: the method chosen by what is there, its network built once."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from monai_ext.files import read_json
from monai_ext.inference.checks import Findings
from monai_ext.inference.sidecar import sidecar
from monai_ext.modalities import canonical
from monai_ext.runtime import checked_engine, named_device
from monai_ext.synthesis.bundle import BundleSynthesiser
from monai_ext.synthesis.installed import Method, choose_method, methods_to_choose_from
from monai_ext.synthesis.looking import looked_at

Scan = Path | str | nib.Nifti1Image


class Synthesiser:
    """Synthesises for one patient after another; each method's network is built when it is first needed, and kept.

    Args:
        method: a bundle's name, such as "agi_net"; without it, the installed weights that suit each patient best.
        weights: a file, in place of the installed ones.
        site: whose scanners the images are of, where the weights tell sites apart.
        register: "none" or "rigid"; without it, a scan that lies on another grid than the reference is registered, and
            all are where they are seen to lie apart.
        brain_mask: "none", "zero" or "otsu", how the brain is cut out; without it, as the weights were trained.
        device: "cpu", "cuda", "cuda:1"; without it, a GPU where there is one.
        engine: "auto", "torch", "openvino" or "onnxruntime", what runs the network on a CPU; without it, what the
            bundle says, which is "auto".
        overwrite: write over what is there; without it, what the same weights made of the same scans is kept, and
            other results are refused.
        quick_look: write a picture beside each result.
        trust_names: go on where a scan does not look like what its name says.

    Raises:
        ValueError: an option that may not be, or no weights that are as asked for; the message says which there are.

    Example:
        >>> makes = Synthesiser()  # doctest: +SKIP
        >>> for folder in folders:  # doctest: +SKIP
        ...     flair = makes({"T1": folder / "T1.nii.gz", "T2": folder / "T2.nii.gz"}, "FLAIR")
        ...     nib.save(flair, folder / "FLAIR_synthetic.nii.gz")
    """

    def __init__(
        self,
        *,
        method: str | None = None,
        weights: Path | str | None = None,
        site: str | None = None,
        register: str | None = None,
        brain_mask: str | None = None,
        device: str | None = None,
        engine: str | None = None,
        overwrite: bool = False,
        quick_look: bool = False,
        trust_names: bool = False,
    ) -> None:
        self.trust_names, self.overwrite = trust_names, overwrite
        self.methods = methods_to_choose_from(method=method, weights=weights, site=site)
        settings = {
            "register": register,
            "brain_mask": brain_mask,
            "site": site,
            "device": None if device is None else named_device(device),
        }
        settings["engine"] = None if engine is None else checked_engine(engine)
        self._ids: dict[str, Any] = {key: value for key, value in settings.items() if value is not None}
        self._ids |= {"overwrite": overwrite, "quick_look": quick_look}
        self._built: dict[Path, BundleSynthesiser] = {}

    def __call__(self, images: Mapping[str, Scan], target: str) -> nib.Nifti1Image:
        """Synthesise `target` from the scans of one patient.

        Args:
            images: contrast -> a file, or an image in memory. Contrasts by any of their names.
            target: the contrast to make.

        Returns:
            float32 in [0, 1] on the grid of the reference, one of the scans. `image.extra` says what it is: what
            stands in the JSON beside a file.

        Raises:
            ValueError: it cannot be made; the message says why and what could be.
        """
        with tempfile.TemporaryDirectory() as work:
            files = {}
            for contrast, image in images.items():
                if isinstance(image, Path | str):
                    files[canonical(contrast)] = Path(image)
                else:
                    files[canonical(contrast)] = Path(work) / f"{canonical(contrast)}.nii.gz"
                    nib.save(image, files[canonical(contrast)])
            written = self.write(files, [target], Path(work) / "out", subject="patient")[canonical(target)]
            result: Any = nib.load(written)
            array = np.asarray(result.dataobj, dtype=np.float32)
            return type(result)(array, result.affine, result.header.copy(), extra=read_json(sidecar(written)))

    def plan(
        self, available: Sequence[str], targets: Sequence[str] | None, *, skull: bool | None = None
    ) -> dict[str, Method]:
        """Choose for each target the method that makes it of the contrasts that are there.

        Args:
            available: contrasts, as in `MODALITIES`.
            targets: contrasts; None is each that is missing and can be made.
            skull: whether the scans show it, None where that is not known.

        Returns:
            target -> method.

        Raises:
            ValueError: one that is there already, or that cannot be made; nothing that is missing can be.
        """
        if targets is None:
            every = dict.fromkeys(target for method in self.methods for target in method.task.outputs)
            missing = [contrast for contrast in every if contrast not in available]
            can = [
                contrast for contrast in missing if any(method.makes(contrast, available) for method in self.methods)
            ]
            if missing and not can:
                choose_method(self.methods, missing[0], available)  # says why not
            return {target: choose_method(self.methods, target, available, skull=skull) for target in can}
        names = [canonical(target) for target in targets]
        acquired = [contrast for contrast in names if contrast in available]
        if acquired:
            raise ValueError(
                f"{acquired[0]} is there already: name with --target what is missing, or leave its file out"
            )
        return {target: choose_method(self.methods, target, available, skull=skull) for target in names}

    def write(
        self, images: Mapping[str, Path], targets: Sequence[str] | None, output_dir: Path, *, subject: str
    ) -> dict[str, Path]:
        """Synthesise into `output_dir`/`subject`.

        Args:
            images: contrast -> file, contrasts as in `MODALITIES`.
            targets: contrasts; None is each that is missing and can be made.
            output_dir: where results of many subjects go.
            subject: the folder's name there.

        Returns:
            target -> the NIfTI there, which has its JSON beside it.

        Raises:
            ValueError: as `plan`, or the scans cannot be used.
        """
        plan = self.plan(tuple(images), targets)
        if not plan:
            return {}
        inputs = {contrast for method in plan.values() for contrast in method.task.inputs}
        used = {name: path for name, path in images.items() if name in inputs}
        findings = looked_at(used, subject=subject, trust_names=self.trust_names)
        plan = self.plan(tuple(images), targets, skull=findings.skull)
        results: dict[str, Path] = {}
        for method in dict.fromkeys(plan.values()):
            its_targets = [target for target, other in plan.items() if other is method]
            results |= self._run(method, images, its_targets, output_dir, subject, findings)
        return {target: results[target] for target in plan}

    def built(self, method: Method) -> BundleSynthesiser:
        """Give the method's inference, which is made at its first use.

        Args:
            method: one of `methods`.

        Returns:
            The same one each time.
        """
        if method.weights not in self._built:
            self._built[method.weights] = BundleSynthesiser(method.bundle, weights=method.weights, **self._ids)
        return self._built[method.weights]

    def _run(
        self,
        method: Method,
        images: Mapping[str, Path],
        targets: Sequence[str],
        output_dir: Path,
        subject: str,
        findings: Findings | None,
    ) -> dict[str, Path]:
        sources = {name: path for name, path in images.items() if name in method.task.inputs and name not in targets}
        options: dict[str, Any] = {} if method.task.every_source else {"target": list(targets)}
        inference = self.built(method)
        return inference(
            sources, output_dir, subject=subject, trust_names=self.trust_names, findings=findings, **options
        )


def synthesise(images: Mapping[str, Scan], target: str, **options: Any) -> nib.Nifti1Image:
    """One patient's missing contrast, in one call.

    Args:
        images: contrast -> a file, or an image in memory.
        target: the contrast to make.
        options: those of `Synthesiser`, which is what to use for many patients.

    Returns:
        As `Synthesiser.__call__`.

    Raises:
        ValueError: it cannot be made; the message says why and what could be.

    Example:
        >>> flair = synthesise({"T1": "T1.nii.gz", "T2": "T2.nii.gz"}, "FLAIR")  # doctest: +SKIP
        >>> flair.extra["bundle"], flair.extra["synthetic"]  # doctest: +SKIP
        ('agi_net', True)
    """
    return Synthesiser(**options)(images, target)
