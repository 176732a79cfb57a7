"""distrinews predict: many texts by a folder or a server, in order, each once."""

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from pipelines.predict import command as predict
from pipelines.predict.input import Item
from pipelines.predict.output import OutputFormat, provenance_file
from server.http.client import Client
from tests.support.answering import Reply, answering, sports
from tests.support.data import write
from tests.support.model_folder import LABELS
from tests.support.predicting import ROWS, TEXT, json_lines, records, refused, run

pytestmark = pytest.mark.slow  # the module takes seconds

if TYPE_CHECKING:
    from pipelines.predict.models import Answer

KEY = "a-key-that-nobody-guesses"


def test_texts_from_the_command_line_are_answered_as_the_server_answers(
    folder: Path, client: httpx.Client, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTRINEWS_API_KEY", KEY)  # disturbs no folder
    for model in (folder, client.base_url):
        run(model, "Goal! The team won the match", "market bank chip vote " * 9)
    answers = json_lines(capfd.readouterr().out)
    assert [answer["truncated"] for answer in answers] == [False, True] * 2
    for answer in answers:
        expected = client.post("/predict", json={"text": answer.pop("text")}).json()
        assert answer.pop("probabilities") == pytest.approx(expected.pop("probabilities"), abs=1e-6)
        assert answer.pop("confidence") == pytest.approx(expected.pop("confidence"), abs=1e-6)
        assert answer == expected


def test_a_folder_and_a_server_write_the_same_file_in_the_order_of_the_rows(
    folder: Path, client: httpx.Client, table: Path, tmp_path: Path
) -> None:
    for name, model in (("folder", folder), ("server", client.base_url)):
        run(model, "--input", table, "--output", tmp_path / f"{name}.csv")  # from the columns of the model
    assert (tmp_path / "folder.csv").read_bytes() == (tmp_path / "server.csv").read_bytes()
    rows = records(tmp_path / "folder.csv")
    assert [(row["title"], row["body"], int(row["label"])) for row in rows] == ROWS
    assert {row["predicted_label"] for row in rows} <= set(LABELS)
    assert len({row["probability_Sports"] for row in rows}) > 5
    assert not provenance_file(tmp_path / "folder.csv").exists()
    expected = client.post("/predict", json={"text": f"{ROWS[5][0]} {ROWS[5][1].strip()}"}).json()
    assert rows[5]["predicted_label"] == expected["label"]
    assert float(rows[5]["probability_World"]) == pytest.approx(expected["probabilities"]["World"], abs=1e-6)


def test_a_server_that_stays_away_is_given_up_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Client, "_sleep", lambda *_: None)
    source = write(tmp_path / "in.txt", "a\n")
    with answering(lambda *_: (503, {"detail": "the server stops"}, {})) as url, pytest.raises(SystemExit):
        run(url, "--input", source, "--output", tmp_path / "out.jsonl")
    output = capsys.readouterr().err.splitlines()
    assert "/predict/batch: HTTP 503: the server stops; next try in " in output[0]
    assert "/predict/batch: HTTP 503: the server stops, for 60 s; the rows so far are in" in output[-1]
    assert len(output) < 10


def test_rows_stay_in_order_with_no_more_than_so_many_requests_at_once(tmp_path: Path) -> None:
    now, most, lock = 0, 0, threading.Lock()

    def answer(texts: list[str], _: BaseHTTPRequestHandler) -> Reply:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.06 if texts[0].endswith("0") else 0.01)  # the first of all comes last
        with lock:
            now -= 1
        return sports(texts)

    texts = [str(number) for number in range(60)]
    with answering(answer) as url:
        run(
            url,
            "--input",
            write(tmp_path / "in.txt", "\n".join(texts)),
            "--output",
            tmp_path / "o.jsonl",
            "--in-flight",
            3,
        )
    assert [row["text"] for row in json_lines((tmp_path / "o.jsonl").read_text())] == texts
    assert most == 3


def test_of_many_rows_only_a_few_are_read_ahead() -> None:
    class Immediate:
        labels: Sequence[str] = ()
        text_columns: Sequence[str] = ()
        identity: dict[str, Any] = {}  # noqa: RUF012 - as the protocol has it
        title, texts_at_once, requests_at_once = "", 4, 3

        def submit(self, texts: Sequence[str]) -> "Future[list[Answer]]":
            future: Future[list[Answer]] = Future()
            future.set_result(["no"] * len(texts))
            return future

        def close(self) -> None: ...

    read = 0

    def rows() -> Iterator[Item]:
        nonlocal read
        for read in range(1, 1001):
            yield Item(read, "text", {})

    for number, chunk in enumerate(predict.ordered_answers(rows(), Immediate()), start=1):
        assert len(chunk) == 4
        assert read <= 4 * (number + 3)
    assert read == 1000


