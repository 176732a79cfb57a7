"""The manifests as `kubectl apply -k` sends them."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.job.lint import lint
from server.cli import Settings, parse
from tests.support.manifests import kustomized, render
from tests.support.tools import kubectl
from trainer.config import TrainArguments
from trainer.evaluate import EvaluateArguments
from trainer.export import ExportArguments
from trainer.preprocess import PreprocessArguments

ROOT = Path(__file__).parents[2]
OVERLAYS = ("overlays/cpu", "overlays/gpu", "overlays/elastic")
STEPS = ("steps/preprocess", "steps/export")
ARGUMENTS: list[tuple[str, list[type[Settings]], int]] = [
    ("overlays/cpu", [TrainArguments], 2),
    ("overlays/gpu", [TrainArguments], 2),
    ("overlays/elastic", [TrainArguments], 2),
    ("steps/preprocess", [PreprocessArguments], 0),
    ("steps/export", [EvaluateArguments, ExportArguments], 0),
]


def templates(document: dict[str, Any]) -> list[dict[str, Any]]:
    replicas = document["spec"].get("pytorchReplicaSpecs", {"Job": document["spec"]})
    return [replica["template"] for replica in replicas.values()]


def replicas(folder: str) -> dict[str, Any]:
    return dict(render(folder)["spec"]["pytorchReplicaSpecs"])


@pytest.mark.parametrize("folder", [*OVERLAYS, *STEPS])
def test_every_pod_may_run_under_pod_security_restricted(folder: str) -> None:
    for template in templates(render(folder)):
        pod, (container,) = template["spec"], template["spec"]["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod)
        assert all(set(volume) <= {"name", "persistentVolumeClaim", "emptyDir"} for volume in pod["volumes"])


@pytest.mark.parametrize("folder", [*OVERLAYS, *STEPS])
def test_every_pod_has_the_same_surroundings(folder: str) -> None:
    base = replicas("base")["Master"]["template"]
    for template in templates(render(folder)):
        metadata, pod, (container,) = template["metadata"], template["spec"], template["spec"]["containers"]
        assert metadata["labels"]["sidecar.istio.io/inject"] == "false"
        assert metadata["annotations"]["sidecar.istio.io/inject"] == "false"
        for name in ("securityContext", "serviceAccountName", "automountServiceAccountToken", "enableServiceLinks"):
            assert pod[name] == base["spec"][name], name
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts["/workspace"]["persistentVolumeClaim"]["claimName"] == "distrinews-workspace"
        assert "emptyDir" in mounts["/tmp"]  # noqa: S108 - a mount, not a file
        assert set(container["resources"]["limits"]) >= {"cpu", "memory"}
        assert container["envFrom"] == [{"secretRef": {"name": "distrinews-mlflow", "optional": True}}]


@pytest.mark.parametrize("folder", ["base", *OVERLAYS])
def test_our_lint_finds_nothing(folder: str) -> None:
    assert lint(kustomized(folder)) == []


@pytest.mark.parametrize("folder", ["base", *OVERLAYS])
def test_a_job_avoids_known_faults_of_operators(folder: str) -> None:
    job = render(folder)
    assert len(job["metadata"]["name"]) <= 52
    assert re.fullmatch(r"\d+", job["spec"]["nprocPerNode"])
    assert job["spec"]["runPolicy"]["cleanPodPolicy"] == "Running"
    assert job["spec"]["runPolicy"]["backoffLimit"] > 0
    assert job["spec"]["runPolicy"]["ttlSecondsAfterFinished"] > 0
    for replica in job["spec"]["pytorchReplicaSpecs"].values():
        assert replica["restartPolicy"] == "OnFailure"
        pod, (container,) = replica["template"]["spec"], replica["template"]["spec"]["containers"]
        assert container["name"] == "pytorch"
        assert container["command"][0] == "torchrun"
        # The operator names a Master, or, with an elasticPolicy, a rendezvous: one of the two is there to be used.
        assert ("--rdzv-backend=c10d" in container["command"]) == ("elasticPolicy" not in job["spec"])
        assert pod["terminationGracePeriodSeconds"] > 60
        shm = next(mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/dev/shm")  # noqa: S108
        assert {"name": shm}.items() <= (volume := next(v for v in pod["volumes"] if v["name"] == shm)).items()
        assert volume["emptyDir"]["medium"] == "Memory"
        (spread,) = pod["topologySpreadConstraints"]
        assert not set(spread["matchLabelKeys"]) & set(
            spread["labelSelector"]["matchLabels"]
        )  # the API server refuses it
        assert spread["labelSelector"]["matchLabels"].items() <= replica["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize("folder", ["base", "overlays/cpu", "overlays/gpu"])
def test_master_and_workers_differ_in_nothing_but_their_number(folder: str) -> None:
    found = replicas(folder)
    assert found["Master"].pop("replicas") == 1
    assert found["Worker"].pop("replicas") >= 1
    assert found["Master"] == found["Worker"]


def test_on_gpus_there_is_one_process_a_gpu() -> None:
    job = render("overlays/gpu")
    for template in templates(job):
        (container,) = template["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == int(job["spec"]["nprocPerNode"])
        assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in template["spec"][
            "tolerations"
        ]


def test_the_elastic_job_has_no_master_and_its_workers_are_within_its_bounds() -> None:
    policy = render("overlays/elastic")["spec"]["elasticPolicy"]
    found = replicas("overlays/elastic")
    assert list(found) == ["Worker"]
    assert policy["minReplicas"] < found["Worker"]["replicas"] == policy["maxReplicas"]
    assert policy["rdzvBackend"] == "c10d"
    assert found["Worker"]["template"]["spec"]["containers"][0]["args"][-1] == "--allow-changed-world"


@pytest.mark.parametrize(
    ("folder", "settings", "skipped"),
    ARGUMENTS,
)
def test_the_arguments_are_settings_of_the_step(folder: str, settings: list[type[Settings]], skipped: int) -> None:
    for template in templates(render(folder)):
        for kind in settings:
            found = parse(kind, template["spec"]["containers"][0]["args"][skipped:], prog=folder)
            assert str(found.model_dump()["output"]).startswith("/workspace/sample")


@pytest.mark.parametrize("folder", [*OVERLAYS, *STEPS])
def test_images_are_of_this_version(folder: str) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    for template in templates(render(folder)):
        name, tag = template["spec"]["containers"][0]["image"].split(":")
        assert name == "distrinews-trainer"
        assert tag.removesuffix("-cpu") == version


@pytest.mark.parametrize("folder", [*OVERLAYS, *STEPS])
def test_the_header_has_the_commands_for_its_use(folder: str) -> None:
    header = (ROOT / "manifests" / folder / "kustomization.yaml").read_text(encoding="utf-8").split("apiVersion")[0]
    words = ["apply", "watch", "logs", "clean", *(["resume"] if folder in OVERLAYS else [])]
    for word in words:
        assert re.search(rf"^#   {word} +kubectl ", header, re.MULTILINE), word
    paths = re.findall(r"-k (\S+)", header)
    assert f"manifests/{folder}" in paths
    assert all((ROOT / path.rstrip(";") / "kustomization.yaml").is_file() for path in paths), paths
    name = render(folder)["metadata"]["name"]
    assert f"/{name}" in header or f" {name} " in header


def test_a_queue_is_one_line_away(tmp_path: Path) -> None:
    source = (ROOT / "manifests" / "overlays" / "cpu" / "kustomization.yaml").read_text(encoding="utf-8")
    folder = tmp_path / "manifests" / "overlays" / "cpu"
    subprocess.run(["cp", "-r", ROOT / "manifests", tmp_path], check=True)
    (folder / "kustomization.yaml").write_text(source.replace("# components:", "components:"), encoding="utf-8")
    queued = yaml.safe_load(
        subprocess.run([kubectl("v35"), "kustomize", folder], capture_output=True, check=True).stdout
    )
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert {key for key in queued["metadata"]["labels"] if "kueue" not in key} == set(
        render("overlays/cpu")["metadata"]["labels"]
    )


def test_only_jobs_that_end_are_created() -> None:
    assert {render(folder)["kind"] for folder in ("base", *OVERLAYS, *STEPS)} == {"PyTorchJob", "Job"}
