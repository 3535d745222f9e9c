"""A bundle as a model repository of NVIDIA's Triton server: one model that takes `domain`, and one
for each domain if they are asked for."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from prunion.runtime.backends import SessionOptions, make_mixed, make_session, run
from prunion.runtime.base import (
    Precision,
    arithmetic_of,
    check_output,
    check_space,
    new_folder,
    strangers,
    unlisted,
)
from prunion.runtime.bundle import Bundle, Pack, check_one_trunk, open_bundle
from prunion.runtime.errors import InputError, UnsupportedGraphError, VerificationError
from prunion.runtime.graph import GraphForm, form_of, pin_form
from prunion.runtime.model import check_beside
from prunion.runtime.serve import ServeOptions

__all__ = ["export_triton"]

FIRST_LINE = "# Written by prunion"
OF_REST = re.compile(r"SHA-256 of the lines below: ([0-9a-f]{64})$")
OWN_FILES = ("1/model.onnx", "config.pbtxt", "domains.json", "labels.txt")
TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "uint8": "TYPE_UINT8"}
MULTIPLE = 16  # widths that suit every CPU's blocked convolutions: it is unknown which it will be
FLOAT32, OTHERS = 1e-4, 2e-2  # how far a domain's graph may be from the mixed one
OPTIONS = ServeOptions()  # Triton is told the limits that our own server has


@dataclass(frozen=True)
class _Model:
    """One directory of the repository.

    Attributes:
        classes: columns of its logits; what they are, if that is the same for every image.
        domains: names by index, where it takes `domain`.
    """

    name: str
    graph: bytes
    form: GraphForm
    classes: int
    labels: Sequence[str]
    domains: Sequence[str] = ()


def export_triton(
    bundle: Path | str,
    repository: Path | str,
    *,
    each_domain: bool = False,
    precision: Precision = "fp32",
    force: bool = False,
) -> list[Path]:
    """Write models into a Triton model repository, which may hold others.

    Args:
        each_domain: also a model for each domain, cut to its own channels, that takes `image`
            alone; each is run against the mixed graph before it is written.
        precision: which of the bundle's graphs.
        force: replace models that an earlier export wrote.

    Returns:
        The models' directories, the bundle's first.

    Raises:
        BundleError: the bundle cannot be read, or has no such graph, or one that mixes the images
            of a batch.
        InputError: a domain's name is none for a directory, or is the bundle's, or `repository`
            lies in a checkpoint.
        VerificationError: a domain's graph answers otherwise than the mixed one.
        PrunionError: a directory exists and `force` is not given, or holds what no export wrote.
    """
    opened, root = open_bundle(bundle), Path(repository)
    check_one_trunk(opened, "a Triton repository")
    manifest, form = opened.manifest, form_of(opened, precision)
    _check_names(opened, each_domain)
    _refuse_checkpoint(root)
    names = [manifest.name, *(opened.domains if each_domain else ())]
    for name in names:
        check_output(root / name, force=force, wrote=_foreign, inputs=[bundle], whole=True)
    size = opened.held_graph(precision).size
    check_space(root, size * len(names), "choose another place")
    check_beside(opened, precision, SessionOptions("cpu", threads=1))
    places = []
    for model in _models(opened, form, precision, each_domain):
        with new_folder(root / model.name, force=force, wrote=_foreign) as folder:
            _write(folder, model, opened)
        places.append(root / model.name)
    return places


def _models(
    bundle: Bundle, form: GraphForm, precision: Precision, each_domain: bool
) -> Iterator[_Model]:
    manifest, mixed = bundle.manifest, bundle.held_graph(precision).read()
    only = manifest.domains[0].classes if len(manifest.domains) == 1 else ()
    domains = () if form.single else bundle.domains
    yield _Model(manifest.name, mixed, form, manifest.max_classes, only, domains)
    if each_domain:
        limit = FLOAT32 if arithmetic_of(precision) == "fp32" else OTHERS
        for name in bundle.domains:
            pack = bundle.pack(name)
            graph = _pinned(bundle, mixed, form, pack, limit)
            yield _Model(name, graph, form, len(pack.classes), pack.classes)


def _pinned(bundle: Bundle, mixed: bytes, form: GraphForm, pack: Pack, limit: float) -> bytes:
    """One domain's graph: cut to its channels where that is possible and exact."""
    image, options = form.noise(2), SessionOptions("cpu", threads=1)
    row = np.full(2, bundle.domains.index(pack.name))
    wanted = run(make_mixed(mixed, options, form.needs), form.feeds(image, row))
    wanted = wanted[:, : len(pack.classes)]
    table = form.unit_table(bundle.unit_table())
    alive = table.round_up(pack.switches, max(MULTIPLE, bundle.manifest.round_to))
    error = np.inf
    for cut in (table, None):
        try:
            graph = pin_form(mixed, form, pack, cut, None if cut is None else alive)
        except UnsupportedGraphError:
            continue
        found = run(make_session(graph, options, {"image"}), {"image": image})
        error = float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-6))
        if error <= limit:
            return graph
    raise VerificationError(
        f"the graph of {pack.name!r} differs from the mixed one by {error:.1e} of the largest "
        f"logit: run `prunion verify {bundle.path}`"
    )


