"""One loaded bundle and all that answers from it: made, warmed, and replaced as a whole."""

from __future__ import annotations

import logging
from collections.abc import Collection, Container
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from prunion.runtime.base import listed
from prunion.runtime.batching import (
    Batcher,
    BatchOptions,
    Catalogue,
    PackCache,
    PackFolder,
    Statistics,
)
from prunion.runtime.errors import BundleError, InputError, PrunionError
from prunion.runtime.model import Model, load
from prunion.runtime.serve.models.failing import Failing
from prunion.runtime.serve.options import LoadOptions, ServeOptions

__all__ = ["Serving", "check_weights", "load_model", "make_serving", "open_anew", "warm"]

# Unless a limit is said: times the bundle's graph that pinned sessions take together; and the share
# of all batches that a domain's must be, or a session for it only takes memory from the others.
GRAPHS, SHARE = 6, 1 / 32
SHOWN = 10  # names in a line of the log
logger = logging.getLogger("prunion.serve")


@dataclass(frozen=True, eq=False)
class Serving:
    """A model, the thread that runs it, and the domains that it answers for.

    Attributes:
        failing: domains that have no answer to give, whoever asks, until they answer again.
    """

    model: Model
    batcher: Batcher
    catalogue: Catalogue
    failing: Failing = field(default_factory=Failing)

    @property
    def name(self) -> str:
        """The bundle's, which is the model's that takes `domain`."""
        return self.catalogue.bundle_name

    def fails(self, domains: Collection[str], error: PrunionError) -> None:
        """Note, and log once, that these have no answer together, for no fault of the request."""
        if self.failing.note(domains, error):
            name = next(iter(domains)) if len(set(domains)) == 1 else self.name
            logger.error("%s cannot answer: %s", name, error)

    def failed(self, name: str) -> str:
        """Why the bundle has no answer of a model; "" if it has, for all that is known."""
        alone, together = self.failing.alone, self.failing.together
        if name == self.name:
            names = [x for x in self.catalogue.names if x] if alone else []
            bad = bool(names) and all(_lasts(alone.get(x)) for x in names)
            # One that has gone never answers again.
            bad = bad or (_lasts(self.failing.reason) and any(map(self.catalogue.knows, together)))
        else:
            bad = _lasts(alone.get(name))
        return "the server's own bundle fails: its log says why" if bad else ""

    def takes_domain(self, model: str, inputs: Container[str]) -> bool:
        """Whether a request with these inputs is one to the bundle, not to a domain.

        Where a domain has the bundle's name, one that says `domain` can only mean the bundle.
        """
        return model == self.name or (
            model == self.model.bundle.manifest.name and "domain" in inputs
        )


def _lasts(error: PrunionError | None) -> bool:
    return isinstance(error, BundleError)  # a backend may have room again


def load_model(bundle: Path | str, how: LoadOptions) -> Model:
    """A bundle loaded as the options say. Raises what `load` raises.

    A server may have thousands of domains, so without a limit its pinned sessions take no more
    than a few graphs do: those of the domains that are asked most.
    """
    model = load(
        bundle,
        how.backend,
        precision=how.precision,
        threads=how.threads,
        memory_limit=how.memory_limit,
        engine=how.engine,
    )
    if how.memory_limit is None:
        sessions = model.sessions
        sessions.limit = min(sessions.limit, GRAPHS * sessions.graph.size)
    return model


def make_serving(model: Model, options: ServeOptions, statistics: Statistics) -> Serving:
    """What answers from `model`; the packs named at start are added to it. Raises PrunionError."""
    for pack in options.packs:
        model.add_domain(pack)
    cache = None
    folders = [PackFolder(path) for path in options.folders]
    if options.pack_folder is not None:
        folder, limit = PackFolder(options.pack_folder), options.pack_memory
        cache = PackCache(folder, model, limit, options.keep, statistics)
    watched = None if options.watch is None else PackFolder(options.watch)
    batches = BatchOptions(
        options.max_batch, options.delay, options.limits.queue_rows, options.weights
    )
    batcher = Batcher(model, batches, statistics)
    serving = Serving(model, batcher, Catalogue(model, folders, cache, watched))
    own = model.bundle.manifest.name
    if serving.name != own:
        logger.warning(
            "the bundle and one of its domains are both named %r: the model of that name is the "
            "domain's, which takes `image` alone, and the bundle's is %r",
            own,
            serving.name,
        )
    if shadowed := serving.catalogue.shadowed():
        logger.warning(
            "packs of %s lie in the folder of packs and are not served, for the bundle has models "
            "of their names: name that folder with --watch, or with --allow and load them",
            listed(shadowed, SHOWN),
        )
    return serving


def check_weights(serving: Serving, options: ServeOptions) -> None:
    """Raise InputError for a weight of a domain that cannot be; tell of one that is not there yet.

    Where packs may come, so may the domain.
    """
    catalogue = serving.catalogue
    known = {listed.name for listed in catalogue.index()} if options.weights else set()
    more = catalogue.folders or catalogue.cache is not None or catalogue.watched_folder is not None
    for name in options.weights.keys() - known:
        reason = f"--weight: {catalogue.unknown(name)}"
        if not more:
            raise InputError(reason)
        logger.warning("%s", reason)


def warm(serving: Serving, options: ServeOptions) -> None:
    """Make the sessions, measure what batches bring, read what is never to leave, answer once.

    Raises PrunionError.
    """
    model = serving.model
    if not model.sessions.apart:
        model.sessions.mixed()
        model.pin_in_background(SHARE if options.load.memory_limit is None else 0.0)
    serving.batcher.tune()
    model.answer(model.sessions.form.noise(1), serving.catalogue.domains[:1])
    serving.catalogue.warm(options.keep)


def open_anew(bundle: Path, old: Serving, options: ServeOptions, statistics: Statistics) -> Serving:
    """The bundle that lies at a path now, ready to answer in the place of `old`.

    What was loaded over the control API stays loaded, if it fits the new trunk, and what was
    unloaded stays so. Raises PrunionError.
    """
    with ExitStack() as undo:
        model = load_model(bundle, options.load)
        undo.callback(model.close)
        new = make_serving(model, options, statistics)
        undo.callback(new.batcher.close)
        warm(new, options)
        new.catalogue.carry_over(old.catalogue)
        undo.pop_all()
    return new
