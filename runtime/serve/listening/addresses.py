"""Sockets that have their address and do not listen yet: ports, and paths of Unix sockets."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from pathlib import Path

from prunion.runtime.errors import ConfigError

__all__ = [
    "bind_path",
    "bind_port",
    "check_path",
    "file_identity",
    "hold_port",
    "listen",
    "remove_path",
]


def bind_port(
    host: str, port: int, option: str = "port", *, shared: bool = False, again: bool = True
) -> socket.socket:
    """A socket that has its address and does not listen yet.

    Args:
        shared: let others of this user that are `shared` too have the address.
        again: take it while connections of an earlier server linger there.

    Raises ConfigError.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends at once (TCP_NODELAY) only where a socket says that it is of TCP; without, every
    # answer of two writes waits 40 ms for the client's delayed acknowledgement.
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if again:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        found.bind((host, port))
    except (socket.gaierror, UnicodeError) as exc:  # no such name, or none that could be one
        found.close()
        reason = getattr(exc, "strerror", None) or "it is no host's name"
        raise ConfigError(
            f"cannot listen on {host} ({reason}): choose another --host, an address of this machine"
        ) from None
    except OSError as exc:
        found.close()
        if exc.errno == errno.EADDRNOTAVAIL:
            raise ConfigError(
                f"cannot listen on {host} ({exc.strerror}): choose another --host, an address of "
                "this machine"
            ) from None
        raise ConfigError(
            f"cannot listen on {host} port {port} ({exc.strerror}): choose another --{option}"
        ) from None
    return found


def hold_port(host: str, port: int, option: str = "port") -> socket.socket:
    """A socket that holds an address for workers to share, and that nobody else has.

    Raises ConfigError.
    """
    # A shared socket joins whoever shares the port already, another server too: only one that does
    # not share is told of them.
    bind_port(host, port, option).close()
    # Without `again` such a socket of another server is told of this one before a worker listens.
    # What lingers of a server with one worker forbids it; nobody is there, as was just seen.
    with suppress(ConfigError):
        return bind_port(host, port, option, shared=True, again=False)
    return bind_port(host, port, option, shared=True)


def bind_path(path: Path) -> socket.socket:
    """A Unix socket at a path, where none may be that somebody listens on. Raises ConfigError.

    Who may write to it may ask, as its folder and the process's umask say.
    """
    check_path(path)
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():  # what a process left behind that was killed
            path.unlink()
        found.bind(str(path))
    except OSError as exc:
        found.close()
        raise _no_path(path, exc.strerror or exc) from None
    return found


def check_path(path: Path) -> None:
    """Look whether a Unix socket may take a path; nothing is changed. Raises ConfigError."""
    try:
        if path.is_socket():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
                other.connect(str(path))
            raise _no_path(path, "a server listens there")
        if path.exists() or path.is_symlink():
            raise _no_path(path, os.strerror(errno.EADDRINUSE))
        if not path.parent.is_dir():
            raise _no_path(path, os.strerror(errno.ENOENT))
    except ConnectionRefusedError:
        return
    except OSError as exc:
        raise _no_path(path, exc.strerror or exc) from None


def listen(bound: socket.socket, backlog: int) -> None:
    """Have a socket that has its address listen there. Raises ConfigError if another does by now.

    Where neither shares, two may have a port, and the first one listens.
    """
    try:
        bound.listen(backlog)
    except OSError as exc:
        name = bound.getsockname()
        if bound.family not in (socket.AF_INET, socket.AF_INET6):
            raise _no_path(name, exc.strerror) from None
        raise ConfigError(
            f"cannot listen on {name[0]} port {name[1]} ({exc.strerror}): choose another --port"
        ) from None


def _no_path(path: Path | str, reason: object) -> ConfigError:
    return ConfigError(f"cannot listen on {path} ({reason}): choose another --uds")


def file_identity(path: Path) -> tuple[int, int] | None:
    """Which file lies at a path, None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def remove_path(path: Path, identity: tuple[int, int] | None) -> None:
    """Remove a Unix socket, unless it is another server's by now."""
    if file_identity(path) == identity:
        path.unlink(missing_ok=True)
