"""The loader, in processes of its own: whatever is wrong with the machine, one clear line and the right numbers."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from ops.forking import Nursery, Process

REPOSITORY = Path(__file__).resolve().parents[2]
COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)

# Loads float_roll, checks what it computes against torch.roll, and prints its kernel and each warning on a line.
USE = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
    from monai_ext import ops
    ops.load("float_roll")
    weight = torch.arange(36.0).reshape(2, 2, 3, 3)
    rolled = ops.float_roll(weight, torch.tensor([[[1.0, -1.0]]]), torch.ones(1, 1))
    ops.load("float_roll")
assert torch.equal(rolled[0], torch.roll(weight, (1, -1), (2, 3)))
print("kernel:", ops.status()["float_roll"].kernel)
print("library:", ops.status()["float_roll"].library)
print("reason:", ops.status()["float_roll"].reason)
for warning in caught:
    if "monai_ext" in warning.filename or "float_roll" in str(warning.message):
        print("warning:", warning.message)
"""


class Machine:
    """A process's surroundings: its cache, its compiler, its variables."""

    def __init__(self, folder: Path, library: Path, nursery: Nursery) -> None:
        self.folder, self.nursery = folder, nursery
        self.cache = folder / "cache"
        self.log = folder / "compiled"
        # A compiler that takes no time: it logs that it ran and hands out a library compiled before.
        self.quick = self.script(f'echo run >>"{self.log}"; cp "{library}" "$out"')
        self.variables = {"CXX": str(self.quick), "MONAI_EXT_CACHE": str(self.cache), "MONAI_EXT_OPS": "auto"}
        self.variables["CUDA_VISIBLE_DEVICES"] = ""  # what is said here is said of CPU kernels

    def script(self, body: str, name: str = "quick") -> Path:
        """An executable that finds the output file's name in $out."""
        path = self.folder / name
        path.write_text(f'#!/bin/sh\nfor out in "$@"; do :; done\n{body}\n')
        path.chmod(0o755)
        return path

    def start(self, code: str = USE, *, anew: bool = False, **variables: str | None) -> Process | subprocess.Popen[str]:
        """Start a process, in a Python of its own if `anew`; a variable that is None is not there."""
        given = {**os.environ, "PYTHONPATH": str(REPOSITORY), **self.variables, **variables}
        environment = {name: value for name, value in given.items() if value is not None}
        if not anew:
            return self.nursery.start(textwrap.dedent(code), environment=environment, folder=self.folder)
        return subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            env=environment, cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, code: str = USE, *, fails: bool = False, anew: bool = False, **variables: str | None) -> list[str]:
        """Run a process to its end: its output's lines, or those of its error."""
        process = self.start(code, anew=anew, **variables)
        out, error = process.communicate(timeout=300)
        assert (process.returncode != 0) == fails, out + error
        return (error if fails else out).splitlines()

    @property
    def compiled(self) -> int:
        """How often the quick compiler ran."""
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    def one_warning(self, lines: list[str]) -> str:
        (warning,) = [line for line in lines if line.startswith("warning:")]
        return warning


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    nursery = Nursery(tmp_path_factory.mktemp("nursery"))
    yield nursery
    nursery.close()


