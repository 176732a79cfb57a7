"""Rows out of files, whatever their format, columns and line ends."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.support.data import write, write_csv, write_json_lines, write_parquet
from tests.support.tables import ENDINGS, FORMATS, found, read, refusal, the_bad_row, write_table
from trainer.data.columns import BadRow, Columns, Layout, Row
from trainer.data.tables import column_names, find_columns, read_table, table_format


@pytest.mark.parametrize("ending", ENDINGS)
def test_rows_of_class_and_texts_may_have_no_header(tmp_path: Path, ending: str) -> None:
    rows = [(3, "Shares rise", "A good day."), (1, "", "Only a description. "), ("4", "A chip, small", 'It is "new".')]
    path = write_csv(tmp_path / f"train.csv{ending}", rows, header=())
    layout = find_columns([path], Columns(), class_first=True)
    assert layout.named == {"text": ["2", "3"], "label": "1"}
    assert list(read_table(path, layout)) == [
        Row("Shares rise A good day.", "3", 1),
        Row("Only a description.", "1", 2),
        Row('A chip, small It is "new".', "4", 3),
    ]


@pytest.mark.parametrize(
    ("row", "columns", "layout"),
    [
        ((1, "a title {}", "words of it {}"), {}, Layout(("2", "3"), "1", 3)),
        (("id{}", "words of it {}", 2.0), {}, Layout(("2",), "3", 3)),
        (("{}", "good", "some words {}"), {}, Layout(("3",), "2", 3)),
        ((5, "words {}"), {}, Layout(("2",), "1", 2)),
        ((5, "one title", "words {}"), {}, Layout(("2", "3"), "1", 3)),
        (("sport", "word{}", "and words {}"), {"text": ("2",), "label": "1"}, Layout(("2",), "1", 3)),
        (("sport", "x", "and words {}"), {"label": "1"}, Layout(("3",), "1", 3)),
        (("sport", "news", "words {}"), {"text": ("2", "3")}, Layout(("2", "3"), "1", 3)),
    ],
)
def test_a_file_without_a_header_is_read_by_what_it_holds_or_by_numbers_of_columns(
    tmp_path: Path, row: tuple[object, ...], columns: dict[str, Any], layout: Layout
) -> None:
    rows = [[str(field).format(number) for field in row] for number in range(6)]
    path = write_csv(tmp_path / "rows.csv", rows, header=())
    assert find_columns([path], Columns(**columns)) == layout
    assert [(row.line, len(row)) for row in read(path, **columns)] == [(line, 3) for line in range(1, 7)]


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_another_separator_is_found_by_the_header(tmp_path: Path, separator: str) -> None:
    lines = [["id", "text", "label"], ["1", "a, b", "x"], ["2", f'"c{separator} d"', "y"]]
    written = "\n".join(separator.join(line) for line in lines)
    for name in ("rows.csv", *(["rows.tsv", "rows.tsv.gz"] if separator == "\t" else [])):
        assert found(write(tmp_path / name, written)) == [("a, b", "x"), (f"c{separator} d", "y")]
    written = "\n".join(separator.join([str(number % 2), f"a, b {number}"]) for number in range(6))
    assert found(write(tmp_path / "rows.csv", written))[5] == ("a, b 5", "1")


def test_the_keys_of_all_json_records_are_columns(tmp_path: Path) -> None:
    records = [{"title": "one", "label": "x"}, *({"title": "news", "description": "two", "label": "y"} for _ in "ab")]
    path = write_json_lines(tmp_path / "rows.jsonl", records)
    assert found(path) == [("one", "x"), ("news two", "y"), ("news two", "y")]
    odd = write_json_lines(
        tmp_path / "odd.jsonl", [{"title": "a", "description": "b", "class": "x"}, *[{"text": "t", "label": "y"}] * 2]
    )
    assert find_columns([odd], Columns()) == Layout(("text",), "label")
    assert the_bad_row(odd) == BadRow("missing column", "no 'text'", 1)
    assert find_columns([path, odd], Columns()).text == ("title", "description")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("trainer.data.tables.json_record", lambda *_: pytest.fail("it is parsed again"))
        assert column_names(path, Layout(("text",), "label")) == ["title", "label", "description"]
    write_json_lines(path, [{"text": "a", "class": "x"}])
    assert find_columns([path], Columns()) == Layout(("text",), "class"), "a changed file is read again"


@pytest.mark.parametrize("ending", FORMATS)
def test_named_columns_are_read_the_same_in_every_format(tmp_path: Path, ending: str) -> None:
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


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
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
    assert found(numbered, label="1", text=("2", "3")) == [("a b", "2")]


def test_a_text_may_be_long_and_have_any_character(tmp_path: Path) -> None:
    text = "café \u2028 \x00 \x85 end " + "long " * 1_000_000
    for ending in (".csv", ".jsonl", ".parquet"):
        path = write_table(tmp_path / f"rows{ending}", {"text": ["first" * 20, text], "label": ["x", "y"]})
        assert found(path)[1] == (text.strip(), "y")


def test_rows_are_read_one_at_a_time(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "text,label\na,x\nb\n")
    rows = read_table(path, find_columns([path], Columns()))
    assert next(rows) == Row("a", "x", 2)
    rows.close()  # type: ignore[attr-defined]


def test_a_column_that_the_user_calls_text_is_not_taken_for_the_class(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", [("a", "b", "x")], header=("topic", "label", "target"))
    assert found(path, text=("label",)) == [("b", "x")]
    assert "which column is the class?" in refusal(path, text=("label", "target", "topic"))


def test_a_header_without_rows_gives_no_rows(tmp_path: Path) -> None:
    assert read(write(tmp_path / "rows.csv", "text,label\n")) == []
    assert read(write_parquet(tmp_path / "rows.parquet", {"text": pa.array([], pa.string()), "label": []})) == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.csv", ".csv"), ("a.b.csv.gz", ".csv"), ("v1.2.jsonl.xz", ".jsonl"), ("a.json", ".json"), ("ROWS.Csv.GZ", ".csv")],
)  # fmt: skip
def test_the_ending_decides_the_kind_of_a_file(name: str, kind: str) -> None:
    assert table_format(Path(name)) == kind


def test_an_ending_in_capitals_is_the_same_ending(tmp_path: Path) -> None:
    assert found(write_csv(tmp_path / "rows.csv.gz", [("a", "x")]).rename(tmp_path / "ROWS.Csv.GZ")) == [("a", "x")]
