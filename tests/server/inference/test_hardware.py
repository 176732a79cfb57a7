"""CPUs and CUDA devices are counted as this process may use them."""

import ctypes
from pathlib import Path
from typing import Any

import pytest

from server.inference.hardware import cgroup_cpus, cuda_devices


@pytest.mark.parametrize(
    ("limits", "cpus"),
    [
        ({"": "max 100000", "pods": "max 100000", "pods/one": "150000 100000"}, 1),
        ({"pods": "200000 100000", "pods/one": "max 100000"}, 2),
        ({"pods": "300000 100000", "pods/one": "800000 100000"}, 3),
        ({"pods/one": "50000 100000"}, 0),  # available_cpus makes it one
    ],
)
def test_the_tightest_cgroup_limit_counts(tmp_path: Path, limits: dict[str, str], cpus: int) -> None:
    for group, limit in limits.items():
        (tmp_path / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / group / "cpu.max").write_text(limit + "\n")
    membership = tmp_path / "cgroup"
    membership.write_text("1:cpu:/other\n0::/pods/one\n")
    assert cgroup_cpus(tmp_path, membership) == cpus


@pytest.mark.parametrize(("quota", "cpus"), [("150000", 1), ("400000", 4)])
def test_a_limit_of_cgroup_version_1_counts(tmp_path: Path, quota: str, cpus: int) -> None:
    group = tmp_path / "cpu" / "pods" / "one"
    group.mkdir(parents=True)
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (group / "cpu.cfs_quota_us").write_text(quota + "\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    membership = tmp_path / "cgroup"
    membership.write_text("4:cpu,cpuacct:/pods/one\n1:name=systemd:/other\n")
    assert cgroup_cpus(tmp_path, membership) == cpus
    membership.write_text("")
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota + "\n")
    assert cgroup_cpus(tmp_path, membership) == cpus, "in a container the mount itself is the own group"


class Driver:
    """The two functions of the CUDA driver that are called."""

    def __init__(self, *, starts: int, devices: int) -> None:
        self.starts, self.devices = starts, devices

    def cuInit(self, flags: int) -> int:  # noqa: N802 - its name
        return flags or self.starts

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: ANN401, N802 - what byref gives has no public type
        count._obj.value = self.devices
        return 0


@pytest.mark.parametrize(("starts", "devices", "found"), [(0, 2, 2), (0, 0, 0), (100, 1, 0)])
def test_devices_are_those_that_the_driver_counts(
    starts: int, devices: int, found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(starts=starts, devices=devices) if "cuda" in name else None)
    assert cuda_devices() == found


def test_without_a_driver_there_is_no_device_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert cuda_devices() == 0
