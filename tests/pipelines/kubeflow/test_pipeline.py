"""The file for the Kubeflow UI, and the artifacts and summaries that the UI shows."""

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from kfp import dsl

from pipelines.job.settings import JobConfig
from pipelines.kubeflow.client import write_pipeline
from pipelines.kubeflow.local import _without_retries
from pipelines.kubeflow.parameters import WORKSPACE
from pipelines.kubeflow.summary import log_artifacts, write_summary
from pipelines.run_folder import STEPS, RunSettings, start_run
from tests.conftest import DISTRINEWS
from trainer.evaluation.metrics import roc

pytestmark = pytest.mark.slow  # the module takes seconds

TASKS = ("start", *STEPS, "finish")


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    path = tmp_path_factory.mktemp("compiled") / "distrinews.yaml"
    write_pipeline(path)
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def compiled(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return documents[0]


def test_compiling_gives_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "2")):
        command = [str(DISTRINEWS), "compile", str(tmp_path / f"{name}.yaml")]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True)
    assert (tmp_path / "a.yaml").read_bytes() == (tmp_path / "b.yaml").read_bytes()


def dags(compiled: dict[str, Any]) -> dict[str, Any]:
    """Returns every task of the pipeline and of the groups in it, by the name that the UI shows."""
    inner = [component["dag"] for component in compiled["components"].values() if "dag" in component]
    return {
        task["taskInfo"]["name"]: task for dag in (compiled["root"]["dag"], *inner) for task in dag["tasks"].values()
    }


def executor_of(compiled: dict[str, Any], task: str) -> str:
    """Returns the name of the executor of a task."""
    component = dags(compiled)[task]["componentRef"]["name"]
    return str(compiled["components"][component]["executorLabel"])


def test_the_ui_shows_the_steps_by_their_own_names(compiled: dict[str, Any]) -> None:
    assert set(dags(compiled)) == {*TASKS, "steps"}


def test_nothing_is_installed_when_a_step_starts(compiled: dict[str, Any]) -> None:
    executors = compiled["deploymentSpec"]["executors"]
    assert len(executors) == len(TASKS)
    for executor in executors.values():
        assert "pip install" not in json.dumps(executor)


def test_the_form_has_nineteen_typed_fields_and_one_for_all_other_settings(compiled: dict[str, Any]) -> None:
    shown = compiled["root"]["inputDefinitions"]["parameters"]
    kinds = {name: parameter["parameterType"] for name, parameter in shown.items()}
    assert [name for name, kind in kinds.items() if kind == "STRUCT"] == ["settings"]
    assert len(kinds) == 20
    assert kinds["epochs"] == kinds["nodes"] == "NUMBER_INTEGER"
    assert kinds["min_accuracy"] == kinds["learning_rate"] == "NUMBER_DOUBLE"
    for name in ("data", "batch_size", "min_accuracy", "backend"):
        assert shown[name]["defaultValue"] == getattr(RunSettings(), name)
    assert shown["epochs"]["defaultValue"] == shown["learning_rate"]["defaultValue"] == 0, "chosen by the data"
    assert shown["trainer_image"]["defaultValue"] == JobConfig().image


def test_each_step_has_an_image_to_choose_and_the_volume(documents: list[dict[str, Any]]) -> None:
    compiled, platform = documents
    on_kubernetes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for task in TASKS:
        executor = executor_of(compiled, task)
        container = compiled["deploymentSpec"]["executors"][executor]["container"]
        image = "pipelines_image" if task in ("train", "deploy") else "trainer_image"
        assert container["image"] == f"{{{{$.inputs.parameters['pipelinechannel--{image}']}}}}"
        pod = on_kubernetes[executor]
        assert pod["pvcMount"][0]["mountPath"] == WORKSPACE
        assert pod["securityContext"] == {"runAsNonRoot": True}


def test_cpu_and_memory_of_the_steps_are_parameters_that_fit_a_node_of_two_cpus(compiled: dict[str, Any]) -> None:
    for task in TASKS:
        container = compiled["deploymentSpec"]["executors"][executor_of(compiled, task)]["container"]
        if task == "train":  # its resources are those of the job's pods
            assert "resources" not in container
            continue
        cpu, memory = (f"{{{{$.inputs.parameters['pipelinechannel--step_{what}']}}}}" for what in ("cpu", "memory"))
        assert container["resources"] == {
            "resourceCpuRequest": cpu, "resourceMemoryRequest": memory, "resourceMemoryLimit": memory,
        }  # fmt: skip
    shown = compiled["root"]["inputDefinitions"]["parameters"]
    assert float(shown["step_cpu"]["defaultValue"]) < 1.9, "of two CPUs, a node keeps a part for itself"


def test_kubeflow_caches_nothing_and_retries_the_steps_that_may_run_again(compiled: dict[str, Any]) -> None:
    tasks = dags(compiled)
    for task in TASKS:
        assert not tasks[task].get("cachingOptions", {}).get("enableCache")
    retried = {task for task in TASKS if tasks[task].get("retryPolicy", {}).get("maxRetryCount")}
    assert retried == {"preprocess", "train", "evaluate", "export", "deploy", "finish"}


