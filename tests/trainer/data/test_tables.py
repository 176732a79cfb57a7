"""Rows out of files: what is read, and that each row that cannot be used is named with its line and reason."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from server.errors import UserError
from tests.support.data import AG_NEWS, needs_ag_news, write, write_csv, write_json_lines, write_parquet
from trainer.data.tables import AG_NEWS_CLASSES, BadRow, Columns, Row, read_table, table_classes, table_format

ENDINGS = ["", ".gz", ".xz"]
FORMATS = [f".{kind}{ending}" for kind in ("csv", "jsonl", "json", "parquet") for ending in ENDINGS]


def read(path: Path, **said: Any) -> list[Row | BadRow]:  # noqa: ANN401 - as Columns takes it
    return list(read_table(path, Columns(**said)))


def found(path: Path, **said: Any) -> list[tuple[str, str]]:  # noqa: ANN401 - as Columns takes it
    """(text, class) of rows that must all be good."""
    rows = read(path, **said)
    assert all(isinstance(row, Row) for row in rows), rows
    return [(row.text, row.label) for row in rows if isinstance(row, Row)]


def bad(path: Path, **said: Any) -> list[BadRow]:  # noqa: ANN401 - as Columns takes it
    return [row for row in read(path, **said) if isinstance(row, BadRow)]


def the_bad_row(path: Path, **said: Any) -> BadRow:  # noqa: ANN401 - as Columns takes it
    (row,) = bad(path, **said)
    return row


def refusal(path: Path, **said: Any) -> str:  # noqa: ANN401 - as Columns takes it
    """Why the whole file is refused."""
    with pytest.raises(UserError) as refused:
        read(path, **said)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)
    return str(refused.value).removeprefix(str(path))


def write_table(path: Path, columns: dict[str, list[Any]]) -> Path:
    """The same table as a file of any kind."""
    if ".parquet" in path.name:
        return write_parquet(path, columns)
    rows = list(zip(*columns.values(), strict=True))
    if ".json" in path.name:
        return write_json_lines(path, [dict(zip(columns, row, strict=True)) for row in rows])
    return write_csv(path, rows, header=list(columns))


# What is read


@pytest.mark.parametrize("ending", ENDINGS)
def test_rows_in_the_ag_news_layout_have_the_names_of_its_classes(tmp_path: Path, ending: str) -> None:
    rows = [(3, "Shares rise", "A good day."), (1, "", "Only a description. "), ("4", "A chip, small", 'It is "new".')]
    path = write_csv(tmp_path / f"train.csv{ending}", rows, header=())
    assert read(path) == [
        Row("Shares rise A good day.", "Business", 1),
        Row("Only a description.", "World", 2),
        Row('A chip, small It is "new".', "Sci/Tech", 3),
    ]
    assert table_classes(path, Columns()) == AG_NEWS_CLASSES


def test_numbered_classes_may_have_other_names(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "train.csv", [(2, "a", "b"), (5, "c", "d")], header=())
    names = ("one", "two", "three", "four", "five")
    assert found(path, numbered=names) == found(path, classes=names) == [("a b", "two"), ("c d", "five")]
    assert table_classes(path, Columns(numbered=names)) == names


@pytest.mark.parametrize("ending", FORMATS)
def test_named_columns_are_read_alike_in_every_format(tmp_path: Path, ending: str) -> None:
    columns = {
        "id": ["1", "2"],
        "headline": [" Grüße, 世界 🌍 ", 'two\nlines, "quoted"'],
        "body": ["x", ""],
        "kind": ["yes", "no"],
    }
    path = write_table(tmp_path / f"rows{ending}", columns)
    assert found(path, text=("body", "headline"), label="kind") == [
        ("x Grüße, 世界 🌍", "yes"),
        ('two\nlines, "quoted"', "no"),
    ]


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize(
    ("text", "label"),
    [
        (["text"], "label"),
        (["title", "description"], "class"),
        (["Title", "Description"], "Class Index"),
        (["TEXT"], "Category"),
        (["sentence"], "target"),
        (["content"], "topic"),
        (["headline"], "label"),
        (["title"], "label"),
    ],
)
def test_columns_are_found_by_the_usual_names(tmp_path: Path, ending: str, text: list[str], label: str) -> None:
    columns = {"id": ["7"], label: ["news"], **{name: [name.lower()] for name in reversed(text)}, "url": ["u"]}
    assert found(write_table(tmp_path / f"rows{ending}", columns)) == [(" ".join(text).lower(), "news")]


def test_an_ending_in_capitals_is_the_same_ending(tmp_path: Path) -> None:
    assert found(write_csv(tmp_path / "ROWS.CSV", [("a", "x")])) == [("a", "x")]
    packed = write_csv(tmp_path / "rows.csv.gz", [("a", "x")]).rename(tmp_path / "ROWS.Csv.GZ")
    assert found(packed) == [("a", "x")]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([3, 11], ["3", "11"]),
        ([0, -1], ["0", "-1"]),
        ([1.0, 2.0], ["1", "2"]),  # whole numbers, as tables with gaps store them
        ([0.5, 1.5], ["0.5", "1.5"]),
        ([True, False], ["True", "False"]),
        (["sports", " home "], ["sports", "home"]),
    ],
)
def test_a_class_may_be_any_name_or_number(tmp_path: Path, values: list[Any], names: list[str]) -> None:
    columns = {"text": ["a", "b"], "label": values}
    for ending in (".jsonl", ".parquet"):
        assert found(write_table(tmp_path / f"rows{ending}", columns)) == [("a", names[0]), ("b", names[1])]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_numbers_stand_for_the_class_names_that_the_user_gives_from_0(tmp_path: Path, ending: str) -> None:
    path = write_table(tmp_path / f"rows{ending}", {"text": ["a", "b", "c"], "label": [1, 0, 2]})
    assert [label for _, label in found(path, classes=("minus", "plus"))] == ["plus", "minus", "2"]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_classes_whose_names_are_numbers_keep_them(tmp_path: Path, ending: str) -> None:
    path = write_table(tmp_path / f"rows{ending}", {"text": ["a", "b", "c"], "label": [1, 2, 0]})
    assert [label for _, label in found(path, classes=("1", "2", "3"))] == ["1", "2", "0"]


def hub_parquet(path: Path, names: list[str], labels: list[int | None]) -> Path:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    rows = {"text": [f"text {number}" for number in range(len(labels))], "label": labels}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return path


def test_a_parquet_file_of_the_hub_brings_its_class_names(tmp_path: Path) -> None:
    path = hub_parquet(tmp_path / "train.parquet", ["neg", "pos"], [1, 0])
    assert found(path) == [("text 0", "pos"), ("text 1", "neg")]
    assert table_classes(path, Columns()) == ("neg", "pos")


def test_the_numbers_of_a_hub_dataset_are_never_taken_for_its_names(tmp_path: Path) -> None:
    path = hub_parquet(tmp_path / "train.parquet", ["1", "2", "3"], [0, 1, 2])
    assert [label for _, label in found(path)] == ["1", "2", "3"]
    assert [label for _, label in found(path, classes=("3", "2", "1"))] == ["1", "2", "3"]


def test_a_row_without_a_class_in_a_hub_dataset_is_none_of_its_classes(tmp_path: Path) -> None:
    path = hub_parquet(tmp_path / "test.parquet", ["neg", "pos"], [-1, None])
    assert read(path) == [Row("text 0", "-1", 1), BadRow("no class", "the class is empty", 2)]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_lines_may_end_as_on_any_system_and_may_be_blank(tmp_path: Path, ending: str, newline: str) -> None:
    lines = ["", "text,label", "", "a,x", "", "", "b,y", ""]
    if ending == ".jsonl":
        lines = ["", "", "", '{"text": "a", "label": "x"}', "  ", "", '{"text": "b", "label": "y"}', ""]
    path = write(tmp_path / f"rows{ending}", newline.join(lines))
    assert read(path) == [Row("a", "x", 4), Row("b", "y", 7)]


def test_lines_inside_a_text_end_as_they_did(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", 'text,label\r\n"two\r\nlines",x\r\n"and\nmore",y\r\n')
    assert read(path) == [Row("two\r\nlines", "x", 2), Row("and\nmore", "y", 4)]


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".csv.xz", ".jsonl", ".jsonl.gz"])
def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path, ending: str) -> None:
    content = '{"text": "a", "label": "x"}\n' if "json" in ending else "text,label\na,x\n"
    path = write(tmp_path / f"rows{ending}", "\ufeff" + content)
    assert [row[:2] for row in read(path)] == [("a", "x")]
    numbered = write(tmp_path / "bom.csv", "\ufeff2,a,b\n")
    assert found(numbered) == [("a b", "Sports")]


def test_a_text_may_be_long_and_have_any_character(tmp_path: Path) -> None:
    text = "café \u2028 \x00 \x85 end " + "long " * 1_000_000
    for ending in (".csv", ".jsonl", ".parquet"):
        path = write_table(tmp_path / f"rows{ending}", {"text": ["first" * 20, text], "label": ["x", "y"]})
        assert found(path)[1] == (text.strip(), "y")


def test_rows_are_read_one_at_a_time(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "text,label\na,x\nb\n")
    rows = read_table(path, Columns())
    assert next(rows) == Row("a", "x", 2)
    rows.close()  # type: ignore[attr-defined]


# Rows that cannot be used

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


def test_a_quote_that_is_never_closed_tells_how_far_it_reached(tmp_path: Path) -> None:
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
        ("5,a,b", "unknown class", "'5' is not a number from 1 to 4: World, Sports, Business, Sci/Tech"),
        ("0,a,b", "unknown class", "'0' is not a number from 1 to 4"),
        ("World,a,b", "unknown class", "'World' is not a number from 1 to 4"),
        ("9" * 5000 + ",a,b", "unknown class", "9' is not a number from 1 to 4"),
        (",a,b", "unknown class", "'' is not a number from 1 to 4"),
        ("2,a", "wrong number of fields", "2 fields where class, title, description are 3"),
        ("2,a,b,c", "wrong number of fields", "4 fields where class, title, description are 3"),
        ("2, ,", "empty text", "no text"),
        ('2,"a" b,c', "broken quotes", "expected after"),
    ],
)
def test_a_bad_row_in_the_ag_news_layout_has_its_line_and_reason(
    tmp_path: Path, source: str, reason: str, detail: str
) -> None:
    path = write(tmp_path / "rows.csv", f'1,"a\nb",c\n\n{source}\n3,d,e\n')
    row = the_bad_row(path)
    assert (row.reason, row.line) == (reason, 4)
    assert detail in row.detail
    assert len(row.detail) < 200
    assert read(path)[-1] == Row("d e", "Business", 5)


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
    ("columns", "reason", "detail"),
    [
        ({"text": [None], "label": ["x"]}, "empty text", "no text"),
        ({"text": ["a"], "label": pa.array([None], pa.int64())}, "no class", "the class is empty"),
        ({"text": ["a"], "label": [float("nan")]}, "no class", "the class is empty"),
        ({"text": [7], "label": ["x"]}, "text is no string", "'text' is 7"),
        ({"text": ["a"], "label": [["x"]]}, "class is no name", "'label' is ['x']"),
        ({"text": ["a"], "label": [b"x"]}, "class is no name", "'label' is b'x'"),
        (
            {"text": pa.array([b"caf\xe9"]).cast(pa.string(), safe=False), "label": ["x"]},
            "broken encoding",
            r"not UTF-8 in 'caf\udce9 x'",
        ),
        (
            {"text": pa.array([b"caf\xe9"]).cast(pa.large_string(), safe=False), "label": [1]},
            "broken encoding",
            r"not UTF-8 in 'caf\udce9 1'",
        ),
    ],
)
def test_a_bad_row_of_a_parquet_file_has_its_number_and_reason(
    tmp_path: Path, columns: dict[str, Any], reason: str, detail: str
) -> None:
    row = the_bad_row(write_parquet(tmp_path / "rows.parquet", columns))
    assert (row.reason, row.line) == (reason, 1)
    assert detail in row.detail


def test_one_broken_text_in_a_parquet_file_does_not_hide_the_others(tmp_path: Path) -> None:
    texts = pa.array([b"one", b"\xff", None, "zwölf".encode()]).cast(pa.string(), safe=False)
    path = write_parquet(tmp_path / "rows.parquet", {"text": texts, "label": [1, 2, 3, 4]})
    assert [row.line for row in bad(path)] == [2, 3]
    assert [row for row in read(path) if isinstance(row, Row)] == [Row("one", "1", 1), Row("zwölf", "4", 4)]


def test_rows_of_a_parquet_file_are_numbered_across_its_batches(tmp_path: Path) -> None:
    texts = ["a"] * 5000
    texts[4500] = ""
    path = write_parquet(tmp_path / "rows.parquet", {"text": texts, "label": ["x"] * 5000})
    assert the_bad_row(path).line == 4501


# Files that cannot be used


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.csv", "", ", line 1: empty file: expected a header line, or rows of class, title, description"),
        ("rows.csv.gz", "\n\n", ", line 1: empty file: "),
        ("rows.jsonl", "\n \n", ": has no rows; expected one JSON object a line"),
        ("rows.parquet", "", ": is no Parquet file, or a damaged one: "),
        ("rows.parquet", "text,label\n", ": is no Parquet file, or a damaged one: "),
        (
            "rows.csv",
            "body;kind\na;x\n",
            ": which column is the text? Name it with --text-column; its columns are body;kind",
        ),
        (
            "rows.csv",
            "text,kind\na,x\n",
            ": which column is the class? Name it with --label-column; its columns are text, kind",
        ),
        ("rows.jsonl", '\n{"text": "a"}\n', ", line 2: which column is the class? Name it with --label-column"),
        ("rows.csv", "text,label,text\n", ": 2 columns are called 'text'; rename all but one"),
        ("rows.csv", '\n"text"s,label\n', ", line 2: broken quotes: "),
        ("rows.csv", "text,label\na,x\n".encode("utf-16"), ": is UTF-16 or no text at all; save it as UTF-8"),
        ("rows.csv", "text,label\na,x\n".encode("utf-16-le"), ": is UTF-16 or no text at all"),
        ("rows.csv.xz", "text,label\na,x\n".encode("utf-16"), ": is UTF-16 or no text at all"),
        ("rows.jsonl.gz", '{"text": "a"}\n'.encode("utf-16-be"), ": is UTF-16 or no text at all"),
        (
            "rows.tsv",
            "text\tlabel\n",
            ": unknown kind of file; known are .csv, .jsonl, .json, .parquet, each also with .gz or .xz",
        ),
        ("rows", "text,label\n", ": unknown kind of file"),
        ("rows.gz", "text,label\n", ": unknown kind of file"),
    ],
)
def test_a_file_without_a_table_is_refused_with_what_would_be_right(
    tmp_path: Path, name: str, content: str | bytes, said: str
) -> None:
    assert refusal(write(tmp_path / name, content)).startswith(said)


@pytest.mark.parametrize("ending", FORMATS)
def test_a_column_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path, ending: str) -> None:
    path = write_table(tmp_path / f"rows{ending}", {"headline": ["a"], "label": ["x"]})
    assert "no column is called 'titel'; its columns are headline, label" in refusal(path, text=("titel",))
    assert "no column is called 'kind'; its columns are headline, label" in refusal(path, label="kind")


def test_a_column_that_the_user_calls_text_is_not_taken_for_the_class(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", [("a", "b", "x")], header=("topic", "label", "target"))
    assert found(path, text=("label",)) == [("b", "x")]
    assert "which column is the class?" in refusal(path, text=("label", "target", "topic"))


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


def test_damage_inside_a_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table({"text": [f"text {number**5}" for number in range(20_000)], "label": ["x", "y"] * 10_000})
    parquet.write_table(table, path, row_group_size=5000)
    packed = bytearray(path.read_bytes())
    packed[len(packed) // 2 : len(packed) // 2 + 500] = bytes(500)
    path.write_bytes(packed)
    assert refusal(path).startswith(": is no Parquet file, or a damaged one: ")


def test_a_header_without_rows_gives_no_rows(tmp_path: Path) -> None:
    assert read(write(tmp_path / "rows.csv", "text,label\n")) == []
    assert read(write_parquet(tmp_path / "rows.parquet", {"text": pa.array([], pa.string()), "label": []})) == []


def test_what_the_hub_wrote_of_other_columns_is_no_list_of_classes(tmp_path: Path) -> None:
    info = {"info": {"features": {"label": [{"names": ["a", "b"], "_type": "ClassLabel"}]}}}
    table = pa.table({"text": ["a"], "label": ["x"]}).replace_schema_metadata({"huggingface": json.dumps(info)})
    parquet.write_table(table, tmp_path / "rows.parquet")
    assert table_classes(tmp_path / "rows.parquet", Columns()) == ()
    assert found(tmp_path / "rows.parquet") == [("a", "x")]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.csv", ".csv"), ("a.b.csv.gz", ".csv"), ("v1.2.jsonl.xz", ".jsonl"), ("a.json", ".json"), ("a.PARQUET", ".parquet")],
)  # fmt: skip
def test_the_ending_tells_the_kind_of_a_file(name: str, kind: str) -> None:
    assert table_format(Path(name)) == kind


@needs_ag_news
def test_the_real_test_split_has_no_bad_row() -> None:
    rows = found(AG_NEWS / "test.csv")
    assert len(rows) == 7600
    assert {label: sum(found == label for _, found in rows) for label in AG_NEWS_CLASSES} == dict.fromkeys(
        AG_NEWS_CLASSES, 1900
    )
