"""python -m monai_ext ops: compile the operators now, and say which kernel each one uses and why not a better one."""

import argparse
import sys
import time

from monai_ext import ops
from monai_ext.ops import loader


def configure(parser: argparse.ArgumentParser) -> None:
    """Add nothing to the parser: MONAI_EXT_OPS and MONAI_EXT_CACHE are the choices."""
    parser.set_defaults(run=run)


def run(_: argparse.Namespace) -> int:
    """Load every operator and print a line or two for each; the exit status, 0."""
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
