"""One run in MLflow: its parameters, log, results and model, and the journal of how much of them was sent."""

import dataclasses
import json
import logging
import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic_settings import SettingsConfigDict

from server.cli import Environment
from server.files import read_json, write_json
from trainer.monitoring.console import print0

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

_LINES = 150  # of the log in one request, which may hold 1,000 metrics
_VALUE = 6000  # characters of a parameter that MLflow takes
_UPLOAD_SECONDS = "600"  # a server may store a model before it answers
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # we retry ourselves
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",  # it may ask for an hour
    "MLFLOW_ALLOW_FILE_STORE": "true",  # whoever names a folder wants it
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Variables that users may set themselves."""
_FIXED = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class MlflowSettings(Environment):
    """Variables of MLflow that we read; it reads all others itself, such as credentials."""

    model_config = SettingsConfigDict(env_prefix="MLFLOW_")

    tracking_uri: str = ""
    """A server, `file:` and a folder, or a database. Empty: nothing is tracked."""

    experiment_name: str = "distrinews"
    """Experiment of the run; it is created where it is missing."""

    experiment_id: str = ""
    """Id of the experiment, instead of its name."""

    run_id: str = ""
    """An existing run to log to, instead of a new one."""


@dataclass
class Journal:
    """logs/mlflow.json: how much of a run MLflow has, beside the log that it counts."""

    folder: Path
    """Logs of the run."""
    uri: str = ""
    """Address of MLflow, without its credentials."""
    run_id: str = ""
    proven: bool = False
    """MLflow at this address has taken the run's parameters and a file."""
    sent: int = 0
    """Bytes of train.jsonl that it has."""
    events: dict[str, int] = field(default_factory=dict)
    """Number of events in these, by kind."""
    model: bool = False
    """MLflow has the model that was trained last."""

    @classmethod
    def read(cls, output: Path) -> Self:
        """Reads the journal of a run's folder; an empty one where nothing was tracked yet."""
        folder = output / "logs"
        path = folder / "mlflow.json"
        return cls(
            folder, **(read_json(path, fix="remove it, and a new MLflow run is begun") if path.is_file() else {})
        )

    def save(self, **values: Any) -> None:  # noqa: ANN401 - any of the fields
        """Changes these fields, on the disk, too."""
        for name, value in values.items():
            setattr(self, name, value)
        kept = {name: value for name, value in dataclasses.asdict(self).items() if name != "folder"}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "mlflow.json", kept)

    def unsent(self) -> Iterator[tuple[list[dict[str, Any]], int]]:
        """Yields whole lines of the log that were not sent, and the byte where they end; torn lines are left out."""
        if not (self.folder / "train.jsonl").is_file():
            return
        with (self.folder / "train.jsonl").open("rb") as log:
            end = log.seek(self.sent)
            while lines := [line for line in islice(log, _LINES) if line.endswith(b"\n")]:
                end += sum(map(len, lines))
                yield _read(lines), end
                log.seek(end)  # half a line may be whole by now

    def count_unsent(self) -> int:
        return sum(len(lines) for lines, _ in self.unsent())


def _read(lines: list[bytes]) -> list[dict[str, Any]]:
    entries = []
    for line in lines:
        try:
            entries.append(json.loads(line))
        except ValueError:  # half a line, the last that a killed process wrote
            continue
    return entries


def redact(text: object) -> str:
    """Returns one line of text, short enough for a log, without the credentials of any URL in it."""
    line = " ".join(str(text).split())
    line = re.sub(r"//[^/\s]*@", "//", line)
    return re.sub(r"(?i)(password|token|secret)=[^&\s]+", r"\1=…", line)[:500]


