"""`prunion export`: from a checkpoint to a verified bundle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from prunion.exporter.onnx_graph import onnx_graph
from prunion.exporter.slim import SlimNet, slim_network
from prunion.exporter.verify import TOLERANCE, Agreement, verify_export
from prunion.runtime.amounts import amount_text
from prunion.runtime.errors import BudgetError, PrunionError
from prunion.runtime.files import new_folder, sha256_file, write_json
from prunion.runtime.pack import Pack, write_pack
from prunion.trainer.budget import cost_of, make_budget
from prunion.trainer.checkpoint import Checkpoint, load_checkpoint, versions

__all__ = ["export_bundle", "export_command", "trunk_hash"]

FORMAT_VERSION = 1


def export_command(checkpoint: str, output: str, force: bool, as_json: bool) -> None:
    """The command line's `export`."""
    manifest = export_bundle(checkpoint, output, force=force)
    if as_json:
        print(json.dumps(manifest, indent=1, ensure_ascii=False))
        return
    params, macs, budget = manifest["params"], manifest["macs"], manifest["budget"]
    widths = manifest["widths"].values()
    cut = sum(after < before for before, after in widths)
    print(f"{output}: {len(manifest['domains'])} domains, {cut} of {len(widths)} widths cut")
    print(
        f"parameters {params['backbone']:,} → {params['exported']:,}, "
        f"MACs {macs['backbone']:,} → {macs['exported']:,}; "
        f"budget {budget['kind']} {budget['asked']}: {amount_text(budget['value'])} "
        f"{'met' if budget['met'] else 'NOT met'}"
    )
    print(
        "masked torch, sliced torch and ONNX Runtime agree to "
        f"{manifest['verified']['max_relative_error']:.1e} on a mixed batch"
    )


def export_bundle(
    checkpoint: Path | str, output: Path | str, *, force: bool = False
) -> dict[str, Any]:
    """Slice, write, verify; the bundle folder appears only if all of it succeeded.

    Returns:
        The manifest.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        VerificationError: the forms disagree; nothing is written.
        BudgetError: the switches cost more than the checkpoint's budget; nothing is written.
        PrunionError: `output` exists and `force` is not given.
    """
    output = Path(output)
    if output.exists() and not force:
        raise PrunionError(f"{output} already exists: choose another place or pass --force")
    loaded = load_checkpoint(checkpoint)
    slim = slim_network(loaded.net)
    budget = _budget(loaded)
    height, width = loaded.config.input.size
    model = onnx_graph(slim, height, width)
    names = [d["name"] for d in loaded.meta["domains"]]
    with new_folder(output, force=force) as folder:
        onnx.save(model, folder / "model.onnx")
        images = _probe(2 * len(names), height, width)
        agreement = verify_export(loaded.net, slim, folder / "model.onnx", images, names)
        write_json(folder / "units.json", slim.table.to_json())
        packs = _write_packs(folder, slim, loaded.meta["domains"])
        manifest = {
            "format_version": FORMAT_VERSION,
            "name": output.name.removesuffix(".prunion"),
            "domains": packs,
            "input": _input(loaded),
            "budget": budget,
            **_accounts(loaded, slim),
            "units": "units.json",
            "bank": [vars(entry) for entry in slim.entries],
            "trunk_hash": trunk_hash(slim),
            "files": {
                str(p.relative_to(folder)): sha256_file(p)
                for p in sorted(folder.rglob("*"))
                if p.is_file()
            },
            "graphs": {"fp32": "model.onnx"},
            "verified": _verified(agreement),
            "provenance": _provenance(loaded),
        }
        write_json(folder / "manifest.json", manifest)
    return manifest


def trunk_hash(slim: SlimNet) -> str:
    """SHA-256 over the fp32 sliced weights, by name, and the bank's order."""
    digest = hashlib.sha256()
    for name, value in sorted(slim.trunk.named_parameters()):
        array = np.ascontiguousarray(value.detach().numpy().astype("<f4"))
        digest.update(f"{name}{list(array.shape)}".encode())
        digest.update(array.tobytes())
    order = [[e.layer, e.kind, e.offset, e.size] for e in slim.entries]
    digest.update(json.dumps(order).encode())
    return digest.hexdigest()


def _probe(count: int, height: int, width: int) -> torch.Tensor:
    """Normalised noise: unlike real images it reaches every channel."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(max(count, 4), 3, height, width, generator=generator)


def _budget(loaded: Checkpoint) -> dict[str, Any]:
    config, units = loaded.config.budget, loaded.net.units
    budget = make_budget(config, units.table, units.group)
    alive = (loaded.net.switches > 0).any(0).numpy()
    value = cost_of(units.table, budget.kind, alive)
    if value > budget.allowed:
        raise BudgetError(
            f"the checkpoint's switches cost {value:,} {budget.kind}, its budget allows "
            f"{budget.allowed:,.0f}: the run stopped before it settled; resume it to its end"
        )
    return {
        "kind": budget.kind,
        "asked": config.limit,
        "value": value / budget.full if config.is_fraction else value,
        "met": True,
    }


def _accounts(loaded: Checkpoint, slim: SlimNet) -> dict[str, Any]:
    table, net = loaded.net.units.table, loaded.net
    every = np.ones(table.count, dtype=bool)
    left = np.ones(slim.table.count, dtype=bool)
    heads = sum(p.numel() for p in net.heads.parameters())
    after = {layer.weight: layer.shape[0] for layer in slim.table.layers}
    return {
        "params": {
            "backbone": table.params(every),
            "exported": slim.table.params(left),
            "heads": heads,
            "bank": slim.bank.numel(),
        },
        "macs": {"backbone": table.macs(every), "exported": slim.table.macs(left)},
        "widths": {
            layer.weight.removesuffix(".weight"): [layer.shape[0], after[layer.weight]]
            for layer in table.layers
        },
    }


def _write_packs(
    folder: Path, slim: SlimNet, domains: list[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    digest, entries = trunk_hash(slim), []
    for index, domain in enumerate(domains):
        count = len(domain["classes"])
        relative = f"domains/{domain['name']}.safetensors"
        pack = Pack(
            name=domain["name"],
            classes=tuple(domain["classes"]),
            bank=slim.bank[index].numpy(),
            head_weight=slim.head_weight[index, :, :count].numpy(),
            head_bias=slim.head_bias[index, :count].numpy(),
            switches=slim.used[index].astype(np.uint8),
            trunk_hash=digest,
        )
        write_pack(folder / relative, pack)
        entry = {"name": domain["name"], "classes": list(domain["classes"]), "pack": relative}
        if domain.get("accuracy") is not None:
            entry["accuracy"] = domain["accuracy"]
        entries.append(entry)
    return entries


def _input(loaded: Checkpoint) -> dict[str, Any]:
    shape = loaded.config.input
    return {
        "height": shape.height,
        "width": shape.width,
        "channels": 3,
        "dtype": "float32",
        "normalisation": {"mean": list(shape.mean), "std": list(shape.std)},
        "resize": {
            "shorter_side": shape.shorter_side,
            "interpolation": "bilinear",
            "crop": "center",
        },
    }


def _verified(agreement: Agreement) -> dict[str, float]:
    return {"max_relative_error": agreement.worst, "tolerance": TOLERANCE}


def _provenance(loaded: Checkpoint) -> dict[str, Any]:
    return {
        "prunion": versions().get("prunion", ""),
        "versions": versions(),
        "trained_with": dict(loaded.meta["versions"]),
        "seed": loaded.config.seed,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "config": loaded.config.to_json(),
    }
