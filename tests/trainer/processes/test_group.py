"""Two processes that share the domains learn what one process learns on the joint batch."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from prunion.runtime.errors import ConfigError
from prunion.trainer.config import TrainConfig, load_config
from prunion.trainer.network import load_checkpoint
from prunion.trainer.processes import ALONE, Processes, joined_processes
from prunion.trainer.run import train_run
from tests.support.forked import Forked, forked_prunion
from tests.support.tiny_run import tiny_run

pytestmark = pytest.mark.thorough

TRAIN = [sys.executable, "-c", "from prunion.runtime.cli.main import main; main()", "train"]


def start(count: int, run_file: Path, folder: Path, *more: str) -> list[Forked]:
    """What `torchrun --nproc-per-node COUNT` does, without its own agent."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        forked_prunion(
            *("train", run_file, "-o", folder, *more),
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]


def train_in_processes(count: int, run_file: Path, folder: Path, *more: str) -> None:
    processes = start(count, run_file, folder, *more)
    outputs = [p.communicate(timeout=180) for p in processes]
    assert [p.returncode for p in processes] == [0] * count, outputs
    assert "budget params" in outputs[0][0]
    assert outputs[1][0] == ""  # the first process alone reports


def steps(folder: Path) -> list[dict]:
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [line for line in lines if "cost" in line]


@pytest.mark.parametrize(
    ("average", "trunk", "placement"), [(0, "tuned", "images"), (1, "frozen", "domains")]
)
def test_two_processes_log_the_losses_of_one(
    average: int, trunk: str, placement: str, tmp_path: Path
) -> None:
    settings = {"trunk": f'"{trunk}"', "placement": f'"{placement}"'}
    run_file = tiny_run(tmp_path, switch_every=1, average=average, **settings)
    train_run(load_config(run_file), tmp_path / "one")
    train_in_processes(2, run_file, tmp_path / "two")
    alone, shared = steps(tmp_path / "one"), steps(tmp_path / "two")
    assert len(alone) == len(shared) == 12
    for a, b in zip(alone, shared, strict=True):
        assert a.keys() == b.keys()
        for key in ("loss/warm", "loss/cold", "cost", "lambda"):
            assert b[key] == pytest.approx(a[key], rel=1e-3, abs=1e-4), (a["step"], key)
    one, two = (load_checkpoint(tmp_path / name) for name in ("one", "two"))
    assert torch.equal(one.net.switches, two.net.switches)
    assert one.meta["domains"] == two.meta["domains"]  # accuracies among them
    for name, value in one.net.state_dict().items():  # every domain's statistics arrived
        torch.testing.assert_close(
            two.net.state_dict()[name], value, rtol=5e-3, atol=5e-3, msg=name
        )


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_they_go_on_bit_for_bit(tmp_path: Path) -> None:
    run_file = tiny_run(tmp_path, warmup=4, ramp=60, settle=4)
    train_in_processes(2, run_file, tmp_path / "whole")
    processes = start(2, run_file, tmp_path / "out")
    log, deadline = tmp_path / "out" / "metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and (not log.exists() or log.read_bytes().count(b"\n") < 20):
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    errors = [p.communicate(timeout=120)[1] for p in processes]
    assert [p.returncode for p in processes] == [143, 143], errors
    train_in_processes(2, run_file, tmp_path / "out", "--resume")
    whole, resumed = (load_checkpoint(tmp_path / name) for name in ("whole", "out"))
    assert whole.meta["domains"] == resumed.meta["domains"]
    for name, value in whole.net.state_dict().items():
        assert torch.equal(resumed.net.state_dict()[name], value), name


