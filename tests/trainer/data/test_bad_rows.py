"""Rows and files that cannot be used: each has its file, line and reason."""

from pathlib import Path

import pytest

from tests.support.data import write
from tests.support.tables import FORMATS, read, refusal, the_bad_row, write_table
from trainer.data.columns import BadRow, Row

TWO_LINES = 'text,label\n"over\ntwo lines",x\n"and\n\nfour\nlines",y\n'  # the next row is in line 8


@pytest.mark.parametrize(
    ("source", "reason", "detail"),
    [
        ("a\n", "wrong number of fields", "1 fields where the header has 2"),
        ("a,x,more\n", "wrong number of fields", "3 fields where the header has 2"),
        (",x\n", "empty text", "no text in the text columns"),
        ('" \n ",x\n', "empty text", "no text in the text columns"),
        ("a,\n", "no class", "the class is empty"),
        (b"caf\xe9 noir,x\n", "broken encoding", r"not UTF-8 in 'caf\udce9 noir x'"),
        (b"ok," + b"\xff" + b"\n", "broken encoding", r"not UTF-8 in 'ok \udcff'"),
        (b"long " * 99 + b"\xe9 here,x\n", "broken encoding", r"\udce9 here x'"),
        ('"a"b,x\n', "broken quotes", "',' expected after '\"'"),
        ('"a\nb" c,x\n', "broken quotes", "',' expected after '\"'; lines 8 to 9 were read as one row"),
    ],
)
def test_a_bad_row_of_a_csv_file_has_its_line_and_reason(
    tmp_path: Path, source: str | bytes, reason: str, detail: str
) -> None:
    packed = source.encode() if isinstance(source, str) else source
    path = write(tmp_path / "rows.csv", TWO_LINES.encode() + packed + b"good,x\n")
    row = the_bad_row(path)
    assert (row.reason, row.line) == (reason, 8)
    assert row.detail.endswith(detail)
    assert [row.text for row in read(path) if isinstance(row, Row)][-1] == "good"


