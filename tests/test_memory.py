import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from monai_ext.runtime import keep_freed_memory
{call}
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(16):
    torch.ones(2**24)
before = faults()
for _ in range(4):
    torch.ones(2**24)
print(faults() - before)
"""


def faults(call: str) -> int:
    program = PROGRAM.format(call=call)
    return int(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be told")
def test_a_tensor_takes_the_memory_that_the_one_before_it_left():
    pages = 4 * 2**26 // 4096
    assert faults("") > pages // 2
    assert faults("assert keep_freed_memory()") < pages // 100
