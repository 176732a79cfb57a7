"""Jobs that are there already, are not ours, lack something or would be refused."""

import re

import pytest

from tests.support.stage import Output, Stage, failure_of

pytestmark = pytest.mark.slow  # the module takes seconds


def test_a_job_that_another_made_at_the_same_moment_is_attached_to(stage: Stage, output: Output) -> None:
    racers = [stage.launch(), stage.launch()]
    stage.operator.run(*stage.operator.pods())
    output.until("attaching to it")
    stage.train()
    stage.operator.succeed()
    assert sorted(running.result(10).how for running in racers) == ["attached", "started"]


def test_a_job_that_had_failed_is_replaced_when_all_of_it_is_gone(stage: Stage, output: Output) -> None:
    failed = stage.launch(keep_failed=True)
    stage.operator.run(*stage.operator.pods())
    stage.operator.condition("Failed", "PyTorchJobFailed", "pod failed")
    failure_of(failed)
    stage.store.slow_deletion = True
    again = stage.launch()
    output.until("failed: deleting it; training resumes from its last checkpoint")
    assert len(stage.request_times("POST", "/pytorchjobs")) == 1
    stage.store.remove("pytorchjobs", stage.operator.job["metadata"]["name"])
    output.until("is created", times=2)
    stage.operator.run(*stage.operator.pods())
    stage.train()
    stage.operator.succeed()
    assert again.result(10).how == "started"


def test_a_job_of_this_name_that_is_not_ours_is_left_alone(stage: Stage) -> None:
    first = stage.launch()
    job = stage.operator.job
    stage.train()
    stage.operator.succeed()
    first.result(10)
    stage.store.put("pytorchjobs", {**job, "metadata": {**job["metadata"], "labels": {}}})
    assert "was not created by distrinews" in failure_of(stage.launch())
    assert stage.jobs() == [job["metadata"]["name"]]


def test_all_missing_permissions_are_reported_at_once_with_the_role_to_apply(stage: Stage) -> None:
    stage.store.denied = {("create", "pytorchjobs"), ("get", "pods/log"), ("watch", "events")}
    stage.store.kinds = {}
    claim = stage.store.objects["persistentvolumeclaims"]["distrinews-workspace"]
    stage.store.put("persistentvolumeclaims", {**claim, "spec": {"accessModes": ["ReadWriteOnce"]}})
    message = failure_of(stage.launch(queue="gpu"))
    for part in (
        "permission to create pytorchjobs", "permission to get pods/log", "permission to watch events",
        "the kind PyTorchJob (kubeflow.org/v1): install the Kubeflow training operator",
        "claim distrinews-workspace with access mode ReadWriteMany for 2 pods: it has ReadWriteOnce",
        "queue gpu: create a LocalQueue", "kind: Role\n", "kind: RoleBinding\n", "name: pipeline-runner\n", "- pods/log\n",
    ):  # fmt: skip
        assert part in message, message
    assert stage.jobs() == []
    stage.store.remove("persistentvolumeclaims", "distrinews-workspace")
    assert "claim distrinews-workspace: create it" in failure_of(stage.launch())


def test_two_jobs_never_train_into_one_folder(stage: Stage, output: Output) -> None:
    first = stage.launch()
    output.until("is created")
    (name,) = stage.jobs()
    refused = failure_of(stage.launch(nodes=4))
    assert f"job {name} with other settings trains into distrinews-workspace/first already" in refused
    assert f"distrinews job delete {name}" in refused
    assert stage.jobs() == [name]
    stage.operator.pods()
    stage.train()
    stage.operator.condition("Succeeded")
    first.result(10)
    second = stage.launch(nodes=4)
    output.until("is created", times=2)
    stage.store.remove("pytorchjobs", next(other for other in stage.jobs() if other != name))
    failure_of(second)


def test_of_two_jobs_created_at_once_for_one_folder_the_older_stays(stage: Stage, output: Output) -> None:
    first = stage.launch()
    output.until("is created")
    job = stage.operator.job
    hidden = {**job, "metadata": {**job["metadata"], "name": "earlier", "creationTimestamp": "2020-01-01T00:00:00Z"}}
    stage.store.on_create = lambda: stage.store.put("pytorchjobs", hidden)
    stage.store.remove("pytorchjobs", job["metadata"]["name"])
    failure_of(first)
    assert "job earlier with other settings trains into" in failure_of(stage.launch(nodes=4))
    assert stage.jobs() == ["earlier"]


def test_a_job_that_a_dry_run_refuses_is_not_created(stage: Stage) -> None:
    stage.store.invalid["podtemplates"] = 'template.spec.containers[0].resources.requests: Invalid value: "4Gi"'
    name = re.escape("is refused: template.spec.containers[0].resources.requests")
    assert re.search(name, failure_of(stage.launch()))
    stage.store.invalid = {"pytorchjobs": "spec.pytorchReplicaSpecs: Required value"}
    assert "is refused: spec.pytorchReplicaSpecs: Required value" in failure_of(stage.launch())
    assert stage.jobs() == []
