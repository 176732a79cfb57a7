"""Statuses of pods in words."""

from typing import Any

import pytest

from pipelines.cluster.pods import PodStatus, Termination, faults, terminations, waiting_reason


def pod(uid: str = "1", node: str = "", **status: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever a status holds
    return {"metadata": {"name": "p", "uid": uid}, "spec": {"nodeName": node} if node else {}, "status": status}


def container(name: str = "main", *, restarts: int = 0, last: Any = None, **state: Any) -> dict[str, Any]:  # noqa: ANN401 - the same
    return {"name": name, "restartCount": restarts, "state": state, "lastState": last or {}}


UNSCHEDULED = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ({"containerStatuses": [container(waiting={"reason": "ErrImagePull", "message": "no\n such"})]}, "ErrImagePull: no such"),
        ({"containerStatuses": [container(waiting={"reason": "ContainerCreating"})], "conditions": [UNSCHEDULED]}, "Unschedulable: 0/3 nodes"),
        ({"initContainerStatuses": [container(waiting={"reason": "CrashLoopBackOff"})]}, "CrashLoopBackOff"),
        ({"containerStatuses": [container(running={})]}, ""),
        ({}, ""),
    ],
)  # fmt: skip
def test_the_reason_for_waiting_is_that_of_a_container_or_the_scheduler(status: dict[str, Any], reason: str) -> None:
    assert waiting_reason(pod(**status)) == reason


def test_every_end_is_yielded_once_and_good_ends_of_init_containers_are_not() -> None:
    done: dict[str, Any] = {"terminated": {"exitCode": 0, "reason": "Completed", "containerID": "a"}}
    killed = {"terminated": {"exitCode": 137, "reason": "OOMKilled", "containerID": "b"}}
    found = pod(
        phase="Failed", reason="Evicted", message="disk is full",
        initContainerStatuses=[container("init", **done)],
        containerStatuses=[container(last=killed, running={})],
        conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}],
    )  # fmt: skip
    assert [str(end) for _, end in terminations(found)] == ["exit code 137, OOMKilled", "Evicted: disk is full", "PreemptionByScheduler"]  # fmt: skip
    assert faults(found) == ["container main ended: exit code 137, OOMKilled"]
    assert Termination("Completed", 0).succeeded


def test_a_status_outlives_its_pod_and_reports_only_news() -> None:
    status = PodStatus("master-0")
    ended = {"terminated": {"exitCode": 1, "reason": "Error", "containerID": "a"}}
    running = pod(node="n1", phase="Running", containerStatuses=[container(running={}, last=ended, restarts=1)])
    assert list(status.update(running)) == ["is on node n1", "ended: exit code 1"]
    assert list(status.update(running)) == []
    assert (status.running, status.restarts, status.failed) == (True, 1, True)
    status.gone()
    assert (status.running, status.waiting_reason) == (False, "its pod is gone")
    assert list(status.update(pod("2", "n2"))) == ["starts again as a new pod", "is on node n2"]
    assert status.waiting_reason == "Pending"
