"""monai-ext models: which weights are installed, what each makes of what, and how well."""

import argparse
from collections.abc import Mapping

from monai_ext.synthesis.installed import NONE_INSTALLED, Method, installed_methods, stated


def configure(parser: argparse.ArgumentParser) -> None:
    """Say what runs: the command has no options.

    Args:
        parser: of the command.
    """
    parser.set_defaults(run=run)


def run(_: argparse.Namespace) -> int:
    """Print the methods, or how to come by one; the exit status, 0.

    Args:
        _: nothing of which is used.

    Returns:
        The exit status, 0.
    """
    methods = installed_methods()
    if not methods:
        print(NONE_INSTALLED)
    for method in methods:
        print("\n  ".join(described(method)))
    return 0


def described(method: Method) -> list[str]:
    """Say a method's name and task, then what its weights' JSON says.

    Args:
        method: an installed one.

    Returns:
        One fact a line.
    """
    task, about = method.task, method.about
    sources = " + ".join(task.inputs) if task.every_source else f"any of {', '.join(task.inputs)}"
    targets = ", ".join(task.outputs) if task.every_source else "any other of them"
    lines = [f"{method.name}: {sources} -> {targets}"]
    lines.append(f"{method.weights.stat().st_size / 1e6:.1f} MB, {about.get('licence', 'no licence stated')}")
    if about.get("data"):
        lines.append(f"trained on {about['data']}")
    if about.get("training"):
        lines.append(str(about["training"]))
    if method.sites:
        lines.append(f"knows the sites {', '.join(method.sites)}")
    quality = about.get("quality")
    for asked in quality if isinstance(quality, Mapping) else ():
        of, _, target = str(asked).partition(":")
        for skull, kind in ((True, "heads as scanned"), (False, "brains without their skull")):
            fitted = stated(method, of.split(","), target, skull=skull)
            alike = stated(method, of.split(","), target, skull=skull, figure="ssim_fitted")
            if fitted is not None:
                ssim = "" if alike is None else f", SSIM {alike:.2f}"
                where = f"{target} of {of.replace(',', ' and ')}, real {kind}"
                lines.append(f"{where}: {fitted:.1f} dB{ssim} after one linear fit")
    return lines
