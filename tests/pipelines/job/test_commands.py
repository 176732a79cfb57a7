"""`distrinews job`: jobs driven from a laptop through kubeconfig, those that runs left reaped, and the train step as a job."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import dsl

from pipelines import TRAINER
from pipelines.cli import main
from pipelines.cluster.client import Polling
from pipelines.job.backends import backend, manifest_of_run
from pipelines.job.lint import lint
from pipelines.job.settings import JobConfig
from pipelines.kubeflow.parameters import start_from_parameters
from pipelines.run_folder import RunFolder
from pipelines.steps import run_step
from tests.support.api_server import serving
from tests.support.jobs import leave_model
from tests.support.operator import Operator
from tests.support.parameters import parameters
from tests.support.store import Object, Store
from trainer.config import TrainConfig

pytestmark = pytest.mark.slow  # the module takes seconds

TRAIN = TrainConfig(epochs=2, learning_rate=2e-5)


KIND = backend("pytorchjob")


def render(job: JobConfig, train: TrainConfig, **options: Any) -> Object:  # noqa: ANN401 - of manifest_of_run
    return manifest_of_run(KIND, job, train, **options)


def pod_of(job: Object, replica: str = "Worker") -> Object:
    pod: Object = job["spec"]["pytorchReplicaSpecs"][replica]["template"]["spec"]
    return pod


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A cluster that kubeconfig knows, with the objects that a job needs in the namespace of its context."""
    store = Store()
    store.put(
        "persistentvolumeclaims",
        {"metadata": {"name": "distrinews-workspace"}, "spec": {"accessModes": ["ReadWriteMany"]}},
    )
    with serving(store) as port:
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "news"}}],
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "users": [{"name": "u", "user": {"token": "secret"}}],
        }  # fmt: skip
        (tmp_path / "config").write_text(yaml.safe_dump(config), encoding="utf-8")
        monkeypatch.setattr("pipelines.cluster.client.Polling", lambda: Polling(interval_seconds=0.05))
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
        yield store


def call(*args: str) -> int:
    try:
        main(["job", *args])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_a_job_is_driven_from_a_laptop(laptop: Store, capsys: pytest.CaptureFixture[str]) -> None:
    operator = Operator(laptop)
    assert call("submit", "--run", "first", "--nodes", "2", "--epochs", "2", "--dry-run") == 0
    assert lint(capsys.readouterr().out) == []
    assert not laptop.requests
    assert call("submit", "--run", "first", "--nodes", "2", "--epochs", "2") == 0
    assert call("submit", "--run", "first", "--nodes", "2", "--epochs", "2") == 0
    name = operator.job["metadata"]["name"]
    output = capsys.readouterr().out
    assert f"job {name} started in namespace news" in output
    assert f"job {name} attached in namespace news" in output
    assert "ownerReferences" not in operator.job["metadata"]
    assert laptop.tokens == {"Bearer secret"}
    master, worker = operator.pods()
    operator.run(master)
    operator.log(master, "hello")
    operator.wait(worker, "ImagePullBackOff")
    assert call("status") == 0
    assert call("status", name) == 0
    assert call("logs", name) == 0
    output = capsys.readouterr().out
    assert output.count(f"{name}: waiting, 2 pods") == 2
    assert "master-0     running, on node-1, 0 restarts" in output
    assert "worker-0     ImagePullBackOff, on no node" in output
    assert "master-0 | hello" in output
    assert call("delete", name, "--dry-run") == 0
    assert list(laptop.objects["pytorchjobs"]) == [name]
    assert call("delete", name) == 0
    assert not laptop.objects["pytorchjobs"]
    assert call("logs", name) == 1
    assert "there is no job" in capsys.readouterr().err


