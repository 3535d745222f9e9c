"""A bundle folder: opened, and every file checked against the manifest's hashes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prunion.runtime.base import read_json, sha256_file
from prunion.runtime.bundle.manifest import Domain, Manifest, load_manifest
from prunion.runtime.bundle.pack import Pack, check_pack, read_pack
from prunion.runtime.bundle.unit_table import UnitTable
from prunion.runtime.errors import BundleError, DomainError

__all__ = ["Bundle", "open_bundle"]

FIX = "export again or copy the bundle again"


@dataclass(frozen=True)
class Bundle:
    """A checked bundle: its folder and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def domains(self) -> tuple[str, ...]:
        """Domain names, in the order of the bank's rows."""
        return tuple(domain.name for domain in self.manifest.domains)

    def file(self, relative: str) -> Path:
        """The place of a file that the manifest lists."""
        return self.path / relative

    def graph(self, precision: str = "fp32") -> Path:
        """The ONNX graph of one precision, a key of `manifest.graphs`.

        Raises BundleError if the bundle has none.
        """
        graphs = self.manifest.graphs
        if precision not in graphs:
            raise BundleError(
                f"{self.path} has no {precision} graph, only {', '.join(graphs)}: choose one of "
                "these or export that variant"
            )
        return self.file(graphs[precision])

    def domain(self, name: str) -> Domain:
        """One domain of the manifest. Raises DomainError naming those there are."""
        for domain in self.manifest.domains:
            if domain.name == name:
                return domain
        raise DomainError(f"no domain {name!r} in {self.path}: it has {', '.join(self.domains)}")

    def pack(self, name: str) -> Pack:
        """The domain pack of `name`, checked against the manifest."""
        domain = self.domain(name)
        pack = read_pack(self.file(domain.pack))
        check_pack(pack, trunk_hash=self.manifest.trunk_hash, columns=self.manifest.bank_columns)
        if (pack.name, pack.classes) != (domain.name, domain.classes):
            raise BundleError(f"{domain.pack} and the manifest disagree on the classes: {FIX}")
        return pack

    def unit_table(self) -> UnitTable:
        """The unit table of the sliced trunk."""
        return UnitTable.from_json(read_json(self.file(self.manifest.units), BundleError))


def open_bundle(path: Path | str) -> Bundle:
    """Open `NAME.prunion/` and check every file's SHA-256.

    Raises BundleError naming the file that is missing, altered or truncated.
    """
    path = Path(path)
    if not path.exists():
        raise BundleError(f"{path} does not exist: give a bundle's folder, NAME.prunion")
    if not path.is_dir():
        raise BundleError(f"{path} is a file: give the bundle's folder, not a file in it")
    if not (path / "manifest.json").is_file():
        raise BundleError(f"{path} holds no manifest.json: it is no bundle, or a copy was cut off")
    manifest = load_manifest(path / "manifest.json")
    root = path.resolve()
    for relative, digest in manifest.files.items():
        _check_file(path, root, relative, digest)
    return Bundle(path, manifest)


def _check_file(path: Path, root: Path, relative: str, digest: str) -> None:
    file = path / relative
    try:
        if not file.exists():
            raise BundleError(f"{file} is missing: {FIX}")
        # A symbolic link out of the folder would let a bundle name any file of the machine.
        if not file.is_file() or not file.resolve().is_relative_to(root):
            raise BundleError(f"{file} is no plain file inside the bundle: copy the bundle again")
        found = sha256_file(file)
    except OSError as exc:  # a name that is too long, a folder or file that may not be read
        raise BundleError(f"{file} cannot be read ({exc.strerror}): {FIX}") from None
    if found != digest:
        raise BundleError(
            f"{file} differs from the manifest (SHA-256 {found[:12]}…, expected {digest[:12]}…): "
            f"altered or truncated, {FIX}"
        )