@pytest.fixture(scope="session")
def library(kernel_cache: Path, tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> Path:
    """float_roll compiled for real, once a run."""
    if COMPILER is None:
        pytest.skip("no C++ compiler on this machine")
    folder = tmp_path_factory.mktemp("library")
    machine = Machine(folder, folder / "none", nursery)
    lines = machine.run(CXX=COMPILER, MONAI_EXT_CACHE=str(kernel_cache))
    assert lines[0] == "kernel: cpu", lines
    return Path(lines[1].removeprefix("library: "))


@pytest.fixture
def machine(tmp_path: Path, library: Path, nursery: Nursery) -> Machine:
    return Machine(tmp_path, library, nursery)


def test_a_cached_kernel_is_compiled_once_and_found_again(machine: Machine) -> None:
    for anew in (True, False):
        lines = machine.run(anew=anew)
        assert lines[0] == "kernel: cpu"
        assert not [line for line in lines if line.startswith("warning:")]
    assert machine.compiled == 1


def test_the_cached_kernel_needs_no_compiler(machine: Machine) -> None:
    machine.run()
    assert machine.run(CXX=None, PATH="")[0] == "kernel: cpu"


def test_importing_compiles_nothing(machine: Machine) -> None:
    machine.run("import monai_ext, monai_ext.ops")
    assert machine.compiled == 0
    assert not machine.cache.exists()


def test_the_first_use_loads_an_operator(machine: Machine) -> None:
    code = """
        import torch
        from monai_ext import ops
        assert ops.status()["float_roll"].reason == "not loaded yet: its first use loads it"
        ops.float_roll(torch.ones(1, 1, 3, 3), torch.zeros(1, 1, 2), torch.ones(1, 1))
        print(ops.status()["float_roll"].kernel, ops.status()["selective_scan"].kernel)
    """
    assert machine.run(code) == ["cpu reference"]


def test_off_compiles_nothing_and_computes_the_same(machine: Machine) -> None:
    lines = machine.run(MONAI_EXT_OPS="off")
    assert lines == ["kernel: reference", "library: None", "reason: MONAI_EXT_OPS=off"]
    assert machine.compiled == 0


def test_an_unknown_mode_is_refused_by_name(machine: Machine) -> None:
    error = machine.run(MONAI_EXT_OPS="on", fails=True)[-1]
    assert error == "ValueError: MONAI_EXT_OPS must be auto, off or require, got 'on'"


def test_an_unknown_operator_is_refused_by_name(machine: Machine) -> None:
    error = machine.run("from monai_ext import ops; ops.load('floatroll')", fails=True)[-1]
    assert error.endswith("must be one of ['float_roll', 'group_pool', 'selective_scan'], got 'floatroll'")


def no_compiler(_: Machine) -> dict[str, str | None]:
    return {"CXX": None, "PATH": ""}


def a_compiler_that_is_not_there(machine: Machine) -> dict[str, str | None]:
    return {"CXX": str(machine.folder / "gone")}


def a_compile_error(machine: Machine) -> dict[str, str | None]:
    return {"CXX": str(machine.script("echo 'x.cpp:3: error: no such thing' >&2; exit 1", "failing"))}


def a_compiler_that_makes_nothing(machine: Machine) -> dict[str, str | None]:
    return {"CXX": str(machine.script("exit 0", "idle"))}


def a_compiler_that_makes_rubbish(machine: Machine) -> dict[str, str | None]:
    return {"CXX": str(machine.script('echo rubbish >"$out"', "rubbish"))}


FAULTS: list[tuple[Callable[[Machine], dict[str, str | None]], str]] = [
    (no_compiler, "no C++ compiler (c++, g++ or clang++) on PATH: install one or set CXX"),
    (a_compiler_that_is_not_there, "does not start"),
    (a_compile_error, "the compiler failed (exit status 1): x.cpp:3: error: no such thing"),
    (a_compiler_that_makes_nothing, "made no library"),
    (a_compiler_that_makes_rubbish, "does not load"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_fault_is_one_warning_and_the_reference(
    machine: Machine, fault: Callable[[Machine], dict[str, str | None]], message: str
) -> None:
    lines = machine.run(**fault(machine))
    assert lines[0] == "kernel: reference"
    assert message in lines[2]
    assert message in machine.one_warning(lines)


@pytest.mark.parametrize(("fault", "message"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_fault_is_one_error_where_kernels_are_required(
    machine: Machine, fault: Callable[[Machine], dict[str, str | None]], message: str
) -> None:
    error = machine.run(**fault(machine), MONAI_EXT_OPS="require", fails=True)[-1]
    assert error.startswith(
        "monai_ext.ops.building.BuildError: MONAI_EXT_OPS=require, but float_roll has no cpu kernel: "
    )
    assert message in error


def test_a_required_kernel_that_is_missing_is_an_error_at_every_use(machine: Machine) -> None:
    code = """
        import torch
        from monai_ext import ops
        for _ in range(2):
            try:
                ops.float_roll(torch.ones(1, 1, 3, 3), torch.zeros(1, 1, 2), torch.ones(1, 1))
            except RuntimeError as error:
                print(type(error).__name__)
    """
    assert machine.run(code, CXX=None, PATH="", MONAI_EXT_OPS="require") == ["BuildError"] * 2


def test_a_cached_library_that_does_not_load_is_made_again(machine: Machine) -> None:
    machine.run(CXX=str(machine.script('echo rubbish >"$out"', "rubbish")))
    lines = machine.run()
    assert lines[0] == "kernel: cpu"
    assert not [line for line in lines if line.startswith("warning:")]


def test_a_compiler_without_openmp_is_enough(machine: Machine, library: Path) -> None:
    picky = machine.script(
        f'for word in "$@"; do [ "$word" = -fopenmp ] && echo "error: -fopenmp?" && exit 1; done; cp "{library}" "$out"'
    )
    assert machine.run(CXX=str(picky))[0] == "kernel: cpu"


def test_threads_of_our_own_compute_the_same(machine: Machine) -> None:
    """Where the compiler has no OpenMP."""
    assert COMPILER is not None
    plain = machine.script(
        f"""
for word in "$@"; do shift; [ "$word" = -fopenmp ] || set -- "$@" "$word"; done; exec {COMPILER} "$@" """,
        "plain",
    )
    busy = "torch.set_num_threads(3)\n"
    busy += "many = ops.float_roll(torch.ones(64, 8, 3, 3), torch.zeros(2, 2, 2), torch.ones(2, 2))\n"
    lines = machine.run(USE + busy + "print('right:', bool((many == 1).all()))", CXX=str(plain))
    assert lines[0] == "kernel: cpu"
    assert lines[-1] == "right: True"


def test_ninja_is_not_needed(machine: Machine) -> None:
    """With a PATH that holds the compiler's tools and nothing else."""
    tools = machine.folder / "bin"
    tools.mkdir()
    for tool in ("sh", "cp"):
        (tools / tool).symlink_to(shutil.which(tool) or "")
    assert machine.run(PATH=str(tools))[0] == "kernel: cpu"


def test_a_compiler_that_hangs_is_stopped_with_all_that_it_started(machine: Machine) -> None:
    child = machine.folder / "child"
    hanging = machine.script(f'sleep 300 & echo $! >"{child}"; wait', "hanging")
    start = time.monotonic()
    lines = machine.run("import monai_ext.ops.building as b; b.COMPILE_SECONDS = 1.0" + USE, CXX=str(hanging))
    assert lines[0] == "kernel: reference"
    assert "was stopped after 1 s without a result" in machine.one_warning(lines)
    assert time.monotonic() - start < 60
    assert_gone(int(child.read_text()))


def assert_gone(pid: int) -> None:
    """The process is no more, or a zombie that only waits to be counted."""
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.1)
    raise AssertionError(f"process {pid} still runs")


def test_a_killed_compile_leaves_nothing_that_stops_the_next(machine: Machine) -> None:
    started = machine.folder / "started"
    slow = machine.script(f'echo $$ >"{started}"; printf half >"$out"; sleep 300', "slow")
    process = machine.start(CXX=str(slow))
    while not started.exists() or not started.read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    try:
        lines = machine.run()
        assert lines[0] == "kernel: cpu"
        assert not [line for line in lines if line.startswith("warning:")]
    finally:
        os.killpg(int(started.read_text()), signal.SIGKILL)


def test_eight_processes_at_once_compile_once(machine: Machine, library: Path) -> None:
    slow = machine.script(f'echo run >>"{machine.log}"; sleep 1; cp "{library}" "$out"', "slow")
    processes = [machine.start(CXX=str(slow)) for _ in range(8)]
    outputs = [process.communicate(timeout=300) for process in processes]
    for process, (out, error) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, error
        assert out.splitlines()[0] == "kernel: cpu", out
        assert "warning:" not in out
    assert machine.compiled == 1


@pytest.mark.parametrize("size", [0, 5000])
def test_a_truncated_library_is_compiled_again(machine: Machine, size: int) -> None:
    machine.run()
    (cached,) = machine.cache.glob("*.so")
    with cached.open("r+b") as file:
        file.truncate(size)
    lines = machine.run()
    assert lines[0] == "kernel: cpu"
    assert not [line for line in lines if line.startswith("warning:")]
    assert machine.compiled == 2


def test_a_library_of_another_torch_is_left_alone(machine: Machine) -> None:
    machine.run()
    machine.run("import torch; torch.__version__ = '2.8.0'" + USE)
    assert machine.compiled == 2
    assert len(list(machine.cache.glob("*.so"))) == 2


def test_changed_sources_are_compiled_again(machine: Machine) -> None:
    copy = copy_of_the_package(machine.folder / "copy")
    machine.run(PYTHONPATH=str(copy))
    with (copy / "cuda_ops" / "vec.h").open("a") as file:
        file.write("// changed\n")
    machine.run(PYTHONPATH=str(copy))
    assert machine.compiled == 2


def test_a_missing_cache_folder_is_made(machine: Machine) -> None:
    lines = machine.run(MONAI_EXT_CACHE=str(machine.folder / "a" / "b"))
    assert lines[0] == "kernel: cpu"
    assert "/a/b/" in lines[1]


def unwritable(machine: Machine) -> dict[str, str | None]:
    (machine.folder / "file").touch()
    return {"MONAI_EXT_CACHE": str(machine.folder / "file" / "cache")}


def read_only(_: Machine) -> dict[str, str | None]:
    return {"MONAI_EXT_CACHE": "/proc/monai_ext"}


def homeless(_: Machine) -> dict[str, str | None]:
    return {"MONAI_EXT_CACHE": None, "XDG_CACHE_HOME": None, "HOME": "/proc/nobody"}


@pytest.mark.parametrize("fault", [unwritable, read_only, homeless])
def test_without_a_cache_folder_the_kernel_serves_one_process(
    machine: Machine, fault: Callable[[Machine], dict[str, str | None]]
) -> None:
    temporary = machine.folder / "tmp"
    temporary.mkdir()
    lines = machine.run(**fault(machine), TMPDIR=str(temporary))
    assert lines[0] == "kernel: cpu"
    assert "set MONAI_EXT_CACHE to a folder that can be written" in machine.one_warning(lines)
    assert str(temporary) in lines[1]
    assert not list(temporary.glob("monai_ext*"))


def test_a_read_only_cache_that_holds_the_kernel_is_enough(machine: Machine) -> None:
    machine.run()
    code = "import pathlib, tempfile\ndef refuse(*a, **k): raise OSError(30, 'Read-only file system')\n"
    code += "pathlib.Path.mkdir = tempfile.TemporaryFile = refuse\n"
    lines = machine.run(code + USE)
    assert lines[0] == "kernel: cpu"
    assert not [line for line in lines if line.startswith("warning:")]


def test_no_home_folder_at_all_is_no_error(machine: Machine) -> None:
    code = "import pathlib\ndef lost(): raise RuntimeError('Could not determine home directory.')\n"
    code += "pathlib.Path.home = lost\n"
    lines = machine.run(code + USE, MONAI_EXT_CACHE=None, XDG_CACHE_HOME=None)
    assert lines[0] == "kernel: cpu"
    assert "Could not determine home directory" in machine.one_warning(lines)


def full_disk(machine: Machine, code: str, **variables: str | None) -> list[str]:
    """Run in a mount of its own, where the folder `full` is a file system of 64 kB."""
    full = machine.folder / "full"
    full.mkdir()
    wrapped = f"mount -t tmpfs -o size=64k,mode=700 none {full} && exec '{sys.executable}' -c \"$CODE\""
    variables = {"CODE": code, **variables}
    given = {**os.environ, "PYTHONPATH": str(REPOSITORY), **machine.variables, **variables}
    process = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", wrapped],
        env={name: value for name, value in given.items() if value is not None},
        cwd=machine.folder, text=True, capture_output=True, timeout=100,
    )  # fmt: skip
    if "unshare" in process.stderr or "mount:" in process.stderr:
        pytest.skip(f"this machine lets nobody mount a small file system: {process.stderr.strip()}")
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()


def test_a_full_disk_under_the_cache_leaves_the_temporary_folder(machine: Machine) -> None:
    lines = full_disk(machine, USE, MONAI_EXT_CACHE=str(machine.folder / "full"))
    assert lines[0] == "kernel: cpu"
    assert "No space left on device" in machine.one_warning(lines)


def test_full_disks_everywhere_leave_the_reference(machine: Machine) -> None:
    full = str(machine.folder / "full")
    lines = full_disk(machine, USE, MONAI_EXT_CACHE=full, TMPDIR=full)
    assert lines[0] == "kernel: reference"
    assert "No space left on device" in machine.one_warning(lines)


def test_a_kernel_loaded_before_a_fork_works_in_the_child(machine: Machine) -> None:
    busy = (
        "torch.set_num_threads(2)\nops.float_roll(torch.ones(64, 64, 3, 3), torch.zeros(4, 2, 2), torch.ones(4, 2))\n"
    )
    code = USE + busy + FORK
    assert machine.run(code)[-1] == "child: 0"


def test_a_kernel_can_be_loaded_after_a_fork(machine: Machine) -> None:
    code = "import os, sys, torch\nfrom monai_ext import ops\n" + textwrap.dedent(FORK)
    assert machine.run(code)[-1] == "child: 0"


FORK = """
import os, signal
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    ops.load("float_roll")
    again = ops.float_roll(torch.ones(8, 8, 3, 3), torch.zeros(2, 2, 2), torch.ones(2, 2))
    os._exit(0 if bool((again == 1).all()) and ops.status()["float_roll"].kernel == "cpu" else 1)
print("child:", os.waitpid(pid, 0)[1])
"""


def copy_of_the_package(folder: Path) -> Path:
    for name in ("monai_ext", "cuda_ops"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_two_copies_of_the_package_live_in_one_process(machine: Machine) -> None:
    copy = copy_of_the_package(machine.folder / "copy")
    code = USE + f"""
import sys
first = ops.float_roll
for name in [name for name in sys.modules if name.startswith("monai_ext")]:
    del sys.modules[name]
sys.path.insert(0, {str(copy)!r})
""" + USE + """
assert ops.float_roll is not first and str(ops.__file__).startswith(sys.path[0])
assert torch.equal(first(weight, torch.tensor([[[1.0, -1.0]]]), torch.ones(1, 1)), rolled)
"""  # fmt: skip
    lines = machine.run(code, PYTHONPATH=str(REPOSITORY))
    assert [line for line in lines if line.startswith("kernel:")] == ["kernel: cpu"] * 2
    assert not [line for line in lines if line.startswith("warning:")]


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="needs a CPU with AVX-512")
def test_unlike_machines_share_a_cache_and_run_only_what_they_can(machine: Machine) -> None:
    assert COMPILER is not None
    used = {}
    for capability in ("default", "avx2", "avx512"):
        lines = machine.run(anew=True, CXX=COMPILER, ATEN_CPU_CAPABILITY=capability)  # torch reads it once
        assert lines[0] == "kernel: cpu"
        used[capability] = Path(lines[1].removeprefix("library: "))
    assert len(set(used.values())) == 3
    if shutil.which("objdump") is None:
        pytest.skip("no objdump to look at the instructions with")
    code = {
        capability: subprocess.run(["objdump", "-d", str(path)], capture_output=True, text=True).stdout
        for capability, path in used.items()
    }
    assert "%zmm" in code["avx512"]
    assert "%zmm" not in code["avx2"]
    assert "%ymm" in code["avx2"]
    assert "%ymm" not in code["default"]


def open_to_others(machine: Machine) -> None:
    machine.cache.chmod(0o777)


def of_another_user(machine: Machine) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    os.chown(machine.cache, 12345, 12345)


def a_link_of_another_user(machine: Machine) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a link away")
    machine.cache.rename(machine.folder / "elsewhere")
    machine.cache.symlink_to(machine.folder / "elsewhere")
    os.lchown(machine.cache, 12345, 12345)


@pytest.mark.parametrize("fault", [open_to_others, of_another_user, a_link_of_another_user])
def test_a_cache_that_others_could_have_filled_is_refused_and_the_reference_goes_on(
    machine: Machine, fault: Callable[[Machine], None]
) -> None:
    machine.run()
    fault(machine)
    lines = machine.run()
    assert lines[0] == "kernel: reference"
    assert f"the cache folder {machine.cache}" in machine.one_warning(lines)
    assert "set MONAI_EXT_CACHE to a folder of your own" in machine.one_warning(lines)
    assert machine.compiled == 1


def test_a_library_that_others_may_change_is_made_again(machine: Machine) -> None:
    machine.run()
    (cached,) = machine.cache.glob("*.so")
    cached.chmod(0o666)
    assert machine.run()[0] == "kernel: cpu"
    assert machine.compiled == 2


def test_a_link_in_place_of_the_lock_leaves_what_it_points_to(machine: Machine) -> None:
    machine.run()
    (lock,) = machine.cache.glob("*.lock")
    precious = machine.folder / "precious"
    precious.write_text("kept")
    for made in [*machine.cache.glob("*.so"), lock]:
        made.unlink()
    lock.symlink_to(precious)
    machine.run()
    assert precious.read_text() == "kept"


def test_a_lock_is_not_emptied(machine: Machine) -> None:
    machine.run()
    (lock,) = machine.cache.glob("*.lock")
    lock.write_text("kept")
    (cached,) = machine.cache.glob("*.so")
    cached.unlink()
    machine.run()
    assert machine.compiled == 2
    assert lock.read_text() == "kept"


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077, 0o777])
def test_the_default_cache_is_private_whatever_the_umask(machine: Machine, umask: int) -> None:
    home = machine.folder / "home"
    home.mkdir()
    for _ in range(2):
        lines = machine.run(
            f"import os\nos.umask({umask})\n" + USE, MONAI_EXT_CACHE=None, XDG_CACHE_HOME=None, HOME=str(home)
        )
        assert lines[0] == "kernel: cpu", lines
        assert not [line for line in lines if line.startswith("warning:")]
    assert machine.compiled == 1
    made = [home / ".cache", *(home / ".cache").rglob("*")]
    assert all(path.stat().st_mode & 0o077 == 0 for path in made if path.suffix != ".lock")
