"""A domain's own weights: what it stores of them, and how they are made of the trunk's.

A method that gives each domain weights of its own, `W_d = g(W, θ_d)`, stores θ_d in the domain's
pack as arrays by `PART:WEIGHT`. What all domains have in common, if anything, lies in one file of
the bundle under names of the same kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from prunion.runtime.base import reason_of, replace_file, shown
from prunion.runtime.errors import BundleError

__all__ = [
    "PARTS",
    "check_own",
    "completed",
    "own_weights",
    "pack_bits",
    "read_shared",
    "unpacked_slices",
    "write_shared",
]

# Each part's type. A weight is `[O, ...]` of n numbers, `[O, I, k, k]` of a convolution.
PARTS = {
    "value": "float32",  # like W: W_d itself
    "added": "float32",  # like W: added to it
    "mask": "uint8",  # n bits, M
    "slices": "uint8",  # O·I bits, one for each k×k slice, of an earlier prunion
    "union": "uint8",  # O·I bits: which slices any domain uses, n of them …
    "slices_of": "uint8",  # … and n bits: which of these the domain uses
    "packed": "float32",  # [n, k·k], their values, which the graph itself does not hold
    "numbers": "float32",  # [4] or [4, O]: k0 … k3
    "centre": "float32",  # [O, I], added to the kernel's centre
    "centre_up": "float32",  # [O, K] …
    "centre_down": "float32",  # … [K, I]: their product is added to the kernel's centre
    "up": "float32",  # [O, r] …
    "down": "float32",  # … [r, n / O]: their product is added to the whole filters
    "behind": "float32",  # [O, O]: its product with the filters is added to them
    "outputs": "float32",  # [O, O], which mixes the filters, of an earlier prunion
    "turns": "uint8",  # a row of n bits for every binary digit of a weight's turn, 0 … 255
    "task": "uint8",  # [1]: the domain uses what was taken in the turns 0 … task
    "owners": "uint8",  # turns from 1, 0 where nobody took it, of an earlier prunion
}
FIX = "export it again"
MOST_NUMBERS = 1 << 28  # in one weight: 1 GiB
Parts = Mapping[str, np.ndarray]


def own_weights(
    own: Mapping[str, np.ndarray], weight_of: Callable[[str], np.ndarray]
) -> dict[str, np.ndarray]:
    """W_d of every weight that a domain has for itself, float32, by its name.

    Args:
        own: what the domain stores, by `PART:WEIGHT`, the bundle's shared parts among it.
        weight_of: the trunk's W by name.

    Raises BundleError where parts are missing, or do not fit W.
    """
    found = {}
    for name, given in _by_weight(own).items():
        make = FORMS.get(frozenset(given))
        if make is None:
            listed = ", ".join(sorted(given))
            raise BundleError(f"own weight {shown(name)} cannot be made of {listed}: {FIX}")
        weight = weight_of(name)
        try:
            made = make(weight, given)
        except (IndexError, ValueError) as exc:
            raise BundleError(f"own weight {shown(name)}: {reason_of(exc)}: {FIX}") from None
        if made.shape != weight.shape:
            raise BundleError(
                f"own weight {shown(name)} is {list(made.shape)}, the trunk's "
                f"{list(weight.shape)}: {FIX}"
            )
        found[name] = made.astype(np.float32, copy=False)
    return found


def completed(
    own: Mapping[str, np.ndarray], shared: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """A domain's parts, and of the `shared` ones those without which its own make no weight."""
    lacking = {name for name, given in _by_weight(own).items() if frozenset(given) not in FORMS}
    found = {}
    for key, array in shared.items():
        part, _, name = key.partition(":")
        if name in lacking and part != "packed":  # which are W's own values
            found[key] = array
    return {**found, **own}


