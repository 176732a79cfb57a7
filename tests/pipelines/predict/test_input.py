"""The input of predict: all its rows in their places, with the columns that the model was trained on."""

import gzip
import io
import json
import os
import re
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.predict.input import find_input
from server.errors import UserError
from tests.support.data import AG_NEWS, needs_ag_news, write
from tests.support.predicting import TEXT, json_lines, run

pytestmark = pytest.mark.slow  # the module takes seconds


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_json_lines_keep_their_fields_as_they_are_and_get_the_answer(folder: Path, tmp_path: Path, ending: str) -> None:
    given = ['{"id": {"a": [1, null]}, "text": "goal\u2028é", "n": 1e999}', '{"text":"bank","more":1.50}']
    source = tmp_path / f"in.jsonl{ending}"
    with gzip.open(source, "wt", encoding="utf-8") if ending else source.open("w", encoding="utf-8") as file:
        print(*given, '{"text": "goal", "n": NaN}', sep="\n", file=file)
    run(folder, "--input", source, "--output", tmp_path / "out.jsonl", "--bad-rows", "skip", *TEXT)
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n")
    assert [line.partition(', "label"')[0] + "}" for line in lines[:2]] == given
    bad = json.loads(lines[2])
    assert (bad["label"], bad["error"]) == (None, "not valid JSON: NaN is no value of JSON; write null")
    assert list(json.loads(lines[1])) == ["text", "more", "label", "confidence", "probabilities", "truncated", "error"]


def piped(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content))))


def test_plain_lines_of_a_pipe_keep_their_places(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    content = b"\xef\xbb\xbfgoal\r\n\r\nteam \r bank\n   \nvote"
    piped(monkeypatch, content)
    run(folder, "--bad-rows", "skip")
    captured = capfd.readouterr()
    assert captured.err == ""
    rows = json_lines(captured.out)
    assert [row["text"] for row in rows] == ["goal", "", "team \r bank", "   ", "vote"]
    assert [bool(row["error"]) for row in rows] == [False, True, False, True, False]
    piped(monkeypatch, content)
    with pytest.raises(SystemExit, match="1"):
        run(folder)
    assert "standard input, line 2: empty text" in capfd.readouterr().err


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".csv.gz"])
def test_a_named_pipe_is_read_once_to_its_end(folder: Path, tmp_path: Path, ending: str) -> None:
    os.mkfifo(pipe := tmp_path / f"fed{ending}")
    lines = [f"goal {number} {'match ' * 9}team" for number in range(600)]
    content = {".txt": lines, ".jsonl": [f'{{"title": "{line}", "body": ""}}' for line in lines], ".csv.gz": ["title,body", *[f"{line}," for line in lines]]}[ending]  # fmt: skip
    fed = "\n".join(content).encode()
    writer = threading.Thread(target=pipe.write_bytes, args=(gzip.compress(fed) if "gz" in ending else fed,))
    writer.start()
    run(folder, "--input", pipe, "--output", tmp_path / "out.jsonl")
    writer.join()
    rows = json_lines((tmp_path / "out.jsonl").read_text())
    assert [row.get("title", row.get("text")) for row in rows] == lines


def read(path: Path, *, trained: tuple[str, ...] = (), chosen: tuple[str, ...] = ()) -> list[str]:
    source = find_input(str(path), "auto", chosen)
    source.text_columns = replace(source.text_columns, trained=trained)
    return [item.text or item.fault for item in source.rows()]


@pytest.mark.parametrize(
    ("name", "content", "trained", "chosen", "texts"),
    [
        ("a.csv", "text,headline\nx,goal\n", ("headline",), (), ["goal"]),
        ("a.csv", "text,headline\nx,goal\n", ("headline",), ("text",), ["x"]),
        ("a.csv", "Title;Body, all\ngoal;team\n", ("title", "body, all"), (), ["goal team"]),
        ("a.tsv", "id\ttext\n1,5\tgoal\n", (), (), ["goal"]),
        ("a.csv", "\r\n\r\ntext\r\ngoal\r\n", (), (), ["goal"]),
        ("a.csv", '"3","Shares","a bank"\n2,Goal,\n', ("2", "3"), (), ["Shares a bank", "Goal"]),
        ("a.csv", "3;a, b;c, d\n", ("2",), (), ["a, b"]),
        ("a.csv", "id,text\n3,goal\n", ("2", "3"), (), ["goal"]),
        ("a.csv", "Sports,goal\n", (), ("2",), ["goal"]),
        ("a.jsonl", '{"text": "x"}\n{"title": "goal", "text": "y"}\n', ("title", "text"), (), ["x", "goal y"]),
        ("a.jsonl", '{"text": "x"}\n{"id": 1}\n', ("2", "3"), (), ["x", "missing column: no 'text'"]),
    ],
)
def test_the_text_is_made_of_the_columns_of_the_user_or_the_model(
    tmp_path: Path, name: str, content: str, trained: tuple[str, ...], chosen: tuple[str, ...], texts: list[str]
) -> None:
    assert read(write(tmp_path / name, content), trained=trained, chosen=chosen) == texts


@pytest.mark.parametrize(
    ("name", "content", "trained", "fault"),
    [
        ("a.csv", "text,body\nx,y\n", ("headline",), "no column is called 'headline'; its columns are text, body; the model was trained on headline"),
        ("a.jsonl", '{"text": "x"}\n', ("headline",), "line 1: no column is called 'headline'"),
        ("a.jsonl", '{"text": "x"}\n', ("title", "text"), "no row has the column 'title'; the text is title, text: name other"),
        ("a.csv", "1,goal,team\n", (), "which column is the text? Name it with --text-column; its columns are 1, goal, team. If this is a row"),
        ("a.csv", "one,two,three\n1,goal,team\n", ("2", "3"), "which column is the text?"),
        ("a.csv", "text,n,n\nx,1,2\n", (), "two columns are called 'n'"),
        ("a.csv", "\n", (), "is empty"),
        ("a.csv", "t\0e\0x\0t\0", (), "is UTF-16 or no text at all"),
    ],
)  # fmt: skip
def test_an_input_without_the_columns_of_the_model_is_refused(
    tmp_path: Path, name: str, content: str, trained: tuple[str, ...], fault: str
) -> None:
    with pytest.raises(UserError, match=re.escape(fault)):
        read(write(tmp_path / name, content), trained=trained)


@needs_ag_news
def test_every_row_of_ag_news_is_read() -> None:
    assert len([text for text in read(AG_NEWS / "test.csv", trained=("2", "3")) if len(text) > 50]) > 7590
