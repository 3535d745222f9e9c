"""`prunion add-domain`: a pack of a new domain for a bundle that exists already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from prunion.exporter.bundle.manifest import image_input
from prunion.exporter.bundle.own_weights import apart
from prunion.exporter.bundle.packs import domain_pack, trunk_hash
from prunion.exporter.graph import TOLERANCE
from prunion.exporter.slim import SlimNet, kept_units, slim_network
from prunion.runtime.base import check_output, relative_error
from prunion.runtime.bundle import Pack, no_pack, write_pack
from prunion.runtime.errors import ConfigError, VerificationError
from prunion.trainer.config import STATE, load_added_domain
from prunion.trainer.network import load_checkpoint
from prunion.trainer.run import AddedDomain, add_domain, check_resumes

__all__ = ["AddedPack", "add_domain_pack"]


@dataclass(frozen=True)
class AddedPack:
    """A pack that was written, where, and the domain's share of right test images.

    `views` says of how many views of an image that is; a bundle answers one.
    """

    path: Path
    pack: Pack
    accuracy: float
    views: int = 1


def add_domain_pack(
    checkpoint: Path | str,
    domain_file: Path | str,
    output: Path | str | None = None,
    *,
    force: bool = False,
    resume: bool = False,
) -> AddedPack:
    """Train the domain of `domain_file` on the finished trunk and write its pack.

    Its log, and the state of a run that was stopped, lie beside the pack in `PACK.run`.

    Raises:
        PrunionError: the pack exists and neither `force` nor `resume` is given, or there is nothing
            to resume.
        StoppedError: a signal came; `resume` goes on from that step.
        VerificationError: the pack on the sliced trunk answers differently; nothing is written.
    """
    new = load_added_domain(domain_file)
    path = Path(output or f"{new.domain.name}.safetensors")
    folder = Path(f"{path}.run")
    if resume and not path.exists():
        check_resumes(folder)
    stopped = (folder / STATE).is_file()
    may = force or (resume and stopped)
    was = check_output(path, force=may, wrote=no_pack, inputs=[checkpoint, domain_file])
    loaded = load_checkpoint(checkpoint)
    if apart(loaded.net) and loaded.net.adapter is not None and loaded.net.adapter.matrices():
        raise ConfigError(
            f"{checkpoint}: its adapters stand beside convolutions that are not padded by half of "
            "their kernels, so each domain has a graph of its own and none can join: train the new "
            "domain with the others"
        )
    digest = trunk_hash(slim_network(loaded.net, kept_units(loaded, loaded.net.switches)))
    added = add_domain(loaded, new.domain, new.train, new.seed, folder, force=force, resume=resume)
    slim = slim_network(added.net, kept_units(loaded, loaded.net.switches))
    if trunk_hash(slim) != digest:
        raise VerificationError("training changed the trunk: please report this as a bug")
    _check(added, slim, *loaded.config.input.size)
    facts = {"name": new.domain.name, "classes": list(added.domain.classes)}
    pack = domain_pack(slim, 0, facts, digest, image_input(loaded))
    write_pack(path, pack, was)
    (folder / STATE).unlink(missing_ok=True)  # the result is safe
    views = loaded.config.input.crops(new.domain.mirror)
    return AddedPack(path, pack, added.accuracy, views)


def _check(added: AddedDomain, slim: SlimNet, height: int, width: int) -> None:
    images = torch.randn(4, 3, height, width, generator=torch.Generator().manual_seed(0))
    rows = torch.zeros(4, dtype=torch.int64)
    with torch.no_grad():
        expected, got = added.net.logits(images, rows), slim.logits(images, rows)
    error = relative_error(expected, got)
    if not error <= TOLERANCE:
        raise VerificationError(
            f"domain {added.domain.name}: the sliced network differs from the trained one by "
            f"{error:.2e} of the largest logit, more than {TOLERANCE:.0e}; nothing was written"
        )
