"""A client that asks a running server for batches of random images, as few bytes as HTTP takes."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Sequence
from itertools import cycle
from urllib.parse import quote, urlsplit

import numpy as np

from prunion.runtime.base import json_of
from prunion.runtime.errors import InputError, OverloadError, PrunionError

__all__ = ["address_of", "http_caller", "identity_of"]

DATATYPES = {"float16": "FP16", "float32": "FP32", "uint8": "UINT8"}
TIMEOUT_S = 60.0
MOST_METADATA = 1 << 24  # bytes
BUSY = (429, 503)
NO_LOGITS = (
    "{url} gave no logits of the {count} images that it was asked for: give the address of a "
    "server of this bundle, such as `prunion serve`"
)


def http_caller(
    url: str, model: str, image: np.ndarray, turns: Sequence[Sequence[int]]
) -> Callable[[], object]:
    """A call that sends one batch and waits for its logits; each thread keeps a connection.

    Args:
        url: of the server, such as `http://127.0.0.1:8000`.
        model: the name it serves the bundle under.
        image: `[N, ...]` as the bundle's graph takes it.
        turns: one call after the other, a row of the bundle for each of the N images.

    Raises:
        InputError: `url` is none of HTTP.
        OverloadError: from the call, the server has no room for it now.
        PrunionError: from the call, the server does not answer or refuses, or gives no logits of
            these images.
    """
    scheme, host, port, prefix = address_of(url)
    if scheme != "http" or not host:
        raise InputError(
            f"{url} is no address of a server: give http://HOST:PORT or grpc://HOST:PORT"
        )
    path = f"{prefix.rstrip('/')}/v2/models/{quote(model, safe='')}/infer"
    requests = cycle([_request(image, np.array(rows, "<i8")) for rows in turns])
    own = threading.local()

    def call() -> bytes:
        connection = getattr(own, "connection", None)
        if connection is None:
            connection = own.connection = http.client.HTTPConnection(
                host, port or 80, timeout=TIMEOUT_S
            )
        body, headers = next(requests)
        try:
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            content: bytes = answer.read()
        except (OSError, http.client.HTTPException) as exc:
            own.connection = None
            raise PrunionError(f"{url} does not answer ({exc}): is `prunion serve` up?") from None
        if answer.status != 200:
            told = content[:300].decode("utf-8", "replace")
            refusal = f"{url} refused a batch with {answer.status}: {told}"
            if answer.status in BUSY:
                raise OverloadError(refusal, "queue")
            raise PrunionError(refusal)
        head = answer.headers.get("Inference-Header-Content-Length", "")
        if not _holds_logits(content, int(head) if head.isdecimal() else len(content), len(image)):
            raise PrunionError(NO_LOGITS.format(url=url, count=len(image)))
        return content

    return call


def identity_of(url: str, model: str) -> dict[str, str]:
    """What a server says that tells the bundle it serves as `model` from others; {} if nothing.

    Over gRPC, and of another kind of server, it is nothing.
    """
    scheme, host, port, prefix = address_of(url)
    if scheme != "http" or not host:
        return {}
    connection = http.client.HTTPConnection(host, port or 80, timeout=TIMEOUT_S)
    try:
        connection.request("GET", f"{prefix.rstrip('/')}/v2/models/{quote(model, safe='')}")
        answer = connection.getresponse()
        told = json_of(answer.read(MOST_METADATA)) if answer.status == 200 else {}
    except (
        OSError,
        http.client.HTTPException,
        ValueError,
        RecursionError,
    ):  # asking it for images will tell
        return {}
    finally:
        connection.close()
    parameters = told.get("parameters") if isinstance(told, dict) else None
    known = parameters if isinstance(parameters, dict) else {}
    return {key: str(known[key]) for key in ("trunk_hash", "model_sha256") if key in known}


def address_of(url: str) -> tuple[str, str, int, str]:
    """Scheme, host, port and path of a URL; empty and 0 where there are none, or no real ones."""
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname or "", parts.port or 0, parts.path
    except ValueError:  # a port beyond 65535, a bracket that nothing closes
        return "", "", 0, ""


def _holds_logits(content: bytes, head: int, count: int) -> bool:
    """Whether an answer has logits of `count` images: as JSON, or behind its head as they are."""
    try:
        (output,) = json_of(content[:head])["outputs"]
        rows, columns = map(int, output["shape"])
        if head < len(content):
            held = len(content) - head
        else:  # flat, or a list for each image
            data = output["data"]
            nested = len(data) == rows and all(
                isinstance(x, list) and len(x) == columns for x in data
            )
            held = 4 * (rows * columns if nested else len(data))
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    return output.get("name") == "logits" and rows == count and held == 4 * rows * columns > 0


def _request(image: np.ndarray, rows: np.ndarray) -> tuple[bytes, dict[str, str]]:
    """Body and headers: a JSON head and, behind it, the arrays as they are in memory."""
    sent = {"image": (DATATYPES[image.dtype.name], image), "domain": ("INT64", rows)}
    inputs = [
        {"name": name, "datatype": kind, "shape": list(array.shape)}
        | {"parameters": {"binary_data_size": array.nbytes}}
        for name, (kind, array) in sent.items()
    ]
    outputs = [{"name": "logits", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(head)),
    }
    return head + b"".join(array.tobytes() for _, array in sent.values()), headers
