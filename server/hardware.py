"""How many CPUs this process may use, and which of its threads go first."""

import os
import sys
from pathlib import Path

_NICENESS = 10


def available_cpus() -> int:
    """The CPUs that scheduler affinity and the cgroup allow, at least one."""
    return max(1, min(_affinity(), cgroup_cpus()))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cgroup_cpus(mount: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """Whole CPUs of the tightest limit on this process's cgroup (version 2) and those around it.

    Rounded down: a thread too many is paused in mid-text, and what a fraction leaves over serves HTTP.
    """
    try:
        own = next(line[3:] for line in membership.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        own = "/"
    limits = []
    for group in (Path(own), *Path(own).parents):
        file = mount / str(group).lstrip("/") / "cpu.max"
        if file.is_file():
            quota, period = file.read_text().split()
            limits += [] if quota == "max" else [int(quota) // int(period)]
    return min(limits, default=os.cpu_count() or 1)


def lower_priority() -> None:
    """Make this thread, and those that it starts, less urgent than the threads that answer requests and probes.

    On Linux alone, where a thread has a priority of its own: elsewhere the whole process would give way to others.
    """
    if sys.platform == "linux":
        os.nice(_NICENESS)
