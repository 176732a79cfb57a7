"""`distrinews submit` against an HTTP server that speaks the part of Kubeflow Pipelines' API that it needs."""

import re
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.kubeflow.client import Access, PipelinesClient, write_pipeline
from pipelines.kubeflow.commands import Submit
from server.cli import run_command
from server.errors import UserError
from tests.conftest import DISTRINEWS
from tests.support.kubeflow_api import TOKEN, Kubeflow, serving
from tests.support.parameters import parameters

pytestmark = pytest.mark.slow  # the module takes seconds


def run_state(state: str, error: str = "", **tasks: str) -> dict[str, Any]:
    details: list[dict[str, Any]] = [{"display_name": name, "state": task} for name, task in tasks.items()]
    if error:
        details[-1] |= {"error": {"message": error}}
    return {"run_id": "r1", "state": state, "run_details": {"task_details": details}}


@pytest.fixture
def kubeflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kubeflow]:
    monkeypatch.setenv("HOME", str(tmp_path))  # where the client keeps its settings
    monkeypatch.setenv("KFP_TOKEN", TOKEN)
    with serving(Kubeflow()) as served:
        monkeypatch.setenv("KFP_HOST", f"http://127.0.0.1:{served.port}")
        yield served


def submit(*args: str) -> int:
    """Runs the command in this process; returns its exit status."""
    try:
        run_command(Submit, args, prog="distrinews submit")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def sent(kubeflow: Kubeflow) -> dict[str, Any]:
    """Returns the parameters of the run that was started last."""
    bodies = [body for method, path, body in kubeflow.requests if (method, path) == ("POST", "/apis/v2beta1/runs")]
    parameters: dict[str, Any] = bodies[-1]["runtime_config"]["parameters"]
    return parameters