def test_an_open_quote_names_the_lines_that_it_swallowed(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", TWO_LINES + '"open,x\nb,y\nc,x\n')
    assert the_bad_row(path) == BadRow("broken quotes", "unexpected end of data; lines 8 to 10 were read as one row", 8)


def test_a_field_of_many_megabytes_is_one_bad_row(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "text,label\na,x\n" + "z" * (1 << 24) + "z,x\nb,y\n")
    row = the_bad_row(path)
    assert (row.reason, row.line) == ("huge field", 3)
    assert read(path)[-1] == Row("b", "y", 4)


@pytest.mark.parametrize(
    ("source", "reason", "detail"),
    [
        (",a,b", "no class", "the class is empty"),
        ("2,a", "wrong number of fields", "2 fields where the first row has 3"),
        ("2,a,b,c", "wrong number of fields", "4 fields where the first row has 3"),
        ("2, ,", "empty text", "no text"),
        ('2,"a" b,c', "broken quotes", "expected after"),
    ],
)
def test_a_bad_row_without_a_header_has_its_line_and_reason(
    tmp_path: Path, source: str, reason: str, detail: str
) -> None:
    path = write(tmp_path / "rows.csv", f'1,"a\nb",c\n\n{source}\n3,d,e\n')
    row = the_bad_row(path, label="1", text=("2", "3"))
    assert (row.reason, row.line) == (reason, 4)
    assert detail in row.detail
    assert read(path, label="1", text=("2", "3"))[-1] == Row("d e", "3", 5)


@pytest.mark.parametrize(
    ("source", "reason", "detail"),
    [
        (b'{"text": "a", "label": "x"', "not valid JSON", "Expecting ',' delimiter at character 27; one object a line"),
        (b"plain words", "not valid JSON", "Expecting value at character 1"),
        (b'["a", "x"]', "not valid JSON", "list where an object is expected; one object a line"),
        (b"3", "not valid JSON", "int where an object is expected"),
        (b'{"text": "a", "label": ' + b"9" * 5000 + b"}", "not valid JSON", "limit"),
        (b"[" * 100_000, "not valid JSON", "recursion"),
        (b'{"text": "a"}', "missing column", "no 'label'"),
        (b'{"label": "x"}', "missing column", "no 'text'"),
        (b'{"text": 5, "label": "x"}', "text is no string", "'text' is 5"),
        (b'{"text": ["a"], "label": "x"}', "text is no string", "'text' is ['a']"),
        (b'{"text": null, "label": "x"}', "empty text", "no text"),
        (b'{"text": " ", "label": "x"}', "empty text", "no text"),
        (b'{"text": "a", "label": null}', "no class", "the class is empty"),
        (b'{"text": "a", "label": NaN}', "no class", "the class is empty"),
        (b'{"text": "a", "label": ["x"]}', "class is no name", "'label' is ['x'], not a name or a number"),
        (b'{"text": "caf\xe9", "label": "x"}', "broken encoding", r"not UTF-8 in 'caf\udce9 x'"),
        (b'{"text": "half \\ud83d", "label": "x"}', "broken encoding", r"not UTF-8 in 'half \ud83d x'"),
    ],
)
def test_a_bad_row_of_json_lines_has_its_line_and_reason(
    tmp_path: Path, source: bytes, reason: str, detail: str
) -> None:
    good = b'{"text": "a", "label": "x"}\n'
    path = write(tmp_path / "rows.jsonl", good + b"\n" + source + b"\n" + good)
    row = the_bad_row(path)
    assert (row.reason, row.line) == (reason, 3)
    assert detail in row.detail
    assert read(path)[-1] == Row("a", "x", 4)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("rows.csv", "", ", line 1: empty file: expected a header line, or rows of class and text"),
        ("rows.csv.gz", "\n\n", ", line 1: empty file: "),
        ("rows.jsonl", "\n \n", ": has no rows; expected one JSON object a line"),
        ("rows.parquet", "", ": is no Parquet file, or a damaged one: "),
        ("rows.parquet", "text,label\n", ": is no Parquet file, or a damaged one: "),
        (
            "rows.csv",
            "I like it,good\nI do not,bad\n",
            ": which column is the text? Name it with --text-column; its columns are I like it, good. If this is a row and no header, ",
        ),
        (
            "rows.csv",
            "1,a b,c\n2,d e,f\n",
            ": has no header, and its rows do not show which column is the class and which the text; give their numbers, ",
        ),
        (
            "rows.csv",
            "text,kind\na,x\n",
            ": which column is the class? Name it with --label-column; its columns are text, kind",
        ),
        (
            "rows.csv",
            "body;kind\na;x\n",
            ": which column is the text? Name it with --text-column; its columns are body, kind. If this is",
        ),
        ("rows.jsonl", '\n{"text": "a"}\n', ": which column is the class? Name it with --label-column"),
        ("rows.csv", "text,label,text\n", ": 2 columns are called 'text'; rename all but one"),
        ("rows.csv", '\n"text"s,label\n', ", line 2: broken quotes: "),
        ("rows.csv", "text,label\na,x\n".encode("utf-16"), ": is UTF-16 or no text at all; save it as UTF-8"),
        ("rows.csv", "text,label\na,x\n".encode("utf-16-le"), ": is UTF-16 or no text at all"),
        ("rows.csv.xz", "text,label\na,x\n".encode("utf-16"), ": is UTF-16 or no text at all"),
        ("rows.jsonl.gz", '{"text": "a"}\n'.encode("utf-16-be"), ": is UTF-16 or no text at all"),
        (
            "rows.txt",
            "text\tlabel\n",
            ": unknown kind of file; known are .csv, .tsv, .jsonl, .json, .parquet, each also with .gz or .xz",
        ),
        ("rows", "text,label\n", ": unknown kind of file"),
        ("rows.gz", "text,label\n", ": unknown kind of file"),
    ],
)
def test_a_file_without_a_table_is_refused_with_a_fix(
    tmp_path: Path, name: str, content: str | bytes, expected: str
) -> None:
    assert refusal(write(tmp_path / name, content)).startswith(expected)


@pytest.mark.parametrize("ending", FORMATS)
def test_a_column_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path, ending: str) -> None:
    path = write_table(tmp_path / f"rows{ending}", {"headline": ["a"], "label": ["x"]})
    assert "no column is called 'titel'; its columns are headline, label" in refusal(path, text=("titel",))
    assert "no column is called 'kind'; its columns are headline, label" in refusal(path, label="kind")
    path = write(tmp_path / "numbers.csv", "1,a b,c\n2,d e,f\n")
    assert "there is no column 4; its rows have 3 fields, without a header" in refusal(path, label="1", text=("4",))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("ending", [".gz", ".xz"])
def test_a_damaged_compressed_file_is_refused(tmp_path: Path, kind: str, ending: str) -> None:
    rows = {"text": [f"text {number**5}" for number in range(5000)], "label": ["x", "y"] * 2500}
    path = write_table(tmp_path / f"rows.{kind}{ending}", rows)
    packed = path.read_bytes()
    path.write_bytes(packed[: len(packed) // 2])
    assert refusal(path).startswith(": is damaged, it does not decompress to its end: ")
    path.write_bytes(packed[: len(packed) // 2] + bytes(20) + packed[len(packed) // 2 + 20 :])
    assert refusal(path).startswith(": is damaged, ")
    path.write_bytes(packed[:12] + b"\xff" * 20 + packed[32:])
    assert refusal(path).startswith(": is damaged, ")
    path.write_bytes(b"text,label\na,x\n")
    assert refusal(path).startswith(": is damaged, ")