def _write(folder: Path, model: _Model, bundle: Bundle) -> None:
    (folder / "1").mkdir()
    (folder / "1" / "model.onnx").write_bytes(model.graph)
    manifest, rest = bundle.manifest, "\n".join(_config(model, bundle))
    first = f"{FIRST_LINE} from the bundle {manifest.name}, trunk {manifest.trunk_hash}. "
    text = f"{first}SHA-256 of the lines below: {_digest(rest)}\n{rest}"
    (folder / "config.pbtxt").write_text(text, "utf-8")
    if model.labels:
        (folder / "labels.txt").write_text("".join(f"{x}\n" for x in model.labels), "utf-8")
    if model.domains:
        told = [{"name": x.name, "classes": list(x.classes)} for x in bundle.manifest.domains]
        text = json.dumps({"domains": told}, indent=1, ensure_ascii=False)
        (folder / "domains.json").write_text(text + "\n", "utf-8")


def _config(model: _Model, bundle: Bundle) -> Iterator[str]:
    """The lines of `config.pbtxt` but the first. Triton puts the batch before all `dims`."""
    limits = OPTIONS.limits
    if model.domains:
        yield "# `domain` is an index into domains.json; requests of any domains share a batch."
    yield f"name: {_quoted(model.name)}"
    yield 'platform: "onnxruntime_onnx"'
    yield f"max_batch_size: {OPTIONS.max_batch}"
    kind, dims = TYPES[model.form.image], list(model.form.image_shape)
    yield f'input {{ name: "image" data_type: {kind} dims: {dims} }}'
    if model.domains:
        yield "# The graph takes one number for each image, [N]: dims cannot be empty."
        yield 'input { name: "domain" data_type: TYPE_INT64 dims: [1] reshape { shape: [] } }'
    labels = ' label_filename: "labels.txt"' if model.labels else ""
    yield f'output {{ name: "logits" data_type: TYPE_FP32 dims: [{model.classes}]{labels} }}'
    yield from f"""
dynamic_batching {{
  # Whatever waits while the network runs is the next batch. On a GPU that is seldom busy, waiting
  # 1000 to 2000 for fuller batches may pay.
  max_queue_delay_microseconds: 0
  priority_levels: 3
  default_priority_level: 2
  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: {round(limits.deadline * 1e6)}
    allow_timeout_override: true
    max_queue_size: {limits.queue_rows}
  }}
}}
""".splitlines()
    # Clients prepare the images, and read here how: what training did, and which index is whose.
    told: dict[str, object] = {"image": asdict(bundle.manifest.input)}
    if model.domains:
        told["domains"] = list(model.domains)
    for key, value in told.items():
        text = _quoted(json.dumps(value, ensure_ascii=False))
        yield f"parameters {{ key: {_quoted(key)} value {{ string_value: {text} }} }}"
    yield ""


def _quoted(text: str) -> str:
    escaped: Mapping[int, str] = {ord("\\"): "\\\\", ord('"'): '\\"', ord("\n"): "\\n"}
    return '"' + text.translate(escaped) + '"'


def _check_names(bundle: Bundle, each_domain: bool) -> None:
    own = bundle.manifest.name
    for name in (own, *(bundle.domains if each_domain else ())):
        if name in (".", "..") or set(name) & set("/\\:"):
            raise InputError(f"{name!r} cannot be a directory's name: rename it, and export again")
    if each_domain and own in bundle.domains:
        raise InputError(
            f"the bundle and one of its domains are both named {own!r}, and Triton's models need "
            "names of their own: rename the bundle's folder, and export it again"
        )


def _refuse_checkpoint(root: Path) -> None:
    """A checkpoint with a stranger in it is nothing that a training may replace."""
    for place in (root.absolute(), *root.absolute().parents):
        if (place / "checkpoint.json").is_file():
            raise InputError(
                f"{root} lies in a checkpoint, {place}: choose another folder for the repository"
            )


def _foreign(path: Path) -> str:
    """What at `path` no export to Triton wrote; "" if nothing."""
    if found := unlisted(path, OWN_FILES):
        return found
    config = path / "config.pbtxt"
    if not strangers(path):
        return ""
    try:
        text = config.read_text("utf-8")
    except (OSError, ValueError):
        text = ""
    if not text.startswith(FIRST_LINE):
        return "has no config.pbtxt that prunion wrote"
    first, _, rest = text.partition("\n")
    told = OF_REST.search(first)  # earlier exports told nothing
    own = told is None or told[1] == _digest(rest)
    return "" if own else "has a config.pbtxt that somebody has changed"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
