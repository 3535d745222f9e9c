"""What a manifest says beside its graphs, from its other files and the checkpoint it is of."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from prunion.runtime.bundle import Bundle
from prunion.runtime.errors import ConfigError
from prunion.trainer.config import BudgetConfig
from prunion.trainer.network import Checkpoint

__all__ = ["check_against", "check_claims"]


def check_claims(bundle: Bundle) -> Iterator[str]:
    """The bank's size, what rounding keeps, and the backbone that a budget is a share of."""
    manifest, table = bundle.manifest, bundle.unit_table()
    packs = [bundle.pack(name) for name in bundle.domains]
    if (found := sum(pack.bank.size for pack in packs)) != manifest.params.get("bank", found):
        yield f"its packs' banks hold {found:,} numbers, the manifest says {_told(bundle, 'bank')}"
    if manifest.rounding is not None and all(len(x.switches) == table.count for x in packs):
        used = np.stack([pack.switches > 0 for pack in packs]).any(axis=0)
        kept = np.append(~used, False)  # slot -1, a channel without a unit, is used
        for layer in table.layers:
            units = table.slots.get((layer.weight, 0))
            name = layer.weight.removesuffix(".weight")
            count = 0 if units is None else int(kept[units].sum())
            if count != (said := manifest.rounding.added.get(name, 0)):
                yield f"{name} has {count} channels that no domain uses, the manifest says {said}"
    budget = manifest.budget
    if budget.kind not in ("params", "macs"):
        return
    counts = getattr(manifest, budget.kind)
    if budget.backbone and budget.backbone != counts["backbone"]:
        yield (
            f"its budget is of a backbone of {budget.backbone:,} {budget.kind}, the manifest's "
            f"other count of it is {counts['backbone']:,}"
        )
    elif not budget.backbone and not budget.slices and counts["backbone"] and _is_share(bundle):
        share = min(1.0, (counts["exported"] + counts.get("adapters", 0)) / counts["backbone"])
        if not np.isclose(share, budget.value, rtol=1e-9):
            yield (
                f"its {budget.kind} are {share:.6g} of the backbone's, the manifest's budget says "
                f"{budget.value:.6g}"
            )


def check_against(bundle: Bundle, loaded: Checkpoint) -> Iterator[str]:
    """What only the checkpoint knows: the backbone, the heads, accuracies, and which run it was."""
    manifest, net = bundle.manifest, loaded.net
    table, origin = net.units.table, manifest.provenance
    every = np.ones(table.count, dtype=bool)
    rows = {str(x["name"]): row for row, x in enumerate(loaded.meta["domains"])}
    known = [name for name in bundle.domains if name in rows]
    heads = sum(p.numel() for name in known for p in net.heads[rows[name]].parameters())
    claims: list[tuple[str, object, object]] = [
        ("params.backbone", manifest.params["backbone"], table.params(every)),
        ("macs.backbone", manifest.macs["backbone"], table.macs(every)),
    ]
    if "heads" in manifest.params and len(known) == len(bundle.domains):
        claims.append(("params.heads", manifest.params["heads"], heads))
    if manifest.rounding is not None:
        told = loaded.config.budget.round_to
        claims.append(("rounding.multiple", manifest.rounding.multiple, told))
    if origin is not None and origin.model_sha256:
        held = loaded.meta["model_sha256"]
        claims.append(("provenance.model_sha256", origin.model_sha256, held))
    for layer in table.layers:
        name = layer.weight.removesuffix(".weight")
        if name in manifest.widths:
            said = manifest.widths[name][0]
            claims.append((f"widths[{name!r}], before,", said, layer.shape[0]))
    mirror = {x.name: x.mirror for x in loaded.config.domains}
    for domain in manifest.domains:
        if domain.name in rows:
            right = loaded.meta["domains"][rows[domain.name]].get("accuracy")
            claims.append((f"the accuracy of {domain.name}", domain.accuracy, right))
        if domain.views is not None and domain.name in mirror:
            views = loaded.config.input.crops(mirror[domain.name])
            claims.append((f"accuracy_views of {domain.name}", domain.views, views))
    for what, claimed, found in claims:
        if claimed != found:
            yield f"{what} is {claimed} in the manifest, the checkpoint says {found}"


def _is_share(bundle: Bundle) -> bool:
    try:
        return BudgetConfig(bundle.manifest.budget.asked).is_fraction
    except ConfigError:  # which the budget's own check tells
        return False


def _told(bundle: Bundle, key: str) -> str:
    return f"{bundle.manifest.params[key]:,}"
