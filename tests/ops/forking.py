"""Processes as new ones are but for the seconds of importing torch: forked from a Python that has done that alone."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

# Reads a line of JSON a request: a child to be, which leaves the loop and runs its code, or one to wait for.
SERVER = """
import json, os, sys, time
import torch
for line in sys.stdin:
    request = json.loads(line)
    if "code" in request:
        child = os.fork()
        if child == 0:
            break
        print(child, flush=True)
        continue
    deadline = time.monotonic() + request["seconds"]
    while not (ended := os.waitpid(request["wait"], os.WNOHANG))[0] and time.monotonic() < deadline:
        time.sleep(0.01)
    print(os.waitstatus_to_exitcode(ended[1]) if ended[0] else None, flush=True)
else:
    sys.exit()
for number, path in enumerate((os.devnull, request["out"], request["error"])):
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), number)
os.chdir(request["folder"])
before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
os.environ.clear()
os.environ.update(request["environment"])
paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
sys.path[:] = ["", *paths, *(path for path in sys.path if path and path not in before)]
exec(compile(request["code"], "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
"""


class Process:
    """What tests ask of a `subprocess.Popen`."""

    def __init__(self, nursery: "Nursery", pid: int, folder: Path, number: int) -> None:
        self.nursery, self.pid, self.returncode = nursery, pid, None
        self._said = [folder / f".{name}-{number}" for name in ("out", "error")]

    def poll(self, *, seconds: float = 0) -> int | None:
        """Its status, None while it runs."""
        if self.returncode is None:
            self.returncode = self.nursery.asked({"wait": self.pid, "seconds": seconds})
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, *, timeout: float = 300) -> tuple[str, str]:
        """What it said on its output and its error until its end."""
        if self.poll(seconds=timeout) is None:
            self.send_signal(signal.SIGKILL)
            raise TimeoutError(f"it runs for more than {timeout} s")
        out, error = (path.read_text() for path in self._said)
        return out, error


class Nursery:
    """The Python that others are forked from."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def asked(self, request: dict[str, object]) -> int | None:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline().replace("None", "null"))

    def start(self, code: str, *, environment: dict[str, str], folder: Path) -> Process:
        """Start as `python -c code` would, in a folder and with these variables alone."""
        self.count += 1
        said = [self.folder / f".{name}-{self.count}" for name in ("out", "error")]
        request = {"code": code, "environment": environment, "folder": str(folder)}
        child = self.asked({**request, "out": str(said[0]), "error": str(said[1])})
        assert child is not None
        return Process(self, child, self.folder, self.count)

    def close(self) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait(timeout=60)