def test_the_key_comes_from_a_variable_and_shows_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(texts: list[str], handler: BaseHTTPRequestHandler) -> Reply:
        wanted = handler.headers["X-API-Key"] == KEY
        return sports(texts) if wanted else (401, {"detail": "unknown key"}, {})

    source, output = write(tmp_path / "in.txt", "a\n"), tmp_path / "out.jsonl"
    with answering(answer) as url:
        assert "got none: set DISTRINEWS_API_KEY" in refused(capsys, url, "--input", source, "--output", output)
        monkeypatch.setenv("DISTRINEWS_API_KEY", KEY[::-1])
        printed = refused(capsys, url, "--input", source, "--output", output, "--resume")
        assert "refuses this one" in printed
        assert KEY[::-1] not in printed
        monkeypatch.setenv("DISTRINEWS_API_KEY", KEY)
        run(url, "--input", source, "--output", output, "--resume")
    assert len(json_lines(output.read_text())) == 1


def test_a_server_of_another_kind_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(health=lambda: (200, b"<html>Welcome</html>", {})) as url:
        output = refused(capsys, url, "text")
    assert "/health is not answered by a DistriNews server of this version: HTTP 200: <html>Welcome</html>" in output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("by", ["folder", "server"])
def test_a_bad_row_stops_the_command_with_its_line_or_is_written_with_the_reason(
    folder: Path, client: httpx.Client, tmp_path: Path, by: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("DISTRINEWS_MAX_TEXT_CHARACTERS", "200")
    model, long = folder if by == "folder" else client.base_url, b"x" * 201
    source = write(
        tmp_path / "in.csv", b'text,n\ngoal,1\nbank,2\n"\x01",3\n,4\nchip\xff,5\nvote,6,7\nteam,8\n' + long + b",9\n"
    )
    output = tmp_path / "out.csv"
    printed = refused(capsys, model, "--input", source, "--output", output, *TEXT)
    assert f"{source}, line 4: Text should have a visible character" in printed
    assert "continue with --resume" in printed
    assert [row["text"] for row in records(output)] == ["goal", "bank"], "what came before is written"
    output.unlink()
    run(model, "--input", source, "--output", output, "--bad-rows", "skip", *TEXT)
    rows = records(output)
    assert [row["n"] for row in rows] == ["1", "2", "3", "4", "5", "", "8", "9"]
    assert [bool(row["label"]) for row in rows] == [not row["error"] for row in rows]
    assert [row["error"].partition(":")[0] for row in rows] == [
        "", "", "Text should have a visible character", "empty text", "broken encoding", "wrong number of fields", "",
        "String should have at most 200 characters",
    ]  # fmt: skip
    assert "bad 5" in capsys.readouterr().out


def engine_threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith(("compute", "tokenize"))]


@pytest.mark.parametrize("end", ["keyboard", "full disk"])
def test_a_command_that_ends_early_says_so_and_leaves_no_thread_in_the_engine(
    folder: Path, tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> bytes:
        assert engine_threads()
        raise KeyboardInterrupt

    command = (
        "--input",
        write(tmp_path / "in.txt", "goal match team\n" * 1500),
        "--output-format",
        "jsonl",
        "--output",
    )
    if end == "keyboard":
        monkeypatch.setattr(OutputFormat, "answer_part", interrupt)
        printed = refused(capsys, folder, *command, tmp_path / "out", status=130)
        assert f"stopped by the keyboard; the rows so far are in {tmp_path / 'out'}: continue with --resume" in printed
    else:
        printed = refused(capsys, folder, *command, "/dev/full")
        assert "--output /dev/full: cannot be written: No space left on device" in printed
    assert engine_threads() == []


@pytest.mark.parametrize(
    ("args", "named", "status"),
    [
        (("m", "text", "--input", "in.txt"), "leave it out, or the texts", 2),
        (("m", "--input", "in.parquet"), "name its --input-format; known endings are .csv, .tsv", 2),
        (("m", "--input", "none.csv"), "--input none.csv: no such file", 2),
        (("m", "--input", "."), "--input .: is a folder; name one of its files", 2),
        (("m", "text", "--resume"), "--resume: name the file with --output", 2),
        (("m", "text", "--output", "x.txt"), "end its name in .csv or .jsonl", 2),
        (("http://x", "text", "--workers", "1"), "no meaning for a server", 2),
        (("m", "--inptu", "x"), "did you mean --input?", 2),
        (("tests", "--engine", "onnx", "text"), "tests has no folder onnx", 1),
    ],
)
def test_a_wrong_command_is_answered_with_the_right_one(
    args: tuple[str, ...], named: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert named in refused(capsys, *args, status=status)


def test_closed_streams_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert "nothing to classify: give texts" in refused(capsys, folder, status=2)
    monkeypatch.setattr(sys, "stdout", None)
    assert "standard output is closed: name a file" in refused(capsys, folder, "text")
