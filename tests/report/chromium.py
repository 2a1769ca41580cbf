"""Headless Chromium through its DevTools pipe: what a page logs, asks for and looks like, with nothing to install.

--remote-debugging-pipe reads JSON messages that end in a zero byte from descriptor 3 and writes them to 4.
"""

import base64
import io
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-default-browser-check",
    "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--remote-debugging-pipe",
)  # fmt: skip
PATIENCE = 60.0  # seconds for any one answer: software rendering on a busy machine


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """One tab; `problems` are its console's errors and exceptions, `requests` what it asked the network for."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self.to_browser, self.from_browser = to_browser, from_browser
        self.rest, self.number, self.session = b"", 0, ""
        self.problems: list[str] = []
        self.requests: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.from_browser], [], [], max(0, until - time.monotonic()))
            chunk = os.read(self.from_browser, 1 << 20) if ready else b""
            assert chunk, "Chromium does not answer"
            self.rest += chunk
        message, _, self.rest = self.rest.partition(b"\0")
        event = json.loads(message)
        self._note(event.get("method", ""), event.get("params", {}))
        return event

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"])[:600])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            told = [str(entry.get("value", entry.get("description", ""))) for entry in params["args"]]
            self.problems.append(f"console.{params['type']}: {' '.join(told)}"[:600])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(f"{params['entry']['source']}: {params['entry']['text']}"[:600])
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("data:", "blob:", "file:", "about:")):
                self.requests.append(url)

    def evaluate(self, expression: str) -> Any:
        result = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def open(self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 700
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url=path.resolve().as_uri())
        self.wait_for("document.readyState === 'complete'")

    def wait_for(self, expression: str) -> None:
        until = time.monotonic() + PATIENCE
        while not self.evaluate(expression):
            assert time.monotonic() < until, f"it never came: {expression}; {self.problems}"
            time.sleep(0.1)

    def picture(self, selector: str | None = None) -> Image.Image:
        """The window, or one element wherever it is."""
        options: dict[str, Any] = {}
        if selector:
            found = self.evaluate(
                f"(() => {{ const r = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
                "return [r.x + scrollX, r.y + scrollY, r.width, r.height]; })()"
            )
            clip = dict(zip(("x", "y", "width", "height"), found, strict=True), scale=1)
            options = {"clip": clip, "captureBeyondViewport": True}
        png = base64.b64decode(self.ask("Page.captureScreenshot", format="png", **options)["data"])
        return Image.open(io.BytesIO(png)).convert("RGB")


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """A browser of its own, with an empty profile, gone at the end."""
    read_theirs, write_ours = os.pipe()
    read_ours, write_theirs = os.pipe()

    def descriptors() -> None:
        # through high numbers, so that neither pipe's end is closed by the other's new one
        os.dup2(read_theirs, 103)
        os.dup2(write_theirs, 104)
        os.dup2(103, 3)
        os.dup2(104, 4)

    command = [str(find_chromium()), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        close_fds=False, preexec_fn=descriptors,
    )  # fmt: skip
    os.close(read_theirs)
    os.close(write_theirs)
    try:
        yield Page(write_ours, read_ours)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(write_ours)
        os.close(read_ours)
