"""The trainer reads settings from flags and files, turns them into flags, and refuses a wrong one with one line."""

import json
import os
import random
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from pipelines.run import Run
from server.cli import Settings, as_flags, build, choices, parse, run_command
from server.errors import UserError
from server.files import read_file
from tests.conftest import DISTRINEWS
from trainer.config import (
    EvaluateConfig,
    ExportConfig,
    GateConfig,
    LaunchConfig,
    PreprocessConfig,
    RunConfig,
    TrainConfig,
    part,
)

HEAVY = {"torch", "transformers", "datasets", "kfp", "numpy", "pyarrow", "fastapi", "onnxruntime", "sklearn"}
PROPERTIES: dict[str, dict[str, Any]] = RunConfig.model_json_schema()["properties"]
SIGNS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def called(*args: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """The command as a user calls it, and the packages that it imported."""
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1", "COLUMNS": "2000"}
    done = subprocess.run([DISTRINEWS, *args], capture_output=True, text=True, check=False, env=environment)
    lines = done.stderr.splitlines(keepends=True)
    timed = [line for line in lines if line.startswith("import time:")]
    done.stderr = "".join(line for line in lines if line not in timed)
    return done, {line.rsplit("|", 1)[-1].strip().partition(".")[0] for line in timed}


def refusal(args: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Returns the error with which `distrinews run` refuses these arguments."""
    with pytest.raises(SystemExit) as stop:
        run_command(Run, list(args), prog="distrinews run")
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, "an error is one line"
    return captured.err


def accepted(args: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """The settings with which `distrinews run` would start."""
    started: list[RunConfig] = []
    monkeypatch.setattr(
        Run,
        "run",
        lambda given: started.append(
            RunConfig(**given.model_dump(exclude_unset=True, include=set(RunConfig.model_fields)))
        ),
    )
    run_command(Run, list(args), prog="distrinews run")
    return started[0]


def bounds(field: str) -> dict[str, float]:
    """Limits of a setting, by their names in its JSON schema."""
    schemas = [PROPERTIES[field], *PROPERTIES[field].get("anyOf", [])]
    return {name: schema[name] for schema in schemas for name in SIGNS if name in schema}


def is_number(field: str) -> bool:
    return bool(
        {int, float} & {RunConfig.model_fields[field].annotation, *get_args(RunConfig.model_fields[field].annotation)}
    )


def test_help_answers_at_once_and_imports_nothing_heavy() -> None:
    started = time.monotonic()
    done, imported = called("--help")
    assert time.monotonic() - started < 3
    assert (done.returncode, done.stderr) == (0, "")
    assert "run " in done.stdout
    assert "pipelines" in imported
    assert not imported & {*HEAVY, "pydantic", "yaml"}


@pytest.fixture(scope="module")
def help_text() -> str:
    done, imported = called("run", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert not imported & HEAVY
    return done.stdout


@pytest.mark.parametrize("name", RunConfig.model_fields)
def test_help_has_meaning_range_and_default_of(name: str, help_text: str) -> None:
    field = RunConfig.model_fields[name]
    flag = "--" + name.replace("_", "-")
    entries = [" ".join(entry.split()) for entry in re.split(r"\n  (?=-)", help_text)]
    output = next(entry for entry in entries if entry.startswith((f"{flag} ", f"{flag}, ")))
    assert field.description, f"{name} has no meaning under it"
    assert " ".join(field.description.split()) in output
    for bound, limit in bounds(name).items():
        assert f"{SIGNS[bound]} {limit:,}" in output
    for choice in choices(field):
        assert choice in output.split()[1]
    assert (f"default {field.default}" if field.default not in (None, ()) else "By default") in output


@pytest.mark.parametrize("name", [name for name in RunConfig.model_fields if is_number(name)])
def test_every_number_has_a_range(name: str) -> None:
    assert {"minimum", "exclusiveMinimum"} & bounds(name).keys()


def drawn(name: str, draw: random.Random) -> Any:  # noqa: ANN401 - of whatever type the setting is
    """A value that the setting may have."""
    field, limits = RunConfig.model_fields[name], bounds(name)
    if choices(field):
        return draw.choice(choices(field))
    if field.annotation is bool:
        return draw.random() < 0.5
    if isinstance(field.default, tuple):
        return tuple(
            draw.sample(
                ["title", "Ünïcode", "two words", "-dash", "0", "--epochs=9", "a=b", "'quoted'"], draw.randint(2, 4)
            )
        )
    if not is_number(name):
        return draw.choice(["folder/file.csv.gz", "./a b", "-x", "--seed", "C:\\x", "naïve", "a=b", "100%"])
    low = limits.get("minimum", limits.get("exclusiveMinimum", 0))
    high = limits.get("maximum", limits.get("exclusiveMaximum", low + 1000))
    if int in (field.annotation, *get_args(field.annotation)):
        return draw.randint(int(low), int(high) - 1)
    return low + (high - low) * draw.uniform(0.001, 0.999)


@pytest.mark.parametrize("seed", range(40))
def test_settings_written_as_flags_and_read_again_are_the_same(seed: int) -> None:
    draw = random.Random(seed)
    names = draw.sample(sorted(RunConfig.model_fields), draw.randint(0, len(RunConfig.model_fields)))
    values: dict[str, Any] = {"data": "file.csv"} | {name: drawn(name, draw) for name in names}
    values.pop("test_fraction" if draw.random() < 0.5 else "test_data", None)
    if values.get("early_stopping_patience", 0) >= values.get("epochs", 2000):
        del values["early_stopping_patience"]
    if values.get("label_column") in values.get("text_column", ()):
        del values["label_column"]
    for name, strategy in (("shard_ranks", "hsdp"), ("gradient_compression", "ddp")):
        if values.get("strategy", "ddp") != strategy:
            values.pop(name, None)
    config = RunConfig(**values)
    assert parse(RunConfig, as_flags(config), prog="p") == config
    for kind in (PreprocessConfig, TrainConfig, EvaluateConfig, GateConfig, ExportConfig, LaunchConfig):
        assert parse(kind, as_flags(part(config, kind)), prog="p") == part(config, kind)


def test_a_setting_with_its_default_is_no_flag() -> None:
    assert as_flags(RunConfig()) == []
    assert as_flags(RunConfig(epochs=4, seed=0)) == ["--epochs=4"]


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig().epochs = 9


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--epocs", "3"], "unrecognized arguments: --epocs 3; did you mean --epochs?"),
        (["--epocs=3"], "did you mean --epochs?"),
        (["stray", "--min-acuracy", "1"], "did you mean --min-accuracy?"),
        (["--epoch", "3"], "did you mean --epochs?"),  # an abbreviation is no flag
        (["--data"], "argument --data: expected one argument"),
        (["--epochs", "0"], "--epochs '0': input should be greater than or equal to 1"),
        (["--epochs", "many"], "--epochs 'many': input should be a valid integer"),
        (["--epochs", "1\n2"], r"--epochs '1\n2': "),
        (["stray\nline"], "stray line"),
        (["--min-accuracy", "1.1"], "--min-accuracy '1.1': input should be less than or equal to 1"),
        (["--learning-rate", "0"], "--learning-rate '0': input should be greater than 0"),
        (["--learning-rate", "nan"], "--learning-rate 'nan': input should be a finite number"),
        (["--timeout-minutes", "inf"], "--timeout-minutes 'inf': input should be a finite number"),
        (["--validation-fraction", "0.5"], "--validation-fraction '0.5': input should be less than 0.5"),
        (["--seed", "4294967296"], "less than 4294967296"),
        (["--precision", "fp16"], "--precision 'fp16': input should be 'auto', 'fp32' or 'bf16'"),
        (["--bad-rows", "ignore"], "--bad-rows 'ignore': input should be 'stop' or 'skip'"),
        (["--data", ""], "--data '': "),
        (["--test-data", "t.csv"], "test_data has no meaning with data = 'sample'"),
        (["--data", "sample:500", "--label-column", "x"], "label_column has no meaning with data = 'sample:500'"),
        (["--data", "a.csv", "--test-data", "b.csv", "--test-fraction", "0.2"], "test_fraction contradicts test_data"),
        (["--data", "a.csv", "--class-names", "A,B,A"], "class_names has a name twice: A, B, A"),
        (["--data", "a.csv", "--text-column", "x, x"], "text_column has a name twice: x, x"),
        (["--data", "a.csv", "--class-names", "A"], "class_names needs two classes or more"),
        (["--data", "a.csv", "--text-column", "x,y", "--label-column", "y"], "label_column = 'y' contradicts text_column"),
        (["--epochs", "2", "--early-stopping-patience", "2"], "early_stopping_patience = 2 contradicts epochs = 2"),
    ],
)  # fmt: skip
def test_a_wrong_flag_is_refused_with_a_fix(args: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected in refusal(args, capsys)


@pytest.mark.parametrize(
    "args", [("--epocs", "3"), ("--epochs", "0"), ("--epochs", "2", "--early-stopping-patience", "2")]
)
def test_a_wrong_setting_ends_the_command_before_anything_heavy_is_imported(args: tuple[str, ...]) -> None:
    done, imported = called("run", *args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("distrinews run: error: ")
    assert done.stderr.count("\n") == 1
    assert "pydantic" in imported
    assert not imported & HEAVY


def test_a_contradiction_of_one_step_is_one_of_a_whole_run_too() -> None:
    contradictions: list[tuple[type[Settings], dict[str, Any]]] = [
        (TrainConfig, {"epochs": 1, "early_stopping_patience": 3}),
        (PreprocessConfig, {"data": "sample", "label_column": "x"}),
    ]
    for kind, values in contradictions:
        for settings in (kind, RunConfig):
            with pytest.raises(UserError):
                build(settings, values)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("settings.json", '{"epochs": 7, "max-grad-norm": 0.5, "data": "a.csv", "class_names": ["A", "B"]}'),
        ("tabs.json", '\ufeff{\n\t"epochs": 7,\n\t"max_grad_norm": 0.5,\n\t"data": "a.csv", "class_names": "A,B"\n}'),
        ("settings.yaml", "epochs: 7\nmax_grad_norm: 5e-1\ndata: a.csv\nclass_names: [A, B]\nlearning_rate:\n"),
        ("bom.yml", "\ufeffepochs: 7\nmax-grad-norm: 0.5\ndata: a.csv\nclass_names: A, B # two\n"),
    ],
)
def test_settings_come_from_a_file_and_flags_win(
    tmp_path: Path, name: str, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / name
    file.write_text(content, encoding="utf-8")
    from_file = RunConfig(epochs=7, max_grad_norm=0.5, data="a.csv", class_names=("A", "B"))
    assert accepted(["--config", str(file)], monkeypatch) == from_file
    assert accepted(["--epochs", "2", "--config", str(file)], monkeypatch) == from_file.model_copy(update={"epochs": 2})


def test_classes_named_by_numbers_in_a_file_are_names(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("data: a.csv\nclass_names: [0, 1, 2]\n", encoding="utf-8")
    assert build(RunConfig, read_file(file)).class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("epocs: 3", "settings.yaml: no setting is called 'epocs'; did you mean 'epochs'?"),
        ("batch-sizes: 3", "settings.yaml: no setting is called 'batch_sizes'; did you mean 'batch_size'?"),
        ("3: 4", "settings.yaml: no setting is called '3'"),
        ("epochs: 0", "--epochs 0: input should be greater than or equal to 1"),
        ("epochs: 2.5", "--epochs 2.5: input should be a valid integer"),
        ("data: a.csv\nclass_names: [A, true]", "--class-names True: input should be a valid string"),
        ("data: a.csv\nclass_names: ['World, home', Sports]", "--class-names 'World, home': a name must not"),
        ("data: a.csv\ntext_column: ['', x]", "--text-column '': a name must not be empty"),
        ("epochs: 1\nearly_stopping_patience: 2", "early_stopping_patience = 2 contradicts epochs = 1"),
        ("- epochs", "settings.yaml: holds a list, not settings by name, such as epochs: 3"),
        ("epochs 3", "settings.yaml: holds a str, not settings by name"),
        ("", "settings.yaml: holds nothing, not settings by name"),
        ("epochs: [1", "settings.yaml: is not valid YAML: "),
    ],
)
def test_a_wrong_file_is_refused_with_a_fix(
    tmp_path: Path, content: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(content, encoding="utf-8")
    assert expected in refusal(["--config", str(file)], capsys)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    absent, folder, torn, latin = (tmp_path / name for name in ("no.yaml", "folder", "torn.json", "latin.yaml"))
    folder.mkdir()
    torn.write_text(json.dumps({"epochs": 3})[:-1], encoding="utf-8")
    latin.write_bytes("data: Zürich.csv".encode("latin-1"))
    assert f"--config {absent}: cannot be read: No such file" in refusal(["--config", str(absent)], capsys)
    assert f"--config {folder}: cannot be read: Is a directory" in refusal(["--config", str(folder)], capsys)
    assert f"--config {torn}: is not valid JSON: " in refusal(["--config", str(torn)], capsys)
    assert f"--config {latin}: is not valid YAML: 'utf-8' codec" in refusal(["--config", str(latin)], capsys)
