"""MLflow, where MLFLOW_TRACKING_URI names one: a process of its own sends there what the run's log holds."""

import json
import select
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from pydantic_settings import BaseSettings, SettingsConfigDict

from server.errors import UserError
from trainer.distributed.alike import environment
from trainer.distributed.preemption import Preempted
from trainer.monitoring.console import print0
from trainer.monitoring.tracking_state import TrackingState, redacted
from trainer.monitoring.training_log import append_event

_START_SECONDS = 90.0  # to import MLflow and to ask a server a few things, each with a time limit of its own
_END_SECONDS = 5.0  # after a failure or SIGTERM, when this process is soon killed
_LONG_SECONDS = 2.0  # a wait that is worth a word
_PAUSE_SECONDS = 3.0  # from one look at the log to the next


class MlflowSettings(BaseSettings):
    """Variables of MLflow that we read; all others, such as credentials, it reads itself."""

    model_config = SettingsConfigDict(frozen=True, env_prefix="MLFLOW_", use_attribute_docstrings=True)

    tracking_uri: str = ""
    """Where to: a server, `file:` and a folder, or a database. Empty: nothing is tracked."""

    experiment_name: str = "distrinews"
    """Experiment of the run; made where there is none."""

    experiment_id: str = ""
    """The same by its id."""

    run_id: str = ""
    """A run that is there already, to log to instead of a new one."""


class Tracking:
    """While the block runs, what the log of a run gets goes to MLflow; at its end the model, and how it ended.

    The other process reads the log's file and remembers how far it came, so training waits for nothing, an outage loses
    nothing, and the next start sends what is missing. What goes wrong with MLflow in between is said, never raised.
    """

    def __init__(
        self, output: Path, parameters: dict[str, Any], *, step: str = "train", enabled: bool, patience_minutes: float = 5
    ) -> None:  # fmt: skip
        self._output, self._step = output, step
        versions = {f"environment.{name}": value for name, value in environment().items()} if step == "train" else {}
        self._parameters = parameters | versions
        self._patience = patience_minutes * 60
        self._results: dict[str, Any] = {}
        self._settings = MlflowSettings()
        self._enabled = enabled and bool(self._settings.tracking_uri.strip())
        self._sender: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        if self._enabled:
            if find_spec("mlflow") is None:
                raise UserError(
                    "MLFLOW_TRACKING_URI is set, but MLflow is not installed: pip install 'distrinews[mlflow]', or unset the variable"
                )
            self._start()
        return self

    def measured(self, metrics: dict[str, Any], *files: Path) -> None:
        """Numbers of the model, and files, to be sent at the end of the block."""
        calibrated = {f"calibrated/{name}": value for name, value in metrics["calibrated"].items()}
        found = {name: value for name, value in (metrics | calibrated).items() if isinstance(value, int | float)}
        self._results = {"metrics": found, "files": [str(file.absolute()) for file in files]}

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._sender is not None:
            interrupted = kind is not None and issubclass(kind, Preempted | KeyboardInterrupt)
            status = "FINISHED" if kind is None else "KILLED" if interrupted else "FAILED"
            why = self._end(self._sender, json.dumps({"status": status, **self._results}) + "\n", whole=kind is None)
            self._tell(why)

    def _start(self) -> None:
        """Start the sender; UserError when MLflow cannot be had, unless this run was logged there before."""
        uri = self._settings.tracking_uri
        order = {
            "output": str(self._output.absolute()), "step": self._step, "settings": self._settings.model_dump(),
            "parameters": self._parameters, "version": version("distrinews"), "pause_seconds": _PAUSE_SECONDS,
        }  # fmt: skip
        # In a session of its own, Ctrl-C and what torchrun sends to a process leave it to end as it is told to.
        self._sender = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "trainer.monitoring.tracking_sender"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            answer = _first_answer(self._sender, json.dumps(order) + "\n")
        except BaseException:
            _kill(self._sender)
            self._sender = None
            raise
        if "error" in answer:
            _kill(self._sender)
            self._sender = None
            raise UserError(f"MLFLOW_TRACKING_URI={redacted(uri)}: {answer['error']}; mend the variable, or unset it")
        print0(f"{self._step}: {answer['ready']}")

    def _end(self, sender: subprocess.Popen[str], order: str, *, whole: bool) -> str:
        """Have all sent that is left; returns why it was not."""
        seconds = self._patience if whole else _END_SECONDS
        try:
            try:
                said, _ = sender.communicate(order, timeout=min(_LONG_SECONDS, seconds))
            except subprocess.TimeoutExpired:
                if whole:
                    print0(f"{self._step}: sending what is left to MLflow")
                said, _ = sender.communicate(timeout=max(0.0, seconds - _LONG_SECONDS))
        except subprocess.TimeoutExpired:
            return f"it took longer than {seconds:g} s"
        finally:
            _kill(sender)
        return str(json.loads(said)["why"]) if said else f"its process ended with status {sender.returncode}"

    def _tell(self, why: str) -> None:
        if not why:
            return
        state = TrackingState.of(self._output)
        facts = {"unsent_lines": state.unsent(), "model_sent": state.model, "why": why}
        append_event(self._output / "logs", "tracking", **facts)
        print0(
            f"{self._step}: warning: MLflow lacks {facts['unsent_lines']:,} lines of {self._output / 'logs' / 'train.jsonl'}"
            f"{'' if state.model else ' and the model'}: {why}; the next start, or evaluate, sends them"
        )


def trained_with(output: Path) -> dict[str, Any]:
    """Settings of the model in a run's folder; none where there is none."""
    path = output / "model" / "train_config.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["settings"] if path.is_file() else {}
    return found


def _first_answer(sender: subprocess.Popen[str], order: str) -> dict[str, str]:
    assert sender.stdin is not None  # noqa: S101 - both are pipes, which its type does not say
    assert sender.stdout is not None  # noqa: S101
    try:
        sender.stdin.write(order)
        sender.stdin.flush()
    except BrokenPipeError:
        return {"error": "MLflow's process ended at once; what it said stands above"}
    if not select.select([sender.stdout], [], [], _START_SECONDS)[0]:
        return {"error": f"no answer within {_START_SECONDS:g} s"}
    answer: dict[str, str] = json.loads(sender.stdout.readline() or '{"error": "MLflow cannot be started"}')
    return answer


def _kill(sender: subprocess.Popen[str]) -> None:
    sender.kill()
    sender.wait()
    for stream in (sender.stdin, sender.stdout):
        if stream is not None and not stream.closed:
            stream.close()
