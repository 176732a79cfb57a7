"""Following a job: logs, events, deadlines, diagnoses, outages of the API server."""

import re
import time
from functools import partial
from pathlib import Path

import pytest

from pipelines.job.follow import hints
from tests.support.api_server import serving
from tests.support.stage import HURRY, NO_END, SECOND, TRAIN, Output, Stage, failure_of
from tests.support.store import Store

pytestmark = pytest.mark.slow  # the module takes seconds


def test_a_job_is_made_followed_and_its_model_returned(stage: Stage, output: Output) -> None:
    running = stage.launch()
    master, worker = stage.operator.pods()
    stage.operator.run(master, worker)
    stage.operator.log(master, "train: epoch 1/2: 50/100 steps (50%), ETA 0:10, 5.0 steps/s, loss 0.31")
    output.until("launch | epoch 1 of 2, 25% of training, ETA 0:00:30")
    stage.operator.log(worker, "hello of the other rank")
    stage.train()
    stage.operator.succeed()
    result = running.result(10)
    job = stage.operator.job
    assert (result.job, result.how, result.pods) == (job["metadata"]["name"], "started", 2)
    assert result.model == stage.run_folder / "model"
    assert len(result.job) <= 52
    assert job["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Pod", "name": "train-step", "uid": "uid-of-the-step"}
    ]
    assert job["spec"]["runPolicy"]["ttlSecondsAfterFinished"] > 0
    text = output.all()
    assert "master-0 | train: epoch 1/2: 50/100 steps" in text
    assert "worker-0 | hello of the other rank" in text
    assert "launch | master-0 is on node node-1" in text
    assert "deadlines: no limit to be scheduled, no limit in all, no limit without progress" in text


def test_logs_survive_a_restart_and_a_lost_connection_with_each_line_once(stage: Stage, output: Output) -> None:
    running = stage.launch(nodes=1)
    (pod,) = stage.operator.pods()
    stage.operator.run(pod)
    stage.operator.log(pod, *(f"line {n}" for n in range(20)))
    output.until("line 19\n")
    stage.store.drop_connections()
    stage.operator.log(pod, *(f"line {n}" for n in range(20, 30)))
    output.until("line 29\n")
    with stage.store.changed:  # what is written before the end, while the connection is lost, is in the previous log
        stage.store.drop_connections()
        stage.store.fail("/log?", 500, times=2)
        stage.operator.log(pod, *(f"line {n}" for n in range(30, 40)))
        stage.operator.end(pod, 1, restart=True)
        stage.operator.log(pod, *(f"line {n}" for n in range(40, 50)))
    output.until("line 49\n")
    stage.train()
    stage.operator.succeed()
    assert running.result(10).restarts == 1
    assert re.findall(r"master-0 \| line (\d+)\n", output.all()) == [str(n) for n in range(50)]
    assert "half of a li" not in output.text
    assert "launch | master-0 ended: exit code 1\n" in output.text


def test_a_line_without_end_is_cut_and_long_logs_take_no_memory(stage: Stage, output: Output) -> None:
    running = stage.launch(nodes=1)
    (pod,) = stage.operator.pods()
    stage.operator.run(pod)
    stage.operator.log(pod, "x" * 3_000_000, "10%\r50%\r100%")
    output.until("master-0 | 100%\n")
    stage.train()
    stage.operator.succeed()
    running.result(10)
    (line,) = re.findall(r"master-0 \| (x+ …)\n", output.all())
    assert len(line) < 20_000


def test_events_of_the_job_are_printed_once_and_those_of_others_not(stage: Stage, output: Output) -> None:
    running = stage.launch()
    name = stage.operator.job["metadata"]["name"]
    no_room = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    stage.operator.event("a", f"{name}-worker-0", "FailedScheduling", no_room)
    output.until(no_room)
    stage.operator.event("a", f"{name}-worker-0", "FailedScheduling", no_room, count=9)
    stage.operator.event("b", f"{name}2-worker-0", "Failed", "of another job")
    stage.operator.event("c", f"pytorchjob-{name}-1a2b3", "Pending", "no flavor fits", kind="Workload")
    stage.operator.event("d", f"{name}", "FailedCreatePod", "exceeded quota: gpus", kind="PyTorchJob")
    stage.operator.event("e", f"{name}-master-0", "Failed", "of an earlier job", lastTimestamp="2020-01-01T00:00:00Z")
    output.until("exceeded quota: gpus")
    stage.train()
    stage.operator.pods()
    stage.operator.condition("Succeeded")
    running.result(10)
    assert output.all().count("Insufficient nvidia.com/gpu") == 1
    assert f"event | warning: Workload pytorchjob-{name}-1a2b3: Pending: no flavor fits" in output.text
    assert "of another job" not in output.text
    assert "of an earlier job" not in output.text


