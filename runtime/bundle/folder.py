"""A bundle folder: opened, every file checked against the manifest's hashes, and held.

What is read of an open bundle is what was hashed when it was opened, whatever has become of its
folder since: replaced, deleted or written over.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from prunion.runtime.base import listed, parse_json, path_argument, restore, strangers, unlisted
from prunion.runtime.bundle.held import HeldFile
from prunion.runtime.bundle.manifest import Domain, Manifest, load_manifest
from prunion.runtime.bundle.pack import Pack, check_pack, read_pack
from prunion.runtime.bundle.packed import FilledGraph
from prunion.runtime.bundle.unit_table import UnitTable
from prunion.runtime.bundle.weight_parts import completed, read_shared
from prunion.runtime.errors import BundleError, DomainError, InputError

__all__ = ["Bundle", "HeldFile", "check_one_trunk", "foreign_to_bundle", "open_bundle"]

FIX = "export again or copy the bundle again"
MAX_SMALL = 64 << 20  # bytes
PATIENCE = 10.0  # seconds of opening a folder that is replaced again and again


@dataclass(frozen=True)
class Bundle:
    """A checked bundle: its folder and its manifest.

    Attributes:
        path: the folder as it was given.
        place: where that was when it was opened, whatever the working folder is by now.
        held: the files that are read after it was opened, by their path in the bundle.
        sizes: in bytes, of every file that the manifest lists.
    """

    path: Path
    manifest: Manifest
    held: Mapping[str, HeldFile] = field(default_factory=dict, repr=False, compare=False)
    sizes: Mapping[str, int] = field(default_factory=dict, repr=False, compare=False)
    place: Path = field(default=Path(), repr=False, compare=False)

    @property
    def domains(self) -> tuple[str, ...]:
        """Domain names, in the order of the bank's rows."""
        return tuple(domain.name for domain in self.manifest.domains)

    @cached_property
    def digest(self) -> str:
        """Tells it from every other bundle, also from one that has taken its folder's place."""
        told = json.dumps(self.manifest.to_json(), sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()

    def again(self) -> Bundle:
        """Its folder opened anew. Raises BundleError where that holds another bundle by now."""
        return _again(self.place, self.digest)

    def file(self, relative: str) -> Path:
        """The place of a file that the manifest lists; `read` gives what was in it."""
        return self.path / relative

    def read(self, relative: str) -> bytes:
        """The bytes that the manifest's hash is of, whatever has become of the folder.

        Raises BundleError if they are not to be had any more.
        """
        return (self.held.get(relative) or _hold(self.place, relative, self.manifest)).read()

    def graph(self, precision: str = "fp32") -> Path:
        """The place of one precision's ONNX graph, a key of `manifest.graphs`.

        Raises BundleError if the bundle has none.
        """
        graphs = self.manifest.graphs
        if precision not in graphs:
            raise BundleError(
                f"{self.path} has no {precision} graph, only {', '.join(graphs)}: choose one of "
                "these or export that variant"
            )
        return self.file(graphs[precision])

    def held_graph(self, precision: str = "fp32") -> HeldFile:
        """One precision's ONNX graph. Raises BundleError if the bundle has none."""
        self.graph(precision)
        relative = self.manifest.graphs[precision]
        file = self.held.get(relative) or _hold(self.place, relative, self.manifest)
        return FilledGraph(file, self.shared_parts()) if self.manifest.packed else file

    def domain(self, name: str) -> Domain:
        """One domain of the manifest. Raises DomainError naming those there are."""
        for domain in self.manifest.domains:
            if domain.name == name:
                return domain
        raise DomainError(f"no domain {name!r} in {self.path}: it has {listed(self.domains)}")

    def pack(self, name: str) -> Pack:
        """The domain pack of `name`, checked against the manifest."""
        domain = self.domain(name)
        pack = read_pack(self.file(domain.pack), self.read(domain.pack))
        self.check_pack(pack)
        if (pack.name, pack.classes) != (domain.name, domain.classes):
            raise BundleError(f"{domain.pack} and the manifest disagree on the classes: {FIX}")
        return self.completed(pack)

    def check_pack(
        self, pack: Pack, *, features: int | None = None, units: int | None = None
    ) -> None:
        """Raise BundleError unless a pack is sound and fits the manifest.

        What a manifest does not tell is known from other packs: `features` F and `units` U.
        """
        check_pack(
            pack,
            trunk_hash=self.manifest.trunk_hash,
            columns=self.manifest.bank_columns,
            features=features,
            units=units,
            own=bool(self.manifest.own_weights),
            adapters=self.manifest.adapters,
            images=self.manifest.input,
        )

    def shared_parts(self) -> dict[str, np.ndarray]:
        """What the domains' own weights have in common, by `PART:WEIGHT`; mostly nothing."""
        return self._shared

    @cached_property
    def _shared(self) -> dict[str, np.ndarray]:
        file = self.manifest.own_weights
        return read_shared(self.read(file), str(self.file(file))) if file else {}

    def completed(self, pack: Pack) -> Pack:
        """A pack of a domain with weights of its own, with the parts that all domains share."""
        return replace(pack, own=completed(pack.own, self.shared_parts())) if pack.own else pack

    def unit_table(self) -> UnitTable:
        """The unit table of the sliced trunk."""
        units = self.manifest.units
        file = self.file(units)
        value = parse_json(self.read(units), file, BundleError)
        return UnitTable.from_json(value, str(file), BundleError)

    def close(self) -> None:
        """Give the files back that are held; what was read of them stays."""
        for held in self.held.values():
            held.close()

    def __reduce__(self) -> tuple[Callable[[Path, str], Bundle], tuple[Path, str]]:
        """In another process the folder is opened anew: open files do not travel."""
        return _again, (self.place, self.digest)


def open_bundle(path: Path | str) -> Bundle:
    """Open `NAME.prunion/` and check every file's SHA-256.

    A folder that is replaced in that moment is opened anew. Raises BundleError naming the file that
    is missing, altered or truncated, and InputError where `path` is none.
    """
    path, deadline = path_argument("bundle", path), time.monotonic() + PATIENCE
    while True:
        restore(path)
        before = _identity(path)
        try:
            return _open(path)
        except BundleError:
            if _identity(path) == before or time.monotonic() > deadline:
                raise


def _again(place: Path, digest: str) -> Bundle:
    found = open_bundle(place)
    if found.digest != digest:
        raise BundleError(
            f"{place} holds another bundle by now than the one that was opened: open it again"
        )
    return found


def check_one_trunk(bundle: Bundle, what: str) -> None:
    """Raise InputError where domains have weights of their own; `what` needs one graph for all."""
    if bundle.manifest.own_weights:
        raise InputError(
            f"{what} needs one graph for all domains, and each domain of {bundle.path} has weights "
            "of its own: export one of them with --specialise"
        )


def foreign_to_bundle(path: Path) -> str:
    """What at `path` no export wrote, all that the manifest there does not list; "" if nothing."""
    if not path.is_dir() or not strangers(path):
        return strangers(path)
    try:
        manifest = load_manifest(path / "manifest.json")
    except BundleError:
        return "is no bundle, for it holds no manifest.json that can be read"
    return unlisted(path, {"manifest.json", *manifest.files})


def _identity(path: Path) -> tuple[int, ...]:
    """What tells one folder from another that took its place; empty if there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def _open(path: Path) -> Bundle:
    if not path.exists():
        raise BundleError(f"{path} does not exist: give a bundle's folder, NAME.prunion")
    if not path.is_dir():
        raise BundleError(f"{path} is a file: give the bundle's folder, not a file in it")
    if not (path / "manifest.json").is_file():
        raise BundleError(f"{path} holds no manifest.json: it is no bundle, or a copy was cut off")
    manifest = load_manifest(path / "manifest.json")
    bundle = Bundle(path, manifest, held := {}, sizes := {}, place=Path(os.path.abspath(path)))
    small = {manifest.units, manifest.own_weights, *(d.pack for d in manifest.domains)}
    for relative in manifest.files:
        file = _hold(path, relative, manifest, small=relative in small)
        sizes[relative] = file.size
        if relative in small or relative in manifest.graphs.values():
            held[relative] = file
        else:
            file.close()
    return bundle


def _hold(path: Path, relative: str, manifest: Manifest, *, small: bool = False) -> HeldFile:
    """Open a file that the manifest lists, and check its hash."""
    file, expected = path / relative, manifest.files[relative]
    try:
        if not file.exists():
            raise BundleError(f"{file} is missing: {FIX}")
        # A symbolic link out of the folder would let a bundle name any file of the machine.
        if not file.is_file() or not file.resolve().is_relative_to(path.resolve()):
            raise BundleError(f"{file} is no plain file inside the bundle: copy the bundle again")
        found = HeldFile(file, small=small and file.stat().st_size <= MAX_SMALL)
    except OSError as exc:  # a name that is too long, a folder or file that may not be read
        raise BundleError(f"{file} cannot be read ({exc.strerror}): {FIX}") from None
    if found.sha256 != expected:
        raise BundleError(
            f"{file} differs from the manifest (SHA-256 {found.sha256[:12]}…, expected "
            f"{expected[:12]}…): altered or truncated, {FIX}"
        )
    return found
