"""The deploy step on one machine: starts the server for a moment, verifies it, and records the model as served."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.deploy.settings import DeployConfig
from pipelines.deploy.verify import expected_labels, record_served, verify
from pipelines.run_folder import RunFolder
from server.errors import UserError
from server.http.client import Client
from server.settings import PREFIX
from trainer.monitoring.console import print0

_STOP_SECONDS = 60
_PATIENCE_SECONDS = 10  # it answers before we learn its address


def deploy_here(run: RunFolder, config: DeployConfig) -> dict[str, Any]:
    """Serves the model of a run for a moment and compares its labels with evaluate's."""
    expected = expected_labels(run, config.verify_texts)
    with serving(run.model) as address, Client(address, proxies=False, patience_seconds=_PATIENCE_SECONDS) as client:
        outcome = verify(client, expected, min_agreement=config.min_agreement)
    record_served(run)
    print0(f"deploy: the server agrees with evaluate on {outcome['agreement']:.0%} of {outcome['texts']} texts; {run.name} is the model now served")  # fmt: skip
    return outcome


@contextmanager
def serving(model: Path) -> Iterator[str]:
    """Runs a server of this model on a free port while the block runs; gives its address."""
    command = [sys.executable, "-m", "server.main", str(model), "--port", "0", "--metrics-port", "off", "--drain-seconds", "0"]  # fmt: skip
    with subprocess.Popen(
        command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        lines = []
        try:
            for line in process.stdout:
                lines.append(line)
                if address := re.search(r"http://[\w.]+:\d+", line):
                    yield address.group()
                    return
            raise UserError("the server did not start: " + " ".join(lines[-1:]).strip())
        finally:
            process.terminate()
            process.wait(timeout=_STOP_SECONDS)


def _environment() -> dict[str, str]:
    """Returns the environment without settings of servers, which are for others; the engine alone is kept, for it gives the answers."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(PREFIX) or name.upper() == f"{PREFIX}ENGINE"
    }
