"""The command `distrinews`: its table of commands, and an error on one line for each that cannot run."""

import builtins
import inspect
import sys
from collections.abc import Iterator
from importlib import import_module
from io import BytesIO, TextIOWrapper
from typing import Any

import pytest

from pipelines.cli import COMMANDS, Entry, main
from server.cli import Command


def entries(commands: dict[str, Entry], *above: str) -> Iterator[tuple[list[str], Entry]]:
    for word, entry in commands.items():
        if isinstance(entry.target, dict):
            yield from entries(entry.target, *above, word)
        else:
            yield [*above, word], entry


def refusal(words: list[str], capsys: pytest.CaptureFixture[str], *, status: int) -> str:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err.rstrip()


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_help_is_shown_on_a_terminal_of_few_characters(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", terminal := TextIOWrapper(BytesIO(), encoding=encoding))
    with pytest.raises(SystemExit, match="0"):
        main(["run", "--help"])
    terminal.seek(0)
    assert "(? 1 and ? 1,000)" in terminal.read()


@pytest.mark.parametrize(("words", "entry"), list(entries(COMMANDS)))
def test_every_command_shows_its_settings(words: list[str], entry: Entry, capsys: pytest.CaptureFixture[str]) -> None:
    module, _, name = str(entry.target).partition(":")
    command = getattr(import_module(module), name)
    assert inspect.isclass(command)
    assert issubclass(command, Command)
    assert command.__doc__
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert not stop.value.code
    assert capsys.readouterr().out.startswith(f"usage: distrinews {' '.join(words)} ")


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_without_a_command_all_are_listed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(words)
    listed = capsys.readouterr().out
    for word, entry in COMMANDS.items():
        assert f"\n  {word} " in listed
        assert entry.meaning in listed


def test_a_group_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    main(["bench"])
    listed = capsys.readouterr().out
    assert listed.startswith("usage: distrinews bench COMMAND [options]")
    assert "  scaling " in listed
    assert "  serve " not in listed


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out.startswith("distrinews 0.")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["serv"], "distrinews: error: no command is called 'serv'; did you mean serve?"),
        (["bench", "scalng", "--help"], "distrinews bench: error: no command is called 'scalng'; did you mean scaling?"),
        (["bench", "x"], "distrinews bench: error: no command is called 'x'; the commands are scaling, collectives, project"),
        (["status", "runs/a", "--jsn"], "distrinews status: error: unrecognized arguments: --jsn; did you mean --json? (--help lists all)"),
    ],
)  # fmt: skip
def test_an_unknown_word_is_one_line_with_the_nearest_right_one(
    words: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(words, capsys, status=2) == error


def test_a_command_whose_packages_are_missing_names_the_extra_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = builtins.__import__

    def without_obstore(name: str, *args: Any, **named: Any) -> Any:  # noqa: ANN401 - as the interpreter calls it
        if name.partition(".")[0] == "obstore":
            raise ModuleNotFoundError("No module named 'obstore'", name="obstore")
        return found(name, *args, **named)

    monkeypatch.delitem(sys.modules, "server.fetch", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_obstore)
    assert refusal(["fetch", "file:///model"], capsys, status=1) == (
        "distrinews fetch: error: the package obstore is not installed: pip install 'distrinews[server]'"
    )


def test_a_module_of_ours_that_is_missing_is_no_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "status", Entry("pipelines.absent:Status", "nothing", "trainer"))
    with pytest.raises(ModuleNotFoundError, match=r"pipelines\.absent"):
        main(["status"])
