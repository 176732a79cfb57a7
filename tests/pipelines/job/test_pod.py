"""Manifests rendered from settings of the run, the job and the Kubeflow task."""

import json
import subprocess
from typing import Any

import pytest
import yaml

from pipelines import data_folder
from pipelines.job.backends import backend, manifest_of_run
from pipelines.job.lint import lint
from pipelines.job.pod import TaskOverrides, passed_through
from pipelines.job.settings import JobConfig
from server.cli import parse
from server.errors import UserError
from tests.support.store import Object
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


def test_a_job_whose_pods_would_start_over_at_each_restart_is_refused() -> None:
    with pytest.raises(UserError, match=r"--resume never: .*move first/checkpoints aside"):
        render(JobConfig(), TRAIN.model_copy(update={"resume": "never"}), run="first")


def test_an_elastic_job_trains_with_fewer_pods_only_where_its_world_may_change() -> None:
    for allowed, least in ((False, 3), (True, 1)):
        job = rendered(nodes=3, elastic=True, allow_changed_world=allowed)
        policy = job["spec"]["elasticPolicy"]
        assert (policy["minReplicas"], policy["maxReplicas"]) == (least, 3)
        assert KIND.pods(job).needed == least
    assert KIND.pods(rendered(nodes=3)).needed == 3


def test_the_base_manifest_is_unchanged_but_for_the_fields_that_are_filled_in() -> None:
    base = yaml.safe_load((data_folder("manifests") / "base" / "pytorchjob.yaml").read_text(encoding="utf-8"))
    job = rendered(nodes=2)
    for replica, spec in base["spec"]["pytorchReplicaSpecs"].items():
        expected, found = json.loads(json.dumps(spec["template"]["spec"])), pod_of(job, replica)
        expected["containers"][0]["args"] = found["containers"][0]["args"]
        assert found == expected


def test_master_and_worker_are_two_objects_with_the_flags_of_the_trainer() -> None:
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


def test_spot_and_gpu_tolerations_are_joined() -> None:
    keys = {toleration["key"] for toleration in pod_of(rendered(nodes=2, gpus=1, elastic=True))["tolerations"]}
    assert {"nvidia.com/gpu", "cloud.google.com/gke-spot"} <= keys


def test_lists_and_pairs_given_twice_count_together_and_a_variable_may_have_commas() -> None:
    flags = [
        "--env=A=x",
        "--env",
        "B=y, C=mlx5_0,mlx5_1,",
        "--node-selector=pool=gpu",
        "--node-selector=zone=a",
        "--tolerations=t",
        "--tolerations=u:NoSchedule",
    ]
    job = parse(JobConfig, flags, prog="job")
    assert job.env == {"A": "x", "B": "y", "C": "mlx5_0,mlx5_1"}
    assert job.node_selector == {"pool": "gpu", "zone": "a"}
    assert [toleration["key"] for toleration in job.tolerations] == ["t", "u"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gpus": 2, "processes": 2}, "contradicts gpus"),
        ({"image": "trainer"}, "names no version"),
        ({"env": "A,B=x"}, "'A' is no name=value"),
        ({"node_selector": "pool=gpu,zone"}, "'zone' is no name=value"),
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
def test_a_task_setting_that_no_pod_can_have_is_refused_rather_than_lost(task: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        render(JobConfig(), TRAIN, run="r", task=TaskOverrides(**task))
    assert passed_through(None) == TaskOverrides()


@pytest.mark.parametrize(
    ("limits", "processes"),
    [
        ({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "3000"}, "1"), ({"nvidia.com/gpu": "2", "nvidia.com/gpucores": "30"}, "2"),
        ({"aliyun.com/gpu-mem": "8"}, "1"), ({"gpu.intel.com/i915_monitoring": "3"}, "1"), ({"nvidia.com/gpu.shared": "3"}, "3"),
        ({"gpu.intel.com/i915": "2"}, "2"), ({"gpu.intel.com/xe": "2"}, "2"), ({"nvidia.com/mig-1g.5gb": "2"}, "2"), ({"example.com/a100": "4"}, "4"),
    ],
)  # fmt: skip
def test_gpus_of_any_vendor_count_but_not_their_memory_or_cores(limits: dict[str, str], processes: str) -> None:
    task = TaskOverrides(resources={"limits": limits})
    job = render(JobConfig(gpu_resource="example.com/a100"), TRAIN, run="r", task=task)
    assert job["spec"]["nprocPerNode"] == processes
    assert pod_of(job, "Master")["containers"][0]["resources"]["limits"].items() >= limits.items()
    assert [finding for finding in lint(json.dumps(job)) if finding.rule == "nproc"] == []


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
