"""What stands before MONAI Label's endpoints: a request that names other files than the studies', or says what it may
not, is answered with the reason and goes no further.

MONAI Label takes an absolute path for an image that was uploaded, lets `params` replace the image of a request,
writes to whatever an image is called, and answers what it did not expect with a traceback.
"""

import json
import logging
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException, MONAILabelException
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from monai_ext.serve.label_app.confinement import PART, is_image_id, without_folders
from monai_ext.serve.label_app.training_task import chosen_for_training
from monai_ext.synthesis.options import asked_of_training, short

logger = logging.getLogger(__name__)

# What a client of this app has a use for. MONAI Label's others (sessions, batches, weights' exchange, logs, a proxy)
# take or tell paths of the server, or fetch what they are told to.
SERVED = re.compile(
    r"/|/openapi\.json|/docs|/favicon\.ico|/static/.*|/info/?|/infer/(?!wsi)[^/]+|/train/?|/train/[^/]+|/activelearning/[^/]+"
    r"|/datastore/?|/datastore/(image|label)(/info)?|/datastore/updatelabelinfo|/datastore/dataset"
)
OWN_WORDS = ("model", "image", "file", "label", "session", "uploaded", "save_label", "bundle_path")  # not for `params`
DEEPEST = 32  # of JSON within JSON
LARGEST = 2**30  # bytes of a request: a scan is less
FILE = re.compile(rf"{PART}\.nii(\.gz)?")
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


class Gatekeeper:
    """An ASGI middleware: checks a request whole, then hands it on, a training's body with its options alone.

    Args:
        app: the ASGI application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            body = await _body(receive)
            await _check_query(scope)
            body = await _checked_body(scope, body)
            await self.app(_with_length(scope, len(body)), _replay(body, receive), send)
        except HTTPException as refusal:
            await JSONResponse({"detail": refusal.detail}, refusal.status_code)(scope, receive, send)
        except (ImageNotFoundException, LabelNotFoundException, MONAILabelException) as error:
            await JSONResponse({"detail": without_folders(str(error))}, 404)(scope, receive, send)


async def _body(receive: Receive) -> bytes:
    parts, length, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        parts.append(message.get("body", b""))
        length += len(parts[-1])
        if length > LARGEST:
            raise HTTPException(413, f"a request may have {LARGEST:,} bytes")
        more = message.get("more_body", False)
    return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    replayed = False

    async def once() -> Message:
        nonlocal replayed
        if replayed:
            return await receive()
        replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once


def _with_length(scope: Scope, length: int) -> Scope:
    headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
    return {**scope, "headers": [*headers, (b"content-length", str(length).encode())]}


async def _check_query(scope: Scope) -> None:
    path = scope["path"]
    if not SERVED.fullmatch(path) or ".." in path:
        raise HTTPException(404, "this is not served here")
    try:
        query = parse_qsl(scope["query_string"].decode("ascii"), keep_blank_values=True, errors="strict")
    except ValueError as error:
        raise HTTPException(400, "the address is not in UTF-8") from error
    for name, value in query:
        if name in ("image", "id", "label") and value and not is_image_id(value):
            raise HTTPException(400, f"{name} must be an image of the studies, STUDY/FILE, got {short(value)}")
        if name == "tag" and value and not TAG.fullmatch(value):
            raise HTTPException(400, f"tag must be letters and digits, got {short(value)}")
        if name == "session_id" and value:
            raise HTTPException(400, "there are no sessions here: send the file with the request")


async def _checked_body(scope: Scope, body: bytes) -> bytes:
    headers = {name.lower(): value for name, value in scope["headers"]}
    kind = headers.get(b"content-type", b"").decode("latin-1").lower()
    if kind.startswith(("multipart/", "application/x-www-form-urlencoded")):
        await _check_form(scope, body)
    elif scope["path"].startswith(("/train", "/activelearning")) and scope["method"] == "POST":
        return _checked_options(scope["path"], body)
    elif scope["path"].startswith("/infer") and scope["method"] == "POST" and body:
        raise HTTPException(400, "an inference's params come as a form")
    return body


def _checked_options(path: str, body: bytes) -> bytes:
    options = {} if not body.strip() else _json("the body", body)
    if options is None:
        options = {}
    if not isinstance(options, dict):
        raise HTTPException(400, f"the body must be a dictionary of options, got {short(options)}")
    if path.startswith("/activelearning"):
        return b"{}"  # there is nothing to choose
    try:
        if path.rstrip("/") == "/train":
            chosen: dict[str, Any] = {name: _of_training(option) for name, option in options.items()}
        else:
            chosen = _of_training(options)
    except ValueError as error:
        raise HTTPException(400, str(error)) from error
    return json.dumps(chosen).encode()


def _of_training(options: Any) -> dict[str, Any]:
    if not isinstance(options, Mapping):
        raise ValueError(f"a bundle's options must be a dictionary, got {short(options)}")
    return asked_of_training(chosen_for_training(options))


async def _check_form(scope: Scope, body: bytes) -> None:
    request = Request(_with_length(scope, len(body)), _replay(body, _nothing_more))
    try:
        form: FormData = await request.form()
    except Exception as error:  # its parsers raise what they like
        raise HTTPException(400, "the form cannot be read") from error
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if not FILE.fullmatch(value.filename or ""):
                    raise HTTPException(400, f"a file must be NAME.nii.gz or NAME.nii, got {short(value.filename)}")
            elif name in ("params", "info") and value:
                _check_params(name, value, path=scope["path"])
    finally:
        await form.close()


def _check_params(name: str, value: str, *, path: str) -> None:
    params = _json(name, value)
    if not isinstance(params, dict):
        raise HTTPException(400, f"{name} must be a dictionary, got {short(params)}")
    if path.startswith("/infer"):
        for word in OWN_WORDS:
            if word in params:
                raise HTTPException(400, f"{name} cannot say {word}: it goes with the request itself")


def _json(name: str, text: str | bytes) -> Any:
    try:
        value = json.loads(text)
        _check_depth(value)
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # bad JSON, NaN, half a character, too deep
        raise HTTPException(400, f"{name} must be JSON, at most {DEEPEST} deep") from error
    return value


def _check_depth(value: Any, depth: int = 0) -> None:
    if depth > DEEPEST:
        raise ValueError("too deep")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(item, depth + 1)


async def _nothing_more() -> Message:
    return {"type": "http.disconnect"}
