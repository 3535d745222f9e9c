"""What a pack must be to join the domains of a loaded model."""

from __future__ import annotations

from pathlib import Path

from prunion.runtime.bundle import Bundle, Pack, read_pack
from prunion.runtime.graph import pin_form
from prunion.runtime.model.domains import Tables
from prunion.runtime.model.pool import SessionPool

__all__ = ["fitting_pack"]


def fitting_pack(
    pack: Pack | Path | str, bundle: Bundle, sessions: SessionPool, tables: Tables
) -> Pack:
    """The pack, read and whole. Raises BundleError if it does not fit, InputError if none may."""
    tables.refuse_another()
    pack = pack if isinstance(pack, Pack) else read_pack(pack)
    own = tables.domains[0].pack
    bundle.check_pack(pack, features=len(own.head_weight), units=len(own.switches))
    pack = bundle.completed(pack)
    if pack.own:  # that they fit the trunk shows now, not with the first request
        pin_form(sessions.graph.read(), sessions.form, pack)
    return pack
