"""MONAI Label's real server on a loopback port, and what a client of it sees."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LABEL = ROOT / ".venv-label" / "bin"


def make_studies(folder: Path, *, count: int) -> None:
    """Healthy phantoms, a folder each, as the server keeps studies."""
    make = ("-m", "monai_ext", "phantom", "--out", folder, "--site", "healthy", "--subjects", count)
    what = ("--spacing", 6, "--contrasts", "T1,T2,FLAIR", "--layout", "folder")
    subprocess.run([sys.executable, *map(str, (*make, *what))], check=True, capture_output=True)


class Server:
    """What a client of it sees."""

    def __init__(self, port: int, folder: Path) -> None:
        self.url, self.log = f"http://127.0.0.1:{port}", folder / "log.txt"
        self.studies, self.models = folder / "studies", folder / "models"

    def ask(self, path: str, *, form: dict[str, Any] | None = None, body: Any = None) -> tuple[int, bytes]:
        """GET without a body, POST with a form or a JSON -> status, answer."""
        data, headers = None, {}
        if form is not None:
            mark = uuid.uuid4().hex
            parts = [
                f'--{mark}\r\nContent-Disposition: form-data; name="{name}"'.encode() + content
                for name, content in form.items()
            ]
            data = b"\r\n".join([*parts, f"--{mark}--\r\n".encode()])
            headers["Content-Type"] = f"multipart/form-data; boundary={mark}"
        elif body is not None:
            data, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=600) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def infer(self, bundle: str, image: str, output: str = "image", **params: Any) -> tuple[int, bytes]:
        form = {"params": b"\r\n\r\n" + json.dumps(params).encode()}
        return self.ask(f"/infer/{bundle}?image={image}&output={output}", form=form)

    def upload(self, bundle: str, file: Path, **params: Any) -> tuple[int, bytes]:
        form = {
            "params": b"\r\n\r\n" + json.dumps(params).encode(),
            "file": f'; filename="{file.name}"\r\nContent-Type: application/gzip\r\n\r\n'.encode() + file.read_bytes(),
        }
        return self.ask(f"/infer/{bundle}?output=image", form=form)

    def info(self) -> dict[str, Any]:
        return json.loads(self.ask("/info/")[1])


@contextmanager
def serving(folder: Path, *, threads: int = 1) -> Iterator[Server]:
    """A server of folder/studies with the weights in folder/models, until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [LABEL / "monailabel", "start_server", "--app", ROOT / "monai_ext/serve/label_app", "-i", "127.0.0.1",
               "--studies", folder / "studies", "-p", port, "--conf", "models", folder / "models"]  # fmt: skip
    environment = {**os.environ, "PATH": f"{LABEL}:{os.environ['PATH']}", "OMP_NUM_THREADS": str(threads)}
    server = Server(port, folder)
    with server.log.open("wb") as log:
        process = subprocess.Popen(
            list(map(str, command)), env=environment, stdout=log, stderr=log, start_new_session=True, cwd=folder
        )
        try:
            until = time.monotonic() + 300  # on a machine that is busy with other things
            while True:
                try:
                    server.info()
                    break
                except OSError:
                    assert process.poll() is None, server.log.read_text(errors="replace")[-3000:]
                    assert time.monotonic() < until, "the server did not come up"
                    time.sleep(0.5)
            yield server
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)
