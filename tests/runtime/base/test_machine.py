"""What a container leaves to its processes, on recorded trees of both versions of cgroups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prunion.runtime.base import available_bytes, machine
from prunion.runtime.base.machine import cpu_quota, memory_left, usable_cores

MIB = 1 << 20
HOST = {"proc/meminfo": "MemTotal: 65536000 kB\nMemFree: 1000 kB\nMemAvailable: 40960000 kB\n"}
UNLIMITED = 9223372036854771712  # what version 1 says of a group without a limit


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, value in (HOST | files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{value}\n")
    return root


# Docker, Kubernetes and Podman on a host of today: the container sees its own group as the root.
V2 = {
    "proc/self/cgroup": "0::/",
    "sys/fs/cgroup/memory.max": 512 * MIB,
    "sys/fs/cgroup/memory.high": "max",
    "sys/fs/cgroup/memory.current": 200 * MIB,
    "sys/fs/cgroup/memory.stat": f"anon 1\nactive_file 7\ninactive_file {50 * MIB}",
    "sys/fs/cgroup/cpu.max": "250000 100000",
}
# A systemd service on the host: the limit is its slice's, two groups above.
V2_NESTED = {
    "proc/self/cgroup": "0::/user.slice/app.slice/x.service",
    "sys/fs/cgroup/user.slice/memory.max": 100 * MIB,
    "sys/fs/cgroup/user.slice/memory.current": 40 * MIB,
    "sys/fs/cgroup/user.slice/cpu.max": "150000 100000",
    "sys/fs/cgroup/user.slice/app.slice/memory.max": "max",
    "sys/fs/cgroup/user.slice/app.slice/memory.current": 30 * MIB,
    "sys/fs/cgroup/user.slice/app.slice/cpu.max": "max 100000",
    "sys/fs/cgroup/user.slice/app.slice/x.service/memory.max": 900 * MIB,
    "sys/fs/cgroup/user.slice/app.slice/x.service/memory.current": 20 * MIB,
}
# Docker on version 1: the paths are the host's, the trees are mounted from the container's group.
V1 = {
    "proc/self/cgroup": "11:memory:/docker/a\n4:cpu,cpuacct:/docker/a\n1:name=systemd:/d\n0::/x",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": 300 * MIB,
    "sys/fs/cgroup/memory/memory.usage_in_bytes": 100 * MIB,
    "sys/fs/cgroup/memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {10 * MIB}",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": 50000,
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": 100000,
}
V1_UNLIMITED = V1 | {
    "sys/fs/cgroup/memory/memory.limit_in_bytes": UNLIMITED,
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": -1,
}


@pytest.mark.parametrize(
    ("files", "free", "quota"),
    [
        (V2, 362 * MIB, 2.5),
        (V2 | {"sys/fs/cgroup/memory.high": 256 * MIB}, 106 * MIB, 2.5),
        (V2 | {"sys/fs/cgroup/memory.current": 900 * MIB}, 0, 2.5),
        (V2 | {"sys/fs/cgroup/memory.max": "max", "sys/fs/cgroup/cpu.max": "max 1"}, None, None),
        (V2_NESTED, 60 * MIB, 1.5),
        (V1, 210 * MIB, 0.5),
        (V1_UNLIMITED, None, None),
        ({}, None, None),
        ({"proc/self/cgroup": "garbage\n\n::::\n0::/../../etc"}, None, None),
    ],
)
def test_limits_of_the_container_count(
    tmp_path: Path, files: dict[str, object], free: int | None, quota: float | None
) -> None:
    root, host = tree(tmp_path, files), 40960000 * 1024
    left = memory_left(root)
    assert left == free or (free is None and left is not None and left > host)
    assert available_bytes(root) == (host if free is None else free)
    assert cpu_quota(root) == quota


def test_the_host_counts_where_it_has_less(tmp_path: Path) -> None:
    root = tree(tmp_path, V2 | {"proc/meminfo": "MemAvailable: 1024 kB"})
    assert available_bytes(root) == MIB
    assert available_bytes(tmp_path / "no system at all") == 4 << 30


@pytest.mark.parametrize(
    ("processors", "files", "cores"),
    [(8, V2, 2), (1, V2, 1), (8, V1, 1), (8, V2_NESTED, 1), (8, V1_UNLIMITED, 8), (8, {}, 8)],
)
def test_cores_are_no_more_than_the_quota(
    tmp_path: Path,
    processors: int,
    files: dict[str, object],
    cores: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)), raising=False)
    root = tree(tmp_path, files)
    assert usable_cores(root) == cores
    monkeypatch.setattr(machine, "usable_cores", lambda: usable_cores(root))
    assert machine.machine_facts()["cores"] == cores


@pytest.mark.parametrize(("files", "threads"), [(V2, 2), (V1, 1), (V1_UNLIMITED, None), ({}, None)])
def test_libraries_are_told_of_a_quota_alone(
    tmp_path: Path, files: dict[str, object], threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    root = tree(tmp_path, files)
    assert machine.default_threads(root) == threads
    assert machine.reader_threads(root) == (8 + machine.SPARE if threads is None else threads)