def test_the_order_of_sets_does_not_matter(tmp_path: Path) -> None:
    """Forked processes have one hash seed; an interpreter of its own beside one has another."""
    run_file = tiny_run(tmp_path, warmup=1, ramp=1, settle=1, switch_every=1)
    train_in_processes(2, run_file, tmp_path / "forked")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    arguments = ["train", str(run_file), "-o", str(tmp_path / "own")]
    first = forked_prunion(*arguments, env={**common, "RANK": "0", "LOCAL_RANK": "0"})
    second = subprocess.Popen(
        [*TRAIN, *arguments[1:]],
        env={**os.environ, **common, "RANK": "1", "LOCAL_RANK": "1", "PYTHONHASHSEED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    told = [second.communicate(timeout=300)[0], *first.communicate(timeout=300)]
    assert [first.returncode, second.returncode] == [0, 0], told
    for name in ("model.safetensors", "checkpoint.json", "units.json"):
        one, other = (tmp_path / place / "checkpoint" / name for place in ("forked", "own"))
        assert one.read_bytes() == other.read_bytes(), name


def test_two_processes_share_a_ramp(tmp_path: Path) -> None:
    run_file, out = tiny_run(tmp_path, warmup=1, ramp=1, settle=1), tmp_path / "two"
    processes = start(2, run_file, out, "--budget", "0.8,0.4")
    outputs = [p.communicate(timeout=300) for p in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs
    assert "1 run left the ramp of seed-3-budget-0.4" in outputs[0][0] and outputs[1][0] == ""
    high, low = (out / f"seed-3-budget-{limit}" for limit in ("0.8", "0.4"))
    assert sorted(out.iterdir()) == [out / "frontier.png", out / "frontier.svg", low, high]
    found = json.loads((high / "record.json").read_text("utf-8"))["result"]["branched_from"]
    shared = found["steps"]
    assert 3 < shared < 6
    assert steps(high)[:shared] == steps(low)[:shared]
    assert [x["step"] for x in steps(high)[shared:]] == [6, 7, 8]


def test_a_domain_that_one_process_cannot_open_ends_both(tmp_path: Path) -> None:
    run_file = tiny_run(tmp_path, placement='"domains"')
    broken = tmp_path / "data" / "cold" / "train" / "blue" / "3.png"  # the second process's domain
    broken.write_bytes(b"not an image")
    processes = start(2, run_file, tmp_path / "two")
    errors = [p.communicate(timeout=120)[1] for p in processes]
    assert [p.returncode for p in processes] == [1, 1], errors
    for lines in errors:
        assert str(broken) in lines
        assert "Traceback" not in lines
    assert not (tmp_path / "two").exists()


def test_a_folder_that_is_taken_ends_both_processes_in_one_line(tmp_path: Path) -> None:
    run_file = tiny_run(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    processes = start(2, run_file, tmp_path / "out")
    errors = [p.communicate(timeout=120)[1] for p in processes]
    assert [p.returncode for p in processes] == [1, 1], errors
    for lines in errors:
        assert "holds no run and is not empty (it holds notes.txt)" in lines
        assert "Traceback" not in lines


def test_every_domain_has_one_owner() -> None:
    processes = [Processes(index, 3) for index in range(3)]
    for domain in range(8):
        assert sum(p.owns(domain) for p in processes) == 1
    assert all(ALONE.owns(d) for d in range(8))


@pytest.mark.parametrize(
    ("domains", "order", "message"),
    [(1, "joint", "start at most 1"), (4, "epoch", 'use placement = "images"')],
)
def test_what_cannot_be_shared_is_refused(
    domains: int, order: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    train = TrainConfig(order=order, placement="domains")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message), joined_processes(domains, train, "cpu"):
        pass


@pytest.mark.parametrize(
    ("size", "said"), [("two", "no number of processes"), ("2", "not all that torchrun sets")]
)
def test_an_environment_that_is_not_torchruns_is_told(
    size: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match=said), joined_processes(2, TrainConfig(), "cpu"):
        pass


def test_gradients_are_summed_whatever_iterable_gives_the_parameters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A generator, such as `Module.parameters()`, can be walked through once only."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.mul_(2))
    layer = torch.nn.Linear(2, 3)
    layer(torch.ones(1, 2)).sum().backward()
    layer.bias.grad = None  # as if this process had not used it
    Processes(0, 2).sum_gradients(parameter for parameter in layer.parameters())
    assert torch.equal(layer.weight.grad, torch.full((3, 2), 2.0))  # type: ignore[arg-type]
    assert torch.equal(layer.bias.grad, torch.zeros(3))


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["images", "domains"])
def test_torchrun_starts_a_killed_process_again_and_nothing_is_lost(
    placement: str, tmp_path: Path
) -> None:
    """Five kills at random moments: the run ends with the bytes of an unharmed one."""
    run_file = tiny_run(tmp_path, warmup=8, ramp=40, settle=8, placement=f'"{placement}"')
    train_in_processes(2, run_file, tmp_path / "whole")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*torchrun, "--max-restarts", "6", "--monitor-interval", "0.2", "--standalone"]
    out = tmp_path / "out"
    run = subprocess.Popen(
        [*command, "--no-python", *TRAIN, str(run_file), "-o", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    draw, killed = random.Random(7), 0
    log, before = out / "metrics.jsonl", 0
    while killed < 5 and run.poll() is None:
        time.sleep(0.2)
        lines = log.read_bytes().count(b"\n") if log.exists() else 0
        if lines < before + draw.randint(5, 30):
            continue
        workers = children(run.pid)
        if len(workers) == 2:
            os.kill(draw.choice(workers), signal.SIGKILL)
            killed, before = killed + 1, lines
            time.sleep(3)
    told = run.communicate(timeout=600)[0]
    assert run.returncode == 0, told
    assert killed == 5, told
    for name in ("model.safetensors", "checkpoint.json"):
        one, other = (tmp_path / place / "checkpoint" / name for place in ("whole", "out"))
        assert one.read_bytes() == other.read_bytes(), name


def children(pid: int) -> list[int]:
    """Processes that `pid` started and that still run."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):
            lines = dict(x.split(":", 1) for x in status.read_text().splitlines() if ":" in x)
            if int(lines["PPid"]) == pid and lines["State"].strip()[0] != "Z":
                found.append(int(status.parent.name))
    return found


def test_a_process_whose_partner_is_killed_ends_in_one_line(tmp_path: Path) -> None:
    run_file = tiny_run(tmp_path, warmup=4, ramp=400, settle=4)
    processes = start(2, run_file, tmp_path / "out")
    log, deadline = tmp_path / "out" / "metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and (not log.exists() or log.read_bytes().count(b"\n") < 9):
        time.sleep(0.05)
    processes[1].kill()
    text = processes[0].communicate(timeout=120)[1]
    processes[1].communicate(timeout=60)
    assert processes[0].returncode == 1, text
    assert "another process of this run ended" in text
    assert "Traceback" not in text
