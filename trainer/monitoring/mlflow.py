"""MLflow, where MLFLOW_TRACKING_URI names one: a thread sends the training log there as it grows.

logs/mlflow.json keeps how much of the log MLflow has, so that training waits for nothing, an outage loses nothing, and the next start
sends what is missing. (MLflow's own asynchronous log drops lines once its retries are used up.)
"""

import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from server.errors import UserError
from server.files import read_json
from trainer.distributed.preemption import Preempted
from trainer.distributed.process_group import Process, versions
from trainer.monitoring.console import print0
from trainer.monitoring.mlflow_run import Journal, MlflowRun, MlflowSettings, prepare, redact
from trainer.monitoring.training_log import append_event

_START_SECONDS = 90.0  # to import MLflow and to send a few requests, each with a time limit of its own
_END_SECONDS = 5.0  # after a failure or SIGTERM, when this process is soon killed
_LONG_SECONDS = 2.0  # a wait that needs a line of output
_PAUSE_SECONDS = 3.0  # between two looks at the log
_LONGEST_PAUSE_SECONDS = 60.0  # while MLflow fails


class MlflowTracker:
    """While the block runs, sends the training log of a run to MLflow; at its end the model and the run's status.

    UserError on entry when MLflow cannot be reached, unless this run was logged there before. Later faults are printed, never raised.
    """

    def __init__(self, output: Path, provenance: dict[str, Any], process: Process, *, step: str = "train") -> None:
        self._output, self._step, self._enabled = output, step, process.is_main
        environment = {f"environment.{name}": value for name, value in versions().items()} if step == "train" else {}
        self._parameters = provenance | environment
        self._patience = provenance.get("timeout_minutes", 10.0) / 2 * 60
        self._end: dict[str, Any] = {}
        self._settings = MlflowSettings()
        self._started, self._stop = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._fault = f"no answer within {_START_SECONDS:g} s"

    def __enter__(self) -> Self:
        if not (self._enabled and self._settings.tracking_uri.strip()):
            return self
        if find_spec("mlflow") is None:
            raise UserError(
                "MLFLOW_TRACKING_URI is set, but MLflow is not installed: pip install 'distrinews[mlflow]', or unset the variable"
            )
        prepare()
        thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        thread.start()
        self._started.wait(_START_SECONDS)
        if self._fault:
            uri = redact(self._settings.tracking_uri)
            raise UserError(f"MLFLOW_TRACKING_URI={uri}: {self._fault}; correct the variable, or unset it")
        self._thread = thread
        return self

    def log_results(self, metrics: dict[str, Any], *files: Path) -> None:
        """Keeps metrics of the model, and files, to be sent at the end of the block."""
        calibrated = {f"calibrated/{name}": value for name, value in metrics["calibrated"].items()}
        self._end["metrics"] = {
            name: value for name, value in (metrics | calibrated).items() if isinstance(value, int | float)
        }
        self._end["files"] = files

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._thread is None:
            return
        interrupted = kind is not None and issubclass(kind, Preempted | KeyboardInterrupt)
        self._end["status"] = "FINISHED" if kind is None else "KILLED" if interrupted else "FAILED"
        seconds = self._patience if kind is None else _END_SECONDS
        self._stop.set()
        self._thread.join(min(_LONG_SECONDS, seconds))
        if self._thread.is_alive():
            if kind is None:
                print0(f"{self._step}: sending the rest to MLflow")
            self._thread.join(max(0.0, seconds - _LONG_SECONDS))
        if fault := f"it took longer than {seconds:g} s" if self._thread.is_alive() else self._fault:
            self._report(fault)

    def _work(self) -> None:
        """Runs in the thread: sends what is new until the block ends, and then what is left."""
        fault = self._fault = self._try(self._connect)
        self._started.set()
        pause = _PAUSE_SECONDS
        while not (self._fault or self._stop.wait(pause)):
            before, fault = fault, self._try(self._run.send)
            if fault and not before:
                self._warn(f"fails: {fault}; training continues, and what is missing is sent when it answers")
            elif before and not fault:
                self._warn("answers again")
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS) if fault else _PAUSE_SECONDS
        if not self._fault:
            self._fault = self._try(lambda: self._run.finish(**self._end))

    def _connect(self) -> None:
        self._run = MlflowRun(self._output, self._parameters, self._settings, trains=self._step == "train")
        if not self._run.journal.proven:
            try:
                self._run.begin()
            except Exception:
                self._try(self._run.abandon)
                raise
        print0(f"{self._step}: MLflow: run {self._run.journal.run_id} at {self._run.journal.uri}")

    @staticmethod
    def _try(work: Callable[[], None]) -> str:
        """Returns the fault in one line, or nothing."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - each kind of store raises errors of its own
            return redact(error) or type(error).__name__
        return ""

    def _warn(self, text: str) -> None:
        print0(f"{self._step}: warning: MLflow at {redact(self._settings.tracking_uri)} {text}")

    def _report(self, fault: str) -> None:
        journal, log = Journal.read(self._output), self._output / "logs" / "train.jsonl"
        unsent = journal.count_unsent()
        append_event(log.parent, "mlflow", unsent_lines=unsent, model_sent=journal.model, why=fault)
        print0(
            f"{self._step}: warning: MLflow lacks {unsent:,} lines of {log}{'' if journal.model else ' and the model'}: "
            f"{fault}; the next start, or evaluate, sends them"
        )


def read_provenance(output: Path) -> dict[str, Any]:
    """Reads the settings that the model in a run's folder was trained with; none where there is no model."""
    path = output / "model" / "train_config.json"
    return dict(read_json(path, fix="run the train step again")["settings"]) if path.is_file() else {}
