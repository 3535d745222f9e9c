"""The tables of a run file: backbone, input, budget and training."""

from __future__ import annotations

import re
from dataclasses import dataclass

from prunion.runtime.errors import ConfigError
from prunion.trainer.config_checks import (
    check_bool,
    check_choice,
    check_int,
    check_number,
    check_text,
    check_triple,
    shown,
)

__all__ = ["BackboneConfig", "BudgetConfig", "InputConfig", "TrainConfig"]

KINDS = ("params", "macs", "bytes", "switches", "latency")
SHARING = ("union", "intersection", "jaccard", "none")
FROZEN_LR, TUNED_LR = 1e-2, 1e-3
MULTIPLIERS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
TIMES = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
TIME = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(us|µs|ms|s)\s*")
AMOUNT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kMG%]?)\s*")


@dataclass(frozen=True)
class BackboneConfig:
    """Which pretrained network to prune, and where its weights come from."""

    name: str
    source: str = "torchvision"
    weights: str = "default"
    match: str = "name"
    cut: str | None = None

    def __post_init__(self) -> None:
        check_text("backbone", "name", self.name)
        check_choice("backbone", "source", self.source, ("torchvision", "timm", "prunion"))
        check_text("backbone", "weights", self.weights)
        check_choice("backbone", "match", self.match, ("name", "order"))
        if self.cut is not None:
            check_text("backbone", "cut", self.cut)

    @property
    def weights_are_a_file(self) -> bool:
        """False for "default" (the library's own download) and "none" (random weights)."""
        return self.weights not in ("default", "none")


@dataclass(frozen=True)
class InputConfig:
    """What the network sees: size in pixels, and the normalisation of RGB in 0 … 1.

    `size` may be given as one number; it is kept as `(height, width)`.
    """

    size: tuple[int, int] = (64, 64)
    resize: int = 0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    test_crops: int = 1

    def __post_init__(self) -> None:
        size = self.size
        sides = size if isinstance(size, (list, tuple)) else (size, size)
        if len(sides) != 2:
            raise ConfigError(f"[input] size is {shown(size)}: give one number or [height, width]")
        height, width = (check_int("input", "size", side, 8, 4096) for side in sides)
        check_int("input", "resize", self.resize, 0, 8192)
        if 0 < self.resize < max(height, width):
            raise ConfigError(
                f"[input] resize is {self.resize}, smaller than size: the crop would leave the "
                f"image; give at least {max(height, width)}, or 0 for exactly that"
            )
        if isinstance(self.test_crops, bool) or self.test_crops not in (1, 5, 10):
            raise ConfigError(f"[input] test_crops is {shown(self.test_crops)}: use 1, 5 or 10")
        if self.test_crops > 1 and self.resize <= max(height, width):
            raise ConfigError(
                f"[input] test_crops is {self.test_crops}, but images are resized to the crop's "
                f"own size: give resize more than {max(height, width)}, or test_crops = 1"
            )
        # One spelling inside, whichever of the accepted ones the file used.
        object.__setattr__(self, "size", (height, width))
        object.__setattr__(self, "mean", check_triple("input", "mean", self.mean, 0, 1))
        object.__setattr__(self, "std", check_triple("input", "std", self.std, 0, 1, open_low=True))

    @property
    def height(self) -> int:
        """Rows of the network's input."""
        return self.size[0]

    @property
    def width(self) -> int:
        """Columns of the network's input."""
        return self.size[1]

    def crops(self, mirror: bool) -> int:
        """Views of a test image: mirrored ones only where the domain may be mirrored."""
        return self.test_crops if mirror or self.test_crops == 1 else 5

    @property
    def shorter_side(self) -> int:
        """What an image's shorter side is resized to before the centre crop, in pixels."""
        return self.resize or max(self.size)


@dataclass(frozen=True)
class BudgetConfig:
    """What the union may cost. `limit` is kept as written; `amount` and `allowed` read it.

    `profile` is the file that `prunion profile` wrote; `latency` needs it, nothing else takes it.
    """

    limit: float | str
    kind: str = "params"
    round_to: int = 1
    profile: str = ""

    def __post_init__(self) -> None:
        check_choice("budget", "kind", self.kind, KINDS)
        check_int("budget", "round_to", self.round_to, 1, 1024)
        check_text("budget", "profile", self.profile, empty=True)
        if self.kind == "latency" and not self.profile:
            raise ConfigError(
                "[budget] profile is missing: measure the device with `prunion profile` and give "
                'the file, profile = "device.json"'
            )
        if self.profile and self.kind != "latency":
            raise ConfigError(
                f'[budget] profile is for kind "latency", this is "{self.kind}": leave it out'
            )
        if not self.amount > 0:
            raise ConfigError(f"[budget] limit is {shown(self.limit)}: give more than zero")

    @property
    def amount(self) -> float:
        """The limit as a number: a share of the backbone's cost up to 1, beyond it a count.

        For latency a share, or milliseconds where the limit is a time.
        """
        if self.kind == "latency":
            return self._latency()
        if not isinstance(self.limit, str):
            return check_number("budget", "limit", self.limit, 0, 1e18, open_low=True)
        found = AMOUNT.fullmatch(self.limit)
        if found is None:
            raise ConfigError(
                f"[budget] limit is {shown(self.limit)}: give a share such as 0.5 or "
                '"50%", or an amount such as 1200000, "1.2M", "300k" or "0.4G"'
            )
        number, unit = float(found[1]), found[2]
        if unit == "%":
            if number > 100:
                raise ConfigError(f"[budget] limit is {shown(self.limit)}: give at most 100%")
            return number / 100
        return number * MULTIPLIERS[unit]

    @property
    def is_fraction(self) -> bool:
        """Whether the limit is a share of the backbone's cost rather than a count."""
        if self.kind == "latency":
            return not (isinstance(self.limit, str) and TIME.fullmatch(self.limit))
        return self.amount <= 1

    def _latency(self) -> float:
        limit = self.limit
        if isinstance(limit, str):
            if time := TIME.fullmatch(limit):
                return float(time[1]) * TIMES[time[2]]
            share = AMOUNT.fullmatch(limit)
            value = float(share[1]) / 100 if share and share[2] == "%" else 2.0
        else:
            value = check_number("budget", "limit", limit, 0, 1e18, open_low=True)
        if value > 1:
            raise ConfigError(
                f"[budget] limit is {shown(limit)}: of latency give a share such as 0.5 or "
                '"50%", or a time such as "5ms" or "800us"'
            )
        return value

    def allowed(self, backbone: float) -> float:
        """The absolute amount the union may cost, for a backbone that costs `backbone`."""
        return self.amount * backbone if self.is_fraction else self.amount


