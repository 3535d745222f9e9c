"""The client of `client.py` over gRPC, by the protocol's own messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import numpy as np

from prunion.runtime.base import install_hint
from prunion.runtime.errors import (
    InputError,
    MissingDependencyError,
    OverloadError,
    PrunionError,
)
from prunion.runtime.protocol.client import DATATYPES, NO_LOGITS, TIMEOUT_S, address_of

__all__ = ["grpc_caller"]

# A message of any size: the server's own limit is what counts.
ANY_SIZE = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def grpc_caller(
    url: str, model: str, image: np.ndarray, turns: Sequence[Sequence[int]]
) -> Callable[[], object]:
    """A call that sends one batch and waits for its logits; all threads share one connection.

    Args:
        url: of the server, such as `grpc://127.0.0.1:8001`.
        model: the name it serves the bundle under.
        image: `[N, ...]` as the bundle's graph takes it.
        turns: one call after the other, a row of the bundle for each of the N images.

    Raises:
        InputError: `url` is none of gRPC.
        MissingDependencyError: grpcio or protobuf is not installed.
        OverloadError: from the call, the server has no room for it now.
        PrunionError: from the call, the server does not answer or refuses, or gives no logits of
            these images.
    """
    scheme, host, port, _ = address_of(url)
    if scheme != "grpc" or not host or not port:
        raise InputError(f"{url} is no address of a gRPC server: give grpc://HOST:PORT")
    try:
        import grpc

        from prunion.runtime.protocol.messages import schema
    except ImportError:
        raise MissingDependencyError(
            f"{url} needs the packages grpcio and protobuf: {install_hint('serve')}"
        ) from None
    known = schema()
    host = f"[{host}]" if ":" in host else host
    channel = grpc.insecure_channel(f"{host}:{port}", options=ANY_SIZE)
    # Requests are written once, and logits are not unpacked: what is timed is the server.
    infer = channel.unary_unary(f"/{known.service}/ModelInfer")
    message = known.messages["ModelInferRequest"]
    answers = known.messages["ModelInferResponse"]
    requests = cycle([_request(message, model, image, np.array(rows, "<i8")) for rows in turns])

    def call() -> bytes:
        try:
            content: bytes = infer(next(requests), timeout=TIMEOUT_S)
        except grpc.RpcError as exc:
            told = f"{exc.code().name}: {str(exc.details())[:300]}"
            refusal = f"{url} refused a batch with {told}"
            if any(key == "retry-after" for key, _ in exc.trailing_metadata() or ()):
                raise OverloadError(refusal, "queue") from None
            if exc.code() == grpc.StatusCode.UNAVAILABLE:
                raise PrunionError(
                    f"{url} does not answer ({exc.details()}): is `prunion serve` up?"
                ) from None
            raise PrunionError(refusal) from None
        if not _holds_logits(answers, content, len(image)):
            raise PrunionError(NO_LOGITS.format(url=url, count=len(image)))
        return content

    return call


def _holds_logits(message: Any, content: bytes, count: int) -> bool:
    """Whether an answer has logits of `count` images, raw or in their field."""
    try:
        answer = message.FromString(content)
        (output,), raw = answer.outputs, answer.raw_output_contents
        rows, columns = output.shape
    except Exception:  # protobuf's own, and whatever else is not logits
        return False
    values = len(output.contents.fp32_contents)
    sizes = [len(x) for x in raw] if raw else [4 * values]
    return bool(output.name == "logits" and rows == count and sizes == [4 * rows * columns] != [0])


def _request(message: Any, model: str, image: np.ndarray, rows: np.ndarray) -> bytes:
    request = message(model_name=model)
    for name, kind, array in (
        ("image", DATATYPES[image.dtype.name], image),
        ("domain", "INT64", rows),
    ):
        request.inputs.add(name=name, datatype=kind, shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    request.outputs.add(name="logits")
    content: bytes = request.SerializeToString()
    return content
