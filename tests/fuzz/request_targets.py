"""Inference requests, mutated: JSON, JSON with raw tensors behind it, and gRPC messages."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz import mutations as make

__all__ = ["request_targets"]

MOST_ROWS = 64


def request_targets(folder: Path) -> dict[str, Callable[[random.Random, Path], None]]:
    """Each reads a request as the server does, and answers it if it can."""
    import numpy as np
    from google.protobuf.message import DecodeError

    from prunion.runtime.model import load
    from prunion.runtime.model.plan import Plan
    from prunion.runtime.protocol import (
        InferRequest,
        domains_of,
        grpc_request,
        http_request,
        images_of,
        schema,
    )
    from tests.support import toy_bundle as toy

    model = load(toy.make_bundle(folder / "served"), "cpu", threads=1)
    model._plan = Plan()  # measuring takes too long here
    form = model.sessions.form
    image = np.random.default_rng(0).random((1, *form.image_shape), np.float32)
    shape = list(image.shape)

    def answer(request: InferRequest) -> None:
        images = images_of(request, form, {"image", "domain"}, MOST_ROWS)
        domains: Any = domains_of(request, len(images))
        model.predict(images if isinstance(images, list) else list(images), domains)

    plain = {
        "id": "a",
        "inputs": [
            {"name": "image", "datatype": "FP32", "shape": shape, "data": image.ravel().tolist()},
            {"name": "domain", "datatype": "BYTES", "shape": [1], "data": ["signs"]},
        ],
        "outputs": [{"name": "logits", "parameters": {"classification": 2}}],
        "parameters": {"priority": 1, "timeout": 1000},
    }
    rows = np.zeros(1, np.int64)
    raw = {
        "inputs": [
            {
                "name": "image",
                "datatype": "FP32",
                "shape": shape,
                "parameters": {"binary_data_size": image.nbytes},
            },
            {
                "name": "domain",
                "datatype": "INT64",
                "shape": [1],
                "parameters": {"binary_data_size": rows.nbytes},
            },
        ],
        "parameters": {"binary_data_output": True},
    }
    message = schema().messages["ModelInferRequest"](model_name="toy", id="a")
    message.inputs.add(name="image", datatype="FP32", shape=shape)
    message.inputs.add(name="domain", datatype="INT64", shape=[1])
    message.raw_input_contents.extend([image.tobytes(), rows.tobytes()])
    wire = message.SerializeToString()

    def as_json(dice: random.Random, _: Path) -> None:
        body = make.json_bytes(make.mutated_json(plain, dice))
        answer(http_request(make.mutated_bytes(body, dice) if dice.random() < 0.3 else body, None))

    def with_raw(dice: random.Random, _: Path) -> None:
        head = make.json_bytes(make.mutated_json(raw, dice) if dice.random() < 0.6 else raw)
        rest = image.tobytes() + rows.tobytes()
        if dice.random() < 0.5:
            rest = make.mutated_bytes(rest, dice)
        length = len(head) if dice.random() < 0.8 else dice.randint(-2, 2 * len(head))
        answer(http_request(head + rest, length))

    def as_message(dice: random.Random, _: Path) -> None:
        kind = schema().messages["ModelInferRequest"]
        data = make.mutated_bytes(wire, dice)
        if dice.random() < 0.5:  # the head of the message, which says most
            data = make.mutated_bytes(wire[:80], dice) + wire[80:]
        try:
            request = kind.FromString(data)
        except DecodeError:  # gRPC itself answers that
            return
        answer(grpc_request(request))

    return {"request-json": as_json, "request-raw": with_raw, "request-grpc": as_message}
