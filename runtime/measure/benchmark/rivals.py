"""What else one would run in a bundle's place: the rivals of `prunion bench --against`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from prunion.runtime.backends import make_session, run
from prunion.runtime.base import sha256_file, shown
from prunion.runtime.bundle import Bundle, open_bundle
from prunion.runtime.errors import InputError
from prunion.runtime.graph import TABLE_INPUTS, GraphForm, load_graph, pin_domain
from prunion.runtime.measure.benchmark.any_graph import check_graph, open_any_graph
from prunion.runtime.measure.benchmark.contenders import (
    Contender,
    Opened,
    Setup,
    contenders,
    domain_rows,
    session_calls,
)
from prunion.runtime.model import open_pool

__all__ = ["NEED_UNPRUNED", "TORCH_PRUNED", "all_contenders", "check_against", "check_files"]

NEED_UNPRUNED = ("backbone", "separate")
TORCH_PRUNED = ("separate-pruned", "separate-pruned-total", "torch-pruning")
NAMES = ("openvino", "specialised", *NEED_UNPRUNED, *TORCH_PRUNED)


def check_against(against: Sequence[str]) -> tuple[str, ...]:
    """The rivals' names, each once. Raises InputError for one that is none."""
    for name in against:
        if name not in NAMES and not name.lower().endswith(".onnx") and not _is_bundle(name):
            raise InputError(
                f"nothing called {shown(name)} to compare with: give {', '.join(NAMES)} or the "
                "path of an .onnx file or of another bundle"
            )
    return tuple(dict.fromkeys(against))


def check_files(against: Sequence[str]) -> None:
    """Before other rivals are built, which may take minutes.

    Raises InputError or BundleError for what is not there.
    """
    for name in against:
        if name in NAMES:
            continue
        if name.lower().endswith(".onnx"):
            check_graph(Path(name))
        else:
            open_bundle(Path(name)).close()


def _is_bundle(name: str) -> bool:
    path = Path(name)
    return path.suffix == ".prunion" or (path / "manifest.json").is_file()


def all_contenders(
    setup: Setup, bundle: Bundle | None = None
) -> tuple[list[Contender], list[Contender]]:
    """The bundle's own sessions, and the rivals that `setup.against` names.

    Raises:
        InputError: a rival's name is none, it lacks what it is made from, or it is not asked for.
        PrunionError: as `contenders`, and for a rival that has no place on this backend.
    """
    bundle = bundle or open_bundle(Path(setup.bundle))
    makers: dict[str, Callable[[Setup, Bundle], list[Contender]]] = {
        "openvino": _openvino,
        "specialised": _specialised,
        "backbone": _backbone,
        "separate": _separate,
        "separate-pruned": partial(_separate_pruned, "separate-pruned"),
        "separate-pruned-total": partial(_separate_pruned, "separate-pruned-total"),
        "torch-pruning": _torch_pruning,
    }
    _check_asked(setup)
    rivals: list[Contender] = []
    for name in check_against(setup.against):
        if name in (*NEED_UNPRUNED, *TORCH_PRUNED):
            _check_made(setup, name)
        if name in makers:
            rivals += makers[name](setup, bundle)
        elif _is_bundle(name):
            rivals += _other_bundle(setup, bundle, name)
        else:
            rivals.append(_file(setup, bundle, name))
    rivals = [replace(x, digest=x.digest or bundle.digest) for x in rivals]
    return contenders(setup, bundle), rivals


def _openvino(setup: Setup, bundle: Bundle) -> list[Contender]:
    if setup.backend == "openvino":
        raise InputError("the bundle itself runs on openvino: choose another --backend")
    found = contenders(replace(setup, backend="openvino"), bundle)
    return [replace(x, name=f"openvino {x.name}") for x in found]


def _other_bundle(setup: Setup, bundle: Bundle, name: str) -> list[Contender]:
    """Another bundle's sessions, of its own domains and image size."""
    other = open_bundle(Path(name))
    if other.place.resolve() == bundle.place.resolve():
        raise InputError(f"{name} is the bundle itself: give another one to compare with")
    size = sum(other.sizes.values())

    def sized(x: Contender) -> Opened:
        return replace(x.open(), file_bytes=size)

    found = contenders(replace(setup, bundle=name), other)
    return [replace(x, name=f"{name} {x.name}", open=partial(sized, x)) for x in found]


def _specialised(setup: Setup, bundle: Bundle) -> list[Contender]:
    """The pinned session of the first domain, sliced to the channels that it uses itself."""
    rows = domain_rows(bundle, setup.domains)
    pool = open_pool(bundle, setup.options, setup.precision)
    if not pool.pins:
        raise InputError(
            "this bundle and backend have no session of a single domain to specialise: give a "
            "bundle of several domains and --backend cpu, cuda or openvino"
        )
    pack = bundle.pack(bundle.domains[rows[0]])

    def opened() -> Opened:
        made = pool.make(pack, sliced=True)
        return replace(
            session_calls(made.session, pool.form, rows, single=True), file_bytes=made.bytes
        )

    return [Contender(f"specialised:{pack.name}", opened, one_domain=True)]


