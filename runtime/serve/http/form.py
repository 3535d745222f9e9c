"""The parts of a form: every one of them is answered, or the form is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec

from starlette.exceptions import HTTPException

from prunion.runtime.base import install_hint, shown
from prunion.runtime.errors import InputError

__all__ = ["Form", "read_form"]

SPACE = b" \t\r\n"
FILE_TYPES = ("image/", "application/octet-stream")


@dataclass(frozen=True)
class Form:
    """Image files in the order they were sent, and the field `top`; None where there is none."""

    images: tuple[bytes, ...]
    top: str | None


@dataclass
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    data: list[bytes] = field(default_factory=list)
    is_file: bool = False


def read_form(content_type: str, body: bytes, most: int) -> Form:
    """A multipart body that is whole, with at most `most` files.

    A part is a file if it has a filename, or says that it is an image, as some clients send bytes
    that they have no name for.

    Raises InputError, and HTTPException 501 where python-multipart is not installed.
    """
    if find_spec("python_multipart") is None:
        fix = f"{install_hint('serve')}, or send one image as the body"
        raise HTTPException(501, f"this server lacks python-multipart: {fix}")
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import parse_options_header

    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise _unread("it names no boundary")
    try:
        parts = _parts(boundary, body, most)
    except FormParserError as exc:
        raise _unread(f"{exc}" or "it is no multipart") from None
    # The parser passes over what stands outside, which may be further parts.
    before, line, rest = (b"\r\n" + body).partition(b"\r\n--" + boundary)
    _, _, behind = (line + rest).partition(line + b"--")
    if before.strip(SPACE) or behind.strip(SPACE):
        raise _unread(
            "it has bytes before its first boundary or behind its last one: leave them out"
        )
    images = tuple(b"".join(part.data) for part in parts if part.is_file)
    if not images:
        raise InputError("the form holds no files: send at least one image")
    tops = [b"".join(part.data) for part in parts if not part.is_file]
    if len(tops) > 1:
        raise InputError("the form has the field top twice: give it once")
    return Form(images, tops[0].decode("latin-1") if tops else None)


def _parts(boundary: bytes, body: bytes, most: int) -> list[_Part]:
    from python_multipart.multipart import MultipartParser

    parts: list[_Part] = []
    ended = False
    key, value = b"", b""

    def begin() -> None:
        parts.append(_Part())

    def header_name(data: bytes, start: int, end: int) -> None:
        nonlocal key
        key += data[start:end]

    def header_value(data: bytes, start: int, end: int) -> None:
        nonlocal value
        value += data[start:end]

    def header_end() -> None:
        nonlocal key, value
        if parts[-1].headers.setdefault(key.lower(), value) is not value:
            raise _unread("a part has a header twice")
        key, value = b"", b""

    def headers_finished() -> None:
        _settle_kind(parts[-1])
        if sum(part.is_file for part in parts) > most:
            raise InputError(f"the form holds too many files: send at most {most}")

    def data(data: bytes, start: int, end: int) -> None:
        parts[-1].data.append(data[start:end])

    def finish() -> None:
        nonlocal ended
        ended = True

    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": begin,
            "on_header_field": header_name,
            "on_header_value": header_value,
            "on_header_end": header_end,
            "on_headers_finished": headers_finished,
            "on_part_data": data,
            "on_end": finish,
        },
    )
    parser.write(body)
    if not ended:
        raise _unread("it ends without its last boundary: send it whole")
    return parts


def _settle_kind(part: _Part) -> None:
    """Note whether a part is a file, by its headers. Raises InputError if it is not, nor `top`."""
    from python_multipart.multipart import parse_options_header

    _, options = parse_options_header(part.headers.get(b"content-disposition", b""))
    kind = part.headers.get(b"content-type", b"").strip().lower().decode("latin-1")
    if b"name" not in options:
        raise _unread("a part has no name in its Content-Disposition")
    name = options[b"name"].decode("utf-8", "replace")
    part.is_file = b"filename" in options or kind.startswith(FILE_TYPES)
    if not part.is_file and name != "top":
        raise InputError(
            f"the form's field {shown(name)} is no file: send it with a filename or as "
            "Content-Type: image/…, or leave it out"
        )


def _unread(why: str) -> InputError:
    return InputError(f"the form cannot be read: {why}")
