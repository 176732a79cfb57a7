"""`distrinews job lint`: each fault is found in its line, with its fix."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.job.lint import Document, check, lint, lint_files
from tests.conftest import distrinews
from tests.support.jobs import GOOD, line_of

WORKER = GOOD.replace("Master:", "Worker:")
ELASTIC = WORKER.replace(
    "spec:\n", "spec:\n  elasticPolicy: {minReplicas: 1, maxReplicas: 4, rdzvBackend: c10d}\n", 1
).replace("trainer.train]", "trainer.train, --allow-changed-world]")
GPU = GOOD.replace("limits: {", 'limits: {nvidia.com/gpu: "1", ')

# The text, its replacement, the rule that finds it, words of its fix, and the content of the line that it names.
FAULTS = [
    ("kubeflow.org/v1", "kubeflow.org/v2", "api-version", "kubeflow.org/v1", "apiVersion"),
    ("name: news", "name: " + "n" * 53, "name-length", "52", "name: nnn"),
    ("name: news", "generateName: " + "n" * 48, "name-length", "47", "generateName"),
    ("name: news", "name: 2026-news", "name", "letter", "name: 2026"),
    ("  name: news\n", "", "name", "metadata.name", "metadata:"),
    ("queue-name: gpu", "queue_name: gpu", "queue-label", "queue-name", "queue_name"),
    ("annotations: {", 'annotations: {kueue.x-k8s.io/queue-name: "a", ', "queue-label", "metadata.labels", "annotations: {"),
    ('nprocPerNode: "1"', "nprocPerNode: 1", "wrong-type", "quotes", "nprocPerNode"),
    ('nprocPerNode: "1"', "nprocPerNode: auto", "nproc-auto", "number", "nprocPerNode"),
    ('  nprocPerNode: "1"\n', "", "nproc-auto", "number", "spec:"),
    ('nprocPerNode: "1"', "nprocPerNode: gpu", "nproc", "nvidia.com/gpu", "nprocPerNode"),
    ('nprocPerNode: "1"', "nprocPerNode: two", "nproc", "number", "nprocPerNode"),
    ("cleanPodPolicy: Running", "cleanPodPolicy: running", "clean-pod-policy", "Running?", "cleanPodPolicy"),
    ("    cleanPodPolicy: Running\n", "", "clean-pod-policy", "Running", "runPolicy"),
    ("    backoffLimit: 3\n", "", "backoff-limit", "backoffLimit: 3", "runPolicy"),
    ("backoffLimit: 3", "backoffLimit: -1", "negative", "0 or more", "backoffLimit"),
    ("    ttlSecondsAfterFinished: 3600\n", "", "ttl", "ttlSecondsAfterFinished", "runPolicy"),
    ("cleanPodPolicy", "cleanPodPolcy", "unknown-field", "cleanPodPolicy?", "cleanPodPolcy"),
    ("Master:", "master:", "replica-type", "Master?", "master:"),
    ("Master:", "Worker:", "no-master", "elasticPolicy", "Worker:"),
    ("replicas: 1", "replicas: 2", "master-replicas", "1", "replicas: 2"),
    ("      replicas: 1\n", "", "master-replicas", "1", "Master:"),
    ("restartPolicy: OnFailure", "restartPolicy: onFailure", "restart-policy", "OnFailure?", "restartPolicy"),
    ("restartPolicy: OnFailure", "restartPolicy: Always", "restart-policy", "OnFailure", "restartPolicy"),
    ("restartPolicy: OnFailure", "restartPolicy: ExitCode", "exit-code", "OnFailure", "restartPolicy"),
    ("        spec:\n", "        spec:\n          restartPolicy: Never\n", "restart-policy", "beside", "restartPolicy: Never"),
    ('labels: {sidecar.istio.io/inject: "false"}', "labels: {}", "istio", "metadata.labels", "labels: {}"),
    ('annotations: {sidecar.istio.io/inject: "false"}', "annotations: {}", "istio", "annotations", "annotations: {}"),
    ("name: pytorch", "name: trainer", "container-name", "pytorch", "name: trainer"),
    ("medium: Memory", 'medium: ""', "shared-memory", "Memory", "name: pytorch"),
    ("mountPath: /dev/shm", "mountPath: /shm", "shared-memory", "dev/shm", "name: pytorch"),
    ("limits: {memory: 4Gi}", "limits: {memory: 2Gi}", "resources", "raise", "limits: {memory"),
    ("runAsUser: 1000", "runAsUser: 0", "root", "not 0", "name: pytorch"),
    ("runAsNonRoot: true", "runAsNonRoot: false", "root", "runAsNonRoot", "name: pytorch"),
    (", runAsUser: 1000", "", "numeric-user", "runAsUser: 10001", "name: pytorch"),
    (", seccompProfile: {type: RuntimeDefault}", "", "seccomp", "RuntimeDefault", "name: pytorch"),
    ("allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true", "privileges", "false", "name: pytorch"),
    ("drop: [ALL]", "drop: [NET_RAW]", "capabilities", "ALL", "name: pytorch"),
    ("OMP_NUM_THREADS", "MASTER_ADDR", "environment", "remove", "MASTER_ADDR"),
    ("OMP_NUM_THREADS", "PET_NNODES", "environment", "remove", "PET_NNODES"),
    ('value: "2"', "value: 2", "wrong-type", "quotes", "value: 2"),
    ('value: "2"', "value: 1e-5", "wrong-type", "quotes", "value: 1e-5"),
    ('value: "2"', "value: y", "wrong-type", "quotes", "value: y"),
    ("queue-name: gpu", "queue-name: gpu\n    y: z", "wrong-type", "quotes", "y: z"),
    ("memory: 4Gi}, limits: {memory: 4Gi}", "memory: 4 GB}", "quantity", "16Gi", "memory: 4 GB"),
    ('requests: {cpu: "2", memory: 4Gi}, limits: {memory: 4Gi}', "", "resources", "cpu and memory", "name: pytorch"),
    ("requests: {", 'requests: {nvidia.com/gpu: "1", ', "resources", "limits", "nvidia.com/gpu"),
    ("trainer:0.1.0", "trainer", "image", "tag", "image:"),
    ("trainer:0.1.0", "trainer:latest", "image", "digest", "image:"),
    ("      replicas: 1\n", "      replicas: 1\n      replicas: 1\n", "duplicate-key", "remove one", None),
    ("backoffLimit: 3", "backoffLimit:", "empty", "remove", "backoffLimit"),
]  # fmt: skip


def test_a_job_without_a_fault_has_no_finding() -> None:
    assert lint(GOOD) == []
    assert lint(ELASTIC) == []
    assert lint(GPU) == []


@pytest.mark.parametrize(("there", "instead", "rule", "fix", "line"), FAULTS, ids=[f"{fault[2]}-{n}" for n, fault in enumerate(FAULTS)])  # fmt: skip
def test_a_fault_is_found_in_its_line_with_its_fix(there: str, instead: str, rule: str, fix: str, line: str | None) -> None:  # fmt: skip
    assert there in GOOD
    text = GOOD.replace(there, instead, 1)
    found = [finding for finding in lint(text) if finding.rule == rule]
    assert len(found) == 1, lint(text)
    assert fix in found[0].fix
    assert found[0].line == (line_of(text, line) if line else line_of(text, "replicas: 1") + 1)


@pytest.mark.parametrize(
    ("there", "instead", "fix"),
    [
        ("minReplicas: 1", "minReplicas: 5", "smaller"),
        ("minReplicas: 1", "minReplicas: 2", "between"),
        ("rdzvBackend: c10d", "rdzvBackend: tcp", "c10d"),
        ("rdzvBackend: c10d", "nProcPerNode: 2", "spec.nprocPerNode"),
        ("Worker:", "Master:", "Workers"),
        (", --allow-changed-world", "", "--allow-changed-world"),
    ],
)
def test_an_elastic_policy_that_contradicts_itself_is_found(there: str, instead: str, fix: str) -> None:
    (found,) = lint(ELASTIC.replace(there, instead, 1))
    assert found.rule == "elastic"
    assert fix in found.fix


def test_processes_and_gpus_of_a_pod_have_to_be_equal() -> None:
    (found,) = lint(GPU.replace('nprocPerNode: "1"', 'nprocPerNode: "2"'))
    assert (found.rule, found.message.split(":")[0]) == ("nproc", "2 processes in a pod with 1 GPUs")
    assert lint(GPU.replace('nprocPerNode: "1"', "nprocPerNode: auto")) == []


def test_one_process_a_pod_needs_no_torchrun_but_two_do() -> None:
    plain = GOOD.replace("[torchrun, -m, trainer.train]", "[python, -m, trainer.train]")
    assert lint(plain) == []
    assert [finding.rule for finding in lint(plain.replace('nprocPerNode: "1"', 'nprocPerNode: "2"'))] == ["command"]


def test_a_job_that_nothing_would_start_is_found() -> None:
    suspended = GOOD.replace("    backoffLimit", "    suspend: true\n    backoffLimit")
    assert lint(suspended) == []
    unqueued = suspended.replace("    kueue.x-k8s.io/queue-name: gpu\n", "    team: news\n")
    assert [finding.rule for finding in lint(unqueued)] == ["suspend"]


def test_every_document_of_every_file_is_checked_and_other_kinds_are_left_alone(tmp_path: Path) -> None:
    fault = GOOD.replace("backoffLimit: 3", "backoffLimit: three")
    first = "kind: ConfigMap\n---\n" + GOOD + "---\n" + fault
    (found,) = lint(first)
    assert found.line == line_of(first, "three")
    as_list = "kind: List\nitems:\n- " + fault.replace("\n", "\n  ")
    (found,) = lint(as_list)
    assert found.line == line_of(as_list, "three")
    assert [finding.rule for finding in lint("kind: ConfigMap\n")] == ["no-job"]
    (tmp_path / "good.yaml").write_text(GOOD, encoding="utf-8")
    (tmp_path / "job.json").write_text(json.dumps(yaml.safe_load(fault)), encoding="utf-8")
    done = distrinews("job", "lint", "--json", str(tmp_path / "good.yaml"), str(tmp_path / "job.json"))
    assert done.returncode == 1
    (finding,) = json.loads(done.stdout)
    assert finding["file"].endswith("job.json")
    assert finding["rule"] == "wrong-type"
    assert set(finding) == {"file", "line", "rule", "message", "fix"}


@pytest.mark.slow
def test_a_file_without_a_fault_ends_with_status_0_and_a_missing_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "good.yaml").write_text(GOOD, encoding="utf-8")
    assert lint_files([str(tmp_path / "good.yaml")], as_json=False) == 0
    with (tmp_path / "good.yaml").open(encoding="utf-8") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert lint_files(["-"], as_json=False) == 0
    assert capsys.readouterr().out == ""
    done = distrinews("job", "lint", str(tmp_path / "none.yaml"))
    assert done.returncode == 1
    assert (
        done.stderr == f"distrinews job lint: error: {tmp_path}/none.yaml: cannot be read: No such file or directory\n"
    )


@pytest.mark.parametrize("text", ["a: [", "a: &x [*x]", "\t", "kind: PyTorchJob\nspec: !os.system {}\n", "a: !!int x"])
def test_text_that_is_not_yaml_is_one_finding_with_its_line(text: str) -> None:
    (found,) = [finding for finding in lint(text) if finding.rule == "yaml"]
    assert found.line >= 1


def test_anchors_that_multiply_are_refused_before_they_fill_the_memory() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    assert [finding.rule for finding in lint("\n".join(lines))] == ["yaml"]


def test_merge_keys_and_anchors_are_read_as_kubernetes_reads_them() -> None:
    text = (
        GOOD.replace("template:\n", "template: &pod\n")
        + "    Worker: {replicas: 2, restartPolicy: OnFailure, template: *pod}\n"
    )
    assert lint(text) == []
    merged = text.replace("{replicas: 2, restartPolicy", "{<<: {replicas: 2}, restartPolicy")
    assert lint(merged) == []


def test_values_of_any_type_anywhere_give_findings_and_no_crash() -> None:
    random_numbers = random.Random(7)
    job = yaml.safe_load(ELASTIC)
    for _ in range(400):
        broken = copy.deepcopy(job)
        for _ in range(random_numbers.randint(1, 3)):
            _break(broken, random_numbers)
        list(check(Document(broken, 1)))


def _break(value: Any, random_numbers: random.Random) -> None:  # noqa: ANN401 - whatever YAML holds
    """Puts something of another type into some place of nested values."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = random_numbers.choice(keys)
        if not isinstance(value[key], dict | list) or random_numbers.random() < 0.3:
            value[key] = random_numbers.choice([None, 1, -1, 1.5, True, "x", "", [], [1], {}, {"a": [None]}, [[{}]]])
            return
        value = value[key]
