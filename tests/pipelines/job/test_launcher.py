"""The launcher against an API server over HTTP: each way in which a job can go, with the real client."""

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import kubernetes
import pytest
from kfp import dsl

from pipelines.cluster.client import Cluster, Polling
from pipelines.job.backends import LAUNCHER_ANNOTATION
from pipelines.job.launcher import Result, launch
from pipelines.job.settings import Deadlines, JobConfig
from server.errors import UserError
from tests.support.api_server import Store, serving
from tests.support.jobs import leave_model
from tests.support.operator import Operator
from trainer.config import TrainConfig

HURRY = Polling(
    interval_seconds=0.05, max_interval_seconds=0.2, read_timeout_seconds=2, timeout_seconds=4, heartbeat_seconds=0.1
)
TRAIN = TrainConfig(epochs=2)
NO_END = Deadlines(schedule_minutes=None, run_minutes=None, progress_minutes=None)
SECOND = 1 / 60


class Stage:
    """A namespace with what a job needs, and a launcher at work in it."""

    def __init__(self, store: Store, port: int, folder: Path) -> None:
        self.store, self.port, self.run_folder = store, port, folder / "runs" / "first"
        self.operator = Operator(store)
        self._pool, self.polling = ThreadPoolExecutor(), HURRY
        self.run_folder.mkdir(parents=True)
        claim = {"metadata": {"name": "distrinews-workspace"}, "spec": {"accessModes": ["ReadWriteMany"]}}
        store.put("persistentvolumeclaims", claim)

    def cluster(self) -> Cluster:
        configuration = kubernetes.client.Configuration(host=f"http://127.0.0.1:{self.port}")
        return Cluster(configuration, "news", self.polling)

    def launch(
        self, deadlines: Deadlines = NO_END, *, train: TrainConfig = TRAIN, **job: Any  # noqa: ANN401 - settings of a job
    ) -> "Future[Result]":  # fmt: skip
        config = JobConfig(mount_path=str(self.run_folder.parent), **{"nodes": 2, **job})
        return self._pool.submit(
            launch, train, config, run_folder=self.run_folder, deadlines=deadlines, cluster=self.cluster()
        )

    def train(self, *, whole: bool = True) -> None:
        """Leave the model that the trainer would."""
        leave_model(self.run_folder / "model", TRAIN, whole=whole)

    def asked(self, method: str, part: str, *, watch: bool | None = None) -> list[float]:
        """When requests of this kind came."""
        asked = [
            (when, path)
            for when, how, path in self.store.requests
            if how == method and part in path and "dryRun" not in path
        ]
        return [when for when, path in asked if watch in (None, "watch=true" in path)]

    def asked_often(self, part: str) -> bool:
        return len(self.asked("GET", part, watch=True)) > 5

    def jobs(self) -> list[str]:
        return list(self.store.objects["pytorchjobs"])


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setenv("KFP_POD_NAME", "train-step")
    monkeypatch.setenv("KFP_POD_UID", "uid-of-the-step")
    store = Store()
    with serving(store) as port:
        yield Stage(store, port, tmp_path)


def failure_of(running: "Future[Result]") -> str:
    with pytest.raises(UserError) as caught:
        running.result(10)
    return str(caught.value)


