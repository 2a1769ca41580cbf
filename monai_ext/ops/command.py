"""python -m monai_ext ops: compile the operators now, and say which kernel each one uses and why not a better one."""

import argparse
import sys
import time

from monai_ext import ops
from monai_ext.ops import loader


def configure(parser: argparse.ArgumentParser) -> None:
    """Add no option to the command: MONAI_EXT_OPS and MONAI_EXT_CACHE in the environment are the choices.

    Args:
        parser: of the command; it is told to call `run`.
    """
    parser.set_defaults(run=run)


def run(_: argparse.Namespace) -> int:
    """Load every operator and print a line or two for each: its kernel, the seconds, the library, why none better.

    Args:
        _: what was typed, which is nothing.

    Returns:
        The exit status: 0, or 1 where MONAI_EXT_OPS=require and a kernel cannot be had.

    Raises:
        ValueError: MONAI_EXT_OPS is set to something else than auto, off or require.
    """
    print(f"MONAI_EXT_OPS={loader.mode()}")
    for name in loader.BINDERS:
        start = time.perf_counter()
        try:
            ops.load(name)
        except loader.BuildError as error:
            print(error, file=sys.stderr)
            return 1
        seconds = time.perf_counter() - start
        status = ops.status()[name]
        print(f"{name}: {status.kernel} kernel, ready in {seconds:.2f} s")
        if status.library:
            print(f"    {status.library}")
        if status.reason:
            print(f"    not better: {status.reason}")
    return 0