def test_a_job_is_followed_from_a_laptop_and_runs_on_when_one_leaves(
    laptop: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    operator = Operator(laptop)

    def fail_in_the_end() -> None:
        (pod,) = operator.pods()
        operator.run(pod)
        operator.log(pod, "hello")
        operator.end(pod, 1)
        operator.condition("Failed", "BackoffLimitExceeded", "too many restarts")

    with ThreadPoolExecutor() as pool:
        failing = pool.submit(fail_in_the_end)
        assert call("submit", "--run", "first", "--follow") == 1
        failing.result(10)
    captured = capsys.readouterr()
    assert "master-0 | hello\n" in captured.out
    assert "failed: BackoffLimitExceeded: too many restarts" in captured.err
    name = operator.job["metadata"]["name"]
    assert call("logs", "--follow", name) == 0
    assert call("status", name) == 0
    captured = capsys.readouterr()
    assert "master-0 | hello\n" in captured.out
    assert "ended: exit code 1" in captured.out
    assert list(laptop.objects["pytorchjobs"]) == [name]


def test_leftovers_of_runs_are_reaped_and_nothing_else(laptop: Store, capsys: pytest.CaptureFixture[str]) -> None:
    def left(name: str, *, condition: str = "Running", pod: str = "", labels: dict[str, str] | None = None) -> None:
        job = render(JobConfig(), TRAIN, run=name)
        job["metadata"] |= {"name": name, "annotations": {"distrinews.io/step-pod": pod} if pod else {}}
        job["metadata"]["labels"] = job["metadata"]["labels"] if labels is None else labels
        job["status"] = {
            "conditions": [{"type": condition, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]
        }
        laptop.put("pytorchjobs", job)

    laptop.put("pods", {"metadata": {"name": "alive", "uid": "1"}, "spec": {}, "status": {"phase": "Running"}})
    laptop.put("pods", {"metadata": {"name": "over", "uid": "2"}, "spec": {}, "status": {"phase": "Failed"}})
    left("finished", condition="Failed")
    left("lost", pod="gone/9")
    left("replaced", pod="alive/0")
    left("ended", pod="over/2")
    left("followed", pod="alive/1")
    left("of-a-laptop")
    left("of-others", condition="Failed", labels={})
    assert call("reap", "--dry-run") == 0
    assert len(laptop.objects["pytorchjobs"]) == 7
    assert "would delete lost: its launcher gone is gone" in capsys.readouterr().out
    assert call("reap") == 0
    assert set(laptop.objects["pytorchjobs"]) == {"followed", "of-a-laptop", "of-others"}
    capsys.readouterr()
    assert call("reap") == 0
    assert capsys.readouterr().out == "nothing to delete\n"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(["x", "--nods", "2"], "did you mean --nodes?"), (["../x"], "--run '../x': a run is named by 1 to 63")],
)
def test_a_wrong_setting_of_a_job_is_refused(
    wrong: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("render", "--run", *wrong) == 2
    assert message in capsys.readouterr().err


def test_a_missing_cluster_is_an_error_of_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("distrinews")), "job", "status"], env={"KUBECONFIG": str(tmp_path / "none")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("distrinews job status: error: no cluster: ")
    assert done.stderr.count("\n") == 1


def test_the_train_step_of_the_pipeline_is_a_job(
    laptop: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = tmp_path / "runs"
    monkeypatch.setenv("DISTRINEWS_WORKSPACE", str(workspace))
    more = {"job": {"queue": "news"}, "deadlines": {"run_minutes": None}}
    folder = Path(start_from_parameters(parameters(run_name="first", epochs=2, nodes=2.0, settings=more)))
    assert RunFolder(folder).settings.deadlines.run_minutes is None
    laptop.put("localqueues", {"metadata": {"name": "news"}})
    claim = {"name": "runs", "persistentVolumeClaim": {"claimName": "distrinews-workspace"}}
    task = dsl.TaskConfig(volumes=[claim], volume_mounts=[{"name": "runs", "mountPath": str(workspace)}])
    operator = Operator(laptop)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(run_step, "train", str(folder), task_config=task)
        job = operator.job
        operator.run(*operator.pods())
        leave_model(folder / "model", TrainConfig(epochs=2))
        operator.succeed()
        assert running.result(20) == str(folder)
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "news"
    container = pod_of(job)["containers"][0]
    assert container["image"] == TRAINER
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert mounts.count(str(workspace)) == 1, "the step's own mount of the runs comes with the task's settings too"
    assert f"--output={folder}" in container["args"]
    outcome = RunFolder(folder).facts["steps"]["train"]["outcome"]
    assert (outcome["job"], outcome["pods"], outcome["epochs"]) == (job["metadata"]["name"], 2, 2)
