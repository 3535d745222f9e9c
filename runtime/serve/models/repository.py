"""The models of a server: what each is and has done, and loading and unloading them."""

from __future__ import annotations

import logging
from importlib import metadata
from pathlib import Path
from typing import Any

from prunion.runtime.base import shown
from prunion.runtime.batching import MOST_DOMAINS, OTHER, Listed, RefusedPackError, is_own_fault
from prunion.runtime.errors import BundleError, DomainError, InputError, PrunionError
from prunion.runtime.protocol import (
    Described,
    model_config,
    model_index,
    model_metadata,
    model_statistics,
    server_metadata,
)
from prunion.runtime.serve.models.service import Service, check_version

__all__ = ["Repository"]

logger = logging.getLogger("prunion.serve")


class Repository:
    """The bundle is one model, which takes `domain`; each of its domains is one that does not."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def describe(self, name: str, version: str = "") -> Described:
        """A model by name. Raises DomainError if there is none."""
        check_version(version)
        serving = self.service.serving
        catalogue, form = serving.catalogue, serving.model.sessions.form
        manifest = serving.model.bundle.manifest
        of = {"trunk_hash": manifest.trunk_hash, "model_sha256": manifest.model_sha256}
        if name == serving.name:
            width, names = -1 if catalogue.cache is not None else catalogue.width, catalogue.names
            return Described(name, form, width, takes_domain=True, domains=names, identity=of)
        found = catalogue.find(name)
        if found is None and not catalogue.knows(name):
            own = shown(serving.name)
            raise DomainError(f"no model {shown(name)}: this is {own}, or a domain's name")
        width = len(found.pack.classes) if found is not None else -1
        return Described(name, form, width, takes_domain=False, domains=[name], identity=of)

    async def classes(self, name: str) -> list[str]:
        """The class names of a domain, whose pack is read for it if need be.

        Raises DomainError if there is none, BundleError for a pack that cannot be taken.
        """
        found = await self.service.domain(name)
        return list(found.pack.classes)

    def is_ready(self, name: str, version: str = "") -> bool:
        """Whether a model answers. Raises DomainError if there is none."""
        self.describe(name, version)
        serving = self.service.serving
        bad = serving.failed(name) or serving.catalogue.refused(name)
        return self.service.ready and not bad

    def metadata(self, name: str | None = None, version: str = "") -> dict[str, Any]:
        """Of the server, or of a model. Raises DomainError."""
        if name is None:
            return server_metadata(metadata.version("prunion"))
        return model_metadata(self.describe(name, version))

    def config(self, name: str, version: str = "") -> dict[str, Any]:
        """A model's configuration. Raises DomainError."""
        found, batcher = self.describe(name, version), self.service.serving.batcher
        rows, batch = self.service.options.limits.rows, batcher.options.max_batch
        return model_config(found, rows, batch, batcher.delay)

    def statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """What one model has done, or all of them.

        Raises DomainError if there is none, or if it is not counted by itself.
        """
        bundle, found = self.service.serving.name, self.service.statistics.copied()
        if name and name != bundle:
            self.describe(name, version)
            own = found.of(name)
            if own is None:
                raise DomainError(
                    f"{shown(name)} is not counted by itself: {MOST_DOMAINS} domains are, and the "
                    f"others together as {OTHER!r}, which the statistics of all models have"
                )
            return model_statistics([(name, own)])
        check_version(version)
        each = [] if name else found.domains.items()
        return model_statistics([(bundle, found.total), *each])

    def index(self, ready_only: bool = False) -> list[dict[str, str]]:
        """All models there are."""
        serving = self.service.serving
        found = [Listed(serving.name, ready=True), *serving.catalogue.index()]
        bad = {x.name: serving.failed(x.name) if x.ready else x.reason for x in found}
        rows = [(name, not reason, reason) for name, reason in bad.items()]
        return model_index(row for row in rows if row[1] or not ready_only)

    async def load(self, name: str) -> None:
        """Read a domain's pack, or the bundle itself, anew. Raises PrunionError."""
        self._check_control()
        serving = self.service.serving
        if name == serving.name:
            await self._load_bundle(serving.model.bundle.path)
            return
        async with self.service.changing:
            try:
                await self.service.decoder.run(self.service.serving.catalogue.load, name)
            except BundleError as exc:
                if is_own_fault(exc):
                    raise RefusedPackError(str(exc)) from None
                logger.error("%s cannot be loaded: %s", name, exc)
                raise

    async def _load_bundle(self, path: Path) -> None:
        try:
            await self.service.replace(path)
        except (DomainError, InputError) as exc:  # of what the server was started with
            logger.error("%s cannot be loaded anew: %s", path, exc)
            raise BundleError(str(exc)) from None
        except PrunionError as exc:
            logger.error("%s cannot be loaded anew: %s", path, exc)
            raise

    async def unload(self, name: str) -> None:
        """Answer for a domain no more. Raises PrunionError."""
        self._check_control()
        if name == self.service.serving.name:
            raise InputError(f"{name!r} is what this server serves: stop the server instead")
        async with self.service.changing:
            await self.service.decoder.run(self.service.serving.catalogue.unload, name)

    def _check_control(self) -> None:
        if not self.service.options.control:
            raise InputError("loading and unloading is off: start the server with --control")