class Said:
    """What has been printed so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys, self.text = capsys, ""

    def all(self) -> str:
        self.text += self._capsys.readouterr().out
        return self.text

    def until(self, part: str, *, times: int = 1) -> str:
        end = time.monotonic() + 8
        while self.all().count(part) < times:
            assert time.monotonic() < end, f"{part!r} was not said {times} times in:\n{self.text}"
            time.sleep(0.01)
        return self.text


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    return Said(capsys)


def test_a_job_is_made_followed_and_its_model_returned(stage: Stage, said: Said) -> None:
    running = stage.launch()
    master, worker = stage.operator.pods()
    stage.operator.run(master, worker)
    stage.operator.say(master, "train: epoch 1/2: 50/100 steps (50%), ETA 0:10, 5.0 steps/s, loss 0.31")
    said.until("launch | epoch 1 of 2, 25% of training, ETA 0:00:30")
    stage.operator.say(worker, "hello of the other rank")
    stage.train()
    stage.operator.succeed()
    result = running.result(10)
    job = stage.operator.job
    assert (result.job, result.how, result.model, result.pods) == (
        job["metadata"]["name"],
        "started",
        stage.run_folder / "model",
        2,
    )
    assert len(result.job) <= 52
    assert job["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Pod", "name": "train-step", "uid": "uid-of-the-step"}
    ]
    assert job["spec"]["runPolicy"]["ttlSecondsAfterFinished"] > 0
    text = said.all()
    assert "master-0 | train: epoch 1/2: 50/100 steps" in text
    assert "worker-0 | hello of the other rank" in text
    assert "launch | master-0 is on node node-1" in text
    assert "deadlines: no limit to be scheduled, no limit in all, no limit without progress" in text


def test_a_launcher_that_starts_again_attaches_to_the_job_that_runs(
    stage: Stage, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = stage.launch()
    master, worker = stage.operator.pods()
    stage.operator.run(master, worker)
    stage.operator.say(master, "said before")
    said.until("master-0 | said before")
    monkeypatch.setenv("KFP_POD_NAME", "train-step-again")
    monkeypatch.setenv("KFP_POD_UID", "uid-of-the-second-try")
    stage.store.fail("PATCH", 409)
    second = stage.launch()
    said.until("runs already: attaching to it")
    stage.train()
    stage.operator.succeed()
    assert second.result(10).how == "attached"
    assert first.result(10).how == "started"
    assert said.all().count("master-0 | said before") == 2  # the second step's log is whole too
    assert len(stage.asked("POST", "/pytorchjobs")) == 1
    assert stage.operator.job["metadata"]["ownerReferences"][0]["uid"] == "uid-of-the-second-try"


def test_a_job_that_another_made_at_the_same_moment_is_gone_on_with(stage: Stage, said: Said) -> None:
    racers = [stage.launch(), stage.launch()]
    stage.operator.run(*stage.operator.pods())
    said.until("attaching to it")
    stage.train()
    stage.operator.succeed()
    assert sorted(running.result(10).how for running in racers) == ["attached", "started"]


def test_the_result_of_a_job_that_succeeded_is_taken(stage: Stage, said: Said) -> None:
    first = stage.launch()
    stage.operator.run(*stage.operator.pods())
    stage.train()
    stage.operator.succeed()
    first.result(10)
    assert stage.launch().result(10).how == "reused"
    assert "has succeeded before: reusing its result" in said.all()
    assert len(stage.asked("POST", "/pytorchjobs")) == 1


def test_a_job_that_had_failed_is_replaced_when_all_of_it_is_gone(stage: Stage, said: Said) -> None:
    failed = stage.launch(keep_failed=True)
    stage.operator.run(*stage.operator.pods())
    stage.operator.condition("Failed", "PyTorchJobFailed", "pod failed")
    failure_of(failed)
    stage.store.slow_deletion = True
    again = stage.launch()
    said.until("failed: deleting it; training resumes from its last checkpoint")
    assert len(stage.asked("POST", "/pytorchjobs")) == 1
    stage.store.remove("pytorchjobs", stage.operator.job["metadata"]["name"])
    said.until("is created", times=2)
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


def test_everything_that_is_missing_is_told_at_once_with_the_role_to_apply(stage: Stage) -> None:
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


def test_logs_go_on_through_a_restart_of_the_container_and_a_lost_connection_without_a_line_lost_or_twice(
    stage: Stage, said: Said
) -> None:
    running = stage.launch(nodes=1)
    (pod,) = stage.operator.pods()
    stage.operator.run(pod)
    stage.operator.say(pod, *(f"line {n}" for n in range(20)))
    said.until("line 19\n")
    stage.store.drop_connections()
    stage.operator.say(pod, *(f"line {n}" for n in range(20, 30)))
    said.until("line 29\n")
    with (
        stage.store.changed
    ):  # what is written while the connection is lost, by a container that then ends, is in its previous log
        stage.store.drop_connections()
        stage.store.fail("/log?", 500, times=2)
        stage.operator.say(pod, *(f"line {n}" for n in range(30, 40)))
        stage.operator.end(pod, 1, restart=True)
        stage.operator.say(pod, *(f"line {n}" for n in range(40, 50)))
    said.until("line 49\n")
    stage.train()
    stage.operator.succeed()
    assert running.result(10).restarts == 1
    assert re.findall(r"master-0 \| line (\d+)\n", said.all()) == [str(n) for n in range(50)]
    assert "half of a li" not in said.text
    assert "launch | master-0 ended: exit code 1\n" in said.text


def test_a_line_without_end_is_cut_and_long_logs_take_no_memory(stage: Stage, said: Said) -> None:
    running = stage.launch(nodes=1)
    (pod,) = stage.operator.pods()
    stage.operator.run(pod)
    stage.operator.say(pod, "x" * 3_000_000, "10%\r50%\r100%")
    said.until("master-0 | 100%\n")
    stage.train()
    stage.operator.succeed()
    running.result(10)
    (line,) = re.findall(r"master-0 \| (x+ …)\n", said.all())
    assert len(line) < 20_000


def test_events_of_the_job_are_told_once_and_those_of_others_not(stage: Stage, said: Said) -> None:
    running = stage.launch()
    name = stage.operator.job["metadata"]["name"]
    no_room = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    stage.operator.event("a", f"{name}-worker-0", "FailedScheduling", no_room)
    said.until(no_room)
    stage.operator.event("a", f"{name}-worker-0", "FailedScheduling", no_room, count=9)
    stage.operator.event("b", f"{name}2-worker-0", "Failed", "of another job")
    stage.operator.event(
        "c", f"pytorchjob-{name}-1a2b3", "Pending", "couldn't assign flavors to pod set", kind="Workload"
    )
    stage.operator.event("d", f"{name}", "FailedCreatePod", "exceeded quota: gpus", kind="PyTorchJob")
    stage.operator.event("e", f"{name}-master-0", "Failed", "of an earlier job", lastTimestamp="2020-01-01T00:00:00Z")
    said.until("exceeded quota: gpus")
    stage.train()
    stage.operator.pods()
    stage.operator.condition("Succeeded")
    running.result(10)
    assert said.all().count("Insufficient nvidia.com/gpu") == 1
    assert (
        f"event | warning: Workload pytorchjob-{name}-1a2b3: Pending: couldn't assign flavors to pod set" in said.text
    )
    assert "of another job" not in said.text
    assert "of an earlier job" not in said.text


def test_a_job_waits_for_its_queue_which_may_take_its_place_away(stage: Stage, said: Said) -> None:
    stage.store.put("localqueues", {"metadata": {"name": "gpu"}})
    stage.store.kueue = True
    running = stage.launch(queue="gpu")
    assert stage.operator.job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpu"
    said.until("is suspended: its queue starts it when there is room")
    said.until("0 of 2 pods run; its queue has not started it")
    stage.operator.suspend(suspended=False)
    said.until("is admitted")
    pods = stage.operator.pods()
    stage.operator.run(*pods)
    said.until("2 of 2 pods run")
    stage.operator.suspend(suspended=True)
    for pod in pods:
        stage.store.remove("pods", pod)
    said.until("is suspended", times=2)
    stage.operator.suspend(suspended=False)
    stage.operator.run(*stage.operator.pods())
    said.until("master-0 starts again as a new pod")
    stage.train()
    stage.operator.succeed()
    running.result(10)


def test_a_job_that_its_queue_does_not_start_in_time_is_ended(stage: Stage) -> None:
    stage.store.put("localqueues", {"metadata": {"name": "gpu"}})
    stage.store.kueue = True
    message = failure_of(stage.launch(NO_END.model_copy(update={"schedule_minutes": SECOND / 2}), queue="gpu"))
    assert "min to be scheduled has passed: its queue has not started it" in message
    assert stage.jobs() == []


def test_an_elastic_job_that_may_go_on_with_fewer_pods_is_not_given_up_while_one_is_missing(
    stage: Stage, said: Said
) -> None:
    train = TRAIN.model_copy(update={"allow_changed_world": True})
    running = stage.launch(NO_END.model_copy(update={"schedule_minutes": 1.5 * SECOND}), train=train, elastic=True)
    there, missing = stage.operator.pods()
    stage.operator.run(there)
    said.until("1 of 2 pods run")
    time.sleep(1.7)
    assert not running.done()
    stage.operator.run(missing)
    stage.train()
    stage.operator.succeed()
    assert running.result(10).pods == 2


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


def test_a_failure_names_reason_exit_codes_last_lines_and_what_to_do(stage: Stage) -> None:
    running = stage.launch()
    master, worker = stage.operator.pods()
    stage.operator.run(master, worker)
    stage.operator.say(master, "RuntimeError: Connection closed by peer [10.0.0.2]")
    stage.operator.say(worker, *(f"line {n}" for n in range(30)))
    stage.operator.end(master, 1)
    stage.operator.end(worker, 137, "OOMKilled")
    stage.operator.condition("Failed", "BackoffLimitExceeded", "the job has reached the specified backoff limit")
    message = failure_of(running)
    assert "failed: BackoffLimitExceeded: the job has reached the specified backoff limit" in message
    assert "worker-0: exit code 137, OOMKilled (0 restarts); its last lines:" in message
    assert "master-0: exit code 1" in message
    assert "    line 29" in message
    assert "line 10" not in message
    assert "hint: out of memory: give more with --memory" in message
    assert "hint: the processes lost each other" in message
    assert stage.jobs() == []  # some failures leave the completion time unset, from which the TTL would count


def test_the_exit_codes_of_pods_that_the_operator_removed_are_still_told(stage: Stage, said: Said) -> None:
    running = stage.launch(nodes=1)
    (pod,) = stage.operator.pods()
    stage.operator.run(pod)
    stage.operator.say(pod, "train: error: /workspace/first/dataset: is no dataset folder")
    stage.operator.end(pod, 1, restart=True)
    said.until("is no dataset folder")
    said.until("ended: exit code 1")
    stage.store.remove("pods", pod)
    stage.operator.condition("Failed", "BackoffLimitExceeded", "")
    message = failure_of(running)
    assert "exit code 1" in message
    assert "hint: the data is at fault" in message


@pytest.mark.parametrize(
    ("deadline", "message"),
    [
        ("schedule_minutes", "min to be scheduled has passed: master-0: ImagePullBackOff: Back-off pulling image"),
        ("run_minutes", "min to run has passed"),
        ("progress_minutes", "min without progress has passed: the last was epoch 1 of 2, 5% of training"),
    ],
)
def test_a_deadline_of_ours_ends_the_job_and_says_which(stage: Stage, said: Said, deadline: str, message: str) -> None:
    running = stage.launch(NO_END.model_copy(update={deadline: 1.2 * SECOND}), nodes=1)
    (pod,) = stage.operator.pods()
    if deadline == "schedule_minutes":
        stage.operator.wait(pod, "ImagePullBackOff", "Back-off pulling image")
    else:
        stage.operator.run(pod)
        stage.operator.say(pod, "train: epoch 1/2: 10/100 steps (10%), ETA 0:10, 5.0 steps/s")
        said.until("10/100 steps")
    told = failure_of(running)
    assert message in told
    assert ("hint: the image cannot be pulled" in told) == (deadline == "schedule_minutes")
    assert stage.jobs() == []


def test_noise_is_no_progress_and_neither_is_a_connection_that_is_made_anew(stage: Stage) -> None:
    stage.polling = HURRY.model_copy(update={"read_timeout_seconds": 0.4})
    running = stage.launch(NO_END.model_copy(update={"progress_minutes": 1.5 * SECOND}), nodes=1)
    (pod,) = stage.operator.pods()
    stage.operator.run(pod)
    for n in range(4):
        stage.operator.say(pod, f"train: epoch 1/2: {n}/100 steps (10%), ETA 0:10, 5.0 steps/s")
        time.sleep(0.5)
    assert not running.done()
    end = time.monotonic() + 5
    while not running.done() and time.monotonic() < end:
        stage.operator.say(pod, f"NCCL WARN {time.monotonic()}")
        time.sleep(0.1)
    assert running.done()
    assert "without progress" in failure_of(running)


def test_a_job_that_another_deletes_is_told_as_that(stage: Stage, said: Said) -> None:
    running = stage.launch()
    said.until("is created")
    stage.operator.pods()
    said.until("of 2 pods run")
    stage.store.remove("pytorchjobs", stage.operator.job["metadata"]["name"])
    assert "was deleted by someone else" in failure_of(running)


def test_watches_survive_disconnects_410_gone_errors_and_a_restart_of_the_api_server(
    tmp_path: Path, said: Said
) -> None:
    store = Store()
    with serving(store) as port:
        stage = Stage(store, port, tmp_path)
        running = stage.launch()
        master, worker = stage.operator.pods()
        stage.operator.run(master)
        said.until("1 of 2 pods run")
        stage.store.compact()
        stage.store.drop_connections()
        stage.store.fail("/pods?", 429, headers={"Retry-After": "0"})
        stage.store.fail("/pytorchjobs?", 500, times=2)
        stage.store.fail("/pods?", 403)  # a server that starts knows no roles yet
        stage.operator.run(worker)
        said.until("2 of 2 pods run")
    time.sleep(0.3)  # nobody listens
    stage.operator.say(worker, "said while it was away")
    with serving(store, port):
        said.until("said while it was away")
        stage.train()
        stage.operator.succeed()
        running.result(10)
    assert said.all().count("said while it was away") == 1
    assert said.text.count("master-0 is on node") == 1


def test_an_api_server_that_never_answers_ends_the_step_and_says_so(stage: Stage) -> None:
    stage.polling = HURRY.model_copy(update={"timeout_seconds": 0.5})
    running = stage.launch()
    stage.store.wait_for(lambda: len(stage.asked("GET", "watch=true")) >= 3)
    stage.store.fail("GET", 503, times=10_000)
    assert "the API server has not answered for 0.5 s: 503 injected" in failure_of(running)


def test_watches_are_opened_no_more_often_than_the_interval(stage: Stage, said: Said) -> None:
    stage.store.short_watches = True  # each ends at once
    running = stage.launch(nodes=1)
    (pod,) = stage.operator.pods()
    stage.operator.run(pod)
    said.until("1 of 1 pods run")
    for part in ("/pytorchjobs?fieldSelector", "/pods?", "/events?"):
        stage.store.wait_for(partial(stage.asked_often, part))
        times = stage.asked("GET", part, watch=True)
        assert (len(times) - 1) * 0.9 * HURRY.interval_seconds <= times[-1] - times[0], part
    stage.train()
    stage.operator.succeed()
    running.result(10)


def test_two_jobs_never_train_into_one_folder(stage: Stage, said: Said) -> None:
    first = stage.launch()
    said.until("is created")
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
    said.until("is created", times=2)
    stage.store.remove("pytorchjobs", next(other for other in stage.jobs() if other != name))
    failure_of(second)


def test_of_two_jobs_created_at_once_for_one_folder_the_older_stays(stage: Stage, said: Said) -> None:
    first = stage.launch()
    said.until("is created")
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


def test_sigterm_takes_the_job_along(stage: Stage) -> None:
    command = [sys.executable, "-c", SCRIPT, f"http://127.0.0.1:{stage.port}", str(stage.run_folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as step:
        stage.store.wait_for(lambda: stage.store.objects["pytorchjobs"] and len(stage.asked("GET", "watch=true")) >= 3)
        step.send_signal(signal.SIGTERM)
        output, _ = step.communicate(timeout=10)
    assert step.returncode == 143
    assert "is deleted" in output
    assert stage.jobs() == []


def test_a_launcher_whose_job_belongs_to_a_later_try_leaves_it(stage: Stage, said: Said) -> None:
    running = stage.launch(NO_END.model_copy(update={"run_minutes": 1.5 * SECOND}))
    said.until("is created")
    job = stage.operator.job
    annotations = {LAUNCHER_ANNOTATION: "a-later-try/its-uid"}
    stage.store.put("pytorchjobs", {**job, "metadata": {**job["metadata"], "annotations": annotations}})
    assert "min to run" in failure_of(running)
    assert stage.jobs() == [job["metadata"]["name"]]
    assert "now belongs to a-later-try/its-uid: left alone" in said.all()


def test_what_is_set_on_the_kubeflow_task_reaches_the_pods(stage: Stage) -> None:
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
