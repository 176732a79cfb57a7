"""distrinews predict: many texts by a folder or a server, in order, each once."""

import csv
import io
import json
import subprocess
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
from pipelines.predict.input import Item, find_input
from pipelines.predict.output import provenance_file
from server.cli import run_command
from server.http.client import Client
from server.model_folder import write_manifest
from tests.conftest import DISTRINEWS
from tests.support.answering import Reply, answering, sports
from tests.support.data import AG_NEWS, needs_ag_news, write, write_csv, write_json_lines
from tests.support.model_folder import LABELS, write_model_folder, write_onnx
from tests.support.servers import serving

pytestmark = pytest.mark.slow  # the module takes seconds

if TYPE_CHECKING:
    from pipelines.predict.models import Answer

ROWS = [(f"goal {number}", f'The "team"\nwon {"match " * (number % 7)}', number) for number in range(700)]
KEY = "a-key-that-nobody-guesses"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("predict") / "model")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    with serving(folder, "--max-text-characters", "200") as (_, client):
        yield client


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("rows") / "rows.csv", ROWS, ("title", "body", "label"))


def run(model: object, *args: object) -> None:
    run_command(predict.Predict, [str(model), *map(str, args)], prog="distrinews predict")


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


def test_texts_from_the_command_line_are_answered_as_the_server_answers(
    folder: Path, client: httpx.Client, capfd: pytest.CaptureFixture[str]
) -> None:
    run(folder, "Goal! The team won the match", "market bank chip vote " * 9)
    answers = json_lines(capfd.readouterr().out)
    assert [answer["truncated"] for answer in answers] == [False, True]
    for answer in answers:
        expected = client.post("/predict", json={"text": answer.pop("text")}).json()
        assert answer.pop("probabilities") == pytest.approx(expected.pop("probabilities"), abs=1e-6)
        assert answer.pop("confidence") == pytest.approx(expected.pop("confidence"), abs=1e-6)
        assert answer == expected


def test_a_folder_and_a_server_write_the_same_file_in_the_order_of_the_rows(
    folder: Path, client: httpx.Client, table: Path, tmp_path: Path
) -> None:
    for name, model in (("folder", folder), ("server", client.base_url)):
        run(model, "--input", table, "--text-column", "title,body", "--output", tmp_path / f"{name}.csv")
    assert (tmp_path / "folder.csv").read_bytes() == (tmp_path / "server.csv").read_bytes()
    rows = records(tmp_path / "folder.csv")
    assert [(row["title"], row["body"], int(row["label"])) for row in rows] == ROWS
    assert {row["predicted_label"] for row in rows} <= set(LABELS)
    assert len({row["probability_Sports"] for row in rows}) > 5
    assert not provenance_file(tmp_path / "folder.csv").exists()
    expected = client.post("/predict", json={"text": f"{ROWS[5][0]} {ROWS[5][1].strip()}"}).json()
    assert rows[5]["predicted_label"] == expected["label"]
    assert float(rows[5]["probability_World"]) == pytest.approx(expected["probabilities"]["World"], abs=1e-6)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_json_lines_keep_their_fields_and_get_the_answer(folder: Path, tmp_path: Path, ending: str) -> None:
    given: list[dict[str, Any]] = [{"id": {"a": [1, None]}, "text": "goal\u2028é"}, {"text": "bank", "more": 1}]
    source = write_json_lines(tmp_path / f"in.jsonl{ending}", given)
    run(folder, "--input", source, "--output", tmp_path / "out.jsonl")
    rows = json_lines((tmp_path / "out.jsonl").read_text().replace("\u2028", "-"))
    assert list(rows[0]) == ["id", "text", "label", "confidence", "probabilities", "truncated"]
    assert [(row.get("id"), row.get("more")) for row in rows] == [({"a": [1, None]}, None), (None, 1)]


def test_json_lines_become_csv_when_the_output_is_called_so(folder: Path, tmp_path: Path) -> None:
    source = write_json_lines(tmp_path / "in.jsonl", [{"n": 1, "text": "goal"}, {"text": "bank", "n": None}])
    run(folder, "--input", source, "--output", tmp_path / "out.csv")
    assert [(row["n"], row["text"]) for row in records(tmp_path / "out.csv")] == [("1", "goal"), ("", "bank")]


