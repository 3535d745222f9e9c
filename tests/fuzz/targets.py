"""What `worker.py` has read: mutated bundles, profiles, plans, images, a trainer's files."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz import mutations as make
from tests.fuzz.request_targets import request_targets

__all__ = ["KINDS", "Target"]

Target = Callable[[random.Random, Path], None]


def bundle_target(folder: Path) -> dict[str, Target]:
    """The toy bundle with one of its files mutated, the manifest's hash made to fit."""
    import numpy as np

    from prunion.runtime.base import sha256_file
    from prunion.runtime.bundle import open_bundle, read_pack
    from prunion.runtime.cli.commands import _summary
    from prunion.runtime.model import load
    from prunion.runtime.model.plan import Plan
    from tests.support import toy_bundle as toy

    clean = toy.make_bundle(folder / "clean")
    image = np.zeros((toy.HEIGHT, toy.SIDE_WIDTH, 3), np.uint8)
    manifest = json.loads((clean / "manifest.json").read_text())

    def answer(path: Path) -> None:
        _summary(open_bundle(path))
        with load(path, "cpu", threads=1, memory_limit=1 << 28) as model:
            model._plan = Plan()  # measuring takes too long here
            for domain in model.domains:
                model.predict(image, domain)
            rows = list(range(len(model.domains)))
            model.predict([image] * len(rows), rows)
            str(model.explain())

    def replaced(name: str, change: Callable[[bytes, random.Random], bytes]) -> Target:
        def target(dice: random.Random, place: Path) -> None:
            path = place / "toy.prunion"
            shutil.copytree(clean, path)
            (path / name).write_bytes(change((clean / name).read_bytes(), dice))
            value = json.loads(json.dumps(manifest))
            if name != "manifest.json":
                value["files"][name] = sha256_file(path / name)
                (path / "manifest.json").write_bytes(make.json_bytes(value))
            answer(path)

        return target

    def as_json(data: bytes, dice: random.Random) -> bytes:
        return make.json_bytes(make.mutated_json(json.loads(data), dice))

    def pack(dice: random.Random, place: Path) -> None:
        file = place / "flowers.safetensors"
        file.write_bytes(_safetensors((clean / "domains" / file.name).read_bytes(), dice))
        read_pack(file)

    return {
        "manifest": replaced("manifest.json", as_json),
        "units": replaced("units.json", as_json),
        "graph": replaced("model.onnx", make.mutated_graph),
        "bundle-pack": replaced("domains/signs.safetensors", _safetensors),
        "pack": pack,
    }


def _safetensors(data: bytes, dice: random.Random) -> bytes:
    if dice.random() < 0.4:
        return make.mutated_bytes(data, dice)
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    if dice.random() < 0.3:
        name = dice.choice([x for x in header if x != "__metadata__"])
        kinds = ["F8_E4M3", "F8_E5M2", "BF16", "F16", "I64", "F64", "BOOL", "U8", "F8_E8M0", "F4"]
        header[name]["dtype"] = dice.choice(kinds)
    else:
        header = make.mutated_json(header, dice)
    text = make.json_bytes(header)
    return len(text).to_bytes(8, "little") + text + data[start:]


def small_targets(folder: Path) -> dict[str, Target]:
    """Device profiles, remembered plans and images."""
    import numpy as np
    from PIL import Image

    from prunion.runtime.bundle import Fit, Grid, ImageInput, Layer, Profile, read_profile
    from prunion.runtime.images import to_batch
    from prunion.runtime.model.plan import BATCHES, Plan, load_plan, save_plan

    grid = Grid((4, 8), (3,), np.array([[1.0], [2.0]]))
    layer = {"conv.weight": (Layer("conv.weight", (8, 3, 3, 3), 120), 0)}
    facts: dict[str, Any] = {"network": "toy", "size": (12, 10), "machine": {"cpu": "x"}}
    facts |= {"backend": "cpu", "provider": "CPU", "batch": 1, "threads": 1, "round_to": 1}
    fit = Fit(1.0, 0.5, 0.01, 0.02)
    whole = Profile(**facts, layers=layer, grids=(grid,), fit=fit, samples=((1.0, 1.1),))
    kept = whole.to_json()
    times = dict.fromkeys(BATCHES, 1.0)
    save_plan("key", Plan(times, times, {}))
    plan = Path(os.environ["PRUNION_CACHE"]) / "plans" / "key.json"
    kept_plan = plan.read_bytes()
    pictures = []
    for form in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"):
        noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
        Image.fromarray(noise).save(made := io.BytesIO(), form)
        pictures.append(made.getvalue())
    shape = ImageInput(12, 10, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), 14)

    def profile(dice: random.Random, place: Path) -> None:
        file = place / "p.json"
        data = make.json_bytes(make.mutated_json(kept, dice))
        file.write_bytes(make.mutated_bytes(data, dice) if dice.random() < 0.2 else data)
        read_profile(file).describe()

    def cached(dice: random.Random, place: Path) -> None:
        data = make.json_bytes(make.mutated_json(json.loads(kept_plan), dice))
        plan.write_bytes(make.mutated_bytes(data, dice) if dice.random() < 0.3 else data)
        load_plan("key")

    def image(dice: random.Random, place: Path) -> None:
        data = make.mutated_bytes(dice.choice(pictures), dice)
        file = place / "x.img"
        file.write_bytes(data)
        to_batch([dice.choice([data, str(file)])], shape)

    return {"profile": profile, "plan": cached, "image": image}


