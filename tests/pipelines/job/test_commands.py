"""`distrinews job`: manifests rendered from settings, jobs driven from a laptop through kubeconfig, and those that runs left reaped."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import dsl

from pipelines import TRAINER, data_folder
from pipelines.cli import main
from pipelines.cluster.client import Polling
from pipelines.deploy.settings import DeployConfig
from pipelines.job.backends import backend, manifest_of_run
from pipelines.job.follow import hints
from pipelines.job.lint import lint
from pipelines.job.pod import TaskOverrides, passed_through
from pipelines.job.settings import JobConfig
from pipelines.kubeflow import parameters as form
from pipelines.run_folder import RunFolder
from pipelines.steps import run_step
from server.errors import UserError
from tests.conftest import distrinews
from tests.support.api_server import Object, Store, serving
from tests.support.jobs import leave_model
from tests.support.operator import Operator
from tests.support.tools import kubectl
from trainer.config import TrainConfig

TRAIN = TrainConfig(epochs=2, learning_rate=2e-5)
KIND = backend("pytorchjob")


def render(job: JobConfig, train: TrainConfig, **options: Any) -> Object:  # noqa: ANN401 - of manifest_of_run
    return manifest_of_run(KIND, job, train, **options)


def rendered(*, allow_changed_world: bool = False, **settings: Any) -> Object:  # noqa: ANN401 - settings of a job
    train = TRAIN.model_copy(update={"allow_changed_world": allow_changed_world})
    return render(JobConfig(**settings), train, run="20260101-120000")


def pod_of(job: Object, replica: str = "Worker") -> Object:
    pod: Object = job["spec"]["pytorchReplicaSpecs"][replica]["template"]["spec"]
    return pod


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"nodes": 3}, {"nodes": 2, "gpus": 4, "queue": "gpu"}, {"nodes": 3, "elastic": True},
        {"nodes": 3, "elastic": True, "allow_changed_world": True}, {"nodes": 3, "gpus": 1, "elastic": True},
    ],
)  # fmt: skip
def test_a_rendered_job_has_no_finding_and_has_all_its_pods(settings: dict[str, Any]) -> None:
    job = rendered(**settings)
    assert lint(yaml.safe_dump(job)) == []
    assert KIND.pods(job).expected == settings.get("nodes", 1)


def test_an_elastic_job_trains_with_fewer_pods_only_where_a_checkpoint_of_another_number_is_taken() -> None:
    for allowed, least in ((False, 3), (True, 1)):
        job = rendered(nodes=3, elastic=True, allow_changed_world=allowed)
        policy = job["spec"]["elasticPolicy"]
        assert (policy["minReplicas"], policy["maxReplicas"]) == (least, 3)
        assert KIND.pods(job).needed == least
    assert KIND.pods(rendered(nodes=3)).needed == 3


def test_the_base_manifest_comes_through_unchanged_but_for_what_is_filled_in() -> None:
    base = yaml.safe_load((data_folder("manifests") / "base" / "pytorchjob.yaml").read_text(encoding="utf-8"))
    job = rendered(nodes=2)
    for replica, spec in base["spec"]["pytorchReplicaSpecs"].items():
        expected, found = json.loads(json.dumps(spec["template"]["spec"])), pod_of(job, replica)
        expected["containers"][0]["args"] = found["containers"][0]["args"]
        assert found == expected


def test_master_and_worker_are_not_one_object_and_their_arguments_are_the_trainers_flags() -> None:
    job = rendered(nodes=3, processes=2)
    specs = job["spec"]["pytorchReplicaSpecs"]
    assert (specs["Master"]["replicas"], specs["Worker"]["replicas"]) == (1, 2)
    assert pod_of(job, "Master") is not pod_of(job, "Worker")
    assert job["spec"]["nprocPerNode"] == "2"
    assert pod_of(job)["containers"][0]["args"] == [
        "--module", "trainer.train", "--dataset=/workspace/20260101-120000/dataset", "--output=/workspace/20260101-120000",
        "--epochs=2", "--learning-rate=2e-05",
    ]  # fmt: skip


def test_a_name_is_the_same_for_the_same_settings_and_another_for_others() -> None:
    name = rendered()["metadata"]["name"]
    assert rendered()["metadata"]["name"] == name
    assert name.startswith("train-20260101-120000-")
    others = [
        render(JobConfig(), TRAIN, run="20260101-120001"), render(JobConfig(), TRAIN, run="20260101-120000", step="tune"),
        render(JobConfig(nodes=2), TRAIN, run="20260101-120000"), render(JobConfig(), TrainConfig(), run="20260101-120000"),
    ]  # fmt: skip
    assert len({name, *(other["metadata"]["name"] for other in others)}) == 5
    long = render(JobConfig(), TRAIN, run="A_Run.With-" + "x" * 52)["metadata"]["name"]
    assert len(long) <= 52
    assert long.startswith("train-a-run-with-x")
    assert rendered(keep_failed=True)["metadata"]["name"] == name


def test_settings_reach_the_pods() -> None:
    pod = pod_of(rendered(
        nodes=2, gpus=2, gpu_resource="amd.com/gpu", cpu="6", memory="24Gi", claim="news", mount_path="/runs", priority_class="low",
        service_account="trainer", image_pull_secrets="one,two", node_selector="pool=gpu,zone=a", tolerations="spot:NoSchedule,team=news",
        env="NCCL_DEBUG=INFO,HF_HUB_OFFLINE=1",
    ))  # fmt: skip
    container = pod["containers"][0]
    assert container["resources"] == {
        "requests": {"cpu": "6", "memory": "24Gi"}, "limits": {"cpu": "6", "memory": "24Gi", "amd.com/gpu": "2"},
    }  # fmt: skip
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "news"}
    assert {"name": "workspace", "mountPath": "/runs"} in container["volumeMounts"]
    assert (pod["priorityClassName"], pod["serviceAccountName"]) == ("low", "trainer")
    assert pod["imagePullSecrets"] == [{"name": "one"}, {"name": "two"}]
    assert pod["nodeSelector"] == {"pool": "gpu", "zone": "a"}
    assert pod["tolerations"][-2:] == [
        {"key": "spot", "operator": "Exists", "effect": "NoSchedule"}, {"key": "team", "operator": "Equal", "value": "news"},
    ]  # fmt: skip
    values = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert (values["NCCL_DEBUG"], values["HF_HUB_OFFLINE"]) == ("INFO", "1")
    assert len(values) == len(container["env"])


def test_spot_and_gpu_tolerations_stand_together() -> None:
    keys = {toleration["key"] for toleration in pod_of(rendered(nodes=2, gpus=1, elastic=True))["tolerations"]}
    assert {"nvidia.com/gpu", "cloud.google.com/gke-spot"} <= keys


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gpus": 2, "processes": 2}, "contradicts gpus"),
        ({"image": "trainer"}, "names no version"),
        ({"env": "A"}, "is no name=value"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JobConfig(**settings)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"volumes": [{"name": "x", "emptyDirr": {}}]}, "emptyDirr of the pod template"),
        ({"resources": {"limits": {"nvidia.com/gpu": "1", "amd.com/gpu": "1"}}}, "set one of the two"),
        (
            {"resources": {"limits": {"memory": "2Gi"}, "requests": {"memory": "3Gi"}}},
            "request 3Gi is above the limit 2Gi",
        ),
        ({"resources": {"limits": {"memory": "2 GB"}}}, "memory: '2 GB' is no quantity"),
        (
            {"volumes": [{"name": "tmp", "emptyDir": {}}], "volume_mounts": [{"name": "tmp", "mountPath": "/big"}]},
            "volume tmp of the task: the job's pods have a volume of this name",
        ),
        (
            {
                "volumes": [{"name": "x", "persistentVolumeClaim": {"claimName": "other"}}],
                "volume_mounts": [{"name": "x", "mountPath": "/workspace"}],
            },
            "on claim distrinews-workspace: set claim",
        ),
    ],
)
def test_what_is_passed_through_is_refused_rather_than_lost(task: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        render(JobConfig(), TRAIN, run="r", task=TaskOverrides(**task))
    assert passed_through(None) == TaskOverrides()


def test_a_limit_of_the_task_below_our_request_lowers_the_request() -> None:
    task = TaskOverrides(resources={"limits": {"memory": "2Gi"}})
    pod = pod_of(render(JobConfig(nodes=2), TRAIN, run="r", task=task))
    resources = pod["containers"][0]["resources"]
    assert (resources["requests"]["memory"], resources["limits"]["memory"]) == ("2Gi", "2Gi")


def test_a_volume_of_the_task_takes_the_place_of_ours_at_the_same_path() -> None:
    task = TaskOverrides(
        volumes=({"name": "big", "emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}},),
        volume_mounts=({"name": "big", "mountPath": "/dev/shm"},),  # noqa: S108 - a path in the pod
    )
    pod = pod_of(render(JobConfig(nodes=2), TRAIN, run="r", task=task))
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts["/dev/shm"] == "big"  # noqa: S108
    assert [volume["name"] for volume in pod["volumes"]] == ["workspace", "tmp", "big"]


@pytest.mark.parametrize(
    ("said", "hint"),
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
    ],
)
def test_a_failure_gets_the_hint_that_fits(said: str, hint: str) -> None:
    assert any(hint in found for found in hints([said]))


def test_a_failure_without_a_known_sign_gets_no_hint() -> None:
    assert hints(["exit code 1", "ZeroDivisionError"]) == []


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A cluster that kubeconfig knows, with what a job needs in the namespace of its context."""
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
    said = capsys.readouterr().out
    assert f"job {name} started in namespace news" in said
    assert f"job {name} attached in namespace news" in said
    assert "ownerReferences" not in operator.job["metadata"]
    assert laptop.tokens == {"Bearer secret"}
    master, worker = operator.pods()
    operator.run(master)
    operator.say(master, "hello")
    operator.wait(worker, "ImagePullBackOff")
    assert call("status") == 0
    assert call("status", name) == 0
    assert call("logs", name) == 0
    said = capsys.readouterr().out
    assert said.count(f"{name}: waiting, 2 pods") == 2
    assert "master-0     running, on node-1, 0 restarts" in said
    assert "worker-0     ImagePullBackOff, on no node" in said
    assert "master-0 | hello" in said
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
        operator.say(pod, "hello")
        operator.end(pod, 1)
        operator.condition("Failed", "BackoffLimitExceeded", "too many restarts")

    with ThreadPoolExecutor() as pool:
        failing = pool.submit(fail_in_the_end)
        assert call("submit", "--run", "first", "--follow") == 1
        failing.result(10)
    told = capsys.readouterr()
    assert "master-0 | hello\n" in told.out
    assert "failed: BackoffLimitExceeded: too many restarts" in told.err
    name = operator.job["metadata"]["name"]
    assert call("logs", "--follow", name) == 0
    assert call("status", name) == 0
    told = capsys.readouterr()
    assert "master-0 | hello\n" in told.out
    assert "ended: exit code 1" in told.out
    assert list(laptop.objects["pytorchjobs"]) == [name]


