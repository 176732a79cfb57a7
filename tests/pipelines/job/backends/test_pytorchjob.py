"""PyTorchJobs of others, read as plain JSON: valid fields that no model of ours knows break nothing."""

from typing import Any

import pytest

from pipelines.job.backends import Pods, State, backend

KIND = backend("pytorchjob")


def job(*, replicas: dict[str, int | None], spec: dict[str, Any] | None = None, **conditions: str) -> dict[str, Any]:
    entries = [{"type": name, "status": status, "reason": f"Job{name}"} for name, status in conditions.items()]
    specs = {name: {} if count is None else {"replicas": count} for name, count in replicas.items()}
    return {"spec": {"pytorchReplicaSpecs": specs, **(spec or {})}, "status": {"conditions": entries}}


@pytest.mark.parametrize(
    ("replicas", "spec", "pods"),
    [
        ({"Master": 1, "Worker": 3}, {}, Pods(4, 4)),
        ({"Master": 1, "Worker": 0}, {}, Pods(1, 1)),
        ({"Master": None}, {}, Pods(1, 1)),
        ({"Worker": 4}, {"elasticPolicy": {"minReplicas": 2, "metrics": [{"type": "Resource"}]}}, Pods(4, 2)),
        ({"Worker": 2}, {"runPolicy": {"schedulingPolicy": {"minResources": {"cpu": "1"}}}}, Pods(2, 2)),
    ],
)
def test_pods_are_counted_whatever_other_fields_the_job_has(
    replicas: dict[str, int | None], spec: dict[str, Any], pods: Pods
) -> None:
    found = job(replicas=replicas, spec=spec)
    assert KIND.pods(found) == pods
    assert KIND.state(found) == State("waiting")


def test_conditions_give_the_phase() -> None:
    running = job(replicas={"Master": 1}, Created="True", Running="True")
    assert KIND.state(running) == State("running")
    assert KIND.state(running | {"spec": {"runPolicy": {"suspend": True}}}) == State("waiting", suspended=True)
    ended = job(replicas={"Master": 1}, Running="False", Failed="True")
    assert KIND.state(ended) == State("failed", "JobFailed")
    assert KIND.state(job(replicas={"Master": 1}, Running="True", Succeeded="True")).phase == "succeeded"


def test_a_backend_that_runs_no_jobs_is_refused_by_name() -> None:
    with pytest.raises(Exception, match="backend 'trainjob' runs no jobs on a cluster"):
        backend("trainjob")
