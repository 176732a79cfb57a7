"""The process that speaks with MLflow for `trainer.monitoring.mlflow`: it may wait, and it may be killed.

It reads what to do as JSON from standard input, answers when the run is there, sends the log as it grows, and ends with the
last word, or when nobody is left to say it.
"""

import json
import logging
import os
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from trainer.monitoring.tracking_state import TrackingState, redacted

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

_LONGEST_PAUSE_SECONDS = 60.0  # while MLflow fails
_ORPHAN_SECONDS = 20  # to tell how the run ended, when who trained was killed
_VALUE = 6000  # characters of a parameter that MLflow takes
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # we try again ourselves
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",  # it may say an hour
    "MLFLOW_ALLOW_FILE_STORE": "true",  # who names a folder wants it
}
"""Of variables that users may set themselves."""
_FIXED = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_UPLOAD_SECONDS = "600"  # a server may store a model before it answers; who started us knows when to give up


class Sender:
    """One run's log, parameters and model on their way to MLflow; what cannot be sent raises whatever MLflow raises."""

    def __init__(self, order: dict[str, Any]) -> None:
        from mlflow import MlflowClient

        self._output, self._settings = Path(order["output"]), order["settings"]
        self._parameters = {name: str(value)[:_VALUE] for name, value in order["parameters"].items()}
        self._trains, self._version = order["step"] == "train", order["version"]
        self._client = MlflowClient(self._settings["tracking_uri"])
        self.uri = redacted(self._settings["tracking_uri"])
        state = TrackingState.of(self._output)
        self._state = state if state.uri == self.uri else TrackingState(state.folder, self.uri)
        self.known = self._state.proven
        self._begun = False
        if self._trains and self.known:
            self._state.note(model=False)

    @property
    def run_id(self) -> str:
        return self._state.run_id

    def begin(self) -> None:
        """Find or make the run, and give it what is known before the first step."""
        run = self._found() or self._made()
        self._state.note(run_id=run.info.run_id)
        before = run.data.params
        new = {name: value for name, value in self._parameters.items() if name not in before}
        # A parameter can be set once; what later starts do otherwise is a tag.
        changed = {name: value for name, value in self._parameters.items() if before.get(name, value) != value}
        tags = {"distrinews.version": self._version, "distrinews.folder": str(self._output)}
        self._send(parameters=new, tags=tags | {f"distrinews.now.{name}": value for name, value in changed.items()})
        if self._trains:
            self._client.update_run(self.run_id, status="RUNNING")
            self._client.log_dict(self.run_id, self._parameters, "parameters.json")  # can files be written there?
        self._begun = True
        self._state.note(proven=True)

    def send(self) -> None:
        """Everything that the log has and MLflow has not."""
        if not self._begun:
            self.begin()
        for lines, end in self._state.chunks():
            metrics = [metric for line in lines for metric in _metrics(line)]
            events = Counter(self._state.events)
            events.update(line["kind"] for line in lines if line["kind"] not in ("train", "validation"))
            told = {f"distrinews.events.{kind}": str(count) for kind, count in events.items()}
            self._send(metrics=metrics, tags=told if events != self._state.events else {})
            self._state.note(sent=end, events=dict(events))

    def finish(self, last: dict[str, Any]) -> None:
        """What is left, how the run ended, its results, and last its files, which take longest."""
        from mlflow.entities import Metric

        self.send()
        results, now = last.get("metrics", {}), int(time.time() * 1000)
        self._send(metrics=[Metric(f"test/{name}", value, now, 0) for name, value in results.items()])
        whole = last["status"] == "FINISHED"
        if self._trains or whole:
            self._client.set_terminated(self.run_id, last["status"])
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = _UPLOAD_SECONDS
        for file in last.get("files", []):
            self._client.log_artifact(self.run_id, file)
        if whole and not self._state.model:
            self._client.log_artifacts(self.run_id, str(self._output / "model"), "model")
            self._state.note(model=True)

    def abandon(self) -> None:
        """End a run that could not be begun in whole, if there is one."""
        if self.run_id:
            self._client.set_terminated(self.run_id, "FAILED")

    def _found(self) -> "Run | None":
        from mlflow.exceptions import MlflowException

        wanted = self._state.run_id or self._settings["run_id"]
        if not wanted:
            return None
        try:
            run = self._client.get_run(wanted)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST" or not self._state.run_id:
                raise
            run = None
        if run is not None and run.info.lifecycle_stage == "active":
            return run
        _warn(f"MLflow has no run {wanted} any more: beginning another")
        self._state.note(run_id="", sent=0, events={}, model=False)
        return None

    def _made(self) -> "Run":
        return self._client.create_run(
            self._experiment(),
            run_name=self._output.name,
            tags={"mlflow.source.name": "distrinews", "mlflow.source.type": "JOB"},
        )

    def _experiment(self) -> str:
        if self._settings["experiment_id"]:
            return str(self._settings["experiment_id"])
        name = self._settings["experiment_name"]
        there = self._client.get_experiment_by_name(name)
        return str(there.experiment_id if there else self._client.create_experiment(name))

    def _send(
        self,
        *,
        metrics: "list[Metric] | None" = None,
        parameters: dict[str, str] | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        from mlflow.entities import Param, RunTag

        params = [Param(name, value) for name, value in (parameters or {}).items()]
        marks = [RunTag(name, value) for name, value in (tags or {}).items()]
        if metrics or params or marks:
            self._client.log_batch(self.run_id, metrics=metrics or [], params=params, tags=marks)


def _metrics(line: dict[str, Any]) -> "list[Metric]":
    """The numbers of a line that was measured, named as in TensorBoard."""
    from mlflow.entities import Metric

    if line["kind"] not in ("train", "validation"):
        return []
    told, step = ("kind", "time", "step"), line["step"]
    return [
        Metric(f"{line['kind']}/{name}", value, int(line["time"] * 1000), step)
        for name, value in line.items()
        if name not in told and isinstance(value, int | float)
    ]


def _follow(sender: Sender, pause_seconds: float) -> str:
    """Send until the last word has come and is done; returns why not everything could be sent."""
    pause, why = pause_seconds, ""
    while not select.select([sys.stdin], [], [], pause)[0]:
        before, why = why, _fault(sender.send)
        if why and not before:
            _warn(f"MLflow at {sender.uri} fails: {why}; training goes on, and what is missing is sent when it answers")
        elif before and not why:
            _warn(f"MLflow at {sender.uri} answers again")
        pause = min(pause * 2, _LONGEST_PAUSE_SECONDS) if why else pause_seconds
    last = sys.stdin.readline()
    if not last:
        signal.alarm(_ORPHAN_SECONDS)
    return _fault(lambda: sender.finish(json.loads(last or '{"status": "FAILED"}')))


def _fault(work: Callable[[], None]) -> str:
    try:
        work()
    except Exception as error:  # noqa: BLE001 - each kind of store raises what it likes
        return redacted(error) or type(error).__name__
    return ""


def _warn(text: str) -> None:
    print(f"tracking: warning: {text}", file=sys.stderr, flush=True)


def _say(file: IO[str], **words: str) -> None:
    print(json.dumps(words), file=file, flush=True)


def prepare() -> None:
    """What MLflow has to know before it is imported."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ.update(_FIXED)
    logging.disable()  # what matters is raised


def main() -> None:
    prepare()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is none
    order = json.loads(sys.stdin.readline())
    made: list[Sender] = []
    if why := _fault(lambda: made.append(Sender(order))):
        _say(answers, error=why)
        return
    sender = made[0]
    if not sender.known and (why := _fault(sender.begin)):
        _fault(sender.abandon)
        _say(answers, error=why)
        return
    _say(answers, ready=f"MLflow: run {sender.run_id} at {sender.uri}")
    _say(answers, why=_follow(sender, order["pause_seconds"]))


if __name__ == "__main__":
    main()
