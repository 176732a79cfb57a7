"""Settings classes as commands: help, flags, files, variables, and one line for each fault."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from server.cli import Command, Environment, Names, Settings, Variables, Words, as_flags, build, parse, run_command
from server.errors import UserError


class Job(Settings):
    """Settings of a job."""

    nodes: int = Field(default=1, ge=1, le=1000)
    """Pods that train together."""

    queue: str | None = None
    """Queue of the job."""


class Common(Settings):
    """Settings of every command."""

    rate: float | None = Field(default=None, gt=0, lt=1)
    """Share of 100 % of the rows. By default all."""


class Work(Command, Common):
    """Do the work."""

    place: CliPositionalArg[Path]
    """Folder to work in."""

    epochs: int = Field(default=3, ge=-5, le=1000)
    """Passes over the rows."""

    names: Names = ()
    """Names, separated by commas."""

    kind: Literal["fast", "exact"] = "fast"
    """Kind of work."""

    elastic: bool = False
    """Continue without the pods that are lost."""

    shape: Literal["round", "square"] | None = None
    """Shape. By default any."""

    from_step: str = Field(default="", alias="from")
    """Step to begin with."""

    job: Job = Job()
    """The job."""

    config: Path | None = None
    """File with settings."""

    def run(self) -> int | None:
        if self.kind == "exact":
            raise UserError(f"{self.place}: cannot be exact")
        print(f"worked {self.epochs} epochs")
        return 7 if self.elastic else None


class FromVariables(Settings):
    model_config = SettingsConfigDict(env_prefix="WORK_")
    sources = (Variables,)

    epochs: int = Field(default=3, ge=1)
    """Passes over the rows."""

    rows: int = 5
    """Rows."""

    names: Names = ()
    """Names."""

    config: Path | None = None
    """File with settings."""

    @classmethod
    def origin(cls, name: str) -> str:
        return f"WORK_{name.upper()}"


def read(*args: str) -> Work:
    return parse(Work, ["here", *args], prog="work")


def refusal(args: Sequence[str], capsys: pytest.CaptureFixture[str], *, status: int = 2) -> str:
    """The error of a command without its program's name; it is one line."""
    with pytest.raises(SystemExit) as stop:
        run_command(Work, args, prog="work")
    assert stop.value.code == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err.removeprefix("work: error: ").rstrip()


