"""`distrinews submit` against an HTTP server that speaks the part of Kubeflow Pipelines' API that it needs."""

import json
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from pipelines.kubeflow import parameters as form
from pipelines.kubeflow import submit
from pipelines.kubeflow.client import Access, Endpoint
from tests.conftest import DISTRINEWS

TOKEN = "a-secret-token"  # noqa: S105 - of this test alone


@dataclass
class Kubeflow:
    """What the server was told, and what it says of a run each time that it is asked."""

    port: int = 0
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    pipelines: list[dict[str, Any]] = field(default_factory=list)
    versions: list[dict[str, Any]] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:  # noqa: ANN401 - JSON
        self.asked.append((method, path, body))
        given = body if isinstance(body, dict) else {}
        answers: dict[tuple[str, str], Callable[[], Any]] = {
            ("GET", "/healthz"): lambda: {"multi_user": False},
            ("GET", "/pipelines"): lambda: {"pipelines": self.pipelines},
            ("POST", "/pipelines/upload"): lambda: _added(self.pipelines, pipeline_id="p1", display_name=query["name"]),
            ("GET", "/pipelines/p1/versions"): lambda: {"pipeline_versions": self._versions_named(query["filter"])},
            ("POST", "/pipelines/upload_version"): lambda: _added(
                self.versions, pipeline_id="p1", pipeline_version_id="v1", display_name=query["name"]
            ),
            ("GET", "/experiments"): lambda: {"experiments": []},
            ("POST", "/experiments"): lambda: {"experiment_id": "e1", **given},
            ("POST", "/runs"): lambda: {"run_id": "r1", **given},
            ("POST", "/recurringruns"): lambda: {"recurring_run_id": "s1", **given},
            ("GET", "/runs/r1"): lambda: self.states.pop(0) if len(self.states) > 1 else self.states[0],
        }
        found = answers.get((method, path.removeprefix("/apis/v2beta1")))
        return (200, found()) if found else (404, {"message": f"no {path}"})

    def _versions_named(self, asked: str) -> list[dict[str, Any]]:
        wanted = json.loads(asked)["predicates"][0]["stringValue"]
        return [one for one in self.versions if one["display_name"] == wanted]


def _added(things: list[dict[str, Any]], **thing: str) -> dict[str, Any]:
    things.append(thing)
    return things[-1]


@contextmanager
def serving(kubeflow: Kubeflow) -> Iterator[Kubeflow]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = json.loads(content) if content and "json" in self.headers["Content-Type"] else content
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            if self.headers.get("Authorization") == f"Bearer {TOKEN}":
                status, told = kubeflow.answer(self.command, url.path, query, body)
            else:
                status, told = 401, {"message": "who are you?", "details": ["a stack"]}
            answer = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET  # noqa: N815 - as the base class calls it

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        kubeflow.port = server.server_port
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield kubeflow
        finally:
            server.shutdown()
            thread.join()


def run_state(state: str, error: str = "", **tasks: str) -> dict[str, Any]:
    details: list[dict[str, Any]] = [{"display_name": name, "state": task} for name, task in tasks.items()]
    if error:
        details[-1] |= {"error": {"message": error}}
    return {"run_id": "r1", "state": state, "run_details": {"task_details": details}}


@pytest.fixture
def kubeflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kubeflow]:
    monkeypatch.setenv("HOME", str(tmp_path))  # where the client keeps what it was told before
    monkeypatch.setenv("KFP_TOKEN", TOKEN)
    with serving(Kubeflow()) as served:
        monkeypatch.setenv("KFP_HOST", f"http://127.0.0.1:{served.port}")
        yield served