def trainer_targets(folder: Path) -> dict[str, Target]:
    """Run files, Parquet files, weights and checkpoints."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from PIL import Image

    from prunion.runtime.base import sha256_file
    from prunion.runtime.images.sources.parquet import open_parquet
    from prunion.trainer.backbone.weights import read_weights
    from prunion.trainer.config import DomainConfig, load_config
    from prunion.trainer.data.classes import number_classes
    from prunion.trainer.network import load_checkpoint

    torch.set_num_threads(1)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(made := io.BytesIO(), "PNG")
    rows = {"image": [{"bytes": made.getvalue(), "path": "a"}] * 6, "label": [0, 1, 0, 1, 0, 1]}
    about = {"info": {"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}}
    clean = folder / "clean.parquet"

    def parquet(dice: random.Random, place: Path) -> None:
        file = place / "x.parquet"
        if dice.random() < 0.5:
            told = make.json_bytes(make.mutated_json(about, dice))
            cells = dict(rows)
            if dice.random() < 0.5:
                odd = [["x"] * 6, [None] * 6, [[0]] * 6, [b"\xff"] * 6, [1.5] * 6, [2**62] * 6]
                cells[dice.choice(["image", "label"])] = dice.choice(odd)
            if dice.random() < 0.2:
                told = make.mutated_bytes(told, dice)
            table = pa.table(cells).replace_schema_metadata({b"huggingface": told})
            pq.write_table(table, file)
            data = file.read_bytes()
            if dice.random() < 0.3:
                file.write_bytes(make.mutated_bytes(data, dice))
        else:
            table = pa.table(rows).replace_schema_metadata({b"huggingface": json.dumps(about)})
            pq.write_table(table, clean)
            file.write_bytes(make.mutated_bytes(clean.read_bytes(), dice))
        number_classes(
            DomainConfig("x", train=("x",), holdout=0.1), split := open_parquet((file,)), None
        )
        split.read(0)

    def run_file(dice: random.Random, place: Path) -> None:
        file = place / "run.toml"
        file.write_bytes(make.mutated_toml(RUN, dice))
        load_config(file).to_json()

    torch.save({"state_dict": {"a.weight": torch.ones(2)}}, made := io.BytesIO())
    pickled = made.getvalue()
    from safetensors.torch import save

    plain = save({"a.weight": torch.ones(2)})

    def weights(dice: random.Random, place: Path) -> None:
        safe = dice.random() < 0.4
        file = place / ("w.safetensors" if safe else "w.pth")
        file.write_bytes(_safetensors(plain, dice) if safe else make.mutated_bytes(pickled, dice))
        read_weights(file)

    def checkpoint(dice: random.Random, place: Path) -> None:
        source = Path(os.environ["FUZZ_CHECKPOINT"])
        path = place / "checkpoint"
        shutil.copytree(source, path)
        meta = json.loads((path / "checkpoint.json").read_text())
        name = dice.choice(["checkpoint.json"] * 3 + ["units.json", "model.safetensors"])
        data = (path / name).read_bytes()
        if name == "model.safetensors":
            (path / name).write_bytes(_safetensors(data, dice))
            meta["model_sha256"] = sha256_file(path / name)
        else:
            value = make.mutated_json(json.loads(data), dice)
            (path / name).write_bytes(make.json_bytes(value))
            meta["units_sha256"] = sha256_file(path / "units.json")
        if name != "checkpoint.json":
            (path / "checkpoint.json").write_bytes(make.json_bytes(meta))
        load_checkpoint(path)

    return {
        "parquet": parquet,
        "run-file": run_file,
        "weights": weights,
        "checkpoint": checkpoint,
    }


RUN = """
seed = 3
threads = 1
device = "cpu"
[backbone]
source = "torchvision"
name = "resnet18"
weights = "none"
cut = "layer1"
[budget]
kind = "params"
limit = 0.5
[input]
size = 64
mean = [0.4, 0.4, 0.4]
[train]
warmup = 1
ramp = 2
settle = 1
batch_size = 8
lr = 0.001
workers = 0
[domains.flowers]
train = "data/train"
test = ["data/test"]
limit = 100
mirror = true
[domains."signs.x"]
source = "huggingface"
name = "a/b"
image_column = "image"
"""
KINDS = {
    **dict.fromkeys(("manifest", "units", "graph", "bundle-pack", "pack"), bundle_target),
    **dict.fromkeys(("profile", "plan", "image"), small_targets),
    **dict.fromkeys(("request-json", "request-raw", "request-grpc"), request_targets),
    **dict.fromkeys(("parquet", "run-file", "weights", "checkpoint"), trainer_targets),
}