def test_a_run_is_started_with_its_parameters_and_its_link_is_printed(
    kubeflow: Kubeflow, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = "--data /workspace/my.csv --epochs 2 --name mine --claim ours --job.gpus 4 --job.elastic"
    assert submit(*settings.split(), "--no-follow") == 0
    started = next(body for method, path, body in kubeflow.requests if (method, path) == ("POST", "/apis/v2beta1/runs"))
    assert started["pipeline_version_reference"] == {"pipeline_id": "p1", "pipeline_version_id": "v1"}
    given = sent(kubeflow)
    assert (given["data"], given["epochs"], given["run_name"]) == ("/workspace/my.csv", 2, "mine")
    assert (given["claim"], given["gpus"], given["settings"]) == ("ours", 4, {"job": {"elastic": True}})
    assert set(given) <= set(parameters()) - {"run_id"}
    printed = capsys.readouterr()
    assert f"http://127.0.0.1:{kubeflow.port}/#/runs/details/r1" in printed.out
    assert TOKEN not in printed.out + printed.err
    assert "kube config" not in printed.out + printed.err


def test_the_same_version_is_uploaded_once(kubeflow: Kubeflow) -> None:
    endpoint = PipelinesClient(Access(), namespace=None)
    first, second = endpoint.upload(), endpoint.upload()
    assert first == second == ("p1", "v1")
    uploads = [body for _, path, body in kubeflow.requests if path.endswith("/upload_version")]
    assert len(uploads) == 1
    assert b"step_memory" in uploads[0]


def test_following_a_run_prints_each_change_once_and_its_end(
    kubeflow: Kubeflow, capsys: pytest.CaptureFixture[str]
) -> None:
    kubeflow.states = [
        run_state("RUNNING", preprocess="RUNNING", **{"preprocess-driver": "SUCCEEDED", "root": "RUNNING"}),
        run_state("RUNNING", preprocess="SUCCEEDED", train="RUNNING"),
        run_state("FAILED", "no node has a GPU", preprocess="SUCCEEDED", train="FAILED"),
    ]
    endpoint = PipelinesClient(Access(), namespace=None, poll_seconds=0.01)
    assert endpoint.follow("r1") == "FAILED"
    output = capsys.readouterr().out
    assert output.splitlines() == [
        "submit: preprocess: running",
        "submit: preprocess: succeeded",
        "submit: train: running",
        "submit: train: failed (no node has a GPU)",
        "submit: the run has ended: failed",
    ]


def test_following_a_run_retries_while_the_endpoint_is_away(
    kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kubeflow.states, kubeflow.outages = [run_state("SUCCEEDED", train="SUCCEEDED")], [503, 502]
    client = PipelinesClient(Access(), namespace=None, poll_seconds=0.01)
    assert client.follow("r1") == "SUCCEEDED"
    printed = capsys.readouterr().out
    assert printed.count("answers 503") == 1
    assert "asking again" in printed
    monkeypatch.setattr("pipelines.kubeflow.client._PATIENCE_SECONDS", 0)
    kubeflow.outages = [503] * 100
    with pytest.raises(UserError, match="answers 503"):
        client.follow("r1")


def test_a_run_that_cannot_be_followed_is_said_to_continue(
    kubeflow: Kubeflow, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kubeflow.states = [run_state("RUNNING")]
    kubeflow.outages = [401]
    assert submit("--data", "sample") == 3
    output = capsys.readouterr().err
    assert "answers 401" in output
    assert "run r1 continues: follow it by the link above, or with kfp run get r1" in output
    assert output.count("\n") == 1

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupt)
    assert submit("--data", "sample") == 130
    assert "run r1 continues" in capsys.readouterr().err


def test_a_run_is_resumed_with_only_the_settings_that_are_given(kubeflow: Kubeflow) -> None:
    assert submit("--name", "mine", "--from", "gate", "--min-accuracy", "0.5", "--epochs", "3", "--no-follow") == 0
    given = sent(kubeflow)
    assert given == {"run_name": "mine", "from_step": "gate", "min_accuracy": 0.5, "epochs": 3, "settings": {}}


def test_a_file_of_settings_may_set_the_job_and_the_release_and_flags_win(kubeflow: Kubeflow, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("epochs: 2\njob: {nodes: 4, elastic: true}\ndeploy: {release: news}\n", encoding="utf-8")
    assert submit("--config", str(file), "--job.nodes", "2", "--no-job.elastic", "--no-follow") == 0
    given = sent(kubeflow)
    assert (given["epochs"], given["nodes"], given["release"]) == (2, 2, "news")
    assert given["settings"]["job"] == {"elastic": False}


@pytest.mark.parametrize(("state", "status"), [("SUCCEEDED", 0), ("FAILED", 1), ("CANCELED", 1)])
def test_the_command_ends_as_the_run_does(
    kubeflow: Kubeflow, state: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    kubeflow.states = [run_state(state)]
    assert submit("--data", "sample") == status
    assert f"the run has ended: {state.lower()}" in capsys.readouterr().out


def test_a_schedule_starts_runs_that_name_themselves_one_at_a_time(
    kubeflow: Kubeflow, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit("--data", "/workspace/my.csv", "--schedule", "0 0 3 * * *") == 0
    assert "scheduled as s1" in capsys.readouterr().out
    body = kubeflow.schedules[0]
    assert body["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * *"
    assert (int(body["max_concurrency"]), body["no_catchup"]) == (1, True)
    assert "run_name" not in body["runtime_config"]["parameters"], "each run has the id that Kubeflow gives it"
    assert submit("--data", "/workspace/my.csv", "--schedule", "0 0 4 * * *") == 1
    assert len(kubeflow.schedules) == 1
    assert (
        "a schedule called 'distrinews on my.csv' already: delete it first, with kfp recurring-run delete s1"
        in capsys.readouterr().err
    )
    assert submit("--data", "/workspace/other.csv", "--schedule", "0 0 4 * * *") == 0


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--schedule", "0 3 * * *"], "--schedule '0 3 * * *': has not six fields"),
        (["--schedule", "0 0 3 * * *", "--name", "a"], "--name a contradicts --schedule"),
        (["--from", "train"], "--from train: name the run with --name"),
        (["--job.nodes", "two"], "--job.nodes 'two': input should be a valid integer"),
        (["--job.gpus", "2", "--job.processes", "2"], "processes = 2 contradicts gpus = 2"),
        (["--epochs", "0"], "--epochs '0': input should be greater than or equal to 1"),
        (
            ["--data=a.csv", "--class-names", ",".join(map(str, range(20_000)))],
            "bytes long, and a pod's command takes 100,000: copy the file of --config",
        ),
    ],
)
def test_a_wrong_setting_is_one_line_before_any_request(
    args: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(*args) in (1, 2)
    output = capsys.readouterr().err
    assert output.count("\n") == 1
    assert line in output


def test_an_endpoint_that_refuses_us_is_one_line_without_the_token(
    kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KFP_TOKEN", "wrong-secret")
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client's own tries
    assert submit("--data", "sample") == 1
    output = capsys.readouterr().err
    assert re.fullmatch(
        r"distrinews submit: error: http://127\.0\.0\.1:\d+ (answers 401|does not answer).*\n", output
    ), output
    assert "wrong-secret" not in output
    assert kubeflow.requests == []


def test_the_pipeline_compiles_to_manifests_for_gitops(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    done = subprocess.run(
        [DISTRINEWS, "compile", file, "--manifests", "team"], capture_output=True, text=True, check=True
    )
    assert f"kubectl apply -f {file}" in done.stdout
    pipeline, of_version = yaml.safe_load_all(file.read_text(encoding="utf-8"))
    assert (pipeline["kind"], of_version["kind"]) == ("Pipeline", "PipelineVersion")
    assert pipeline["metadata"]["namespace"] == of_version["metadata"]["namespace"] == "team"
    assert of_version["spec"]["pipelineName"] == pipeline["metadata"]["name"]
    assert set(of_version["spec"]["pipelineSpec"]["root"]["inputDefinitions"]["parameters"]) == set(parameters()) - {
        "run_id"
    }


def test_a_manifest_names_its_version_by_the_content_as_an_upload_does(tmp_path: Path) -> None:
    name = write_pipeline(tmp_path / "uploaded.yaml")
    write_pipeline(tmp_path / "applied.yaml", namespace="team")
    _, of_version = yaml.safe_load_all((tmp_path / "applied.yaml").read_text(encoding="utf-8"))
    digest = sha256((tmp_path / "uploaded.yaml").read_bytes()).hexdigest()[:8]
    assert name == f"{version('distrinews')}-{digest}"
    assert of_version["metadata"]["name"] == f"distrinews-{name.replace('.', '-')}"
