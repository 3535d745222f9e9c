"""This machine: what a measurement was taken on, and how much of it this process may use.

glibc's allocator hands freed memory back at once after an export's step, never in training.
Elsewhere (musl has neither call) a process keeps what its own allocator does.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = [
    "available_bytes",
    "cpu_quota",
    "default_round_to",
    "default_threads",
    "free_memory",
    "installed_version",
    "keep_freed_memory",
    "machine_facts",
    "memory_left",
    "on_cpu",
    "only_new_garbage",
    "peak_rss_bytes",
    "reader_threads",
    "rss_bytes",
    "usable_cores",
]

ROOT = Path("/")
SPARE = 4  # threads that read while others decode
# For each version of control groups: a limit, what is used of it, and the key in memory.stat of
# the file cache that the kernel gives back when memory is short.
MEMORY_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.high", "memory.current", "inactive_file"),  # above it the process is slowed down
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
PACKAGES = ("prunion", "onnxruntime", "onnxruntime-gpu", "openvino", "numpy")


def machine_facts(threads: int | None = None) -> dict[str, Any]:
    """CPU model and governor, GPU with its driver, usable cores, quota, threads, versions.

    What the system does not tell is left out: a virtual machine has no governor, most have no
    quota of processors' time.
    """
    governor = _text(ROOT / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    quota = cpu_quota()
    return {
        "cpu": _cpu_model(),
        **({"governor": governor} if governor else {}),
        **({} if quota is None else {"cpu_quota": quota}),
        **({"gpu": gpu} if (gpu := _gpu_model()) else {}),
        "architecture": platform.machine(),
        "cores": usable_cores(),
        "threads": threads or "all",
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: version for name in PACKAGES if (version := installed_version(name))},
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


def default_threads(root: Path = ROOT) -> int | None:
    """Threads for a library that is told none: what the container's quota of time leaves.

    None without a quota: libraries know the machine's processors. They do not know quotas, and
    threads beyond one are stopped in turn, each while the others wait for it.
    """
    return None if cpu_quota(root) is None else usable_cores(root)


def reader_threads(root: Path = ROOT) -> int:
    """Threads that read and decode files: some more than processors, as reading waits for a disk.

    Under a container's quota of time no more than it grants.
    """
    return default_threads(root) or usable_cores(root) + SPARE


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


def installed_version(package: str) -> str | None:
    """Of a package, None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def memory_left(root: Path = ROOT) -> int | None:
    """Bytes that the control groups let this process still take, 0 or more; None without a limit.

    `root` is the folder that holds `proc` and `sys`.
    """
    left = []
    for group in _groups(root, "memory"):
        for limit_file, used_file, cache_key in MEMORY_FILES:
            limit, used = _number(group / limit_file), _number(group / used_file)
            if limit is not None and used is not None:
                left.append(limit - max(used - _statistic(group, cache_key), 0))
    return max(min(left), 0) if left else None


def cpu_quota(root: Path = ROOT) -> float | None:
    """How many processors' time the control groups grant, such as 1.5; None without a limit."""
    found = []
    for group in _groups(root, "cpu"):
        words = _text(group / "cpu.max").split()  # version 2: quota and period in one file
        if not words:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            words = [_text(group / name) for name in names]
        if len(words) == 2 and all(word.isdigit() and int(word) > 0 for word in words):
            found.append(int(words[0]) / int(words[1]))
    return min(found) if found else None


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's control groups, its own first, then those above."""
    mount = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers:
            if controller not in controllers.split(","):
                continue
            # The tree is mounted by the controllers' names, together or one by one.
            trees = [mount / name for name in (controllers, controller)]
            tree = next((tree for tree in trees if tree.is_dir()), None)
        else:
            tree = mount
        if tree is None or ".." in path.split("/"):
            continue
        # A container may see its own group as the root of the tree while the path is the host's:
        # folders that are not there have no files to read.
        parts = [part for part in path.split("/") if part]
        for count in range(len(parts), -1, -1):
            yield tree.joinpath(*parts[:count])


def _number(path: Path) -> int | None:
    """The number in a file; None for "max", -1, or where there is none."""
    text = _text(path)
    return int(text) if text.isdigit() else None


def _statistic(group: Path, key: str) -> int:
    for line in _text(group / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == key and value.isdigit():
            return int(value)
    return 0


def free_memory() -> None:
    """Collect cycles (a traced program is full of them) and give back what is free then.

    Called between the steps of an export, so that their peaks do not add up.
    """
    gc.collect()
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


@contextmanager
def only_new_garbage() -> Iterator[None]:
    """Inside, collections walk what is made inside, not the million objects of a loaded torch.

    Each walk of those takes half a second, and tracing sets off several. Afterwards everything is
    walked as before; a program that froze objects of its own keeps them so.
    """
    ours = not gc.get_freeze_count()
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()


def keep_freed_memory() -> None:
    """Keep freed memory for the next step of training, which takes as much again.

    By default glibc maps and clears every block over 32 MB anew: of a step on a CPU that was a
    quarter of the time.
    """
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, 256 << 20)


def _glibc(name: str) -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), name, None)
