"""`prunion export`: from a checkpoint to a verified bundle."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from prunion.exporter.bundle.manifest import (
    budget_of,
    counts,
    image_input,
    provenance,
    rounding,
    widths,
)
from prunion.exporter.bundle.own_weights import (
    SHARED,
    answer_alone,
    apart,
    check_options,
    empty_graphs,
    holds_slices,
    own_pack,
    prepare_trunk,
    shared_parts,
    verify_alone,
)
from prunion.exporter.bundle.packs import domain_pack, hash_trunk, trunk_hash, write_packs
from prunion.exporter.bundle.reopened import check_opens
from prunion.exporter.counts import check_counts
from prunion.exporter.graph import (
    TOLERANCE,
    Agreement,
    check_one_colour,
    masked_logits,
    one_colour_probe,
    one_domain_graph,
    onnx_graph,
    open_graph,
    run_graph,
    save_graph,
    verify_export,
    write_variants,
)
from prunion.exporter.options import ExportOptions
from prunion.exporter.slim import (
    OneDomainNet,
    SlimNet,
    fold_domain,
    keep_domains,
    kept_units,
    slim_network,
    write_slim,
)
from prunion.runtime.base import (
    HEADS,
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
    BankEntry,
    Manifest,
    Pack,
    UnitTable,
    Verified,
    completed,
    foreign_to_bundle,
    write_shared,
)
from prunion.runtime.errors import InputError
from prunion.runtime.graph import GraphForm
from prunion.trainer.cost import paper_account
from prunion.trainer.network import Checkpoint, load_checkpoint
from prunion.trainer.processes import keep_to_quota

__all__ = ["bundle_name", "export_bundle", "trunk_hash"]

log = logging.getLogger(__name__)


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
    loaded = load_checkpoint(checkpoint, merge=False)
    everyone = loaded.net.switches
    chosen = (options.specialise,) if options.specialise is not None else options.domains
    if chosen is not None:
        loaded = keep_domains(loaded, chosen)
    slices = loaded.net.adapter if holds_slices(loaded.net) else None
    prepare_trunk(loaded.net, dense=options.specialise is not None)
    if slices is not None and loaded.net.adapter is None:
        log.info("a graph of one domain alone is not packed: it has zeros where no slice is used")
    own = loaded.net.adapter if apart(loaded.net) else None
    check_options(options, loaded.net, loaded.config.train)
    alive = kept_units(loaded, everyone)
    budget_of(loaded, alive, slices=slices)  # refuse before the work of exporting
    slim = slim_network(loaded.net, alive)
    free_memory()
    parts = _parts(slim, loaded, options)
    check_counts(parts.model, parts.table)
    free_memory()
    domains = loaded.meta["domains"]
    names = [d["name"] for d in domains]
    check_space(output, options.size(parts.model.ByteSize()), "choose another place")
    with new_folder(output, force=force, wrote=foreign_to_bundle) as folder:
        save_graph(parts.model, folder / "model.onnx")
        budget = budget_of(loaded, alive, (folder / "model.onnx").stat().st_size, slices)
        images = _probe(2 * len(names), *loaded.config.input.size)
        agreement = _verified(loaded, slim, parts, folder / "model.onnx", images, options)
        variants = write_variants(folder, parts.model, loaded, options)
        if options.torch:
            (folder / "torch").mkdir()
            write_slim(folder / "torch", slim, loaded, alive)
        table = _in_graph(parts.table, parts.model)
        write_json(folder / "units.json", table.to_json())
        if budget.kind == "latency":
            shutil.copyfile(loaded.config.budget.profile, folder / "profile.json")
        views = [loaded.config.input.crops(d.mirror) for d in loaded.config.domains]
        packs = write_packs(folder, parts.packs, domains, views)
        if own is not None:
            shared = shared_parts(loaded.net, slim)
            write_shared(folder / SHARED, shared)
            empty_graphs(folder, shared)
        params, macs = counts(loaded, slim, table, sum(pack.bank.size for pack in parts.packs))
        manifest = Manifest(
            name=name,
            domains=packs,
            input=image_input(loaded),
            budget=budget,
            params=params,
            macs=macs,
            widths=widths(loaded, table),
            rounding=rounding(loaded, slim),
            paper=paper_account(loaded.net, alive, names, loaded.config.train, slices),
            heads="single" if options.specialise is not None else options.heads,
            units="units.json",
            bank=parts.bank,
            trunk_hash=parts.packs[0].trunk_hash,
            files=_hashes(folder),
            graphs={"fp32": "model.onnx", **{v: f"model.{v}.onnx" for v in variants}},
            verified=Verified(agreement.worst, TOLERANCE, variants),
            provenance=provenance(loaded),
            own_weights="" if own is None else SHARED,
            adapters=slim.adapter_entries,
            packed=own is not None and bool(slim.slices),
        ).to_json()
        write_json(folder / "manifest.json", manifest)
        check_opens(folder)
    return manifest


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


# What people name when they expect one file.
FILES = (".engine", ".json", ".onnx", ".ort", ".plan", ".pt", ".pth", ".safetensors", ".zip")


@dataclass(frozen=True)
class _Parts:
    """What differs between a graph of several domains and one of a single domain."""

    net: SlimNet | OneDomainNet
    model: onnx.ModelProto
    table: UnitTable
    packs: list[Pack]
    bank: tuple[BankEntry, ...]


def _parts(slim: SlimNet, loaded: Checkpoint, options: ExportOptions) -> _Parts:
    size, domains = loaded.config.input.size, loaded.meta["domains"]
    images = image_input(loaded)
    if options.specialise is None:
        model = onnx_graph(slim, *size, options.opset, options.ir, options.heads)
        digest = trunk_hash(slim, shared_parts(loaded.net, slim))
        packs = [
            own_pack(loaded.net, row, domain_pack(slim, row, domain, digest, images), slim)
            for row, domain in enumerate(domains)
        ]
        return _Parts(slim, model, slim.table, packs, slim.entries)
    net = fold_domain(slim)
    model = one_domain_graph(net, *size, options.opset, options.ir)
    digest = hash_trunk(dict(net.trunk.named_parameters()), [])
    whole = domain_pack(slim, 0, domains[0], digest, images)
    pack = Pack(**{**vars(whole), "bank": np.zeros(0, np.float32)})
    return _Parts(net, model, net.table, [pack], ())


def _verified(
    loaded: Checkpoint,
    slim: SlimNet,
    parts: _Parts,
    graph: Path,
    images: torch.Tensor,
    options: ExportOptions,
) -> Agreement:
    """The written graph against its torch network, all domains at once or each alone."""
    names, shape = [d["name"] for d in loaded.meta["domains"]], loaded.config.input
    flat = one_colour_probe(shape.size, shape.mean, shape.std, domains=len(names))
    rows = torch.from_numpy(flat.domains)
    expected = masked_logits(loaded.net, torch.from_numpy(flat.images), rows)
    if not apart(loaded.net):
        got = run_graph(open_graph(graph), flat)
        check_one_colour(expected, got, flat, names, "ONNX Runtime")
        return verify_export(loaded.net, parts.net, graph, images, names)
    shared = shared_parts(loaded.net, slim)
    whole = [replace(pack, own=completed(pack.own, shared)) for pack in parts.packs]
    form = GraphForm(HEADS[options.heads], "float32", image_input(loaded))
    got = answer_alone(graph.read_bytes(), form, whole, flat)
    check_one_colour(expected, got, flat, names, "ONNX Runtime")
    return verify_alone(loaded.net, graph.read_bytes(), form, whole, images)


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


def _probe(count: int, height: int, width: int) -> torch.Tensor:
    """Normalised noise: unlike real images it reaches every channel."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(max(count, 4), 3, height, width, generator=generator)
