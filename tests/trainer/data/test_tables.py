"""Rows out of files, whatever their format, columns and line ends."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.support.data import AG_NEWS, needs_ag_news, write, write_csv, write_parquet
from tests.support.tables import ENDINGS, FORMATS, found, read, refusal, write_table
from trainer.data.tables import AG_NEWS_CLASSES, Columns, Row, read_table, table_classes, table_format


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
@pytest.mark.parametrize(
    ("classes", "labels"), [(("minus", "plus"), ["plus", "minus", "2"]), (("1", "2", "3"), ["1", "0", "2"])]
)
def test_numbers_count_the_users_class_names_from_0_unless_these_are_numbers(
    tmp_path: Path, ending: str, classes: tuple[str, ...], labels: list[str]
) -> None:
    path = write_table(tmp_path / f"rows{ending}", {"text": ["a", "b", "c"], "label": [1, 0, 2]})
    assert [label for _, label in found(path, classes=classes)] == labels


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


def test_a_column_that_the_user_calls_text_is_not_taken_for_the_class(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", [("a", "b", "x")], header=("topic", "label", "target"))
    assert found(path, text=("label",)) == [("b", "x")]
    assert "which column is the class?" in refusal(path, text=("label", "target", "topic"))


def test_a_header_without_rows_gives_no_rows(tmp_path: Path) -> None:
    assert read(write(tmp_path / "rows.csv", "text,label\n")) == []
    assert read(write_parquet(tmp_path / "rows.parquet", {"text": pa.array([], pa.string()), "label": []})) == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.csv", ".csv"), ("a.b.csv.gz", ".csv"), ("v1.2.jsonl.xz", ".jsonl"), ("a.json", ".json"), ("a.PARQUET", ".parquet")],
)  # fmt: skip
def test_the_ending_decides_the_kind_of_a_file(name: str, kind: str) -> None:
    assert table_format(Path(name)) == kind


@needs_ag_news
def test_the_real_test_split_has_no_bad_row() -> None:
    rows = found(AG_NEWS / "test.csv")
    assert len(rows) == 7600
    assert {label: sum(found == label for _, found in rows) for label in AG_NEWS_CLASSES} == dict.fromkeys(
        AG_NEWS_CLASSES, 1900
    )
