"""The images in containers, as a cluster would run them; `make test-images` builds them and runs this.

No cluster and no operator here: the pods are those of manifests/, with the environment that the training operator sets.
"""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.manifests import render
from tests.support.pods import FLAGS, Pod, new_claim, run_job
from trainer.data.dataset import Dataset

pytestmark = pytest.mark.skipif(
    not shutil.which("podman"), reason="podman, which runs the containers, is not installed"
)

VERSION = render("base")["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]["image"][-5:]
HARDENED = ["--read-only", "--read-only-tmpfs=false", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
TMP = "--mount=type=tmpfs,destination=/tmp"


def podman(*words: str, timeout: float = 60) -> str:
    run = ["podman", "run", "--rm", "--pull", "never", "--network", "host", *FLAGS, *HARDENED, TMP]
    done = subprocess.run([*run, *words], check=False, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


def operator_environment(job: dict[str, Any], rank: int) -> dict[str, str]:
    """Returns the variables that operator 1.9 sets in the pod of this rank of a job with a Master."""
    name, spec = job["metadata"]["name"], job["spec"]
    pods = sum(replica["replicas"] for replica in spec["pytorchReplicaSpecs"].values())
    master, port, processes = f"{name}-master-0", "23456", spec["nprocPerNode"]
    return {
        "PYTHONUNBUFFERED": "1",
        "MASTER_ADDR": master, "MASTER_PORT": port, "WORLD_SIZE": str(pods * int(processes)), "RANK": str(rank),
        "PET_MASTER_ADDR": master, "PET_MASTER_PORT": port, "PET_NODE_RANK": str(rank),
        "PET_NNODES": str(pods), "PET_NPROC_PER_NODE": processes,
    }  # fmt: skip


def make_pods(job: dict[str, Any], folder: Path, claim: Path) -> list[Pod]:
    replicas = job["spec"]["pytorchReplicaSpecs"]
    names = [
        f"{job['metadata']['name']}-{kind.lower()}-{n}" for kind in replicas for n in range(replicas[kind]["replicas"])
    ]
    made = []
    for rank, name in enumerate(names):
        template = replicas["Worker" if rank else "Master"]["template"]
        environment, ip = operator_environment(job, rank), f"127.0.0.{rank + 2}"
        made.append(Pod(name, template, folder / name, claim=claim, ip=ip, environment=environment))
    hosts = "".join(f"{pod.ip} {pod.name}\n" for pod in made)
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}", encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def claim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("claim")
    for parent in (folder.parent, folder.parent.parent):
        parent.chmod(0o755)  # pytest keeps them for their owner, and the pods are somebody else
    claim = new_claim(folder / "workspace")
    run_job(render("steps/preprocess"), folder / "preprocess", claim=claim)
    return claim


@pytest.fixture(scope="module")
def trained(claim: Path) -> Iterator[list[Pod]]:
    """A Master and a Worker that train two epochs; the Worker is killed in the second."""
    job = render("overlays/cpu")
    for replica in job["spec"]["pytorchReplicaSpecs"].values():
        (container,) = replica["template"]["spec"]["containers"]
        container["args"].append("--epochs=2")
        container["resources"]["limits"]["cpu"] = max(
            1, len(os.sched_getaffinity(0)) // 2
        )  # this machine is both nodes
    pods = make_pods(job, claim.parent, claim)
    victim = pods[1]
    try:
        for pod in pods:
            pod.start()
        wait_for(lambda: "epoch 1: validation" in pods[0].log + pods[1].log, pods)
        time.sleep(0.5)
        victim.kill()
        wait_for(lambda: all([restart_on_failure(pod) for pod in pods]), pods)  # noqa: C419 - each has to be checked
        yield pods
    finally:
        for pod in pods:
            pod.remove()


def restart_on_failure(pod: Pod) -> bool:
    """Returns True if the pod succeeded; starts a failed one again, at once, as a kubelet does the first time."""
    if pod.status():
        assert pod.starts < 6, pod.log
        pod.start()
    return pod.status() == 0


def wait_for(condition: Any, pods: list[Pod], *, seconds: float = 120) -> None:  # noqa: ANN401 - any that can be called
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "\n".join(
            f"{pod.name}, started {pod.starts} times:\n{pod.log}" for pod in pods
        )
        time.sleep(0.2)


def test_a_pod_that_is_killed_comes_back_and_training_resumes(trained: list[Pod], claim: Path) -> None:
    logs = "".join(pod.log for pod in trained)
    print(*[line for line in logs.splitlines() if line.startswith("train:")], sep="\n")
    assert trained[1].starts > 1
    assert "2 processes on cpu" in logs
    assert "resuming from /workspace/sample/checkpoints/epoch-0001" in logs
    assert "2 epochs done" in logs
    assert (claim / "sample" / "model" / "model.safetensors").is_file()


@pytest.fixture(scope="module")
def exported(trained: list[Pod], claim: Path) -> Path:
    assert trained
    run_job(render("steps/export"), claim.parent / "export", claim=claim)
    return claim / "sample"


@pytest.fixture
def server(exported: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = ["--rm", "--pull", "never", "--name", "distrinews-serve", "--network", "host", *FLAGS, *HARDENED, TMP]
    model = [
        f"--volume={exported / 'model'}:/model:ro",
        f"--env=DISTRINEWS_PORT={port}",
        "--env=DISTRINEWS_DRAIN_SECONDS=0",
    ]
    with subprocess.Popen(["podman", "run", *flags, *model, f"distrinews-server:{VERSION}"]) as process:
        yield f"http://127.0.0.1:{port}"
        subprocess.run(["podman", "stop", "distrinews-serve"], check=True, capture_output=True)
        assert process.wait(timeout=20) == 0


def test_the_server_image_serves_the_model_that_the_pods_made(server: str, exported: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(f"{server}/readyz", timeout=2):  # noqa: S310 - http, on this machine
                break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    rows = Dataset(exported / "dataset").test
    body = json.dumps({"texts": [rows.text(row) for row in range(64)]}).encode()
    request = urllib.request.Request(  # noqa: S310 - http, on this machine
        f"{server}/predict/batch", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        found = [entry["label"] for entry in json.load(answer)]
    classes = Dataset(exported / "dataset").classes
    expected = [classes[number] for number in np.load(exported / "predictions.npy")[:64].argmax(axis=1)]
    assert sum(a == b for a, b in zip(found, expected, strict=True)) >= 63
    assert sum(a == classes[b] for a, b in zip(found, rows.labels[:64], strict=True)) >= 58


@pytest.mark.parametrize("name", ["trainer", "server", "pipelines"])
def test_an_image_has_labels_of_its_version_and_no_build_tools(name: str) -> None:
    image = f"distrinews-{name}:{VERSION}{'-cpu' if name == 'trainer' else ''}"
    facts = json.loads(subprocess.run(["podman", "image", "inspect", image], check=True, capture_output=True).stdout)[0]
    print(f"{image}: {facts['Size'] / 1e6:.0f} MB")
    assert facts["User"] == "10001:0"
    assert facts["Labels"]["org.opencontainers.image.version"] == VERSION
    assert facts["Labels"]["org.opencontainers.image.revision"] not in ("", "unknown")
    code = "import importlib.util as u, os; print(u.find_spec('pip'), u.find_spec('hatchling'), os.getuid(), os.path.exists('/locks'))"
    assert podman("--entrypoint", "/opt/venv/bin/python", image, "-c", code) == "None None 10001 False\n"


def test_the_server_image_is_small_and_has_no_pytorch() -> None:
    image = f"distrinews-server:{VERSION}"
    size = subprocess.run(
        ["podman", "image", "inspect", "--format", "{{.Size}}", image], check=True, capture_output=True
    ).stdout
    assert int(size) < 700e6
    code = "from importlib.util import find_spec as f; print(f('torch'), f('transformers'), bool(f('openvino')), bool(f('onnxruntime')))"
    assert podman("--entrypoint", "python", image, "-c", code) == "None None True True\n"


def test_a_component_of_the_pipeline_starts_in_the_trainer_image() -> None:
    code = "import kfp.dsl.executor_main, pipelines.steps, pipelines.kubeflow.summary"
    podman("--env=_KFP_RUNTIME=true", f"distrinews-trainer:{VERSION}-cpu", "python", "-c", code)


def test_the_pipelines_image_has_helm_the_manifests_and_our_commands() -> None:
    image = f"distrinews-pipelines:{VERSION}"
    assert podman(image, "helm", "version", "--short").startswith("v")
    podman(image, "distrinews", "job", "lint", "/opt/distrinews/share/distrinews/manifests/base/pytorchjob.yaml")
    podman(image, "distrinews", "compile", "/tmp/pipeline.yaml")  # noqa: S108 - in the container
