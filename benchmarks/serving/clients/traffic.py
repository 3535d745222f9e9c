"""What clients ask: one image and one domain a request, as bytes on the wire, and its answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

__all__ = ["System", "Traffic", "http_bytes", "make_traffic", "oip_body", "raw_body"]

System = Literal["oip", "raw"]
IMAGES = 8  # different images; what a network computes does not depend on their number
CLOSE = 1e-3  # of the largest logit: sessions of one network add in different orders
PATHS: Mapping[System, str] = {"oip": "/v2/models/{model}/infer", "raw": "/predict"}


@dataclass(frozen=True, eq=False)
class Traffic:
    """Requests for the domains `names`; that of domain d has the image d mod K.

    Attributes:
        images: `[K, 3, H, W]` float32.
        expected: `[D, Cmax]` logits, -inf past a domain's classes; empty where nothing is checked.
    """

    model: str
    names: tuple[str, ...]
    images: np.ndarray
    expected: np.ndarray

    def image(self, domain: int) -> np.ndarray:
        """`[1, 3, H, W]`."""
        place = domain % len(self.images)
        return self.images[place : place + 1]

    def requests(self, system: System) -> list[bytes]:
        """The whole HTTP request of each domain."""
        found = []
        for place, name in enumerate(self.names):
            if system == "oip":
                body, length = oip_body(self.image(place), name)
                headers = {"Inference-Header-Content-Length": str(length)}
            else:
                body = raw_body(self.image(place), place)
                headers = {"Content-Type": "application/octet-stream"}
            found.append(http_bytes(PATHS[system].format(model=self.model), body, headers))
        return found

    def is_right(self, domain: int, logits: np.ndarray) -> bool:
        """Whether `[C]` logits are those that the same network gives in process."""
        if not len(self.expected):
            return True
        wanted = self.expected[domain]
        wanted = wanted[np.isfinite(wanted)]
        if len(logits) < len(wanted):
            return False
        error = np.abs(logits[: len(wanted)] - wanted).max()
        return bool(error <= CLOSE * max(1.0, np.abs(wanted).max()))

    def save(self, path: Path) -> Path:
        """Written as .npz, for the process that makes the load."""
        names = np.array(self.names)
        np.savez(path, model=self.model, names=names, images=self.images, expected=self.expected)
        return path

    @staticmethod
    def open(path: Path) -> Traffic:
        """What `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            names = tuple(str(name) for name in file["names"])
            return Traffic(str(file["model"]), names, file["images"], file["expected"])


def make_traffic(
    model: str, names: Sequence[str], shape: tuple[int, ...], expected: np.ndarray | None = None
) -> Traffic:
    """Noise of `shape` `[3, H, W]` for each name."""
    random = np.random.default_rng(0)
    images = random.standard_normal((min(IMAGES, len(names)), *shape), dtype=np.float32)
    known = np.empty((0, 0), np.float32) if expected is None else expected
    return Traffic(model, tuple(names), images, known)


def oip_body(image: np.ndarray, domain: str) -> tuple[bytes, int]:
    """A request of the protocol with raw tensors, and the length of its JSON."""
    name = domain.encode()
    data = [image.tobytes(), len(name).to_bytes(4, "little") + name]
    inputs: list[dict[str, Any]] = [
        {"name": "image", "datatype": "FP32", "shape": list(image.shape)},
        {"name": "domain", "datatype": "BYTES", "shape": [1]},
    ]
    for entry, raw in zip(inputs, data, strict=True):
        entry["parameters"] = {"binary_data_size": len(raw)}
    outputs = [{"name": "logits", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    return head + b"".join(data), len(head)


def raw_body(image: np.ndarray, domain: int) -> bytes:
    """A request of the LitServe row: the domain as four bytes, then the image."""
    return domain.to_bytes(4, "little") + image.tobytes()


def http_bytes(path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """A POST as it is sent over a connection that is kept."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body
