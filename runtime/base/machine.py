"""This machine: what a measurement was taken on, and how much of it this process may use."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from prunion.runtime.base.cgroup import cpu_quota, memory_left

__all__ = [
    "available_bytes",
    "default_round_to",
    "machine_facts",
    "on_cpu",
    "peak_rss_bytes",
    "rss_bytes",
    "usable_cores",
]

ROOT = Path("/")
PACKAGES = ("prunion", "onnxruntime", "onnxruntime-gpu", "openvino", "numpy")


def machine_facts(threads: int | None = None) -> dict[str, Any]:
    """CPU model, GPU with its driver where there is one, usable cores, threads, versions."""
    return {
        "cpu": _cpu_model(),
        **({"gpu": gpu} if (gpu := _gpu_model()) else {}),
        "architecture": platform.machine(),
        "cores": usable_cores(),
        "threads": threads or "all",
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: version for name in PACKAGES if (version := _version(name))},
    }


def on_cpu(provider: str) -> bool:
    """Whether what a session says of itself (`get_providers`) is a CPU."""
    return provider.startswith(("CPU", "OpenVINO"))


def default_round_to() -> int:
    """Widths that suit this CPU's blocked convolutions: 16 with AVX-512, else 8."""
    return 16 if "avx512f" in _text(Path("/proc/cpuinfo")) else 8


def available_bytes(root: Path = ROOT) -> int:
    """Memory in bytes that can still be taken without swapping, of the host and of the container.

    4 GiB where the system does not say. `root` is the folder that holds `proc` and `sys`.
    """
    free, left = _kilobytes(root / "proc/meminfo", "MemAvailable:") or 4 << 30, memory_left(root)
    return free if left is None else min(free, left)


def usable_cores(root: Path = ROOT) -> int:
    """Processors that this process may run on, no more than its container's quota of time.

    Parts of a processor do not count: one thread more than the quota would be stopped in turn.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = cpu_quota(root)
    return cores if quota is None else max(min(cores, int(quota)), 1)


def rss_bytes() -> int:
    """The resident size of this process now, in bytes; 0 where the system does not say."""
    return _kilobytes(ROOT / "proc/self/status", "VmRSS:")


def peak_rss_bytes() -> int:
    """The largest resident size this process ever had, in bytes."""
    if peak := _kilobytes(ROOT / "proc/self/status", "VmHWM:"):
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _kilobytes(file: Path, key: str) -> int:
    """The line `key` of a /proc file, in bytes; 0 if there is none."""
    for line in _text(file).splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return 0


def _cpu_model() -> str:
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        if line.lower().startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def _gpu_model() -> str:
    """NVIDIA's GPUs and their driver, as the system tells them without any library."""
    found = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = [line for path in found for line in _text(path).splitlines()]
    names = [x.removeprefix("Model:").strip() for x in lines if x.startswith("Model:")]
    if not names:  # a Jetson's GPU is part of the board
        is_jetson = Path("/etc/nv_tegra_release").exists()
        return _text(Path("/proc/device-tree/model")) if is_jetson else ""
    driver = _text(Path("/sys/module/nvidia/version"))
    return " and ".join(names) + (f", driver {driver}" if driver else "")


def _text(path: Path) -> str:
    """A file of the system; nothing where it cannot be read, as in some containers."""
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
