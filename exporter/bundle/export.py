"""`prunion export`: from a checkpoint to a verified bundle."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from prunion.exporter.bundle.manifest import counts, image_input, provenance, rounding, widths
from prunion.exporter.bundle.own_weights import SHARED, empty_graphs, shared_parts
from prunion.exporter.bundle.packs import write_packs
from prunion.exporter.bundle.parts import Parts, make_parts, verify_parts
from prunion.exporter.bundle.reopened import check_opens
from prunion.exporter.bundle.source import Source, load_source
from prunion.exporter.counts import check_counts
from prunion.exporter.graph import TOLERANCE, save_graph, write_variants
from prunion.exporter.options import ExportOptions
from prunion.exporter.slim import SlimNet, slim_network, write_slim
from prunion.runtime.base import (
    check_output,
    check_space,
    check_text,
    free_memory,
    new_folder,
    only_new_garbage,
    path_argument,
    sha256_file,
    shown,
    write_json,
)
from prunion.runtime.bundle import (
    BudgetAccount,
    Domain,
    Manifest,
    UnitTable,
    Verified,
    foreign_to_bundle,
    write_shared,
)
from prunion.runtime.errors import InputError
from prunion.trainer.cost import paper_account
from prunion.trainer.processes import keep_to_quota

__all__ = ["bundle_name", "export_bundle"]

log = logging.getLogger(__name__)
# What people name when they expect one file.
FILES = (".engine", ".json", ".onnx", ".ort", ".plan", ".pt", ".pth", ".safetensors", ".zip")


def export_bundle(
    checkpoint: Path | str,
    output: Path | str,
    options: ExportOptions | None = None,
    *,
    force: bool = False,
) -> dict[str, Any]:
    """Slice, write, verify; the bundle folder appears only if all of it succeeded.

    Returns:
        The value of `manifest.json`.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        DomainError: `options` names a domain that it has not.
        VerificationError: the forms disagree, the graph costs other than was counted, INT8 costs a
            domain too much, or nothing could open the bundle; nothing is written.
        BudgetError: the switches cost more than the checkpoint's budget; nothing is written.
        PrunionError: `output` exists and `force` is not given, or it holds what no export wrote.
        OutputError: it cannot be written.
    """
    output, options = path_argument("output", output), options or ExportOptions()
    checkpoint = path_argument("checkpoint", checkpoint)
    name = bundle_name(output)
    check_output(output, force=force, wrote=foreign_to_bundle, inputs=[checkpoint], whole=True)
    keep_to_quota()
    free_memory()  # of a training in this process; from here on only what the export makes
    with only_new_garbage():
        return _make_bundle(checkpoint, output, name, options, force=force)


def _make_bundle(
    checkpoint: Path | str, output: Path, name: str, options: ExportOptions, *, force: bool
) -> dict[str, Any]:
    source = load_source(checkpoint, options)
    if source.slices is not None and source.checkpoint.net.adapter is None:
        log.info("a graph of one domain alone is not packed: it has zeros where no slice is used")
    source.budget()  # refuse before the work of exporting
    slim = slim_network(source.checkpoint.net, source.alive)
    free_memory()
    parts = make_parts(slim, source.checkpoint, options)
    check_counts(parts.model, parts.table)
    free_memory()
    check_space(output, options.size(parts.model.ByteSize()), "choose another place")
    with new_folder(output, force=force, wrote=foreign_to_bundle) as folder:
        written = _write_files(folder, source, slim, parts, options)
        manifest = _manifest(folder, name, source, slim, parts, written, options).to_json()
        write_json(folder / "manifest.json", manifest)
        check_opens(folder)
    return manifest


@dataclass(frozen=True)
class _Written:
    """What the manifest tells of a bundle's files.

    Attributes:
        table: the units as the graph holds them.
        budget: with the size of the graph's file.
    """

    table: UnitTable
    budget: BudgetAccount
    verified: Verified
    packs: tuple[Domain, ...]


def _write_files(
    folder: Path, source: Source, slim: SlimNet, parts: Parts, options: ExportOptions
) -> _Written:
    """All but the manifest. Raises BudgetError, VerificationError."""
    loaded, graph = source.checkpoint, folder / "model.onnx"
    save_graph(parts.model, graph)
    budget = source.budget(graph.stat().st_size)
    agreement = verify_parts(loaded, slim, parts, graph, options)
    variants = write_variants(folder, parts.model, loaded, options)
    if options.torch:
        (folder / "torch").mkdir()
        write_slim(folder / "torch", slim, loaded, source.alive)
    table = _in_graph(parts.table, parts.model)
    write_json(folder / "units.json", table.to_json())
    if budget.kind == "latency":
        shutil.copyfile(loaded.config.budget.profile, folder / "profile.json")
    views = [loaded.config.input.crops(d.mirror) for d in loaded.config.domains]
    packs = write_packs(folder, parts.packs, loaded.meta["domains"], views)
    if source.own:
        shared = shared_parts(loaded.net, slim)
        write_shared(folder / SHARED, shared)
        empty_graphs(folder, shared)
    return _Written(table, budget, Verified(agreement.worst, TOLERANCE, variants), packs)


def _manifest(
    folder: Path,
    name: str,
    source: Source,
    slim: SlimNet,
    parts: Parts,
    written: _Written,
    options: ExportOptions,
) -> Manifest:
    """Of the files that lie in `folder`."""
    loaded, table = source.checkpoint, written.table
    params, macs = counts(loaded, slim, table, sum(pack.bank.size for pack in parts.packs))
    train = loaded.config.train
    return Manifest(
        name=name,
        domains=written.packs,
        input=image_input(loaded),
        budget=written.budget,
        params=params,
        macs=macs,
        widths=widths(loaded, table),
        rounding=rounding(loaded, slim),
        paper=paper_account(loaded.net, source.alive, source.names, train, source.slices),
        heads="single" if options.specialise is not None else options.heads,
        units="units.json",
        bank=parts.bank,
        trunk_hash=parts.packs[0].trunk_hash,
        files=_hashes(folder),
        graphs={"fp32": "model.onnx", **{v: f"model.{v}.onnx" for v in written.verified.variants}},
        verified=written.verified,
        provenance=provenance(loaded),
        own_weights=SHARED if source.own else "",
        adapters=slim.adapter_entries,
        packed=source.own and bool(slim.slices),
    )


def bundle_name(output: Path) -> str:
    """The bundle's name, from its folder's.

    Raises InputError if no manifest could hold it, or it is a file's name: a bundle is a folder.
    """
    if output.suffix.lower() in FILES and not output.is_dir():
        raise InputError(
            f"{output} is a file's name, and a bundle is a folder: give -o "
            f"{output.with_suffix('.prunion')}, and the graph will be model.onnx in it"
        )
    name = Path(os.path.abspath(output)).name.removesuffix(".prunion")
    return check_text(
        name,
        200,
        lambda problem: InputError(f"the name {shown(name)} {problem}: choose another -o"),
    )


def _in_graph(table: UnitTable, model: onnx.ModelProto) -> UnitTable:
    """The table as the graph holds its tensors.

    A bias that is all zero is left out by torch's exporter; a concatenated head is `[F, T]`.
    """
    held = {initializer.name: initializer for initializer in model.graph.initializer}
    slots = {}
    for (tensor, axis), units in table.slots.items():
        if tensor in held:
            flat = tensor == "head_weight" and len(held[tensor].dims) == 2
            slots[tensor, 0 if flat else axis] = units
    return UnitTable(table.count, slots, table.layers)


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file under `folder`, by relative path."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}
