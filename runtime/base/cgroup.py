"""What Linux's control groups leave to this process: a container's memory and processor time.

A container sees the whole host in /proc/meminfo and in the number of processors. Its own limits lie
in files of the control groups it is in, of version 1 (a tree for each controller) or 2 (one tree).
A limit holds for everything below it, so each group up to the root of the tree is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

__all__ = ["cpu_quota", "memory_left"]

# For each version: a limit, what is used of it, and the key in memory.stat of the file cache that
# the kernel gives back when memory is short.
MEMORY_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.high", "memory.current", "inactive_file"),  # above it the process is slowed down
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def memory_left(root: Path = Path("/")) -> int | None:
    """Bytes that the groups let this process still take, 0 or more; None without a limit.

    `root` is the folder that holds `proc` and `sys`.
    """
    left = []
    for group in _groups(root, "memory"):
        for limit_file, used_file, cache_key in MEMORY_FILES:
            limit, used = _number(group / limit_file), _number(group / used_file)
            if limit is not None and used is not None:
                left.append(limit - max(used - _statistic(group, cache_key), 0))
    return max(min(left), 0) if left else None


def cpu_quota(root: Path = Path("/")) -> float | None:
    """How many processors' time the groups grant, such as 1.5; None without a limit."""
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
    """The folders of the groups that this process is in, its own first, then those above."""
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


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
