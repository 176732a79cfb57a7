"""Counts the CPUs and the CUDA devices that this process may use, and lowers the priority of its threads."""

import ctypes
import os
import sys
from pathlib import Path

_NICENESS = 10


def available_cpus() -> int:
    """Counts the CPUs that scheduler affinity and the cgroup allow, at least one."""
    return max(1, min(_affinity(), cgroup_cpus()))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cgroup_cpus(mount: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """Counts the whole CPUs of the tightest limit on this process's cgroup, version 1 or 2, and on its parents.

    Rounded down: a thread too many is paused in mid-text, and what a fraction leaves over serves HTTP.
    """
    limits = [quota // period for folder in _cgroups(mount, membership) for quota, period in _limits(folder)]
    return min(limits, default=os.cpu_count() or 1)


def _cgroups(mount: Path, membership: Path) -> list[Path]:
    """Lists the folders of this process's cgroup and its parents; in a container only the mount itself may exist."""
    lines = membership.read_text().splitlines() if membership.is_file() else []
    folders = [mount, mount / "cpu"]
    for _, controllers, own in (line.split(":", 2) for line in lines):
        if not controllers or "cpu" in controllers.split(","):
            base = mount / "cpu" if controllers else mount
            folders += [base / str(group).lstrip("/") for group in (Path(own), *Path(own).parents)]
    return folders


def _limits(folder: Path) -> list[tuple[int, int]]:
    """Reads quota and period of a cgroup, in microseconds; empty when nothing limits it."""
    unified, quota = folder / "cpu.max", folder / "cpu.cfs_quota_us"
    if unified.is_file():
        words = unified.read_text().split()
    elif quota.is_file():
        words = [quota.read_text().strip(), (folder / "cpu.cfs_period_us").read_text()]
    else:
        return []
    return [] if words[0] in {"max", "-1"} else [(int(words[0]), int(words[1]))]


def cuda_devices() -> int:
    """Counts the CUDA devices as the driver does, so with CUDA_VISIBLE_DEVICES; 0 without a driver. Imports no PyTorch, which takes seconds."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return 0 if failed else count.value


def lower_priority() -> None:
    """Makes this thread, and those that it starts, less urgent than the threads that answer requests and probes.

    On Linux alone, where a thread has a priority of its own: elsewhere it would apply to the whole process.
    """
    if sys.platform == "linux":
        os.nice(_NICENESS)
