"""Progress: a line now and then, never a flood."""

import itertools

import pytest

from trainer.monitoring import console as progress
from trainer.monitoring.console import Progress, print0


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves on by a second each time it is read."""
    clock = itertools.count()
    monkeypatch.setattr("trainer.monitoring.console.time.monotonic", lambda: float(next(clock)))
    monkeypatch.delenv(progress.TERMINAL_VARIABLE, raising=False)


@pytest.mark.usefixtures("ticking")
def test_off_a_terminal_a_line_comes_every_few_seconds_with_share_rate_and_eta(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Progress("train: epoch 1/1", 100, "steps") as bar:
        for step in range(100):
            bar.note(loss=f"{1 / (step + 1):.2f}")
            bar.advance()
    lines = capsys.readouterr().out.splitlines()
    assert 10 < len(lines) < 40
    assert lines[0].startswith("train: epoch 1/1: 5/100 steps (5%), ETA 2:13, 0.7 steps/s")
    assert lines[0].endswith("loss 0.20")


@pytest.mark.usefixtures("ticking")
def test_a_count_never_passes_its_total(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("work", 10, "rows") as bar:
        for _ in range(12):
            bar.advance(4)
    assert "10/10 rows (100%)" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.usefixtures("ticking")
def test_all_ranks_but_the_first_are_silent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    print0("work: done")
    with Progress("work", 100, "rows") as bar:
        for _ in range(100):
            bar.advance()
    assert capsys.readouterr() == ("", "")


def test_a_terminal_that_cannot_be_opened_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(progress.TERMINAL_VARIABLE, "/nowhere/tty")
    with Progress("work", 1, "rows"):
        pass
    assert "no progress bars: DISTRINEWS_TERMINAL=/nowhere/tty cannot be opened" in capsys.readouterr().out