class MlflowRun:
    """Sends the log, parameters and model of one run to MLflow; its methods raise whatever MLflow raises."""

    def __init__(self, output: Path, parameters: dict[str, Any], settings: MlflowSettings, *, trains: bool) -> None:
        from mlflow import MlflowClient

        self._output, self._settings, self._trains = output, settings, trains
        self._parameters = {name: str(value)[:_VALUE] for name, value in parameters.items()}
        self._client = MlflowClient(settings.tracking_uri)
        uri, journal = redact(settings.tracking_uri), Journal.read(output)
        self.journal = journal if journal.uri == uri else Journal(journal.folder, uri)
        self._begun = False
        if trains and self.journal.proven:
            self.journal.save(model=False)

    def begin(self) -> None:
        """Finds or makes the run, and sends everything that is known before the first step."""
        run = self._find() or self._create()
        self.journal.save(run_id=run.info.run_id)
        before = run.data.params
        new = {name: value for name, value in self._parameters.items() if name not in before}
        # A parameter can be set once; what later starts change is a tag.
        changed = {name: value for name, value in self._parameters.items() if before.get(name, value) != value}
        tags = {"distrinews.version": version("distrinews"), "distrinews.folder": str(self._output.absolute())}
        self._log(parameters=new, tags=tags | {f"distrinews.now.{name}": value for name, value in changed.items()})
        if self._trains:
            self._client.update_run(self.journal.run_id, status="RUNNING")
            self._client.log_dict(self.journal.run_id, self._parameters, "parameters.json")  # tests if it takes files
        self._begun = True
        self.journal.save(proven=True)

    def send(self) -> None:
        """Sends all lines of the log that MLflow lacks."""
        if not self._begun:
            self.begin()
        for lines, end in self.journal.unsent():
            events = Counter(self.journal.events)
            events.update(line["kind"] for line in lines if line["kind"] not in ("train", "validation"))
            tags = {f"distrinews.events.{kind}": str(count) for kind, count in events.items()}
            metrics = [metric for line in lines for metric in _metrics(line)]
            self._log(metrics=metrics, tags=tags if events != self.journal.events else {})
            self.journal.save(sent=end, events=dict(events))

    def finish(self, *, status: str, metrics: dict[str, float] | None = None, files: tuple[Path, ...] = ()) -> None:
        """Sends the rest of the log, the run's results and status, and last its files, which take longest."""
        from mlflow.entities import Metric

        self.send()
        now = int(time.time() * 1000)
        self._log(metrics=[Metric(f"test/{name}", value, now, 0) for name, value in (metrics or {}).items()])
        finished = status == "FINISHED"
        if self._trains or finished:
            self._client.set_terminated(self.journal.run_id, status)
        seconds, os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"], _UPLOAD_SECONDS
        try:
            for file in files:
                self._client.log_artifact(self.journal.run_id, str(file))
            if finished and not self.journal.model:
                self._client.log_artifacts(self.journal.run_id, str(self._output / "model"), "model")
                self.journal.save(model=True)
        finally:
            os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = seconds

    def abandon(self) -> None:
        """Ends a run that could be begun in part only, if there is one."""
        if self.journal.run_id:
            self._client.set_terminated(self.journal.run_id, "FAILED")

    def _find(self) -> "Run | None":
        from mlflow.exceptions import MlflowException

        wanted = self.journal.run_id or self._settings.run_id
        if not wanted:
            return None
        try:
            run = self._client.get_run(wanted)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST" or not self.journal.run_id:
                raise
            run = None
        if run is not None and run.info.lifecycle_stage == "active":
            return run
        print0(f"warning: MLflow has no run {wanted} any more: another one is created")
        self.journal.save(run_id="", sent=0, events={}, model=False)
        return None

    def _create(self) -> "Run":
        name, experiment = self._settings.experiment_name, self._settings.experiment_id
        if not experiment:
            found = self._client.get_experiment_by_name(name)
            experiment = str(found.experiment_id if found else self._client.create_experiment(name))
        tags = {"mlflow.source.name": "distrinews", "mlflow.source.type": "JOB"}
        return self._client.create_run(experiment, run_name=self._output.absolute().name, tags=tags)

    def _log(
        self,
        *,
        metrics: "list[Metric] | None" = None,
        parameters: dict[str, str] | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        from mlflow.entities import Param, RunTag

        params = [Param(name, value) for name, value in (parameters or {}).items()]
        run_tags = [RunTag(name, value) for name, value in (tags or {}).items()]
        if metrics or params or run_tags:
            self._client.log_batch(self.journal.run_id, metrics=metrics or [], params=params, tags=run_tags)


def _metrics(line: dict[str, Any]) -> "list[Metric]":
    """Returns the numbers of a line of the log, named as in TensorBoard; events have none."""
    from mlflow.entities import Metric

    if line["kind"] not in ("train", "validation"):
        return []
    return [
        Metric(f"{line['kind']}/{name}", value, int(line["time"] * 1000), line["step"])
        for name, value in line.items()
        if name not in ("kind", "time", "step") and isinstance(value, int | float)
    ]


def prepare() -> None:
    """Sets the variables that MLflow reads when it is imported, and silences it: faults that matter are raised."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ.update(_FIXED)
    for logger in ("mlflow", "urllib3.connectionpool"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="mlflow")
