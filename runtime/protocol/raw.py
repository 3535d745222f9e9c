"""A request whose body is a tensor alone, and what tells it from JSON."""

from __future__ import annotations

import codecs
import json
import math
import re

from prunion.runtime.errors import InputError
from prunion.runtime.graph import GraphForm
from prunion.runtime.protocol.request import InferRequest, make_request
from prunion.runtime.protocol.tensors import raw_tensor

__all__ = ["is_raw", "raw_request"]

LOOK = 4096  # bytes at each end of a body: spaces may stand there
SPACE = b" \t\r\n\0"  # NUL is part of a character in UTF-16 and UTF-32
BEGIN = re.compile(rb'[\xef\xbb\xbf\xff\xfe \t\r\n\0]*\{[ \t\r\n\0]*["}]')  # of a JSON object
CONTROL = re.compile(r"[\0-\x08\x0b\x0c\x0e-\x1f]")  # is in no JSON


def is_raw(body: bytes, form: GraphForm) -> bool:
    """Whether a body that is called bytes is a tensor alone: clients call their JSON bytes too.

    What is as long as whole images is JSON only if it is so at both ends, and text.
    """
    if BEGIN.match(body, 0, LOOK) is None:
        return True
    if len(body) % _image_bytes(form)[1]:
        return False
    return not (body[-LOOK:].rstrip(SPACE).endswith(b"}") and _is_text(body[:LOOK]))


def raw_request(body: bytes, form: GraphForm) -> InferRequest:
    """A body that is nothing but the tensor `image` of one domain, with no JSON before it.

    How many images it holds is how often one fits into it. The answer is as raw. Raises InputError.
    """
    kind, one = _image_bytes(form)
    count, left = divmod(len(body), one)
    if left or not count:
        shape = list(form.image_shape)
        raise InputError(
            f"the body has {len(body)} bytes, and an image {shape} as {kind} takes {one}: send "
            "whole images, or JSON before them and its length in Inference-Header-Content-Length"
        )
    tensor = raw_tensor("image", kind, (count, *form.image_shape), body)
    return make_request(None, [tensor], (), {"binary_data_output": True})


def _image_bytes(form: GraphForm) -> tuple[str, int]:
    """The type of a raw image, and the bytes of one."""
    kind = "UINT8" if form.image == "uint8" else "FP32"
    return kind, math.prod(form.image_shape) * (1 if kind == "UINT8" else 4)


def _is_text(part: bytes) -> bool:
    """Whether bytes begin a text as JSON may be one."""
    try:
        text = codecs.getincrementaldecoder(json.detect_encoding(part))().decode(part)
    except UnicodeDecodeError:
        return False
    return CONTROL.search(text) is None
