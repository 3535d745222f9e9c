"""Everything a step touches is where the run is, on a GPU that is only pretended."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prunion.benchmarks.cost.train_step import RandomBatches
from prunion.exporter.slim import fold_domain, slim_network
from prunion.trainer.config import BudgetConfig, RunConfig, TrainConfig, load_config
from prunion.trainer.cost import counted_pricer, make_budget, make_pricer
from prunion.trainer.cost.latency import LatencyPricer
from prunion.trainer.data import Batch
from prunion.trainer.learning import Training
from prunion.trainer.learning import training as training_module
from prunion.trainer.learning.optimiser import WeightAverage
from prunion.trainer.learning.step.distillation import Teacher
from prunion.trainer.pruning import learner_state, restore_learner
from prunion.trainer.pruning.sharing import sharing_gradient
from tests.support.networks.small import Depthwise, Residual, domain_net
from tests.support.pretended_gpu import moved, pretended_gpu
from tests.support.tiny_run import tiny_run
from tests.trainer.cost.test_latency import made_up

STEPS, CLASSES = 2, (3, 5)
QUICK: list[dict[str, Any]] = [
    {"average": 1.0, "switch_every": 1},
    {"trunk": "frozen", "recipe": "paper"},
    {"order": "batch", "domain_budget": True},
]
RECIPES = [
    *QUICK,
    *(
        pytest.param(train, marks=pytest.mark.slow)
        for train in (
            {"trunk": "frozen"},
            {"sharing": "jaccard", "ranking": "random"},
            {"sharing": "none", "cut": "domains"},
        )
    ),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return load_config(tiny_run(tmp_path_factory.mktemp("run")))


def batches() -> RandomBatches:
    def batch(domain: int) -> Batch:
        return Batch(domain, torch.randn(6, 3, 8, 8), torch.zeros(6, dtype=torch.int64))

    steps = tuple((batch(0), batch(1)) for _ in range(STEPS))
    return RandomBatches(steps, (("a", "b", "c"), ("a", "b", "c", "d", "e")), (6, 6))


def training_of(config: RunConfig, net: Any, train: dict[str, Any]) -> Training:
    phases = TrainConfig(warmup=1, ramp=1, settle=1, **train)
    config = replace(config, train=phases, budget=BudgetConfig(0.7, round_to=1))
    budget = make_budget(config.budget, make_pricer(config.budget, net))
    return Training(config, net, batches(), budget)  # type: ignore[arg-type]


@pytest.mark.parametrize("train", RECIPES, ids=lambda train: " ".join(map(str, train.values())))
def test_every_phase_stays_on_the_gpu(config: RunConfig, train: dict[str, Any]) -> None:
    net = domain_net(Depthwise(), CLASSES)
    with pretended_gpu() as (mode, _):
        training = training_of(config, moved(net, mode), train)
        for _ in range(3):
            training.run_epoch(lambda figures: None)
        assert training.phase == "settle"
        assert training.switches().device.type == "cuda"
        state = {k: v.cpu() for k, v in learner_state(training.learner).items()}
        restore_learner(training.learner, state)
        assert training.learner.scores.device.type == "cuda"


def test_a_step_waits_for_the_gpu_once(config: RunConfig) -> None:
    """For its losses; a step that learns switches also for the cost, an epoch for its check."""
    net = domain_net(Residual(), CLASSES)
    with pretended_gpu() as (mode, waits):
        training = training_of(config, moved(net, mode), {"switch_every": 1})
        training.run_epoch(lambda figures: None)
        assert waits == {"tolist": STEPS + 1, "cpu": 1}
        training.run_epoch(lambda figures: None)  # begins with the ranking's steps
        waits.clear()
        training.run_epoch(lambda figures: None)
        assert waits["tolist"] == STEPS + 1


def test_a_teacher_and_an_average_are_on_the_gpu(config: RunConfig) -> None:
    net, other = domain_net(Residual(), CLASSES), domain_net(Residual(), CLASSES)
    with pretended_gpu() as (mode, _):
        training = training_of(config, moved(net, mode), {"average": 1.0})
        training.teacher = Teacher(moved(other, mode), 0.5)
        training.phase = "settle"
        training.run_epoch(lambda figures: None)
        saved = WeightAverage(2.0)
        saved.update(training.net)
        state = {k: v.cpu() for k, v in saved.state_dict().items()}
        again = WeightAverage(2.0)
        again.load_state_dict(state, training.net.switches.device)
        again.update(training.net)
        assert {v.device.type for v in again.tensors.values()} == {"cuda"}


def test_the_selectable_network_never_waits() -> None:
    """Else it could not be captured in a CUDA graph."""
    slim, folded = (slim_network(domain_net(Residual(), c)) for c in (CLASSES, (3,)))
    one = fold_domain(folded)
    with pretended_gpu() as (mode, waits), torch.no_grad():
        image = torch.randn(4, 3, 8, 8, device="cuda", dtype=torch.float16)
        domain = torch.zeros(4, dtype=torch.int64, device="cuda")
        logits = moved(slim, mode, torch.float16).logits(image, domain)
        assert (logits.device.type, logits.dtype, logits.shape) == ("cuda", torch.float16, (4, 5))
        assert moved(one, mode, torch.float16)(image).dtype == torch.float16
    assert not waits


@pytest.mark.parametrize("kind", ["params", "macs", "latency"])
@pytest.mark.parametrize("sharing", ["union", "intersection", "jaccard"])
def test_costs_and_their_gradients_are_on_the_gpu(kind: str, sharing: str) -> None:
    table = domain_net(Residual()).units.table
    pricer = {
        "params": counted_pricer("params", table),
        "macs": counted_pricer("macs", table),
        "latency": LatencyPricer(table, made_up(table)),
    }[kind]
    cost = pricer.cost_model()
    with pretended_gpu() as (mode, _):
        switches = torch.ones(2, table.count, device="cuda")
        on_gpu = moved(cost, mode)
        for plain in (True, False):
            _, gradient = sharing_gradient(sharing, switches, on_gpu, 0.5, plain=plain)
            assert gradient.device.type == "cuda"


def test_mixed_devices_are_noticed(config: RunConfig) -> None:
    """The test of the test: one table left behind."""
    net = domain_net(Residual(), CLASSES)
    with pretended_gpu() as (mode, _):
        training = training_of(config, moved(net, mode), {})
        cost: Any = training.pressure.cost
        cost.fixed = cost.fixed.cpu()
        with pytest.raises(RuntimeError, match="same device"):
            for _ in range(3):
                training.run_epoch(lambda figures: None)


class NoFloat64(TorchDispatchMode):
    """Fails where anything makes a tensor of a kind that an Apple GPU lacks, on the GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for x in tree_leaves(made):
            on_gpu = isinstance(x, torch.Tensor) and x.device.type != "cpu"
            assert not on_gpu or x.dtype not in (torch.float64, torch.complex128), func
        return made


def test_float64_on_the_gpu_is_seen() -> None:
    with pretended_gpu() as (_, _), NoFloat64():
        torch.ones(2, dtype=torch.float64) + torch.ones(2, device="cuda").cpu()
        with pytest.raises(AssertionError, match="aten"):
            torch.ones(2, device="cuda").double()


@pytest.mark.parametrize(
    "train",
    [
        {"recipe": "greedy"},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"sharing": "jaccard"}, marks=pytest.mark.slow),
    ],
)
def test_switches_may_learn_elsewhere(
    config: RunConfig, train: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As beside an Apple GPU, which has no float64."""
    monkeypatch.setattr(training_module, "switch_device", lambda device: torch.device("cpu"))
    net = domain_net(Depthwise(), CLASSES)
    every = {} if "recipe" in train else {"switch_every": 1}
    with pretended_gpu() as (mode, _), NoFloat64():
        training = training_of(config, moved(net, mode), {**every, **train})
        for _ in range(3):
            training.run_epoch(lambda figures: None)
            assert training.choices().device.type == "cuda"
        assert training.learner.scores.device.type == "cpu"
        assert training.net.switches.device.type == "cuda"