def test_a_local_run_removes_the_retries_of_a_copy_alone(tmp_path: Path) -> None:
    assert "retry_policy" not in str(_without_retries().pipeline_spec)
    write_pipeline(tmp_path / "after.yaml")
    assert "maxRetryCount" in (tmp_path / "after.yaml").read_text(encoding="utf-8")


def test_a_group_gets_every_parameter_that_its_tasks_need(compiled: dict[str, Any]) -> None:
    for component in compiled["components"].values():
        given = set(component.get("inputDefinitions", {}).get("parameters", {}))
        for task in component.get("dag", {}).get("tasks", {}).values():
            for value in task.get("inputs", {}).get("parameters", {}).values():
                assert value.get("componentInputParameter", next(iter(given))) in given


def test_the_last_step_runs_after_a_failure_too(compiled: dict[str, Any]) -> None:
    last = compiled["root"]["dag"]["tasks"]["finish"]
    assert last["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    assert last["dependentTasks"] == ["exit-handler-1"]
    assert "train" in dags(compiled)
    assert last["taskInfo"]["name"] == "finish"


def test_evaluate_shows_metrics_confusion_matrix_roc_report_and_summary(finished_run: Path, tmp_path: Path) -> None:
    metrics, matrix = (
        dsl.Metrics(uri=str(tmp_path / "metrics")),
        dsl.ClassificationMetrics(uri=str(tmp_path / "matrix")),
    )
    report, summary = dsl.HTML(uri=str(tmp_path / "report")), dsl.Markdown(uri=str(tmp_path / "summary"))
    log_artifacts(str(finished_run), metrics, matrix, report, summary)
    found = json.loads((finished_run / "metrics.json").read_text(encoding="utf-8"))
    assert metrics.metadata["accuracy"] == found["accuracy"]
    assert [row["row"] for row in matrix.metadata["confusionMatrix"]["rows"]] == found["confusion_matrix"]
    points = matrix.metadata["confidenceMetrics"]
    assert (points[0]["falsePositiveRate"], points[-1]["recall"]) == (0, 1)
    assert all(math.isfinite(value) for point in points for value in point.values())
    assert Path(report.path).stat().st_size < 1_000_000
    assert f"{found['accuracy']:.4f}" in Path(summary.path).read_text(encoding="utf-8")


def test_the_curve_of_a_perfect_classifier_goes_through_the_corner() -> None:
    labels = np.arange(300, dtype=np.int32) % 3
    perfect = np.eye(3, dtype=np.float32)[labels] * 0.97 + 0.01
    found = roc(perfect, labels)
    assert found["area"] == 1
    assert (0, 1) in zip(found["false_positive_rate"], found["true_positive_rate"], strict=True)
    guessing = roc(np.random.default_rng(0).dirichlet([1, 1, 1], 300).astype(np.float32), labels)
    assert guessing["area"] == pytest.approx(0.5, abs=0.06)
    assert len(guessing["threshold"]) <= 102


def test_a_finished_run_has_a_summary_of_its_steps(finished_run: Path) -> None:
    text = (finished_run / "summary.md").read_text(encoding="utf-8")
    assert text.startswith("# first: succeeded")
    for step in STEPS:
        assert f"| {step} | ✓ |" in text
    assert "| epochs | 2 |" in text


def test_the_summary_of_a_run_that_failed_has_the_step_and_the_error(tmp_path: Path) -> None:
    run = start_run(RunSettings(epochs=7), tmp_path / "broken", run_id="7")
    run.update_step("preprocess", status="succeeded", seconds=1.5)
    run.update_step("train", status="failed", seconds=2.5, error="no | room\nleft")
    write_summary(run.folder, run_id="7", state="FAILED", message="exit 1", shown=tmp_path / "shown.md")
    text = (tmp_path / "shown.md").read_text(encoding="utf-8")
    assert text == (run.folder / "summary.md").read_text(encoding="utf-8")
    assert "**train failed**: no | room left" in text
    assert "| export | not run |" in text
    assert "run_name `broken` and from_step" in text


def test_a_run_that_did_not_start_has_a_summary_too(tmp_path: Path) -> None:
    write_summary(tmp_path / "never", run_id="1", state="FAILED", message=None, shown=tmp_path / "shown.md")
    assert "did not start" in (tmp_path / "shown.md").read_text(encoding="utf-8")
    assert not (tmp_path / "never").exists()


def test_a_refused_start_leaves_the_summary_of_the_earlier_run(tmp_path: Path) -> None:
    run = start_run(RunSettings(), tmp_path / "first", run_id="1")
    write_summary(run.folder, run_id="1", state="SUCCEEDED", message=None, shown=tmp_path / "shown.md")
    write_summary(run.folder, run_id="2", state="FAILED", message="no", shown=tmp_path / "shown.md")
    assert "did not start" in (tmp_path / "shown.md").read_text(encoding="utf-8")
    assert (run.folder / "summary.md").read_text(encoding="utf-8").startswith("# first: succeeded")