def test_a_job_waits_for_its_queue_which_may_take_its_place_away(stage: Stage, output: Output) -> None:
    stage.store.put("localqueues", {"metadata": {"name": "gpu"}})
    stage.store.kueue = True
    running = stage.launch(queue="gpu")
    assert stage.operator.job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpu"
    output.until("is suspended: its queue starts it when there is room")
    output.until("0 of 2 pods run; its queue has not started it")
    stage.operator.suspend(suspended=False)
    output.until("is admitted")
    pods = stage.operator.pods()
    stage.operator.run(*pods)
    output.until("2 of 2 pods run")
    stage.operator.suspend(suspended=True)
    for pod in pods:
        stage.store.remove("pods", pod)
    output.until("is suspended", times=2)
    stage.operator.suspend(suspended=False)
    stage.operator.run(*stage.operator.pods())
    output.until("master-0 starts again as a new pod")
    stage.train()
    stage.operator.succeed()
    running.result(10)


def test_a_job_that_its_queue_does_not_start_in_time_is_ended(stage: Stage) -> None:
    stage.store.put("localqueues", {"metadata": {"name": "gpu"}})
    stage.store.kueue = True
    message = failure_of(stage.launch(NO_END.model_copy(update={"schedule_minutes": SECOND / 2}), queue="gpu"))
    assert "min to be scheduled has passed: its queue has not started it" in message
    assert stage.jobs() == []


def test_an_elastic_job_that_trains_with_fewer_pods_is_not_ended_for_a_missing_one(
    stage: Stage, output: Output
) -> None:
    train = TRAIN.model_copy(update={"allow_changed_world": True})
    running = stage.launch(NO_END.model_copy(update={"schedule_minutes": 1.5 * SECOND}), train=train, elastic=True)
    there, missing = stage.operator.pods()
    stage.operator.run(there)
    output.until("1 of 2 pods run")
    time.sleep(1.7)
    assert not running.done()
    stage.operator.run(missing)
    stage.train()
    stage.operator.succeed()
    assert running.result(10).pods == 2


def test_a_failure_names_reason_exit_codes_last_lines_and_a_fix(stage: Stage) -> None:
    running = stage.launch()
    master, worker = stage.operator.pods()
    stage.operator.run(master, worker)
    stage.operator.log(master, "RuntimeError: Connection closed by peer [10.0.0.2]")
    stage.operator.log(worker, *(f"line {n}" for n in range(30)))
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


def test_the_exit_codes_of_pods_that_the_operator_removed_are_still_reported(stage: Stage, output: Output) -> None:
    running = stage.launch(nodes=1)
    (pod,) = stage.operator.pods()
    stage.operator.run(pod)
    stage.operator.log(pod, "train: error: /workspace/first/dataset: is no dataset folder")
    stage.operator.end(pod, 1, restart=True)
    output.until("is no dataset folder")
    output.until("ended: exit code 1")
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
def test_a_deadline_of_ours_ends_the_job_and_is_named(
    stage: Stage, output: Output, deadline: str, message: str
) -> None:
    running = stage.launch(NO_END.model_copy(update={deadline: 1.2 * SECOND}), nodes=1)
    (pod,) = stage.operator.pods()
    if deadline == "schedule_minutes":
        stage.operator.wait(pod, "ImagePullBackOff", "Back-off pulling image")
    else:
        stage.operator.run(pod)
        stage.operator.log(pod, "train: epoch 1/2: 10/100 steps (10%), ETA 0:10, 5.0 steps/s")
        output.until("10/100 steps")
    failure = failure_of(running)
    assert message in failure
    assert ("hint: the image cannot be pulled" in failure) == (deadline == "schedule_minutes")
    assert stage.jobs() == []


def test_noise_is_no_progress_and_neither_is_a_connection_that_is_made_anew(stage: Stage) -> None:
    stage.polling = HURRY.model_copy(update={"read_timeout_seconds": 0.4})
    running = stage.launch(NO_END.model_copy(update={"progress_minutes": 1.5 * SECOND}), nodes=1)
    (pod,) = stage.operator.pods()
    stage.operator.run(pod)
    for n in range(4):
        stage.operator.log(pod, f"train: epoch 1/2: {n}/100 steps (10%), ETA 0:10, 5.0 steps/s")
        time.sleep(0.5)
    assert not running.done()
    end = time.monotonic() + 5
    while not running.done() and time.monotonic() < end:
        stage.operator.log(pod, f"NCCL WARN {time.monotonic()}")
        time.sleep(0.1)
    assert running.done()
    assert "without progress" in failure_of(running)


