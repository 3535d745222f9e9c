"""What an engine depends on: graph, library, GPU, options and the sizes it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunion.runtime.bundle import Bundle
from prunion.runtime.errors import InputError

__all__ = ["BuildOptions", "EngineKey", "Range", "default_name", "engine_key", "input_ranges"]

Range = tuple[int, int, int]


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built. Raises InputError.

    Attributes:
        batch: (least, usual, most) images at a time.
        max_domains: rows that the tables may grow to; max_classes: classes of one domain.
        workspace: bytes of scratch memory that a layer may ask for; None leaves it to TensorRT.
        dla: the deep-learning accelerator core to use (Jetson Xavier and Orin), None for none.
        timing_cache: a file of measured kernels, read and written; builds after it are faster.
    """

    batch: Range = (1, 8, 32)
    max_domains: int = 64
    max_classes: int = 1024
    workspace: int | None = None
    dla: int | None = None
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        low, usual, most = self.batch
        if not 1 <= low <= usual <= most:
            raise InputError(f"the batch profile is {self.batch}: give 1 ≤ least ≤ usual ≤ most")
        if self.workspace is not None and self.workspace < 1 << 20:
            raise InputError(f"the workspace is {self.workspace} bytes: give a MiB or more")
        if self.dla is not None and self.dla < 0:
            raise InputError(f"there is no DLA core {self.dla}: cores count from 0")

    @property
    def noted(self) -> tuple[str, ...]:
        """What of it makes another engine, beside the sizes; a timing cache does not."""
        found = []
        if self.workspace is not None:
            found.append(f"workspace={self.workspace}")
        if self.dla is not None:
            found.append(f"dla={self.dla}")
        return tuple(found)


@dataclass(frozen=True)
class EngineKey:
    """What an engine was built from; it is stale when any of it changes.

    `batch`, `domains` and `classes` are (least, usual, most) sizes of N, D and Cmax. `sms` are
    GPU generations, 86 for compute capability 8.6.
    """

    target: str
    library_version: str
    graph_sha256: str
    trunk_hash: str
    sms: tuple[int, ...]
    precision: str
    batch: Range
    domains: Range
    classes: Range
    options: tuple[str, ...] = ()


def engine_key(
    bundle: Bundle,
    target: str,
    library_version: str,
    sms: Sequence[int] = (),
    precision: str = "fp32",
    options: BuildOptions | None = None,
) -> EngineKey:
    """Everything an engine of `bundle` depends on. Raises BundleError without such a graph."""
    options = options or BuildOptions()
    manifest, relative = bundle.manifest, bundle.graph(precision).relative_to(bundle.path)
    domains, classes = len(manifest.domains), manifest.max_classes
    return EngineKey(
        target=target,
        library_version=library_version,
        graph_sha256=manifest.files[relative.as_posix()],
        trunk_hash=manifest.trunk_hash,
        sms=tuple(sms),
        precision=precision,
        batch=options.batch,
        domains=(1, domains, max(options.max_domains, domains)),
        classes=(1, classes, max(options.max_classes, classes)),
        options=options.noted,
    )


def default_name(bundle: Bundle, key: EngineKey) -> str:
    """The engine's file name in the current folder."""
    sms = "".join(f".sm{sm}" for sm in key.sms)
    return f"{bundle.manifest.name}.{key.target}{sms}.{key.precision}.engine"


def input_ranges(key: EngineKey, heads: str = "gathered") -> dict[str, tuple[Range | None, ...]]:
    """(least, usual, most) of each input's symbolic axes; None and what is left out are fixed.

    `heads` is the manifest's: concatenated ones have a table over the classes of all domains.
    """
    ranges: dict[str, tuple[Range | None, ...]] = {
        "image": (key.batch,),
        "domain": (key.batch,),
        "bank": (key.domains,),
        "head_weight": (key.domains, None, key.classes),
        "head_bias": (key.domains, key.classes),
        "pixels": (key.domains,),
    }
    if heads == "concatenated":
        low, usual, most = (d * c for d, c in zip(key.domains, key.classes, strict=True))
        ranges["head_weight"] = (None, (low, usual, most))
        ranges["head_columns"] = (key.domains, key.classes)
    return ranges
