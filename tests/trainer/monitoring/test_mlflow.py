"""MLFLOW_TRACKING_URI: MLflow gets all of a run, and training survives its faults and its absence."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from server.errors import UserError
from tests.support.training import QUICK, stopped_at
from trainer.config import EvaluateConfig
from trainer.data.dataset import Dataset
from trainer.distributed.process_group import Process
from trainer.evaluate import evaluate
from trainer.monitoring.mlflow import MlflowTracker, read_provenance
from trainer.monitoring.mlflow_run import Journal, redact
from trainer.monitoring.training_log import read_log
from trainer.train import train

_READ_RUN = """
import json, sys
from trainer.monitoring.mlflow_run import prepare
prepare()
from mlflow import MlflowClient
client = MlflowClient()
(run,) = client.search_runs([client.get_experiment_by_name("distrinews").experiment_id])
def history(name): return sorted((m.step, m.value, m.timestamp) for m in client.get_metric_history(run.info.run_id, name))
def files(folder=""):
    for file in client.list_artifacts(run.info.run_id, folder):
        if file.is_dir: yield from files(file.path)
        else: yield file.path
from mlflow.telemetry import get_telemetry_client
print(json.dumps({
    "status": run.info.status, "name": run.info.run_name, "parameters": run.data.params, "tags": run.data.tags,
    "metrics": {name: history(name) for name in run.data.metrics}, "files": sorted(files()), "telemetry": get_telemetry_client() is not None,
}))
"""


def read_run() -> dict[str, Any]:
    """Reads the one run of the experiment in a process without the variables by which MLflow recognises tests."""
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "PYTEST_CURRENT_TEST")}
    command = [sys.executable, "-W", "ignore", "-c", _READ_RUN]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_mlflow_has_all_of_a_run_that_was_stopped_and_resumed(
    dataset: Dataset, tmp_path: Path, process: Process, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    run = tmp_path / "first"
    stopped_at(9, QUICK, dataset, run, process)
    (kept,) = (tmp_path / "mlflow").glob("*/*/meta.yaml")
    assert "status: 5" in kept.read_text(encoding="utf-8"), "KILLED, as MLflow numbers them"
    assert not list(kept.parent.glob("artifacts/model"))
    train(QUICK.model_copy(update={"checkpoint_steps": 5}), dataset, run, process)
    with MlflowTracker(run, read_provenance(run), process, step="evaluate") as tracker:
        tracker.log_results(evaluate(EvaluateConfig(), dataset, run, process), run / "metrics.json")
    found = read_run()
    assert (found["status"], found["name"], found["telemetry"]) == ("FINISHED", "first", False)
    parameters = found["parameters"]
    assert (parameters["epochs"], parameters["world_size"], parameters["dataset"]) == ("2", "1", dataset.fingerprint)
    assert parameters["environment.torch"].startswith("2.")
    assert (parameters["checkpoint_steps"], found["tags"]["distrinews.now.checkpoint_steps"]) == ("4", "5")
    assert found["tags"]["distrinews.events.start"] == "2"
    lines = read_log(run / "logs")
    for kind, name in (("train", "loss"), ("train", "samples_per_second"), ("validation", "accuracy")):
        logged = {(line["step"], line[name], int(line["time"] * 1000)) for line in lines if line["kind"] == kind}
        assert logged <= {(step, value, when) for step, value, when in found["metrics"][f"{kind}/{name}"]}
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    for name in ("accuracy", "macro_f1", "expected_calibration_error"):
        assert found["metrics"][f"test/{name}"][0][1] == metrics[name]
    model = {f"model/{path.name}" for path in (run / "model").iterdir()}
    assert model | {"metrics.json", "parameters.json"} == set(found["files"])
    assert "warning" not in "".join(capsys.readouterr())


class TrackingServer(ThreadingHTTPServer):
    """Answers the client of MLflow as a tracking server does; or with 500; or not at all."""

    daemon_threads = True

    def __init__(self, files: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fault = ""
        self.metrics: list[dict[str, Any]] = []
        self.status: list[str] = []
        self.run = {
            "info": {"run_id": "a" * 32, "experiment_id": "1", "status": "RUNNING", "lifecycle_stage": "active", "artifact_uri": str(files)},
            "data": {},
        }  # fmt: skip

    def handle_error(self, *_: object) -> None:
        """Ignores clients that stopped waiting."""

    def answer(self, path: str, given: dict[str, Any]) -> dict[str, Any]:
        if path.endswith("experiments/get-by-name"):
            return {"experiment": {"experiment_id": "1", "name": "distrinews"}}
        if path.endswith("runs/log-batch"):
            self.metrics += given.get("metrics", [])
        if path.endswith("runs/update"):
            self.status.append(given["status"])
            return {"run_info": self.run["info"]}
        return {"run": self.run}


class _Handler(BaseHTTPRequestHandler):
    server: TrackingServer

    def _serve(self) -> None:
        given = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
        if self.server.fault == "nothing":
            time.sleep(30)
        answer = b"{}" if self.server.fault else json.dumps(self.server.answer(self.path.split("?")[0], given)).encode()
        self.send_response(500 if self.server.fault else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = _serve  # noqa: N815 - names that http.server calls

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrackingServer]:
    with TrackingServer(tmp_path / "files") as there:
        threading.Thread(target=there.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://anna:geheim@127.0.0.1:{there.server_port}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        monkeypatch.setattr("trainer.monitoring.mlflow._PAUSE_SECONDS", 0.1)
        yield there
        there.shutdown()


def steps(server: TrackingServer) -> set[int]:
    return {int(metric["step"]) for metric in server.metrics if metric["key"] == "train/loss"}


@pytest.mark.slow
def test_an_outage_is_named_once_a_start_and_loses_nothing(
    server: TrackingServer, dataset: Dataset, tmp_path: Path, process: Process, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    run, enter, leave, warn = tmp_path / "run", MlflowTracker.__enter__, MlflowTracker.__exit__, MlflowTracker._warn
    warned = threading.Event()

    def fail_after_start(tracker: MlflowTracker) -> MlflowTracker:
        enter(tracker)
        server.fault = server.fault or "500"
        return tracker

    def warn_and_set(tracker: MlflowTracker, text: str) -> None:
        warn(tracker, text)
        warned.set()

    def leave_after_warning(tracker: MlflowTracker, *raised: Any) -> None:  # noqa: ANN401 - as of __exit__
        assert warned.wait(60)
        leave(tracker, *raised)

    with monkeypatch.context() as patched:
        patched.setattr(MlflowTracker, "__enter__", fail_after_start)
        patched.setattr(MlflowTracker, "__exit__", leave_after_warning)
        patched.setattr(MlflowTracker, "_warn", warn_and_set)
        for server.fault in ("", "nothing"):
            warned.clear()
            train(QUICK, dataset, run, process)
    output = "".join(capfd.readouterr())
    assert output.count("train: warning: MLflow at http://127.0.0.1:") == 2
    assert output.count("warning: MLflow lacks") == 2
    assert output.count("and the model: API request") == 2
    assert "geheim" not in output
    counted = [line["unsent_lines"] for line in read_log(run / "logs") if line["kind"] == "mlflow"]
    assert len(counted) == 2
    assert counted[1] >= counted[0] > 0
    assert steps(server) == set()
    server.fault = ""
    train(QUICK, dataset, run, process)
    assert steps(server) == {line["step"] for line in read_log(run / "logs") if line["kind"] == "train"}
    assert server.status[-1] == "FINISHED"
    assert (tmp_path / "files" / "model" / "model.safetensors").is_file()
    assert "geheim" not in (run / "logs" / "mlflow.json").read_text(encoding="utf-8")


def test_a_wrong_address_ends_training_before_the_first_step_without_its_password(
    server: TrackingServer, dataset: Dataset, tmp_path: Path, process: Process
) -> None:
    server.fault = "500"
    with pytest.raises(
        UserError, match=r"^MLFLOW_TRACKING_URI=http://127.0.0.1:\d+: .*; correct the variable"
    ) as raised:
        train(QUICK, dataset, tmp_path, process)
    assert "geheim" not in str(raised.value)
    assert [line["kind"] for line in read_log(tmp_path / "logs")] == []
    assert not (tmp_path / "train.lock").exists()


def test_where_mlflow_is_not_installed_one_line_names_the_extra(
    dataset: Dataset, tmp_path: Path, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr("trainer.monitoring.mlflow.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"MLflow is not installed: pip install 'distrinews\[mlflow\]', or unset"):
        train(QUICK, dataset, tmp_path, process)


def test_urls_lose_their_credentials() -> None:
    assert redact("at https://a:p@ss@host:5000/x failed\n again") == "at https://host:5000/x failed again"
    assert redact("postgresql://a:b@db/x?password=c&y=1") == "postgresql://db/x?password=…&y=1"


def test_only_whole_lines_are_sent_and_a_torn_one_once_it_is_ended(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / "train.jsonl"
    log.write_text('{"a": 1}\n' * 400 + '{"b": ', encoding="utf-8")
    journal = Journal.read(tmp_path)
    sent = []
    for lines, end in journal.unsent():
        journal.save(sent=end)
        sent += lines
    assert (len(sent), Journal.read(tmp_path).count_unsent()) == (400, 0)
    with log.open("a", encoding="utf-8") as more:
        more.write('\n{"a": 2}\n')
    assert [lines for lines, _ in Journal.read(tmp_path).unsent()] == [[{"a": 2}]]