def test_a_column_that_the_first_row_lacks_is_no_silent_loss(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_json_lines(tmp_path / "in.jsonl", [{"text": "goal"}, {"text": "bank", "n": 1}])
    output = refused(capsys, folder, "--input", source, "--output", tmp_path / "out.csv")
    assert "line 2 of the input has the column 'n'" in output


def test_the_layout_of_ag_news_is_read_as_run_reads_it(folder: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "test.csv", '"3","Shares fell","a bank"\n"2","Goal","the team"\n')
    run(folder, "--input", source, "--output", tmp_path / "out.csv")
    rows = records(tmp_path / "out.csv")
    assert [(row["class"], row["title"], row["description"]) for row in rows] == [
        ("3", "Shares fell", "a bank"),
        ("2", "Goal", "the team"),
    ]


def test_the_command_reads_a_pipe_and_writes_nothing_but_rows_to_one(folder: Path) -> None:
    texts = "".join(f"goal {number}\n\n" for number in range(300))
    done = subprocess.run(
        [DISTRINEWS, "predict", folder], input=texts, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == ""
    assert [row["text"] for row in json_lines(done.stdout)] == [f"goal {number}" for number in range(300)]


def test_predict_loads_neither_torch_nor_kfp() -> None:
    code = "import sys, pipelines.predict.command; print({'torch', 'kfp', 'fastapi', 'starlette'} & set(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == "set()\n"


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_an_output_cut_anywhere_is_resumed_to_the_same_bytes(
    folder: Path, table: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / f"out.{kind}"
    command = ("--input", table, "--text-column", "body", "--output", output)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # the process seems to end before the output is finished
        run(folder, *command)
    whole, note = output.read_bytes(), provenance_file(output).read_bytes()
    rows = whole.index(b"goal 350,") if kind == "csv" else whole.index(b'"goal 350"')
    for cut in (0, 5, len(whole) // 3, *range(rows, rows + 30, 3), len(whole) - 1, len(whole)):
        output.write_bytes(whole[:cut])
        provenance_file(output).write_bytes(note)
        capsys.readouterr()
        run(folder, *command, "--resume")
        assert output.read_bytes() == whole, cut
    assert "predict: 0 rows after the 700 that were there" in capsys.readouterr().out


def test_a_killed_process_is_resumed_with_no_row_lost_or_asked_twice(table: Path, tmp_path: Path) -> None:
    sent: list[str] = []
    slow = threading.Event()

    def answer(texts: list[str], _: BaseHTTPRequestHandler) -> Reply:
        sent.extend(texts)
        slow.wait(0.02)
        return sports(texts)

    output = tmp_path / "out.csv"
    with answering(answer) as url:
        command: list[str | Path] = [
            DISTRINEWS,
            "predict",
            url,
            "--input",
            table,
            "--text-column",
            "title",
            "--output",
            output,
            "--resume",
        ]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            while not (output.is_file() and output.stat().st_size > 2000):
                time.sleep(0.01)
            process.kill()
        there = len(records(output))
        assert 0 < there < len(ROWS)
        slow.set()
        run(*command[2:])
        assert [row["title"] for row in records(output)] == [row[0] for row in ROWS]
        assert len(sent) <= len(ROWS) + 2 * 4 * 4, "at most what was in flight is sent again"
        count = len(sent)
        run(*command[2:])
        assert len(sent) == count, "a finished output sends nothing"


def resumable(folder: Path, source: Path, output: Path) -> tuple[object, ...]:
    """Returns an output that was ended halfway, and the command that resumes it."""
    command = ("--input", source, "--output", output)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        run(folder, *command)
    output.write_bytes(b"".join(output.read_bytes().splitlines(keepends=True)[:3]))
    return (*command, "--resume")


def test_resume_refuses_an_input_that_has_changed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = write(tmp_path / "in.txt", "goal\nbank\nchip\nvote\n"), tmp_path / "out.jsonl"
    command = resumable(folder, source, output)
    write(source, "goal\nbanks\nchip\nvote\n")
    assert f"row 2 of {output} is not line 2 of the input, which has changed" in refused(capsys, folder, *command)
    write(source, "goal\nbank\n")
    assert "more rows than the input" in refused(capsys, folder, *command)
    assert len(output.read_text().splitlines()) == 3, "what was there is still there"


def test_resume_refuses_another_model_and_other_columns(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_csv(tmp_path / "in.csv", [("goal", "x")] * 4, ("text", "title"))
    command = resumable(folder, source, tmp_path / "out.csv")
    assert "text columns" in refused(capsys, folder, *command, "--text-column", "title")
    assert "other columns" in refused(capsys, folder, *command, "--bad-rows", "skip")
    other = write_model_folder(tmp_path / "other")
    write_onnx(other / "onnx" / "model_int8.onnx", seed=7)
    write_manifest(other)
    assert "was begun with sha256" in refused(capsys, other, *command)


def test_an_output_is_not_overwritten_and_a_finished_one_gets_no_more_rows(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = write(tmp_path / "in.txt", "goal\n"), tmp_path / "out.jsonl"
    run(folder, "--input", source, "--output", output)
    finished = output.read_bytes()
    assert "exists; resume it with --resume" in refused(capsys, folder, "--input", source, "--output", output)
    write(source, "goal\nbank\n")
    printed = refused(capsys, folder, "--input", source, "--output", output, "--resume")
    assert "is finished, but the input has a line 2" in printed
    assert output.read_bytes() == finished


@pytest.mark.parametrize("by", ["folder", "server"])
def test_a_bad_row_stops_the_command_with_its_line_or_is_written_with_the_reason(
    folder: Path, client: httpx.Client, tmp_path: Path, by: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = folder if by == "folder" else client.base_url
    source = write(tmp_path / "in.csv", b'text,n\ngoal,1\nbank,2\n"\x01",3\n,4\nchip\xff,5\nvote,6,7\nteam,8\n')
    output = tmp_path / "out.csv"
    printed = refused(capsys, model, "--input", source, "--output", output)
    assert f"{source}, line 4: Text should have a visible character" in printed
    assert "continue with --resume" in printed
    assert [row["text"] for row in records(output)] == ["goal", "bank"], "what came before is written"
    output.unlink()
    run(model, "--input", source, "--output", output, "--bad-rows", "skip")
    rows = records(output)
    assert [row["n"] for row in rows] == ["1", "2", "3", "4", "5", "", "8"]
    assert [bool(row["label"]) for row in rows] == [True, True, False, False, False, False, True]
    assert [row["error"].partition(":")[0] for row in rows] == [
        "", "", "Text should have a visible character", "empty text", "broken encoding", "wrong number of fields", "",
    ]  # fmt: skip
    assert "bad 4" in capsys.readouterr().out


@pytest.mark.parametrize("by", ["folder", "server"])
def test_a_text_above_the_limit_is_a_bad_row_by_a_folder_and_by_a_server(
    folder: Path, client: httpx.Client, tmp_path: Path, by: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("DISTRINEWS_MAX_TEXT_CHARACTERS", "200")
    model = folder if by == "folder" else client.base_url
    source = write(tmp_path / "in.txt", "goal\n" + "x" * 201 + "\n")
    output = refused(capsys, model, "--input", source, "--output", tmp_path / "out.jsonl")
    assert f"{source}, line 2: String should have at most 200 characters" in output


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


def test_a_key_in_the_environment_does_not_disturb_a_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DISTRINEWS_API_KEY", KEY)
    run(folder, "goal")
    captured = capfd.readouterr()
    assert len(json_lines(captured.out)) == 1
    assert KEY not in captured.out + captured.err


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("m", "text", "--input", "in.txt"), "leave it out, or the texts"),
        (("m", "--input", "in.xlsx"), "name its --input-format"),
        (("m", "--input", "none.csv"), "--input none.csv: no such file"),
        (("m", "text", "--resume"), "--resume: name the file with --output"),
        (("m", "text", "--output", "x.txt"), "end its name in .csv or .jsonl"),
        (("http://x", "text", "--workers", "1"), "no meaning for a server"),
        (("m", "--inptu", "x"), "did you mean --input?"),
    ],
)
def test_a_wrong_command_is_answered_with_the_right_one(
    args: tuple[str, ...], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert named in refused(capsys, *args, status=2)


def test_a_folder_without_a_model_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"{tmp_path} has no folder onnx" in refused(capsys, tmp_path, "text")


def test_a_server_of_another_kind_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(health=lambda: (200, b"<html>Welcome</html>", {})) as url:
        output = refused(capsys, url, "text")
    assert "/health is not answered by a DistriNews server of this version: HTTP 200: <html>Welcome</html>" in output
    assert not list(tmp_path.iterdir())


def test_a_text_beside_an_address_is_classified_as_helm_test_does(capfd: pytest.CaptureFixture[str]) -> None:
    with answering() as url:
        run(url, "Late goal wins the cup")
    assert json_lines(capfd.readouterr().out)[0]["label"] == "Sports"


@needs_ag_news
def test_every_row_of_ag_news_is_read() -> None:
    source = find_input(str(AG_NEWS / "test.csv"), "auto", ())
    assert sum(not row.fault for row in source.rows()) == 7600
