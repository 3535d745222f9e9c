"""Mutated files for `test_fuzz.py`: bytes, JSON values, TOML lines and ONNX graphs, by a seed."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Iterator
from typing import Any

NUMBERS = [0, 1, -1, 2, 7, 255, 65536, 2**31 - 1, 2**31, 2**40, 2**62, 2**63, 10**30, 10**400]
FLOATS = [0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), float("-inf")]
TEXTS = [
    *("", " ", "x" * 300, "x" * 5000, "\x1b[2J\x1b]0;x\x07", "two\nlines", "\ud800", "a\0b"),
    *("../../../etc/passwd", "/etc/passwd", "CON", "\u202eabc", "fp32", "0" * 64, "\u2028", "*"),
]
SHAPES: list[Any] = [None, True, False, [], {}, [[]], [0] * 100, {"a": 1}, [[[[[[]]]]]]]


def mutated_bytes(data: bytes, dice: random.Random) -> bytes:
    """One to four changes: bits, bytes, cuts, repeats, runs of one value."""
    made = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        size = len(made)
        at = dice.randrange(size + 1)
        length = min(dice.choice([1, 1, 2, 4, 8, 16, 64]), size - at)
        kind = dice.randrange(7)
        if kind == 0 and at < size:
            made[at] ^= 1 << dice.randrange(8)
        elif kind == 1:
            made[at : at + length] = dice.randbytes(length)
        elif kind == 2:
            del made[at : at + length]
        elif kind == 3:
            made[at:at] = made[at : at + length] * dice.choice([1, 2, 50])
        elif kind == 4:
            del made[at:]
        elif kind == 5:
            made[at : at + length] = bytes([dice.choice([0, 1, 0x7F, 0x80, 0xFF])]) * length
        else:
            at, other = sorted((at, dice.randrange(size + 1)))
            made[at:at] = made[other : other + 64]
    return bytes(made)


def mutated_json(value: Any, dice: random.Random) -> Any:
    """`value` with one to three of its values or keys replaced, dropped or repeated."""
    made = json.loads(json.dumps(value))
    for _ in range(dice.choice([1, 1, 2, 3])):
        made = _changed(made, dice) if isinstance(made, dict | list) else hostile(dice)
    return made


def _changed(value: Any, dice: random.Random) -> Any:
    """`value` with one of its places changed, each as likely as the others."""
    places = list(_places(value))
    if not places:
        return hostile(dice)
    inside, key = dice.choice(places)
    kind = dice.randrange(12)
    if kind == 0:
        del inside[key]
    elif kind == 1 and isinstance(inside, dict):
        inside[str(dice.choice(TEXTS))] = inside.pop(key)
    elif kind == 1:
        inside[key:key] = inside[:50] * dice.choice([1, 20])
    elif kind in (2, 3) and isinstance(inside[key], int):
        inside[key] += dice.choice([-1, 1, 2])
    elif kind == 4:
        inside[key] = [inside[key]]
    else:
        inside[key] = hostile(dice)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = value if isinstance(value, dict) else range(min(len(value), 20))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def hostile(dice: random.Random) -> Any:
    """A value that no reader expects."""
    return copy.deepcopy(dice.choice(dice.choice([NUMBERS, FLOATS, TEXTS, SHAPES])))


def json_bytes(value: Any) -> bytes:
    """As a file would hold it, half surrogates and endless numbers included."""
    return json.dumps(value).encode()


def mutated_toml(text: str, dice: random.Random) -> bytes:
    """A run file with values, keys, tables or whole lines changed, or bytes."""
    lines = text.splitlines()
    for _ in range(dice.choice([1, 1, 2, 3])):
        at, kind = dice.randrange(len(lines)), dice.randrange(12)
        key, equals, value = lines[at].partition("=")
        if kind == 0:
            del lines[at]
        elif kind == 1:
            lines.insert(dice.randrange(len(lines)), lines[at])
        elif kind == 2:
            return mutated_bytes("\n".join(lines).encode(), dice)
        elif equals:
            lines[at] = f"{key}= {_toml_value(value, dice)}"
        else:
            lines[at] = dice.choice(["[", "[[a]]", "[a.b.c]", "[domains]", "[" * 4000, lines[at]])
        if not lines:
            break
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _toml_value(old: str, dice: random.Random) -> str:
    odd = [
        *("1" * 5001, "[" * 900 + "]" * 900, "{a = 1}", "[1, 'a']", "nan", "-inf", "1e400", "true"),
        *(
            "1979-05-27",
            "0x" + "f" * 5000,
            "''",
            '"\\u001b[2J"',
            '"C:\\Users\\x"',
            "[[]]",
            '"a\\u0000"',
        ),
        *(re.sub(r"\d", "9", old), old + old, "'/etc/passwd'", "'../..'", "-1", "0", "99999999999"),
    ]
    return dice.choice(odd)


def mutated_graph(data: bytes, dice: random.Random) -> bytes:
    """An ONNX graph with nodes, names, shapes, types or attributes changed, or bytes."""
    import onnx

    if dice.random() < 0.3:
        return mutated_bytes(data, dice)
    model = onnx.load_from_string(data)
    for _ in range(dice.choice([1, 1, 2])):
        _change_graph(model, dice)
    return model.SerializeToString()


def _change_graph(model: Any, dice: random.Random) -> None:
    graph = model.graph
    kind = dice.randrange(13)
    names = [x for node in graph.node for x in (*node.input, *node.output)]
    node = dice.choice(list(graph.node)) if len(graph.node) else None
    tensor = dice.choice(list(graph.initializer)) if len(graph.initializer) else None
    value = dice.choice([*graph.input, *graph.output])
    if kind == 0 and node:
        kinds = [n.op_type for n in graph.node]
        node.op_type = dice.choice([*kinds, "Loop", "If", "Range", "Expand", "Nope", "Tile", ""])
    elif kind == 1 and node and len(node.input):
        node.input[dice.randrange(len(node.input))] = dice.choice([*names, "", "nowhere"])
    elif kind == 2 and node and len(node.output):
        node.output[dice.randrange(len(node.output))] = dice.choice([*names, "", "x" * 300])
    elif kind == 3 and node and len(node.attribute):
        item = dice.choice(list(node.attribute))
        item.type = dice.randrange(12)
        item.i = dice.choice([0, -1, 1, 5, 2**31, 2**63 - 1])
        item.name = dice.choice([item.name, "axis", "perm", "zz"])
    elif kind == 4 and node:
        graph.node.remove(node)
    elif kind == 5 and node:
        graph.node.insert(dice.randrange(len(graph.node)), node)
    elif kind == 6 and node and len(node.input):
        if dice.random() < 0.5:
            node.input.pop()
        else:
            node.input.append(dice.choice(names))
    elif kind == 7 and tensor and len(tensor.dims):
        tensor.dims[dice.randrange(len(tensor.dims))] = dice.choice([0, 1, -1, 3, 2**33, 2**62])
    elif kind == 8 and tensor:
        tensor.data_type = dice.randrange(24)
    elif kind == 9 and tensor:
        if tensor.raw_data and dice.random() < 0.5:
            tensor.raw_data = mutated_bytes(tensor.raw_data, dice)
        else:
            tensor.name = dice.choice([*names, "", "\x1b[2J"])
    elif kind == 10:
        dims = value.type.tensor_type.shape.dim
        if len(dims) and dice.random() < 0.7:
            dice.choice(list(dims)).dim_value = dice.choice([0, 1, -1, 3, 8, 2**40])
        else:
            value.type.tensor_type.elem_type = dice.randrange(24)
    elif kind == 11:
        value.name = dice.choice([*names, "", "image", "logits"])
    elif kind == 12:
        model.ir_version = dice.choice([0, 3, 9, 10, 11, 99, 2**62])
        if len(model.opset_import):
            model.opset_import[0].version = dice.choice([0, 1, 7, 13, 20, 21, 99, -1])
