"""Open Inference Protocol v2, JSON over HTTP: requests to arrays, arrays to answers."""

from __future__ import annotations

from typing import Any

import numpy as np

from prunion.runtime.base import shown
from prunion.runtime.errors import InputError
from prunion.runtime.model import Model

__all__ = ["infer_request", "infer_response", "model_metadata", "server_metadata"]

MAX_ROWS = 256
LOWEST = float(np.finfo(np.float32).min)


def server_metadata(version: str) -> dict[str, Any]:
    """The answer to `GET /v2`."""
    return {"name": "prunion", "version": version, "extensions": []}


def model_metadata(model: Model) -> dict[str, Any]:
    """The answer to `GET /v2/models/NAME`."""
    manifest, form = model.bundle.manifest, model.sessions.form
    kind = "UINT8" if form.image == "uint8" else "FP32"
    return {
        "name": manifest.name,
        "versions": ["1"],
        "platform": "prunion_onnx",
        "inputs": [
            {"name": "image", "datatype": kind, "shape": [-1, *form.image_shape]},
            {"name": "domain", "datatype": "INT64", "shape": [-1]},
        ],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, model.max_classes]}],
        "parameters": {"domains": list(model.domains)},
    }


def infer_request(body: Any, model: Model) -> tuple[np.ndarray, list[int] | list[str]]:
    """`image` (`[N, 3, H, W]` float32, or `[N, H, W, 3]` uint8) and `domain [N]` of a request.

    `domain` may be INT64 rows or BYTES names, and stays as it came: only the snapshot of the
    domains that answers may turn a name into a row. Raises InputError.
    """
    if not isinstance(body, dict) or not isinstance(body.get("inputs"), list):
        raise InputError("the request must be an object with a list `inputs`")
    tensors = {str(x.get("name")): x for x in body["inputs"] if isinstance(x, dict)}
    unknown = sorted(tensors.keys() - {"image", "domain"})
    if unknown or len(tensors) != len(body["inputs"]) or len(tensors) != 2:
        raise InputError(f"inputs must be `image` and `domain`, each once; unknown: {unknown}")
    image = _image(tensors["image"], model.sessions.form.image == "uint8")
    return image, _values(tensors["domain"], {"INT64": int, "BYTES": str})


def infer_response(model: Model, logits: np.ndarray, request_id: Any) -> dict[str, Any]:
    """The answer to an infer request.

    Past a domain's own classes the network answers -inf, which JSON cannot hold: such logits
    are sent as the lowest float32, -3.4028235e38.
    """
    output = {
        "name": "logits",
        "datatype": "FP32",
        "shape": list(logits.shape),
        "data": np.maximum(logits, np.float32(LOWEST)).ravel().tolist(),
    }
    answer = {"model_name": model.bundle.manifest.name, "model_version": "1", "outputs": [output]}
    return {**answer, "id": request_id} if isinstance(request_id, str) else answer


def _image(tensor: dict[str, Any], raw: bool) -> np.ndarray:
    shape, data = _shape(tensor), tensor.get("data")
    if tensor.get("datatype") != ("UINT8" if raw else "FP32") or len(shape) != 4:
        kind = "UINT8 of shape [N, H, W, 3]" if raw else "FP32 of shape [N, 3, H, W]"
        raise InputError(f"`image` must be {kind}")
    if not 1 <= shape[0] <= MAX_ROWS:
        raise InputError(
            f"the batch has {shown(shape[0])} images: send 1 to {MAX_ROWS} in a request"
        )
    if not isinstance(data, list):
        raise InputError("`image` has no list `data`")
    try:
        array = np.asarray(data).ravel()
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise InputError("`image.data` must hold rows of one length") from None
    if array.dtype.kind not in "iuf":
        raise InputError("`image.data` must hold numbers only")
    if array.size != int(np.prod(shape, dtype=object)):
        raise InputError(f"`image.data` holds {array.size} numbers, its shape is {shape}")
    if raw and (
        array.dtype.kind == "f" or (array.size and not 0 <= array.min() <= array.max() < 256)
    ):
        raise InputError("`image.data` must hold whole numbers in 0..255")
    if not (np.abs(array) <= np.finfo(np.float32).max).all():
        raise InputError("`image.data` holds NaN, infinity or numbers beyond float32")
    return array.astype(np.uint8 if raw else np.float32).reshape(shape)


def _values(tensor: dict[str, Any], kinds: dict[str, type]) -> list[Any]:
    shape, data = _shape(tensor), tensor.get("data")
    kind = kinds.get(str(tensor.get("datatype")))
    if kind is None or len(shape) != 1 or not isinstance(data, list) or len(data) != shape[0]:
        raise InputError("`domain` must be INT64 rows or BYTES names of shape [N]")
    if any(type(value) is not kind for value in data):
        raise InputError(f"`domain.data` must hold {kind.__name__} values only")
    return data


def _shape(tensor: dict[str, Any]) -> list[int]:
    shape = tensor.get("shape")
    if not isinstance(shape, list) or any(type(n) is not int or n < 0 for n in shape):
        raise InputError(f"`{tensor.get('name')}` has no shape of whole numbers")
    return shape
