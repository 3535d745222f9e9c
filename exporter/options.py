"""What `prunion export` may be asked for beyond the plain fp32 graph."""

from __future__ import annotations

from dataclasses import dataclass, fields

from prunion.runtime.base import is_whole, shown
from prunion.runtime.errors import ConfigError

__all__ = ["GOES_WITH", "IMAGES", "ExportOptions", "check_ir"]

OPSETS = range(13, 22)
HEADS = ("gathered", "concatenated")
IMAGES = ("float32", "float16")
GOES_WITH = {"fp16_image": "fp16", "int8_max_drop": "int8", "int8_images": "int8"}


@dataclass(frozen=True)
class ExportOptions:
    """Choices of one export; checked on creation, also that each means something beside the others.

    Raises ConfigError.

    Attributes:
        opset: ONNX operator set, 13 … 21.
        ir: ONNX file (IR) version; None takes the oldest that knows the opset.
        heads: `gathered` (each image gathers its classifier) or `concatenated` (one product over
            all classes of all domains, then each image picks its own).
        fp16: also write `model.fp16.onnx`.
        fp16_image: type of that graph's `image` input, `float32` or `float16`.
        int8: also write `model.int8.onnx`.
        int8_max_drop: percentage points of accuracy that a domain may lose by it, 0 … 100.
        int8_images: calibration images of each domain.
        uint8: also write each graph with a uint8 `image` and the normalisation inside.
        domains: only these, sliced again to what they use; None takes all.
        specialise: one domain with its BatchNorm folded and no `domain` input.
        torch: also write the sliced network as `slim.safetensors` and `plan.json`,
            its slim layout.
    """

    opset: int = 20
    ir: int | None = None
    heads: str = "gathered"
    fp16: bool = False
    fp16_image: str = "float32"
    int8: bool = False
    int8_max_drop: float = 1.0
    int8_images: int = 64
    uint8: bool = False
    domains: tuple[str, ...] | None = None
    specialise: str | None = None
    torch: bool = False

    def __post_init__(self) -> None:
        self._check_types()
        if self.opset not in OPSETS:
            raise ConfigError(
                f"opset {self.opset} is outside {OPSETS[0]}..{OPSETS[-1]}: 20 suits ONNX Runtime "
                "and TensorRT alike"
            )
        if self.heads not in HEADS:
            raise ConfigError(f"no heads {self.heads!r}: use {' or '.join(HEADS)}")
        if self.fp16_image not in IMAGES:
            raise ConfigError(f"no image type {self.fp16_image!r}: use {' or '.join(IMAGES)}")
        if self.ir is not None:
            check_ir(self.ir, self.opset)
        if self.domains is not None and self.specialise is not None:
            raise ConfigError("--domains keeps several domains, --specialise one: give one of them")
        if self.domains is not None and not self.domains:
            raise ConfigError("--domains names no domain: give at least one")
        # Asked this way round, NaN is refused too.
        if not 0 <= self.int8_max_drop <= 100:
            raise ConfigError(
                f"--int8-max-drop {self.int8_max_drop:g} is outside 0..100: give the percentage "
                "points of accuracy that a domain may lose"
            )
        if self.int8_images < 1:
            raise ConfigError(f"--int8-images {self.int8_images}: give 1 or more for each domain")
        usual = {field.name: field.default for field in fields(self)}
        for name, needed in GOES_WITH.items():
            if getattr(self, name) != usual[name] and not getattr(self, needed):
                raise ConfigError(f"{name} means nothing without {needed}: give {needed}=True too")
        if self.heads != usual["heads"] and self.specialise is not None:
            raise ConfigError("heads means nothing with specialise, of one domain alone")

    def _check_types(self) -> None:
        for name in ("fp16", "int8", "uint8", "torch"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {shown(getattr(self, name))}: give True or False")
        for name in ("opset", "int8_images", "ir"):
            value = getattr(self, name)
            if not is_whole(value, -(1 << 31), 1 << 31) and not (name == "ir" and value is None):
                raise ConfigError(f"{name} is {shown(value)}: give a whole number")
        # NaN and infinity are numbers out of range, which is told of them below.
        if isinstance(self.int8_max_drop, bool) or not isinstance(self.int8_max_drop, (int, float)):
            raise ConfigError(f"int8_max_drop is {shown(self.int8_max_drop)}: give a number")
        if self.specialise is not None and not isinstance(self.specialise, str):
            raise ConfigError(f"specialise is {shown(self.specialise)}: give one domain's name")
        if isinstance(self.domains, list):
            object.__setattr__(self, "domains", tuple(self.domains))
        named = self.domains is None or isinstance(self.domains, tuple)
        if not named or not all(isinstance(name, str) for name in self.domains or ()):
            raise ConfigError(f"domains is {shown(self.domains)}: give a tuple of domains' names")

    def size(self, graph: int) -> int:
        """About the bytes of a bundle whose fp32 graph has `graph`, packs apart."""
        graphs = graph * (1.0 + 0.5 * self.fp16 + 0.3 * self.int8)
        return int(graphs * (1 + self.uint8) + graph * self.torch)


def check_ir(ir: int, opset: int) -> None:
    """Raise ConfigError for a file version that the opset does not go with, before the work."""
    import onnx
    from onnx import helper

    imported = [helper.make_opsetid("", opset)]
    oldest = helper.find_min_ir_version_for(imported, ignore_unknown=True)
    if not oldest <= ir <= onnx.IR_VERSION:
        raise ConfigError(
            f"--ir {ir} does not go with opset {opset}, which takes {oldest}..{onnx.IR_VERSION}: "
            f"give --ir {oldest} or more, or leave it out."
        )
