"""monai-ext COMMAND: each command lives in the module that does its work, imported only when asked for."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "synthesise": ("monai_ext.synthesis.command", "make the contrast that a patient's scans lack"),
    "models": ("monai_ext.synthesis.models", "list the weights that are installed, and what each makes of what"),
    "train": ("monai_ext.verbs", "train a bundle on prepared data"),
    "evaluate": ("monai_ext.verbs", "evaluate a bundle's weights by the stated protocol"),
    "ops": ("monai_ext.ops.command", "compile the operators and say which kernel each one uses"),
    "phantom": ("monai_ext.data.phantoms.command", "make brain phantoms: NIfTI files and a datalist"),
    "index": ("monai_ext.data.layouts", "find the subjects and contrasts of a dataset folder: a datalist"),
    "prepare": ("monai_ext.data.prepare", "put every subject on one grid, ready to be read by slice"),
    "report": ("monai_ext.report", "compare evaluations on one HTML page"),
    "dicom": ("monai_ext.serve.dicom", "synthesise a contrast of a DICOM study, as a new series of it"),
    "package": ("monai_ext.zoo.package", "pack a bundle with its weights so that it works alone: a folder and a zip"),
    "weights": ("monai_ext.zoo.phantom_weights", "train a bundle on phantoms, from nothing to packed weights"),
    "pack": ("monai_ext.zoo.pack", "trained weights as they are shipped: half precision, and a card"),
    "verify": ("monai_ext.zoo.verify", "ask the model zoo's rules of a bundle's folder, offline"),
}

# MONAI imports them where they are installed, which takes a third of its time; a synthesis has no use for them.
UNUSED = (
    *("mlflow", "pandas", "pyarrow", "sklearn", "matplotlib", "skimage", "jsonschema", "requests"),
    "scipy.signal",  # and with it scipy.stats, scipy.optimize and scipy.interpolate
)

# How often a thread looks whether the others of its team are done before it sleeps. libgomp's own number of times takes
# milliseconds, in which, beside other work, those others do not get the processor.
PATIENCE = "10000"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a fault that a person can mend is one line and exit status 2.

    Args:
        argv: the words after `monai-ext`, the command line's unless given.

    Returns:
        The exit status.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="monai-ext", description="Missing MRI contrasts, synthesised.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if name in arguments[:1]:
            importlib.import_module(module).configure(command)
    args = parser.parse_args(arguments)
    try:
        return args.run(args)
    except (ValueError, OSError) as error:
        print(f"{args.command}: {error}", file=sys.stderr)
        return 2


def script() -> int:
    """Run the command of the command line, without what MONAI would import for it and nobody asks for.

    Threads are told how long to wait for each other (GOMP_SPINCOUNT) unless the environment says so.

    Returns:
        The exit status.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", PATIENCE)  # before torch is imported, which reads it once
    if sys.argv[1:2] and sys.argv[1] in ("synthesise", "dicom"):
        for name in UNUSED:
            sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # to MONAI it is not installed
    return main()


if __name__ == "__main__":
    sys.exit(script())
