"""The launcher against an API server over HTTP: results, retries of the step, SIGTERM."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from kfp import dsl

from pipelines.job.backends import LAUNCHER_ANNOTATION
from pipelines.job.launcher import launch
from pipelines.job.settings import JobConfig
from server.errors import UserError
from tests.support.stage import NO_END, SECOND, TRAIN, Output, Stage, failure_of

pytestmark = pytest.mark.slow  # the module takes seconds

SCRIPT = """
import sys, kubernetes
from pathlib import Path
from pipelines.cluster.client import Cluster, Polling
from pipelines.job.launcher import launch
from pipelines.job.settings import JobConfig
from trainer.config import TrainConfig
folder = Path(sys.argv[2])
cluster = Cluster(kubernetes.client.Configuration(host=sys.argv[1]), "news", Polling(interval_seconds=0.05))
launch(TrainConfig(epochs=2), JobConfig(mount_path=str(folder.parent)), run_folder=folder, cluster=cluster)
"""


def test_a_launcher_that_starts_again_attaches_to_the_job_that_runs(
    stage: Stage, output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = stage.launch()
    master, worker = stage.operator.pods()
    stage.operator.run(master, worker)
    stage.operator.log(master, "printed before")
    output.until("master-0 | printed before")
    monkeypatch.setenv("KFP_POD_NAME", "train-step-again")
    monkeypatch.setenv("KFP_POD_UID", "uid-of-the-second-try")
    stage.store.fail("PATCH", 409)
    second = stage.launch()
    output.until("runs already: attaching to it")
    stage.train()
    stage.operator.succeed()
    assert second.result(10).how == "attached"
    assert first.result(10).how == "started"
    assert output.all().count("master-0 | printed before") == 2  # the second step's log is whole too
    assert len(stage.request_times("POST", "/pytorchjobs")) == 1
    assert stage.operator.job["metadata"]["ownerReferences"][0]["uid"] == "uid-of-the-second-try"


def test_the_result_of_a_job_that_succeeded_is_taken(stage: Stage, output: Output) -> None:
    first = stage.launch()
    stage.operator.run(*stage.operator.pods())
    stage.train()
    stage.operator.succeed()
    first.result(10)
    assert stage.launch().result(10).how == "reused"
    assert "has succeeded before: reusing its result" in output.all()
    assert len(stage.request_times("POST", "/pytorchjobs")) == 1


def test_a_run_that_the_pods_would_not_see_is_refused(stage: Stage, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not in /workspace, where the pods of the job have the runs"):
        launch(TRAIN, JobConfig(), run_folder=tmp_path / "first", cluster=stage.cluster())


def test_a_job_that_succeeded_without_a_whole_model_is_a_failure(stage: Stage) -> None:
    running = stage.launch()
    stage.operator.run(*stage.operator.pods())
    stage.train(whole=False)
    stage.operator.succeed()
    assert "succeeded, but left no complete model" in failure_of(running)
    assert stage.jobs() == []


def test_sigterm_takes_the_job_along(stage: Stage) -> None:
    command = [sys.executable, "-c", SCRIPT, f"http://127.0.0.1:{stage.port}", str(stage.run_folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as step:
        stage.store.wait_for(
            lambda: stage.store.objects["pytorchjobs"] and len(stage.request_times("GET", "watch=true")) >= 3
        )
        step.send_signal(signal.SIGTERM)
        output, _ = step.communicate(timeout=10)
    assert step.returncode == 143
    assert "is deleted" in output
    assert stage.jobs() == []


def test_a_launcher_whose_job_belongs_to_a_later_try_leaves_it(stage: Stage, output: Output) -> None:
    running = stage.launch(NO_END.model_copy(update={"run_minutes": 1.5 * SECOND}))
    output.until("is created")
    job = stage.operator.job
    annotations = {LAUNCHER_ANNOTATION: "a-later-try/its-uid"}
    stage.store.put("pytorchjobs", {**job, "metadata": {**job["metadata"], "annotations": annotations}})
    assert "min to run" in failure_of(running)
    assert stage.jobs() == [job["metadata"]["name"]]
    assert "now belongs to a-later-try/its-uid: left alone" in output.all()


def test_settings_of_the_kubeflow_task_reach_the_pods(stage: Stage) -> None:
    task = dsl.TaskConfig(
        resources={"limits": {"nvidia.com/gpu": "2", "memory": "64Gi"}, "requests": {"cpu": "6"}},
        tolerations=[{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        node_selector={"pool": "gpu"},
        env=[{"name": "NCCL_DEBUG", "value": "INFO"}],
        volumes=[{"name": "data", "persistentVolumeClaim": {"claimName": "news"}}],
        volume_mounts=[{"name": "data", "mountPath": "/data"}],
        affinity={
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": []}]}
            }
        },
    )
    stage.store.put(
        "persistentvolumeclaims", {"metadata": {"name": "news"}, "spec": {"accessModes": ["ReadWriteMany"]}}
    )
    config = JobConfig(mount_path=str(stage.run_folder.parent), nodes=2)
    thread = threading.Thread(
        target=launch, args=(TRAIN, config),
        kwargs={"run_folder": stage.run_folder, "task_config": task, "cluster": stage.cluster(), "deadlines": NO_END},
    )  # fmt: skip
    thread.start()
    spec = stage.operator.job["spec"]
    assert spec["nprocPerNode"] == "2"
    for replica in spec["pytorchReplicaSpecs"].values():
        pod = replica["template"]["spec"]
        (container,) = pod["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"
        assert container["resources"]["limits"]["memory"] == "64Gi"
        assert container["resources"]["requests"]["cpu"] == "6"
        assert {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
        assert pod["nodeSelector"] == {"pool": "gpu"}
        assert [variable["value"] for variable in container["env"] if variable["name"] == "NCCL_DEBUG"] == ["INFO"]
        assert task.volumes is not None
        assert task.volumes[0] in pod["volumes"]
        assert {"name": "data", "mountPath": "/data"} in container["volumeMounts"]
        assert pod["affinity"] == task.affinity
    stage.train()
    stage.operator.condition("Succeeded")
    thread.join(10)
    assert not thread.is_alive()
