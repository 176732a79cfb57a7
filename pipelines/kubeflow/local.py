"""The pipeline on this machine, through kfp.local, with the output of its steps on the terminal."""

import contextlib
import copy
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple, TextIO
from unittest import mock

from kfp import dsl, local
from kfp.local import subprocess_task_handler

from pipelines.kubeflow.parameters import to_parameters
from pipelines.run_folder import STEPS, RunSettings
from pipelines.signals import TERMINATED
from server.files import write_json
from trainer.monitoring.console import TERMINAL_VARIABLE

_ERROR = re.compile(rf"({'|'.join(('start', *STEPS))}): error: ")  # printed at the end, where people look
_OF_KFP = re.compile(r"\s*(\d\d:\d\d:\d\d\.\d{3} - |-{20,}|\[KFP Executor|/.*Warning: |$)")


class Ending(NamedTuple):
    """The end of a pipeline: `reason` is its last line of output, or the fault of kfp."""

    succeeded: bool
    terminated: signal.Signals | None
    reason: str


def run_pipeline(settings: RunSettings, folder: Path, *, from_step: str) -> Ending:
    """Runs the Kubeflow pipeline with each step as a process of this machine."""
    parameters = to_parameters(settings) | {"run_name": folder.name, "from_step": from_step}
    folder.parent.mkdir(parents=True, exist_ok=True)
    steps, reason = _StepProcesses(), ""
    with tempfile.TemporaryDirectory(prefix="distrinews-") as scratch:
        write_json(file := Path(scratch, "settings.json"), parameters["settings"])
        parameters["settings"] = {"config": str(file)}  # thousands of class names are too long for a command
        with (
            _environment(settings, workspace=folder.parent, scratch=scratch),
            _quiet(Path(scratch, "kfp.log")) as output,
            steps.receiving_signals(),
            # kfp 2.17 replaces "python3" in the values of parameters too, such as a path below lib/python3.11.
            mock.patch.object(subprocess_task_handler, "replace_python_executable", lambda command, _: command),
            mock.patch.object(subprocess_task_handler, "run_local_subprocess", steps.run),
        ):
            runner = local.SubprocessRunner(use_venv=False)
            # kfp deletes its workspace at the end
            local.init(
                runner=runner,
                pipeline_root=f"{scratch}/artifacts",
                workspace_root=f"{scratch}/workspace",
                raise_on_error=True,
            )
            try:
                _without_retries()(**parameters)
            except Exception as error:  # noqa: BLE001 - kfp raises RuntimeError for a failed step, and any other for a fault of its own
                output.log.write(traceback.format_exc())
                reason = (
                    output.last_line
                    if isinstance(error, RuntimeError) and output.last_line
                    else f"{type(error).__name__}: {error}"
                )
        if (folder / "run.json").is_file():
            with (folder / "pipeline.log").open("ab") as log, Path(scratch, "kfp.log").open("rb") as written:
                shutil.copyfileobj(written, log)
    return Ending(not reason, steps.terminated, reason)


def _without_retries() -> dsl.graph_component.GraphComponent:
    """Returns a copy of the pipeline whose steps are not retried: here they fail again, and someone waits for the reason."""
    from pipelines.kubeflow.pipeline import distrinews  # which kfp takes a second to make

    pipeline = copy.deepcopy(distrinews)
    spec = pipeline.pipeline_spec
    for dag in (spec.root.dag, *(component.dag for component in spec.components.values())):
        for task in dag.tasks.values():
            task.ClearField("retry_policy")
    return pipeline


class _StepProcesses:
    """Runs the processes of the steps for kfp.local, one after the other, and passes signals on to the one that runs."""

    def __init__(self) -> None:
        self.terminated: signal.Signals | None = None
        self._process: subprocess.Popen[str] | None = None

    def run(self, full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        """Runs one step with this interpreter, in place of the shell that kfp starts it with; returns its status."""
        finishing = full_command[-1] == "finish"  # it writes the summary of a run that was terminated, too
        if self.terminated and not finishing:
            return TERMINATED
        command = [
            part.replace("python3", f"exec {shlex.quote(sys.executable)}") if "ephemeral_component.py" in part else part
            for part in full_command
        ]
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            bufsize=1,
            env=os.environ | (env_vars or {}),
        ) as self._process:
            if self.terminated and not finishing:
                self._process.terminate()
            for line in self._process.stdout or ():
                print(line, end="")
            return self._process.wait()

    @contextlib.contextmanager
    def receiving_signals(self) -> Iterator[None]:
        """Passes SIGTERM on, and SIGINT as SIGTERM, upon which training saves."""

        def terminate(number: int, _frame: FrameType | None) -> None:
            self.terminated = signal.Signals(number)
            if self._process is not None:
                self._process.terminate()

        before = {number: signal.signal(number, terminate) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _environment(settings: RunSettings, *, workspace: Path, scratch: str) -> Iterator[None]:
    """Sets the environment of the steps: folders, the terminal of progress bars, and no hub unless a hub's id is named."""
    added = {"DISTRINEWS_WORKSPACE": str(workspace), "TMPDIR": scratch, "PYTHONIOENCODING": "utf-8"}
    model, data = settings.model, settings.data
    if (model == "tiny" or Path(model).is_dir()) and (data.startswith("sample") or Path(data).exists()):
        added["HF_HUB_OFFLINE"] = "1"
    if sys.stderr.isatty():
        added[TERMINAL_VARIABLE] = os.ttyname(sys.stderr.fileno())
    with mock.patch.dict(os.environ, added):
        yield


@contextlib.contextmanager
def _quiet(log: Path) -> "Iterator[_Output]":
    """Leaves the steps' own lines alone on standard output; Kubeflow's go to the log."""
    with log.open("w", encoding="utf-8") as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You may be attemping")  # of image names without "python"
        warnings.filterwarnings("ignore", message="Task '.*': settings .* have no effect")  # of a pod's resources
        output = _Output(sys.stdout, file)
        with contextlib.redirect_stdout(output):
            yield output


class _Output(io.TextIOBase):
    """Writes all lines to a log, and those of the steps, which kfp.local indents, to the terminal."""

    def __init__(self, terminal: TextIO, log: TextIO) -> None:
        self._terminal, self.log = terminal, log
        self._in_preamble = False
        self.last_line = ""

    def write(self, text: str) -> int:
        self.log.write(text)
        self.log.flush()
        if "Got executor_input:" in text:  # the JSON of the step's inputs follows
            self._in_preamble = True
        elif self._in_preamble:
            self._in_preamble = text.rstrip() != "}"
        elif not _OF_KFP.match(text):
            self.last_line = text.strip()
            if not _ERROR.match(text):
                self._terminal.write(text)
                self._terminal.flush()
        return len(text)
