"""Packs that tell by their first logit which they are, and folders of them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np

from prunion.runtime.batching import PackFolder
from prunion.runtime.bundle import Pack, write_pack


def pack(toy: ModuleType, name: str, mark: float = 0.0) -> Pack:
    """A pack whose first logit tells which it is."""
    own: Pack = toy._pack(toy.make_tables(), 2, name, ("zero", "one"))
    return replace(own, head_bias=np.array([mark, 0], np.float32))


def put(folder: PackFolder, pack: Pack, file: str = "") -> Path:
    path = folder.path / f"{file or pack.name}.safetensors"
    write_pack(path, pack)
    return path


def write_sums(folder: PackFolder) -> None:
    """As `sha256sum *.safetensors > SHA256SUMS` does."""
    files = sorted(folder.path.glob("*.safetensors"))
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    (folder.path / "SHA256SUMS").write_text("".join(lines))


def unreadable(*_: object, **__: object) -> None:
    """In place of a call of `Path`: a system that has no more files to give."""
    raise OSError(24, "Too many open files")
