"""MONAI Label's real server under attack: nothing runs, nothing leaves the studies, no answer is a fault of ours."""

import json
import os
import random
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from running import BUNDLES, smallest_weights

sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))
from label_server import LABEL, Server, make_studies, serving

BUNDLE = BUNDLES[0]
ORDINARY, MANY = 200, 2000

pytestmark = pytest.mark.skipif(not (LABEL / "monailabel").is_file(), reason="needs MONAI Label: make test-serve")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("label")
    make_studies(folder / "studies", count=2)
    for bundle in BUNDLES:
        (folder / "models" / bundle.name).mkdir(parents=True)
        smallest_weights(bundle, folder / "models" / bundle.name)
    (folder / "secret.nii.gz").write_bytes(b"secret")
    with serving(folder) as server:
        yield server


def image(server: Server) -> str:
    folder = next(path for path in sorted(server.studies.iterdir()) if any(path.glob("*T1.nii.gz")))
    return f"{folder.name}/{next(folder.glob('*T1.nii.gz')).name.removesuffix('.nii.gz')}"


def ask(server: Server, method: str, path: str, body: bytes | None = None, kind: str = "") -> tuple[int, bytes]:
    headers = {"Content-Type": kind} if kind else {}
    request = urllib.request.Request(server.url + path, body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def form(name: str, file: str, **words: bytes) -> tuple[bytes, str]:
    head = f'--m\r\nContent-Disposition: form-data; name="{name}"; filename="{file}"\r\n\r\n'.encode()
    parts = [f'--m\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n'.encode() + words[key] for key in words]
    return b"\r\n".join([*parts, head + b"not an image", b"--m--\r\n"]), "multipart/form-data; boundary=m"


def infer(server: Server, params: bytes, image: str) -> tuple[int, bytes]:
    body = b'--m\r\nContent-Disposition: form-data; name="params"\r\n\r\n' + params + b"\r\n--m--\r\n"
    return ask(server, "POST", f"/infer/{BUNDLE.name}?image={quote(image, safe='')}&output=json", body,
               "multipart/form-data; boundary=m")  # fmt: skip


def outside(server: Server) -> dict[str, Any]:
    """Every file beside the studies, but the server's own log."""
    folder = server.studies.parent
    files = [path for path in folder.rglob("*") if path.is_file() and server.studies not in path.parents]
    return {str(path): path.read_bytes() for path in files if path != server.log}


def code(pwned: Path) -> str:
    return f"$__import__('pathlib').Path({str(pwned)!r}).touch() or 'PD'"


@pytest.mark.parametrize("option", ["target", "targets", "dataset", "reference", "register", "brain_mask", "amp"])
def test_no_option_of_a_request_is_run(server: Server, tmp_path, option):
    pwned = tmp_path / "pwned"
    component = {"_target_": "subprocess.getoutput", "cmd": f"touch {pwned}"}
    for attack in (code(pwned), component, "@weights", "%bundle_root", "/etc/passwd", [code(pwned)], [component]):
        status, said = infer(server, json.dumps({option: attack}).encode(), image(server))
        assert status == 400 or (option in ("targets", "dataset") and status == 200), said  # AGI-Net has no such option
        assert str(server.models).encode() not in said
        assert not pwned.exists()


@pytest.mark.parametrize("option", ["seed", "epochs", "target", "sources", "slices", "amp", "learning_rate", "width"])
def test_no_option_of_a_training_is_run(server: Server, tmp_path, option):
    pwned = tmp_path / "pwned"
    for attack in (code(pwned), {"_target_": "subprocess.getoutput", "cmd": f"touch {pwned}"}, "@weights"):
        body = json.dumps({option: attack}).encode()
        status, said = ask(server, "POST", f"/train/{BUNDLE.name}?run_sync=true", body, "application/json")
        assert status == 400, said
        assert b"must be" in said or b"unknown contrast" in said
        assert not pwned.exists()


@pytest.mark.parametrize(
    "name", ["../secret", "..\\secret", "/etc/passwd", "{secret}", "a/../../secret", ".lock", "a/.b"]
)
def test_nothing_outside_of_the_studies_is_read_written_or_removed(server: Server, name):
    name = quote(name.format(secret=str(server.studies.parent / "secret.nii.gz")), safe="")
    before = outside(server)
    body, kind = form("file", "x.nii.gz")
    label, _ = form("label", "x.nii.gz")
    for method, path, content in (
        ("PUT", f"/datastore/image?image={name}", body),
        ("PUT", f"/datastore/?image={name}", body),
        ("GET", f"/datastore/image?image={name}", None),
        ("GET", f"/datastore/image/info?image={name}", None),
        ("DELETE", f"/datastore/image?id={name}", None),
        ("DELETE", f"/datastore/label?id={name}&tag=final", None),
        ("PUT", f"/datastore/label?image={name}&tag=final", label),
        ("GET", f"/datastore/label?label={name}&tag=final", None),
        ("POST", f"/infer/{BUNDLE.name}?image={name}", body),
    ):
        status, said = ask(server, method, path, content, kind if content else "")
        assert 400 <= status < 500, (method, path, said)
        assert b"secret.nii.gz is" not in said
    for tag in ("..", "../..", "/tmp"):
        path = f"/datastore/label?image={quote(image(server), safe='')}&tag={quote(tag, safe='')}"
        assert ask(server, "PUT", path, label, kind)[0] == 400
    assert outside(server) == before


def test_a_request_cannot_say_which_file_was_uploaded(server: Server):
    secret = str(server.studies.parent / "secret.nii.gz")
    for params in ({"image": secret}, {"image": "/no/such"}, {"uploaded": True}, {"label": "x"}, {"model": "x"}):
        status, said = infer(server, json.dumps(params).encode(), image(server))
        assert status == 400, said
        assert b"goes with the request itself" in said


@pytest.mark.parametrize("path", ["/session/", "/session/..%2Fx", "/proxy/dicom/x", "/logs/", "/model/agi_net",
                                  "/reload", "/batch/infer/agi_net", "/infer/wsi_v2/x", "/datastore/../x"])  # fmt: skip
def test_what_this_app_has_no_use_for_is_not_served(server: Server, path):
    assert ask(server, "GET", path)[0] == 404
    assert ask(server, "POST", path, b"{}", "application/json")[0] == 404


BAD = [b'{"images": 5}', b"[1,2]", b"null", b"{", b'{"images": "{"}', b"[" * 100_000, b'{"target": NaN}', b'"\\ud800"']


@pytest.mark.parametrize("params", BAD, ids=range(len(BAD)))
def test_params_that_are_none_are_the_clients_fault(server: Server, params):
    status, said = infer(server, params, image(server))
    assert status == 400
    assert "\n" not in json.loads(said)["detail"]


def test_an_image_that_is_not_there_is_the_clients_fault(server: Server):
    status, said = infer(server, b"{}", "nobody/T1")
    assert status == 404
    assert "there is no image 'nobody/T1' among the studies" in json.loads(said)["detail"]
    study = image(server).partition("/")[0]
    status, said = infer(server, b'{"images": {"T1": "nose.nii.gz"}}', image(server))
    assert status == 400
    assert json.loads(said)["detail"] == f"the study {study} has no file 'nose.nii.gz'"
    for path in ("/datastore/image?image=nobody/T1", "/datastore/label?label=nobody/T1&tag=final"):
        assert ask(server, "GET", path)[0] == 404
    assert ask(server, "DELETE", "/datastore/image?id=nobody/T1")[0] == 404


def test_an_image_is_stored_in_its_study_and_none_is_written_over(server: Server):
    body, kind = form("file", "x.nii.gz")
    assert ask(server, "PUT", "/datastore/image?image=new/T1", body, kind)[0] == 200
    assert (server.studies / "new" / "T1.nii.gz").read_bytes() == b"not an image"
    assert ask(server, "PUT", "/datastore/image?image=new/T1", body, kind)[0] == 409
    assert b"path" not in ask(server, "GET", "/datastore/image/info?image=new/T1")[1]
    assert ask(server, "DELETE", "/datastore/image?id=new/T1")[0] == 200
    assert not (server.studies / "new" / "T1.nii.gz").exists()


def anything(draw: random.Random, depth: int = 0) -> Any:
    texts = ["$1+1", "@weights", "%a", "T1", "PD", "../x", "/etc/passwd", "\x00", "é", "", "a" * 5000, "none", "rigid"]
    plain = [None, True, -1, 10**30, 1.5, *texts]
    if depth > 2 or draw.random() < 0.6:
        return draw.choice(plain)
    some = [anything(draw, depth + 1) for _ in range(draw.randrange(4))]
    return some if draw.random() < 0.5 else {str(draw.choice(["_target_", "T1", "image", "$a"])): one for one in some}


def fuzzed(draw: random.Random, known: str) -> tuple[str, str, bytes | None, str]:
    """method, path, body, kind of a request that may be anything but one that would work for long"""
    options = ["target", "targets", "dataset", "register", "brain_mask", "amp", "reference", "images", "contrasts"]
    options += ["image", "label", "timeout", "device", "session", "epochs", "seed", "slices", "size", "width"]
    said = {draw.choice(options): anything(draw) for _ in range(draw.randrange(1, 4))}
    params = json.dumps(said if draw.random() < 0.8 else anything(draw)).encode()
    if draw.random() < 0.15:
        params = params[: draw.randrange(len(params) + 1)] + bytes(draw.randrange(256) for _ in range(3))
    name = quote(
        draw.choice([known, "x", "../x", "/etc/passwd", "a/b/c", "", "\x00", "é/ü", "a" * 300, "labels/x"]), safe=""
    )
    kept = draw.choice(["image", "label", "image/info", "dataset", ""])
    body, kind = form("file", draw.choice(["x.nii.gz", "x.py", "../x.nii", "x", "."]), params=params)
    return draw.choice([
        ("POST", f"/infer/{BUNDLE.name}?image={name}&output=json", body, kind),
        ("POST", f"/infer/{BUNDLE.name}?image={name}", params, "application/json"),
        ("POST", f"/infer/{name or 'x'}?image=x", body, kind),
        ("POST", f"/train/{name or 'x'}?run_sync=true", params, "application/json"),
        ("POST", "/train/nobody?run_sync=true", params, "application/json"),
        ("POST", f"/activelearning/{name or 'x'}", params, "application/json"),
        ("PUT", f"/datastore/image?image={name}", body, kind),
        ("PUT", f"/datastore/image/info?image={name}", body, kind),
        ("PUT", f"/datastore/label?image={name}&tag={name}", body.replace(b'"file"', b'"label"'), kind),
        ("GET", f"/datastore/{kept}?image={name}&label={name}&tag=x", None, ""),
        ("DELETE", f"/datastore/{draw.choice(['image', 'label'])}?id=no{name}&tag=final", None, ""),
    ])  # fmt: skip


@pytest.mark.parametrize("count", [ORDINARY, pytest.param(MANY, marks=pytest.mark.long)])
def test_whatever_is_asked_is_answered_and_nothing_is_written_outside(server: Server, count):
    draw, before = random.Random(count), outside(server)
    for _ in range(count):
        request = fuzzed(draw, image(server))
        status, said = ask(server, *request)
        assert status < 500, (request, said)
        assert b"Traceback" not in said, request
        assert str(server.studies.parent).encode() not in said, request
    assert outside(server) == before
    assert {path.name for path in server.studies.parent.iterdir()} == {"studies", "models", "secret.nii.gz", "log.txt"}
    assert server.info()["models"]
    assert "Traceback" not in server.log.read_text(errors="replace")
    assert not os.path.lexists("/tmp/x.nii.gz")
