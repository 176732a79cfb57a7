"""Runs distrinews predict in this process, and reads what it wrote."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.predict.command import Predict
from server.cli import run_command

TEXT = ("--text-column", "text")
ROWS = [(f"goal {number}", f'The "team"\nwon {"match " * (number % 7)}', number) for number in range(700)]


def run(model: object, *args: object) -> None:
    run_command(Predict, [str(model), *map(str, args)], prog="distrinews predict")


def refused(capsys: pytest.CaptureFixture[str], model: object, *args: object, status: int = 1) -> str:
    with pytest.raises(SystemExit) as stop:
        run(model, *args)
    assert stop.value.code == status
    output = capsys.readouterr().err
    assert output.count("\n") == 1, "an error is one line"
    return output


def records(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]