@dataclass(frozen=True)
class TrainConfig:
    """How the network learns: phases in epochs, batches in images, learning rates."""

    recipe: str = "prunion"
    trunk: str = "frozen"
    order: str = "joint"
    warmup: int = 2
    ramp: int = 4
    settle: int = 6
    batch_size: int = 32
    balance: float = 0.5
    lr: float | str = "auto"
    trunk_lr: float = 3e-4
    ranking: str = "importance"
    switch_travel: float = 2.0
    switch_every: int = 8
    weight_decay: float = 1e-4
    small_set_decay: float = 0.0
    label_smoothing: float = 0.0
    teacher: str = ""
    distillation: float = 0.5
    average: float = 0.0
    trunk_from: str = "start"
    sharing: str = "union"
    sharing_weight: float | str = "learned"
    domain_budget: bool | str = "auto"
    cut: str = "union"
    precision: str = "fp32"
    compile: bool = False
    workers: int = 0

    def __post_init__(self) -> None:
        check_choice("train", "recipe", self.recipe, ("prunion", "paper"))
        check_choice("train", "trunk", self.trunk, ("frozen", "tuned"))
        check_choice("train", "order", self.order, ("joint", "batch", "epoch"))
        for key in ("warmup", "ramp", "settle"):
            check_int("train", key, getattr(self, key), 0, 100_000)
        if not self.epochs:
            raise ConfigError("[train] warmup, ramp and settle are all 0: give at least one epoch")
        # BatchNorm's statistics of fewer than four images are noise.
        check_int("train", "batch_size", self.batch_size, 4, 65_536)
        check_number("train", "balance", self.balance, 0, 1)
        if self.lr != "auto":
            if isinstance(self.lr, str):
                raise ConfigError(
                    f'[train] lr is {shown(self.lr)}: give a number such as 1e-3, or "auto"'
                )
            check_number("train", "lr", self.lr, 0, 10, open_low=True)
        for key in ("trunk_lr", "switch_travel"):
            check_number("train", key, getattr(self, key), 0, 10, open_low=True)
        check_int("train", "switch_every", self.switch_every, 1, 1000)
        check_choice("train", "ranking", self.ranking, ("importance", "random"))
        check_number("train", "weight_decay", self.weight_decay, 0, 1)
        check_number("train", "small_set_decay", self.small_set_decay, 0, 10)
        check_number("train", "label_smoothing", self.label_smoothing, 0, 0.9)
        if self.teacher:
            check_text("train", "teacher", self.teacher)
        check_number("train", "distillation", self.distillation, 0, 1)
        check_number("train", "average", self.average, 0, 1000)
        check_choice("train", "trunk_from", self.trunk_from, ("start", "settle"))
        check_choice("train", "sharing", self.sharing, SHARING)
        if self.domain_budget != "auto":
            check_bool("train", "domain_budget", self.domain_budget)
        check_choice("train", "cut", self.cut, ("union", "domains"))
        if isinstance(self.sharing_weight, str):
            check_choice("train", "sharing_weight", self.sharing_weight, ("learned",))
        else:
            check_number("train", "sharing_weight", self.sharing_weight, 0, 1e6)
        check_choice("train", "precision", self.precision, ("fp32", "bf16"))
        check_bool("train", "compile", self.compile)
        check_int("train", "workers", self.workers, 0, 256)

    @property
    def budgets_domains(self) -> bool:
        """Whether every domain has a budget loss of its own (eq. 4).

        By default wherever the union's loss does not already hold every domain to the budget,
        and in the paper's recipe.
        """
        if isinstance(self.domain_budget, bool):
            return self.domain_budget
        return self.sharing != "union" or self.recipe == "paper"

    @property
    def own_lr(self) -> float:
        """Learning rate of what each domain has for itself, its BatchNorms and its head.

        By default ten times higher where the trunk is frozen: nothing else can adapt.
        """
        if isinstance(self.lr, str):
            return FROZEN_LR if self.trunk == "frozen" else TUNED_LR
        return self.lr

    @property
    def epochs(self) -> int:
        """Epochs of all phases together."""
        return self.warmup + self.ramp + self.settle