def _check_asked(setup: Setup) -> None:
    """Graphs of rivals that nobody asked for would be passed over without a word."""
    needed: dict[str, tuple[str, ...]] = {name: (name,) for name in setup.pruned}
    needed |= {"unpruned": NEED_UNPRUNED} if setup.unpruned else {}
    for given, names in needed.items():
        if not {*names} & {*setup.against}:
            what = given if given == "unpruned" else f"pruned[{shown(given)}]"
            raise InputError(
                f"{what} is for against={' or '.join(names)}, which is not asked for: name it "
                "there, or leave the graph out"
            )


def _check_made(setup: Setup, name: str) -> None:
    if setup.backend not in ("cpu", "cuda", "openvino"):
        raise InputError(f"{name} runs on a plain session: use --backend cpu, cuda or openvino")
    if name in TORCH_PRUNED and not setup.pruned.get(name):
        raise InputError(
            f"{name} is made by Torch-Pruning: run `prunion bench` where prunion[bench] is "
            "installed, or give Python's bench(pruned=…) its graphs"
        )
    if name in NEED_UNPRUNED and not setup.unpruned:
        raise InputError(
            f"{name} needs the unpruned network, written by torch: run `prunion bench` where "
            "prunion[export] is installed, or give Python's bench(unpruned=…) its graph"
        )


def _backbone(setup: Setup, bundle: Bundle) -> list[Contender]:
    """The unpruned trunk with the heads of all domains, in the selectable form."""
    rows, path = domain_rows(bundle, setup.domains), Path(setup.unpruned)
    form = GraphForm("gathered", "float32", bundle.manifest.input)

    def opened() -> Opened:
        # As it is: it gets no new domains, and may hold its tables as constants.
        session = make_session(path, setup.options, {"image", "domain"})
        return replace(session_calls(session, form, rows), file_bytes=path.stat().st_size)

    return [Contender("backbone", opened)]


def _separate(setup: Setup, bundle: Bundle) -> list[Contender]:
    """One unpruned network for each domain, with a session and memory of its own."""
    path, count = Path(setup.unpruned), len(bundle.domains)

    def opened() -> Opened:
        graphs = (pin_domain(path, row) for row in range(count))
        return _one_each(setup, bundle, graphs, _bytes_apart(path, count))

    return [Contender("separate", opened, one_each=True)]


def _separate_pruned(name: str, setup: Setup, bundle: Bundle) -> list[Contender]:
    """One network for each domain, pruned alone."""
    paths = [Path(x) for x in setup.pruned[name]]
    if len(paths) != len(bundle.domains):
        raise InputError(
            f"{name} has {len(paths)} graphs for {len(bundle.domains)} domains: give one for each, "
            "in the bundle's order"
        )
    size = sum(x.stat().st_size for x in paths)
    return [Contender(name, partial(_one_each, setup, bundle, paths, size), one_each=True)]


def _one_each(
    setup: Setup, bundle: Bundle, graphs: Iterable[bytes | Path], file_bytes: int
) -> Opened:
    """A session for each domain's graph; a batch is taken apart by domain."""
    rows = domain_rows(bundle, setup.domains)
    form = GraphForm("gathered", "float32", bundle.manifest.input)
    options = replace(setup.options, share_arena=False)
    sessions = [make_session(graph, options, {"image"}) for graph in graphs]

    def call(batch: int) -> Callable[[], object]:
        image, domain = form.noise(batch), np.resize(np.array(rows, np.int64), batch)
        parts = {int(row): {"image": image[domain == row]} for row in np.unique(domain)}
        return lambda: [run(sessions[row], feeds) for row, feeds in parts.items()]

    return Opened(call, str(sessions[0].get_providers()[0]), file_bytes)


def _torch_pruning(setup: Setup, bundle: Bundle) -> list[Contender]:
    """One network of as many parameters, with one head over the classes of all domains."""
    (path,) = map(Path, setup.pruned["torch-pruning"])
    form = GraphForm("gathered", "float32", bundle.manifest.input)

    def opened() -> Opened:
        session = make_session(path, setup.options, {"image"})
        found = session_calls(session, form, domain_rows(bundle, setup.domains), single=True)
        return replace(found, file_bytes=path.stat().st_size)

    return [Contender("torch-pruning", opened)]


def _bytes_apart(path: Path, count: int) -> int:
    """What `count` files would hold, each with the whole trunk and one domain's own tables."""
    graph = load_graph(path)[0].graph
    tables = sum(len(x.raw_data) for x in graph.initializer if x.name in TABLE_INPUTS)
    return (path.stat().st_size - tables) * count + tables


def _file(setup: Setup, bundle: Bundle, name: str) -> Contender:
    spec, rows, path = bundle.manifest.input, domain_rows(bundle, setup.domains), Path(name)
    check_graph(path)
    opened = partial(open_any_graph, path, setup.options, (spec.height, spec.width), rows)
    return Contender(name, opened, digest=sha256_file(path))
