"""What a manifest says beside its graphs, from its other files and the checkpoint it is of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

import numpy as np

from prunion.exporter.bundle import image_input
from prunion.runtime.base import shown
from prunion.runtime.bundle import Bundle, ImageInput
from prunion.runtime.errors import ConfigError
from prunion.trainer.config import BudgetConfig
from prunion.trainer.cost import make_budget, make_pricer
from prunion.trainer.network import Checkpoint

__all__ = ["check_against", "check_claims", "check_told"]


def check_told(bundle: Bundle) -> Iterator[str]:
    """What every export says: of what a manifest leaves out nothing can be found out again.

    A runtime reads those of an earlier prunion too, which said less.
    """
    manifest, verified = bundle.manifest, bundle.manifest.verified
    told: dict[str, object] = {
        "budget.backbone": manifest.budget.backbone,
        "params.heads": "heads" in manifest.params,
        "params.bank": "bank" in manifest.params,
        "rounding": manifest.rounding,
        "paper": manifest.paper,
        "verified": verified,
        "provenance": manifest.provenance,
        "provenance.model_sha256": manifest.model_sha256,
    }
    for domain in manifest.domains:
        told[f"input in the pack of {domain.name}"] = bundle.pack(domain.name).images
        if domain.accuracy is not None:
            told[f"accuracy_views of {domain.name}"] = domain.views
    for variant in [x for x in manifest.graphs if x != "fp32"] if verified else ():
        check = verified.variants.get(variant) if verified else None
        told[f"verified.variants.{variant}"] = check
        if check is not None:
            key = f"verified.variants.{variant}.max_relative_error of every domain"
            told[key] = len(check.max_relative_error) == len(bundle.domains)
            told[f"verified.variants.{variant}.accuracy"] = variant != "int8" or check.int8
    missing = [key for key, value in told.items() if not value]
    if missing:
        yield (
            f"it does not say {', '.join(missing)}, as every export does: export the bundle again"
        )


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
    """What only the checkpoint knows.

    The backbone, the heads, the budget, how images are prepared, classes, accuracies, and which run
    it was.
    """
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
    claims += _budget_claims(bundle, loaded, whole=len(known) == len(rows))
    prepared = image_input(loaded)
    for key in fields(ImageInput):
        said, trained = getattr(manifest.input, key.name), getattr(prepared, key.name)
        claims.append((f"input's {key.name}", said, trained))
    if manifest.rounding is not None:
        told = loaded.config.budget.round_to
        claims.append(("rounding.multiple", manifest.rounding.multiple, told))
    if origin is not None and origin.model_sha256:
        held = loaded.meta["model_sha256"]
        claims.append(("provenance.model_sha256", origin.model_sha256, held))
    if origin is not None:
        claims.append(("provenance.seed", origin.seed, loaded.config.seed))
    for layer in table.layers:
        name = layer.weight.removesuffix(".weight")
        if name in manifest.widths:
            said = manifest.widths[name][0]
            claims.append((f"widths[{name!r}], before,", said, layer.shape[0]))
    mirror = {x.name: x.mirror for x in loaded.config.domains}
    for domain in manifest.domains:
        if domain.name in rows:
            entry = loaded.meta["domains"][rows[domain.name]]
            yield from _other_classes(domain.name, domain.classes, entry["classes"])
            right = entry.get("accuracy")
            claims.append((f"the accuracy of {domain.name}", domain.accuracy, right))
        if domain.views is not None and domain.name in mirror:
            views = loaded.config.input.crops(mirror[domain.name])
            claims.append((f"accuracy_views of {domain.name}", domain.views, views))
    for what, claimed, found in claims:
        if claimed != found:
            yield f"{what} is {claimed} in the manifest, the checkpoint says {found}"


def _budget_claims(
    bundle: Bundle, loaded: Checkpoint, *, whole: bool
) -> Iterator[tuple[str, object, object]]:
    """What was asked, and what the whole network costs in its unit.

    Args:
        whole: whether the bundle has all of the checkpoint's domains, which bytes are counted of.
    """
    said, config = bundle.manifest.budget, loaded.config.budget
    yield "budget.kind", said.kind, config.kind
    yield "budget.asked", said.asked, config.limit
    if said.kind != config.kind or not (whole and said.backbone):
        return
    budget = make_budget(
        config, make_pricer(config, loaded.net), cuts=loaded.config.train.traits.prunes
    )
    yield "budget.backbone", said.backbone, budget.pricer.backbone
    if said.kind == "latency":
        yield "budget.share", said.share, said.milliseconds / budget.full


def _other_classes(domain: str, said: Sequence[str], trained: Sequence[str]) -> Iterator[str]:
    if len(said) != len(trained):
        yield (
            f"{domain} has {len(said)} classes in the manifest, the checkpoint has {len(trained)}"
        )
    for index, (name, right) in enumerate(zip(said, trained, strict=False)):
        if name != right:
            yield (
                f"class {index} of {domain} is {shown(name)} in the manifest, the checkpoint says "
                f"{shown(right)}"
            )
            return


def _is_share(bundle: Bundle) -> bool:
    try:
        return BudgetConfig(bundle.manifest.budget.asked).is_fraction
    except ConfigError:  # which the budget's own check tells
        return False


def _told(bundle: Bundle, key: str) -> str:
    return f"{bundle.manifest.params[key]:,}"