def test_help_has_meaning_range_and_default_of_each_setting(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        parse(Work, ["--help"], prog="work")
    assert not stop.value.code
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in (
        "Do the work.",
        "PLACE Folder to work in.",
        "--epochs EPOCHS Passes over the rows. (≥ -5 and ≤ 1,000; default 3)",
        "--names NAMES Names, separated by commas.",
        "--kind {fast,exact} Kind of work. (default fast)",
        "Continue without the pods that are lost. (default False)",
        "--shape {round,square}",
        "Shape. By default any.",
        "--from FROM Step to begin with.",
        "--config PATH File with settings.",
        "Settings of every command:",
        "--rate RATE Share of 100 % of the rows. By default all. (> 0 and < 1)",
        "--job.nodes NODES Pods that train together. (≥ 1 and ≤ 1,000; default 1)",
    ):
        assert any(found.endswith(line) for found in lines), line
    assert not [line for line in lines if line.startswith("--job ")], "a group is set by its own flags"


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["here", "--epocs", "3"], "unrecognized arguments: --epocs 3; did you mean --epochs? (--help lists all)"),
        (["here", "--job.nods=3"], "unrecognized arguments: --job.nods=3; did you mean --job.nodes? (--help lists all)"),
        (["here", "--form", "x"], "unrecognized arguments: --form x; did you mean --from? (--help lists all)"),
        (["here", "--epoch", "3"], "unrecognized arguments: --epoch 3; did you mean --epochs? (--help lists all)"),
        (["--epochs", "3"], "the following arguments are required: PLACE (--help lists all)"),
        (["here", "--epochs"], "argument --epochs: expected one argument (--help lists all)"),
        (["here", "--epochs", "many"], "--epochs 'many': input should be a valid integer, unable to parse string as an integer"),
        (["here", "--epochs", "1001"], "--epochs '1001': input should be less than or equal to 1000"),
        (["here", "--rate=-1"], "--rate '-1': input should be greater than 0"),
        (["here", "--rate", "nan"], "--rate 'nan': input should be a finite number"),
        (["here", "--kind", "best"], "--kind 'best': input should be 'fast' or 'exact'"),
        (["here", "--job.nodes", "0"], "--job.nodes '0': input should be greater than or equal to 1"),
        (["here", "--elastic=maybe"], "argument --elastic/--no-elastic: ignored explicit argument 'maybe'; a switch has no value: write --name or --no-name (--help lists all)"),
        (["here", "--elastic", "true"], "unrecognized arguments: true; a switch has no value: write --name or --no-name (--help lists all)"),
    ],
)  # fmt: skip
def test_a_wrong_flag_is_one_line_with_the_nearest_right_one(
    args: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(args, capsys) == error


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("epocs: 3", "--config {file}: no setting is called 'epocs'; did you mean 'epochs'?"),
        ("job: {nods: 3}", "--config {file}: no setting is called 'job.nods'; did you mean 'job.nodes'?"),
        ("epochs: 2000", "--config {file}: --epochs 2000: input should be less than or equal to 1000"),
        ("job: {nodes: 0}", "--config {file}: --job.nodes 0: input should be greater than or equal to 1"),
        ("kind: best", "--config {file}: --kind 'best': input should be 'fast' or 'exact'"),
    ],
)
def test_a_wrong_file_is_one_line_with_the_nearest_right_name(
    content: str, error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(content, encoding="utf-8")
    assert refusal(["here", "--config", str(file)], capsys) == error.format(file=file)
    wrong_flag = "--epochs '3000': input should be less than or equal to 1000"
    file.write_text("epochs: 2000", encoding="utf-8")
    assert refusal(["here", "--epochs", "3000", "--config", str(file)], capsys) == wrong_flag


def test_flags_win_over_the_file_in_groups_too(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("epochs: 9\nnames: [a, b]\nfrom: train\njob: {nodes: 2, queue: gpus}\n", encoding="utf-8")
    settings = read("--epochs", "4", "--job.nodes", "3", "--config", str(file))
    assert (settings.epochs, settings.names, settings.from_step) == (4, ("a", "b"), "train")
    assert settings.job == Job(nodes=3, queue="gpus")


def test_flags_win_over_the_file_and_the_file_over_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "settings.json"
    file.write_text('{"rows": 2, "epochs": 2}', encoding="utf-8")
    for name in ("WORK_EPOCHS", "WORK_ROWS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WORK_NAMES", 'a,[b,"c"')
    settings = parse(FromVariables, ["--epochs", "3", "--config", str(file)], prog="work")
    assert (settings.epochs, settings.rows, settings.names) == (3, 2, ("a", "[b", '"c"'))
    assert parse(FromVariables, [], prog="work").epochs == 1


def test_the_error_of_a_variable_names_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORK_EPOCHS", "0")
    for args, origin in (([], "WORK_EPOCHS"), (["--epochs", "0"], "--epochs")):
        with pytest.raises(SystemExit):
            parse(FromVariables, args, prog="work")
        assert capsys.readouterr().err.startswith(f"work: error: {origin} '0': input should be greater")


def test_no_variable_leaks_into_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("epochs", "EPOCHS", "work_epochs", "Work_Epochs", "job", "JOB__NODES", "nodes"):
        monkeypatch.setenv(name, "9")
    assert read().epochs == 3
    assert Job().nodes == build(Job, {}).nodes == 1
    assert parse(FromVariables, [], prog="work").epochs == 3


def test_settings_from_variables_alone_take_capitals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Credentials(Environment):
        model_config = SettingsConfigDict(env_prefix="WORK_")

        key: str = ""

    monkeypatch.setenv("work_key", "small")
    assert Credentials().key == ""
    monkeypatch.setenv("WORK_KEY", "capital")
    assert Credentials().key == "capital"


def test_values_arrive_as_they_are_typed() -> None:
    settings = read("--names", 'x"y,[a,b],None', "--names=-dash", "--epochs=-1", "--from", "None", "--job.queue=[q")
    assert settings.names == ('x"y', "[a", "b]", "None", "-dash")
    assert (settings.epochs, settings.from_step, settings.job.queue) == (-1, "None", "[q")
    assert read("--epochs", "-2").epochs == -2


def test_words_without_a_flag_arrive_as_they_are_typed() -> None:
    class Classify(Settings):
        texts: CliPositionalArg[Words] = ()
        """Texts."""
        engine: str = "auto"
        """Engine."""

    assert parse(Classify, ["one", "--engine", "onnx", "two"], prog="classify").texts == ("one", "two")
    words = ["Goal, late", '"quoted"', "[list]", "", "100 %25", "{a}", " spaces ", "None", "Zürich"]
    assert parse(Classify, words, prog="classify").texts == tuple(words)
    assert parse(Classify, [], prog="classify").texts == ()


@pytest.mark.parametrize("seed", range(20))
def test_settings_written_as_flags_and_read_again_are_the_same(seed: int) -> None:
    draw = random.Random(seed)
    texts = ["plain", "two words", "-dash", "a=b", "--epochs=9", "Ünï", 'x"y', "[a", "100%", "None"]
    values = {
        "place": "here", "epochs": draw.randint(-5, 1000), "names": tuple(draw.sample(texts, draw.randint(0, 4))),
        "rate": draw.choice([None, draw.uniform(0.01, 0.99)]), "elastic": draw.random() < 0.5, "from": draw.choice(texts),
        "job": Job(nodes=draw.randint(1, 1000), queue=draw.choice([None, *texts])),
    }  # fmt: skip
    settings = build(Work, values)
    flags = [flag for flag in as_flags(settings) if not flag.startswith("--place=")]
    assert read(*flags) == settings


def test_a_command_runs_and_its_status_is_that_of_its_work(capsys: pytest.CaptureFixture[str]) -> None:
    run_command(Work, ["here", "--epochs", "4"], prog="work")
    assert capsys.readouterr().out == "worked 4 epochs\n"
    with pytest.raises(SystemExit) as stop:
        run_command(Work, ["here", "--elastic"], prog="work")
    assert stop.value.code == 7
    capsys.readouterr()
    assert refusal(["here", "--kind", "exact"], capsys, status=1) == "here: cannot be exact"


@pytest.mark.parametrize("buffering", [[], ["-u"]])
def test_a_reader_that_left_ends_a_command_without_a_traceback(buffering: list[str]) -> None:
    command = [sys.executable, *buffering, "-c", "from tests.server.test_cli import Work, run_command; run_command(Work, ['here'], prog='work')"]  # fmt: skip
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_a_fault_inside_the_work_is_no_wrong_flag() -> None:
    class Broken(Command):
        """Fails."""

        def run(self) -> None:
            Job(nodes=0)

    with pytest.raises(ValueError, match="nodes"):
        run_command(Broken, [], prog="broken")
