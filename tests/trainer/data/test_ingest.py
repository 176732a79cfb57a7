"""Classes of rows, and rows that cannot be used: none is dropped without a reason."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.data import AG_NEWS, labelled, needs_ag_news, write, write_csv
from tests.support.datasets import all_rows, contents, make, of_each_class, refusal, rows
from trainer.data.classes import AG_NEWS_CLASSES


def test_rows_keep_their_line_in_the_source(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", [(f"two\nlines {text}", label) for text, label in labelled(60)])
    lines = path.read_text(encoding="utf-8").splitlines()
    dataset = make(path, tmp_path / "dataset")
    for split in (dataset.train, dataset.validation, dataset.test):
        for row in range(len(split)):
            assert split.text(row).splitlines()[1] in lines[split.lines[row]]


@pytest.mark.parametrize(
    ("found", "order"),
    [
        (["10", "9", "2", "-1"], ["-1", "2", "9", "10"]),
        (["10.5", "9", "2.5"], ["2.5", "9", "10.5"]),
        (["sports", "Sci", "arts"], ["Sci", "arts", "sports"]),
        (["10", "9", "none"], ["10", "9", "none"]),
        (["--5", "1"], ["--5", "1"]),
    ],
)
def test_classes_are_in_the_order_of_numbers_or_of_the_alphabet(
    tmp_path: Path, found: list[str], order: list[str]
) -> None:
    came_in = labelled(60, classes=found)
    dataset = make(write_csv(tmp_path / "rows.csv", came_in), tmp_path / "dataset")
    assert dataset.classes == order
    assert sorted(all_rows(dataset)) == sorted(came_in)


@pytest.mark.parametrize("labels", ["0123", "1234", AG_NEWS_CLASSES])
def test_ag_news_has_its_own_names_in_its_own_order(tmp_path: Path, labels: Sequence[str]) -> None:
    came_in = [(labels[3 - number % 4], f"title {number}", "words") for number in range(80)]
    path = write_csv(
        tmp_path / "ag_news.csv", came_in, header=() if labels[0].isdecimal() else ("label", "title", "text")
    )
    dataset = make(path, tmp_path / "dataset", **({} if labels[0].isdecimal() else {"text_column": ("title", "text")}))
    assert dataset.classes == list(AG_NEWS_CLASSES)
    assert sorted(all_rows(dataset)) == sorted(
        (f"{title} {words}", AG_NEWS_CLASSES[labels.index(label)]) for label, title, words in came_in
    )


def test_three_columns_without_a_header_are_not_taken_for_ag_news(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(number % 5 + 1, f"a title {number}", f"some words {number}") for number in range(80)]
    dataset = make(write_csv(tmp_path / "data" / "rows.csv", rows, header=()), tmp_path / "dataset", bad_rows="skip")
    assert (dataset.classes, dataset.info["bad_rows"]) == (["1", "2", "3", "4", "5"], {})
    assert dataset.info["columns"] == {"text": ["2", "3"], "label": "1"}
    assert "preprocess: no header: text from columns 2 and 3, class from column 1\n" in capsys.readouterr().out


def test_the_columns_are_printed_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(label, text, "more") for text, label in labelled(60)]
    path = write_csv(tmp_path / "rows.csv", rows, header=("Category", "title", "description"))
    dataset = make(path, tmp_path / "dataset")
    assert dataset.info["columns"] == {"text": ["title", "description"], "label": "Category"}
    assert "preprocess: text from 'title' and 'description', class from 'Category'\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("written", "shown"),
    [("go\u00adod", "go<U+00AD>od"), ("bad\u2009luck", "bad<U+2009>luck"), ("\u2764\ufe0f", "\u2764<U+FE0F>")],
)
def test_classes_that_look_the_same_are_refused_with_their_code_points(
    tmp_path: Path, written: str, shown: str
) -> None:
    plain = written.replace("\u2009", " ").replace("\u00ad", "").replace("\ufe0f", "")
    path = write_csv(tmp_path / "rows.csv", labelled(60, classes=(plain, written, "third")))
    names = [plain, shown] if min((plain, written)) == plain else [shown, plain]
    expected = f"classes {' and '.join(names)} look the same; write one of them in all rows"
    assert refusal(path, tmp_path / "dataset") == expected
    assert f"unknown class: {shown!r} is none of {plain}, third" in refusal(
        path, tmp_path / "dataset", class_names=(plain, "third")
    )


def test_class_names_keep_the_order_that_the_user_gives(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", labelled(60))
    dataset = make(path, tmp_path / "dataset", class_names=("good", "so-so", "bad"))
    assert dataset.classes == ["good", "so-so", "bad"]
    assert sorted(all_rows(dataset)) == sorted(labelled(60))
    assert dataset.info["splits"]["train"]["classes"]["so-so"] == 0


def test_a_class_that_the_user_did_not_name_stops_the_run(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", labelled(60, classes=("bad", "good", "odd")))
    assert refusal(path, tmp_path / "dataset", class_names=("bad", "good")) == (
        f"{path}, line 4: unknown class: 'odd' is none of bad, good, nor a number from 0 to 1. "
        "Fix the row, or pass --bad-rows skip to leave such rows out"
    )


def test_a_class_of_test_rows_that_train_lacks_is_unknown(tmp_path: Path) -> None:
    write_csv(tmp_path / "news" / "train.csv", labelled(60))
    test = write_csv(tmp_path / "news" / "test.csv", [("fine", "good"), ("why", "odd"), ("no", "bad")])
    output = refusal(tmp_path / "news", tmp_path / "dataset")
    assert output.startswith(f"{test}, line 3: unknown class: 'odd' is none of bad, good.")
    dataset = make(tmp_path / "news", tmp_path / "dataset", bad_rows="skip")
    assert rows(dataset.test, dataset.classes) == [("fine", "good"), ("no", "bad")]
    assert dataset.info["bad_rows"] == {"unknown class": 1}


@pytest.mark.parametrize("settings", [{}, {"class_names": ("good", "bad")}])
def test_rows_of_one_class_alone_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    path = write_csv(tmp_path / "rows.csv", labelled(60, classes=("good",)))
    assert refusal(path, tmp_path / "dataset", **settings) == (
        f"{path}: all 60 rows are of one class, good; a classifier needs two or more"
    )


@pytest.mark.parametrize("count", [40, 400])
def test_a_column_of_ids_is_not_taken_for_classes(tmp_path: Path, count: int) -> None:
    path = write_csv(tmp_path / "rows.csv", [(text, f"id{number}") for number, (text, _) in enumerate(labelled(count))])
    assert refusal(path, tmp_path / "dataset") == (
        f"{path}: its {count} rows have {count} classes (id0, id1, id10, id{'11' if count == 40 else '100'}, "
        f"id{'12' if count == 40 else '101'}, …); is --label-column right?"
    )


def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    for name, count in (("test", 2), ("validation", 3)):
        path = write_csv(tmp_path / "rows.csv", labelled(count) * 2)
        expected = f"{2 * count} rows of {count} texts are too few to take {name} rows from; give more"
        assert refusal(path, tmp_path / "dataset") == expected


@pytest.mark.parametrize("content", ["text,label\n", "text,label\n\n\n"])
def test_a_file_without_rows_is_refused(tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "rows.csv", content)
    assert refusal(path, tmp_path / "dataset") == f"{path}: holds no row that can be used"


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """A folder with 200 good training rows, 50 good test rows, and bad ones among them."""
    train = [json.dumps({"text": text, "label": label}) for text, label in labelled(200)]
    train[10:10] = ['{"text": "", "label": "good"}', "", "nonsense", '{"text": "a"}']
    train.append('{"text": " ", "label": "good"}')
    write(tmp_path / "news" / "train.jsonl", "\n".join(train))
    write_csv(tmp_path / "news" / "test.csv", [*labelled(50), ("a", "größer"), ("a",), ("", "bad")])
    return tmp_path / "news"


def test_skipped_rows_are_counted_reported_and_listed(
    faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = make(faulty, tmp_path / "dataset", bad_rows="skip")
    assert sorted(all_rows(dataset)) == sorted(labelled(200))
    assert dataset.info["repeats"] == {"exact": 50, "near": 0, "texts_of_two_classes": 0, "train_rows_left_out": 50}
    counts = {
        "empty text": 3,
        "not valid JSON": 1,
        "missing column": 1,
        "unknown class": 1,
        "wrong number of fields": 1,
    }
    assert dataset.info["bad_rows"] == counts
    output = capsys.readouterr().out
    assert (
        "preprocess: skipped 4 training rows and 3 test rows as bad (empty text 3, not valid JSON 1, missing column 1, "
        in output
    )
    text = (dataset.folder / "bad_rows.jsonl").read_text("utf-8")
    assert "'größer' is none of bad, good" in text
    listed = [json.loads(line) for line in text.splitlines()]
    assert [(Path(row["file"]).name, row["line"], row["reason"]) for row in listed] == [
        ("train.jsonl", 11, "empty text"),
        ("train.jsonl", 13, "not valid JSON"),
        ("train.jsonl", 14, "missing column"),
        ("train.jsonl", 205, "empty text"),
        ("test.csv", 52, "unknown class"),
        ("test.csv", 53, "wrong number of fields"),
        ("test.csv", 54, "empty text"),
    ]
    assert all(row["detail"] for row in listed)


def test_a_bad_row_of_any_bytes_can_be_listed(tmp_path: Path) -> None:
    good = b"".join(f'{{"text": "{text}", "label": "{label}"}}\n'.encode() for text, label in labelled(60))
    broken = b'{"text": "\xff\xfe", "label": "\xe9"}\n{"text": "a", "label": "half \\udc00"}\n\xff\n'
    path = write(tmp_path / "rows.jsonl", good + broken)
    dataset = make(path, tmp_path / "dataset", bad_rows="skip")
    assert dataset.info["bad_rows"] == {"broken encoding": 2, "not valid JSON": 1}
    listed = (dataset.folder / "bad_rows.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["line"] for line in listed] == [61, 62, 63]


def test_the_first_bad_row_stops_the_run_and_leaves_nothing_half_made(faulty: Path, tmp_path: Path) -> None:
    assert refusal(faulty, tmp_path / "dataset") == (
        f"{faulty / 'train.jsonl'}, line 11: empty text: no text in the text columns. "
        "Fix the row, or pass --bad-rows skip to leave such rows out"
    )


def test_a_run_that_stops_leaves_an_earlier_dataset_as_it_was(faulty: Path, tmp_path: Path) -> None:
    before = contents(make("sample:200", tmp_path / "dataset").folder)
    refusal(faulty, tmp_path / "dataset")
    assert contents(tmp_path / "dataset") == before


def test_rows_that_are_all_bad_are_refused_even_when_skipped(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", [("", "x"), (" ", "y")])
    assert refusal(path, tmp_path / "dataset", bad_rows="skip") == f"{path}: holds no row that can be used"


@pytest.mark.slow
@needs_ag_news
def test_the_real_test_split_is_whole(tmp_path: Path) -> None:
    file = AG_NEWS / "test.csv"
    train = [(number, text, "") for text, number in labelled(40, "1234")]
    path = write_csv(tmp_path / "ag_news" / "train.csv", train, header=())
    dataset = make(path, tmp_path / "dataset", test_data=str(file))
    with file.open(encoding="utf-8", newline="") as source:
        texts = [" ".join(filter(None, map(str.strip, fields[1:]))) for fields in csv.reader(source)]
    assert [dataset.test.text(row) for row in range(len(dataset.test))] == texts
    assert of_each_class(dataset.test, dataset) == dict.fromkeys(AG_NEWS_CLASSES, 1900)