def test_a_silent_pod_pauses_no_deadline_and_its_first_line_is_printed(stage: Stage, output: Output) -> None:
    stage.polling = HURRY.model_copy(update={"read_timeout_seconds": 0.2})
    running = stage.launch(NO_END.model_copy(update={"progress_minutes": 1.5 * SECOND}), nodes=1)
    (pod,) = stage.operator.pods()
    stage.operator.run(pod)
    output.until("1 of 1 pods run")
    time.sleep(0.5)
    stage.operator.log(pod, "hello after a while")
    output.until("master-0 | hello after a while")
    assert "min without progress has passed: there was none yet" in failure_of(running)


def test_a_job_that_another_deletes_is_reported_as_deleted(stage: Stage, output: Output) -> None:
    running = stage.launch()
    output.until("is created")
    stage.operator.pods()
    output.until("of 2 pods run")
    stage.store.remove("pytorchjobs", stage.operator.job["metadata"]["name"])
    assert "was deleted by someone else" in failure_of(running)


def test_watches_survive_disconnects_410_gone_errors_and_a_restart_of_the_api_server(
    tmp_path: Path, output: Output
) -> None:
    store = Store()
    with serving(store) as port:
        stage = Stage(store, port, tmp_path)
        running = stage.launch()
        master, worker = stage.operator.pods()
        stage.operator.run(master)
        output.until("1 of 2 pods run")
        stage.store.compact()
        stage.store.drop_connections()
        stage.store.fail("/pods?", 429, headers={"Retry-After": "0"})
        stage.store.fail("/pytorchjobs?", 500, times=2)
        stage.store.fail("/pods?", 403)  # a server that starts knows no roles yet
        stage.operator.run(worker)
        output.until("2 of 2 pods run")
    time.sleep(0.3)  # nobody listens
    stage.operator.log(worker, "printed while it was away")
    with serving(store, port):
        output.until("printed while it was away")
        stage.train()
        stage.operator.succeed()
        running.result(10)
    assert output.all().count("printed while it was away") == 1
    assert output.text.count("master-0 is on node") == 1


def test_an_api_server_that_never_answers_ends_the_step_with_an_error(stage: Stage) -> None:
    stage.polling = HURRY.model_copy(update={"timeout_seconds": 0.5})
    running = stage.launch()
    stage.store.wait_for(lambda: len(stage.request_times("GET", "watch=true")) >= 3)
    stage.store.fail("GET", 503, times=10_000)
    assert "the API server has not answered for 0.5 s: 503 injected" in failure_of(running)


def test_watches_are_opened_no_more_often_than_the_interval(stage: Stage, output: Output) -> None:
    stage.store.short_watches = True  # each ends at once
    running = stage.launch(nodes=1)
    (pod,) = stage.operator.pods()
    stage.operator.run(pod)
    output.until("1 of 1 pods run")
    for part in ("/pytorchjobs?fieldSelector", "/pods?", "/events?"):
        stage.store.wait_for(partial(stage.polled_often, part))
        times = stage.request_times("GET", part, watch=True)
        assert (len(times) - 1) * 0.9 * HURRY.interval_seconds <= times[-1] - times[0], part
    stage.train()
    stage.operator.succeed()
    running.result(10)


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("worker-0: exit code 137, OOMKilled", "out of memory"),
        ("torch.OutOfMemoryError: CUDA out of memory.", "the GPU is out of memory"),
        ("Pod x: Failed: Failed to pull image", "cannot be pulled"),
        ("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", "no node fits"),
        ("Watchdog caught collective operation timeout: NCCL", "NCCL"),
        ("ended: PreemptionByScheduler: preempted by a higher priority", "preempted or evicted"),
        ("/data/train.csv line 3: label 'x' is an unknown class", "data is at fault"),
        ("exceeded quota: compute", "quota"),
        ('violates PodSecurity "restricted:latest"', "--elastic,"),
        ("ZeroDivisionError", None),
    ],
)
def test_a_failure_gets_the_hint_that_fits_or_none(line: str, hint: str | None) -> None:
    found = hints(["exit code 1", line])
    assert any(hint in one for one in found) if hint else found == []