def _by_weight(own: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    parts: dict[str, dict[str, np.ndarray]] = {}
    for key, array in own.items():
        part, _, name = key.partition(":")
        parts.setdefault(name, {})[part] = array
    return parts


def pack_bits(mask: np.ndarray) -> np.ndarray:
    """A mask of 0 and 1 of any shape as bits, eight a byte, the last byte filled up with 0."""
    return np.packbits(mask.reshape(-1).astype(np.uint8))


def check_own(own: Mapping[str, np.ndarray], where: str) -> None:
    """Raise BundleError for a name that is no part's, a wrong type, or a value that is not finite.

    Args:
        where: what messages call the file.
    """
    for key, array in own.items():
        part, _, name = key.partition(":")
        wanted = PARTS.get(part)
        if wanted is None or not name:
            raise BundleError(f"{where}: {shown(key)} is no part of a weight: {FIX}")
        if array.dtype != wanted:
            raise BundleError(f"{where}: {shown(key)} is {array.dtype}, expected {wanted}: {FIX}")
        if wanted == "float32" and not np.isfinite(array).all():
            raise BundleError(f"{where}: {shown(key)} holds NaN or infinity: {FIX}")


def write_shared(path: Path, shared: Mapping[str, np.ndarray]) -> None:
    """Write what all domains' own weights have in common; there may be nothing."""
    check_own(shared, str(path))
    tensors = {key: np.ascontiguousarray(shared[key]) for key in sorted(shared)}
    with replace_file(path) as temporary:
        temporary.write_bytes(save(tensors))


def read_shared(data: bytes, where: str) -> dict[str, np.ndarray]:
    """Read back `write_shared`. Raises BundleError."""
    try:
        found = dict(sorted(load(data).items()))  # the library keeps no order
    except (SafetensorError, KeyError, ValueError) as exc:
        raise BundleError(f"{where} cannot be read ({reason_of(exc)}): {FIX}") from None
    check_own(found, where)
    return found


def _bits(packed: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return _unpacked(packed, weight.size)


def _unpacked(packed: np.ndarray, count: int) -> np.ndarray:
    if packed.shape[-1] != math.ceil(count / 8):
        raise ValueError(f"{packed.shape[-1]} bytes of bits for {count} weights")
    return np.unpackbits(packed, axis=-1, count=count)


def _masked(weight: np.ndarray, parts: Parts) -> np.ndarray:
    """Mallya 2018; with four numbers the affine form of Mancini 2020, in float32 like torch's."""
    mask = _bits(parts["mask"].reshape(-1), weight).reshape(weight.shape).astype(np.float32)
    if "numbers" not in parts:
        return weight * mask
    numbers = parts["numbers"]
    if numbers.ndim > 1:  # of each filter
        numbers = numbers.reshape(4, -1, *[1] * (weight.ndim - 1))
    k0, k1, k2, k3 = numbers
    made: np.ndarray = k0 * weight + k1 + k2 * mask + k3 * weight * mask
    return made


def _sliced(weight: np.ndarray, parts: Parts) -> np.ndarray:
    """Berriel 2019, dos Santos 2023: a bit for every filter's input channel."""
    one_each = weight.reshape(*weight.shape[:2], -1)[:, :, 0]
    bits = _bits(parts["slices"].reshape(-1), one_each)
    made: np.ndarray = weight * bits.reshape(*one_each.shape, *[1] * (weight.ndim - 2))
    return made


def unpacked_slices(shape: tuple[int, ...], union: np.ndarray, packed: np.ndarray) -> np.ndarray:
    """A weight `[O, I, …]` with the stored slices in their places and zeros in the others.

    Args:
        union: O·I bits, one for each slice; packed: values of those that are on, `[n, k·k]`.

    Raises ValueError where they do not fit each other.
    """
    count, size = math.prod(shape[:2]), math.prod(shape[2:])
    if min(shape, default=0) < 0 or count * size > MOST_NUMBERS:
        raise ValueError(f"no weight is {list(shape)}")
    on = np.flatnonzero(_unpacked(union.reshape(-1), count))
    if packed.shape != (len(on), size):
        raise ValueError(f"{list(packed.shape)} values for {len(on)} slices of {size}")
    made = np.zeros((count, size), np.float32)
    made[on] = packed
    return made.reshape(shape)


def _sliced_of_union(weight: np.ndarray, parts: Parts) -> np.ndarray:
    """The same by bits of the slices that any domain uses: W has zeros in the others."""
    made = np.zeros((math.prod(weight.shape[:2]), math.prod(weight.shape[2:])), np.float32)
    on = np.flatnonzero(_unpacked(parts["union"].reshape(-1), len(made)))
    on = on[_unpacked(parts["slices_of"].reshape(-1), len(on)).astype(bool)]
    made[on] = weight.reshape(made.shape)[on]
    return made.reshape(weight.shape)


def _added(weight: np.ndarray, parts: Parts) -> np.ndarray:
    """Something small added to the whole filters, or to their centre: LoRA, parallel adapters."""
    if "added" in parts:
        return weight + parts["added"]
    if "down" in parts:
        low_rank = parts["up"].astype(np.float64) @ parts["down"]
        return weight + low_rank.reshape(weight.shape)
    if "centre" in parts:
        centre = parts["centre"]
    else:
        centre = parts["centre_up"].astype(np.float64) @ parts["centre_down"]
    made = weight.astype(np.float64)
    # A kernel's own middle: an even one has none, and no adapter.
    made[(..., *(size // 2 for size in weight.shape[2:]))] += centre
    return made


def _mixed(weight: np.ndarray, parts: Parts) -> np.ndarray:
    """Rebuffi, Bilen and Vedaldi 2018, series adapters."""
    matrix = parts["outputs"] if "outputs" in parts else parts["behind"]
    flat: np.ndarray = matrix.astype(np.float64) @ weight.reshape(len(weight), -1)
    mixed = flat.reshape(weight.shape)
    return mixed if "outputs" in parts else weight + mixed


def _owned(weight: np.ndarray, parts: Parts) -> np.ndarray:
    """Mallya and Lazebnik 2018: what a task and those before it own."""
    part = "turns" if "turns" in parts else "owners"
    digits = _bits(np.atleast_2d(parts[part]), weight)
    turns = sum((row.astype(np.uint16) << place for place, row in enumerate(digits)))
    used = (turns >= (part == "owners")) & (turns <= parts["task"][0])
    made: np.ndarray = weight * np.asarray(used).reshape(weight.shape)
    return made


def _value(weight: np.ndarray, parts: Parts) -> np.ndarray:
    return parts["value"]


FORMS: Mapping[frozenset[str], Callable[[np.ndarray, Parts], np.ndarray]] = {
    frozenset({"value"}): _value,
    frozenset({"mask"}): _masked,
    frozenset({"mask", "numbers"}): _masked,
    frozenset({"slices"}): _sliced,
    frozenset({"union", "slices_of"}): _sliced_of_union,
    frozenset({"added"}): _added,
    frozenset({"centre"}): _added,
    frozenset({"centre_up", "centre_down"}): _added,
    frozenset({"up", "down"}): _added,
    frozenset({"behind"}): _mixed,
    frozenset({"outputs"}): _mixed,
    frozenset({"turns", "task"}): _owned,
    frozenset({"owners", "task"}): _owned,
}