def submitted(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([DISTRINEWS, "submit", *args], capture_output=True, text=True, check=False, timeout=60)


def test_a_run_is_started_with_the_filled_form_and_its_link_is_printed(kubeflow: Kubeflow) -> None:
    done = submitted(
        "--data",
        "/workspace/my.csv",
        "--epochs",
        "2",
        "--name",
        "mine",
        "--claim",
        "ours",
        "--job-gpus",
        "4",
        "--no-follow",
    )
    assert done.returncode == 0, done.stderr
    started = next(body for method, path, body in kubeflow.asked if (method, path) == ("POST", "/apis/v2beta1/runs"))
    assert started["pipeline_version_reference"] == {"pipeline_id": "p1", "pipeline_version_id": "v1"}
    given = started["runtime_config"]["parameters"]
    assert (given["input_data"], given["train_epochs"], given["run_name"]) == ("/workspace/my.csv", 2, "mine")
    assert (given["run_claim"], given["job_gpus"]) == ("ours", 4)
    assert set(given) <= set(form.signature().parameters)
    assert f"http://127.0.0.1:{kubeflow.port}/#/runs/details/r1" in done.stdout
    assert TOKEN not in done.stdout + done.stderr


def test_the_same_version_is_uploaded_once(kubeflow: Kubeflow) -> None:
    endpoint = Endpoint(Access(), namespace=None)
    first, second = endpoint.upload(), endpoint.upload()
    assert first == second == ("p1", "v1")
    uploads = [body for _, path, body in kubeflow.asked if path.endswith("/upload_version")]
    assert len(uploads) == 1
    assert b"run_workspace" in uploads[0]


def test_following_a_run_says_each_change_once_and_how_it_ended(
    kubeflow: Kubeflow, capsys: pytest.CaptureFixture[str]
) -> None:
    kubeflow.states = [
        run_state("RUNNING", preprocess="RUNNING"),
        run_state("RUNNING", preprocess="SUCCEEDED", train="RUNNING"),
        run_state("FAILED", "no node has a GPU", preprocess="SUCCEEDED", train="FAILED"),
    ]
    endpoint = Endpoint(Access(), namespace=None, poll_seconds=0.01)
    assert endpoint.follow("r1") == "FAILED"
    said = capsys.readouterr().out
    assert said.splitlines() == [
        "submit: preprocess: running",
        "submit: preprocess: succeeded",
        "submit: train: running",
        "submit: train: failed (no node has a GPU)",
        "submit: the run has ended: failed",
    ]


@pytest.mark.parametrize(("state", "status"), [("SUCCEEDED", 0), ("FAILED", 1), ("CANCELED", 1)])
def test_the_command_ends_as_the_run_does(
    kubeflow: Kubeflow, state: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    kubeflow.states = [run_state(state)]
    with pytest.raises(SystemExit) as ended:
        submit.main(["--data", "sample"])
    assert ended.value.code == status
    assert f"the run has ended: {state.lower()}" in capsys.readouterr().out


def test_a_schedule_starts_runs_that_name_themselves_one_at_a_time(
    kubeflow: Kubeflow, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        submit.main(["--data", "/workspace/my.csv", "--schedule", "0 0 3 * * *"])
    assert ended.value.code == 0
    assert "scheduled as s1" in capsys.readouterr().out
    body = next(body for _, path, body in kubeflow.asked if path.endswith("/recurringruns"))
    assert body["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * *"
    assert (int(body["max_concurrency"]), body["no_catchup"]) == (1, True)
    assert "run_name" not in body["runtime_config"]["parameters"], "each run has the id that Kubeflow gives it"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--schedule", "0 3 * * *"], "--schedule '0 3 * * *': has not six fields"),
        (["--schedule", "0 0 3 * * *", "--name", "a"], "--name a contradicts --schedule"),
        (["--from", "train"], "--from train: say with --name in which run"),
        (["--job-nodes", "two"], "--job-nodes 'two': is not a whole number"),
        (["--job-gpus", "2", "--job-processes", "2"], "processes = 2 contradicts gpus = 2"),
        (["--epochs", "0"], "--epochs '0': input should be greater than or equal to 1"),
    ],
)
def test_a_wrong_setting_is_told_in_one_line_before_anything_is_asked(
    args: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        submit.main(args)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert line in said


def test_an_endpoint_that_asks_who_we_are_is_told_of_in_one_line_without_the_token(
    kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KFP_TOKEN", "wrong-secret")
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client's own tries
    with pytest.raises(SystemExit) as ended:
        submit.main(["--data", "sample"])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"distrinews submit: error: http://127\.0\.0\.1:\d+ (answers 401|does not answer).*\n", said), (
        said
    )
    assert "wrong-secret" not in said
    assert kubeflow.asked == []


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
    assert set(of_version["spec"]["pipelineSpec"]["root"]["inputDefinitions"]["parameters"]) == set(
        form.signature().parameters
    )