def test_what_runs_left_is_reaped_and_nothing_else(laptop: Store, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_a_missing_cluster_and_a_wrong_setting_are_told_in_a_line(tmp_path: Path) -> None:
    done = distrinews("job", "render", "--run", "x", "--nods", "2")
    assert done.returncode == 2
    assert "did you mean --nodes?" in done.stderr
    done = subprocess.run(
        [str(Path(sys.executable).with_name("distrinews")), "job", "status"], env={"KUBECONFIG": str(tmp_path / "none")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("distrinews job status: error: no cluster: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("overlay", "settings"), [("gpu", {"nodes": 4, "gpus": 1}), ("elastic", {"nodes": 4, "elastic": True})]
)
def test_an_overlay_gives_the_pods_that_kubectl_makes_of_it(overlay: str, settings: dict[str, Any]) -> None:
    command = [str(kubectl("v35")), "kustomize", str(data_folder("manifests") / "overlays" / overlay)]
    made = yaml.safe_load(subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout)
    job = rendered(allow_changed_world=overlay == "elastic", **settings)
    for replica, spec in made["spec"]["pytorchReplicaSpecs"].items():
        found = job["spec"]["pytorchReplicaSpecs"][replica]
        assert found["replicas"] == spec["replicas"]
        spec["template"]["spec"]["containers"][0]["args"] = found["template"]["spec"]["containers"][0]["args"]
        limits = spec["template"]["spec"]["containers"][0]["resources"]["limits"]
        spec["template"]["spec"]["containers"][0]["resources"]["limits"] = {
            name: str(count) for name, count in limits.items()
        }
        assert found["template"]["spec"] == spec["template"]["spec"]
    assert job["spec"].get("elasticPolicy") == made["spec"].get("elasticPolicy")


def test_the_train_step_of_the_pipeline_is_a_job_where_the_form_says_so(laptop: Store, tmp_path: Path) -> None:
    workspace = tmp_path / "runs"
    shown = {name: parameter.default for name, parameter in form.signature().parameters.items()}
    given = {"run_workspace": str(workspace), "run_name": "first", "run_id": "", "train_epochs": 2, "job_nodes": 2.0}
    folder = Path(form.start_from_form(shown | given | {"job_queue": "news", "deadline_run_minutes": 0}))
    assert RunFolder(folder).cluster.deadlines.run_minutes is None
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


def test_a_wrong_setting_of_the_job_is_told_by_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = {name: parameter.default for name, parameter in form.signature().parameters.items()}
    given = {"run_workspace": str(tmp_path), "run_name": "x", "run_id": "", "job_gpus": 2, "job_processes": 3}
    with pytest.raises(SystemExit):
        form.start_from_form(shown | given)
    assert "processes = 3 contradicts gpus = 2" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_the_deploy_step_of_the_pipeline_is_a_release_where_the_form_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = {name: parameter.default for name, parameter in form.signature().parameters.items()}
    given = {"run_workspace": str(tmp_path), "run_name": "first", "run_id": "", "deploy_values": "replicas: 3"}
    folder = form.start_from_form(shown | given | {"run_launch": "here", "deploy_texts": 7.0})
    asked: list[DeployConfig] = []

    def deploy_on_cluster(_: RunFolder, config: DeployConfig) -> dict[str, str]:
        asked.append(config)
        return {"revision": "2"}

    monkeypatch.setattr("pipelines.deploy.release.deploy_on_cluster", deploy_on_cluster)
    assert run_step("deploy", folder) == folder
    expected = DeployConfig(mount_path=str(tmp_path), values="replicas: 3", texts=7)
    assert asked == [expected]
    assert RunFolder(Path(folder)).facts["steps"]["deploy"]["outcome"] == {"revision": "2"}
