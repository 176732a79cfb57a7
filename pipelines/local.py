"""The pipeline on this machine, through `kfp.local`, with the steps' own words on the terminal."""

import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO
from unittest import mock

from kfp import local
from kfp.local import subprocess_task_handler

from pipelines.kubeflow.parameters import fill
from pipelines.kubeflow.pipeline import distrinews
from pipelines.run_folder import STEPS
from trainer.config import RunConfig
from trainer.monitoring.console import TERMINAL_VARIABLE

_ERROR = re.compile(rf"({'|'.join(STEPS)}|settings): error: ")  # told again at the end, where people look
_KFP_SAYS = re.compile(r"\s*(\d\d:\d\d:\d\d\.\d{3} - |-{20,}|\[KFP Executor|/.*Warning: |$)")


def run_pipeline(config: RunConfig, folder: Path, *, from_step: str) -> tuple[bool, str]:
    """Run the Kubeflow pipeline with each step as a process of this machine; whether it succeeded, and the last line it said."""
    place = {
        "run_workspace": str(folder.parent),
        "run_name": folder.name,
        "run_from_step": from_step,
        "run_launch": "here",
        "run_deploy": "here",
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="distrinews-") as scratch,
        _environment(config),
        _quietly(Path(scratch, "kfp.log")) as output,
    ):
        local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=scratch, raise_on_error=True)
        try:
            with mock.patch.object(subprocess_task_handler, "replace_python_executable", _use_this_interpreter):
                _retry_nothing()
                distrinews(**fill(config), **place)
        except RuntimeError:  # kfp's word that a step failed; the step has said why
            succeeded = False
        else:
            succeeded = True
        if folder.is_dir():
            with (folder / "pipeline.log").open("ab") as log, Path(scratch, "kfp.log").open("rb") as said:
                shutil.copyfileobj(said, log)
    return succeeded, output.last_line


def _retry_nothing() -> None:
    """What fails on this machine fails again; and whoever sits before it waits for the reason, not for a second try."""
    spec = distrinews.pipeline_spec
    for dag in (spec.root.dag, *(component.dag for component in spec.components.values())):
        for task in dag.tasks.values():
            task.ClearField("retry_policy")


@contextlib.contextmanager
def _environment(config: RunConfig) -> Iterator[None]:
    """What the steps' processes inherit: where bars go, and to ask no hub for anything unless a hub's id is named."""
    named_here = config.model == "tiny" or Path(config.model).is_dir()
    data_here = config.data.startswith("sample") or Path(config.data).exists()
    added = {"HF_HUB_OFFLINE": "1"} if named_here and data_here else {}
    if sys.stderr.isatty():
        added[TERMINAL_VARIABLE] = os.ttyname(sys.stderr.fileno())
    before = dict(os.environ)
    os.environ.update(added)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _quietly(log: Path) -> "Iterator[_Output]":
    """Standard output with the steps' own lines alone; what Kubeflow says besides goes to the log only."""
    with log.open("w", encoding="utf-8") as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You may be attemping")  # of image names without "python"
        warnings.filterwarnings(
            "ignore", message="Task '.*': settings .* have no effect"
        )  # pods have resources, not processes
        output = _Output(sys.stdout, file)
        with contextlib.redirect_stdout(output):
            yield output


def _use_this_interpreter(full_command: list[str], executable: str) -> list[str]:
    """Put this interpreter into the shell script of a step, and leave its arguments alone.

    kfp 2.17 replaces "python3" in the values of parameters too, such as a path below lib/python3.11.
    """
    return [part.replace("python3", executable) if "ephemeral_component.py" in part else part for part in full_command]


class _Output(io.TextIOBase):
    """Writes all to a log, and to the terminal what a step said: the lines that kfp.local indents."""

    def __init__(self, terminal: TextIO, log: TextIO) -> None:
        self._terminal, self._log = terminal, log
        self._in_preamble = False
        self.last_line = ""

    def write(self, text: str) -> int:
        self._log.write(text)
        self._log.flush()
        if "Got executor_input:" in text:  # what follows is the JSON of the step's inputs
            self._in_preamble = True
        elif self._in_preamble:
            self._in_preamble = text.rstrip() != "}"
        elif not _KFP_SAYS.match(text):
            self.last_line = text.strip()
            if not _ERROR.match(text):
                self._terminal.write(text)
                self._terminal.flush()
        return len(text)
