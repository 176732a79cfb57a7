"""Everything that `--data` may name, and the digest that changes when rows may have changed."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.data import AG_NEWS, labelled, needs_ag_news, write, write_csv, write_json_lines
from tests.support.sources import files, find, refusal, rows
from tests.support.tables import write_table
from trainer.data import sources
from trainer.data.classes import AG_NEWS_CLASSES
from trainer.data.columns import BadRow, Row


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_csv(tmp_path / "news" / "train.csv", labelled(20))
    write_csv(tmp_path / "news" / "test.csv", labelled(6, classes=("good", "bad")))
    return tmp_path / "news"


# Files and folders


def test_a_folder_gives_its_train_and_test_files(folder: Path) -> None:
    data = find(folder)
    assert (data.title, data.classes, data.remarks) == ("news", (), ())
    assert rows(data.train) == labelled(20)
    assert rows(data.test) == labelled(6, classes=("good", "bad"))
    assert next(data.train.read()) == (str(folder / "train.csv"), Row(*labelled(1)[0], line=2)), "it can be read again"
    (folder / "test.csv").unlink()
    assert find(folder).test is None


def test_test_rows_may_be_in_a_file_elsewhere(folder: Path, tmp_path: Path) -> None:
    other = write_json_lines(tmp_path / "other.jsonl", [{"text": "t", "label": "good"}])
    assert rows(find(folder, test_data=str(other)).test) == [("t", "good")]
    assert rows(find(folder / "train.csv", test_data=str(other)).test) == [("t", "good")]
    train = write_csv(tmp_path / "two.csv", [("a", "b", "x")], header=("title", "text", "label"))
    data = find(train, text_column=("title", "text"), test_data=str(other))
    assert rows(data.test) == [("t", "good")], "a key that no record has is empty"


def test_a_single_file_is_all_rows_even_with_others_beside_it(folder: Path) -> None:
    data = find(folder / "train.csv")
    assert (data.title, data.test) == ("train.csv", None)
    assert rows(data.train) == labelled(20)


def test_parts_of_a_split_are_read_in_order(tmp_path: Path) -> None:
    everything = labelled(33)
    for part in range(11):
        write_csv(tmp_path / f"train-{part:05}-of-00011.csv.gz", everything[part * 3 : part * 3 + 3])
    write_csv(tmp_path / "test-0-of-1.csv", labelled(2))
    data = find(tmp_path)
    assert rows(data.train) == everything
    assert rows(data.test) == labelled(2)
    assert "train-00000-of-00011.csv.gz and 10 more" in data.train.name


def test_a_missing_part_of_a_split_is_missed(tmp_path: Path) -> None:
    for part in (0, 2):
        write_csv(tmp_path / f"train-{part}-of-3.csv", labelled(3))
    output = refusal(tmp_path)
    assert output == f"{tmp_path}: holds 2 of the 3 parts of train: train-0-of-3.csv, train-2-of-3.csv"


@pytest.mark.parametrize(
    "second", ["train.jsonl", "train.csv.gz", "Train.jsonl.gz", "train-0-of-1.csv", "train-0-of-3.csv"]
)
def test_of_two_candidates_none_is_chosen(folder: Path, second: str) -> None:
    write_csv(folder / second, labelled(3))
    names = ", ".join(sorted(["train.csv", second]))
    assert refusal(folder) == f"{folder}: which are the train rows? Leave one of {names}, or name one with --data"


def test_a_second_candidate_for_test_rows_is_refused_unless_it_is_a_folder(folder: Path) -> None:
    (folder / "test.jsonl").mkdir()
    assert files(find(folder).test) == ["test.csv"]
    write_csv(folder / "test.csv.xz", labelled(3))
    assert f"{folder}: which are the test rows?" in refusal(folder)


def test_a_validation_file_is_not_used_and_that_is_reported(folder: Path) -> None:
    for name in ("validation.csv", "dev.jsonl", "val-00000-of-00002.parquet"):
        write(folder / name, "")
    write(folder / "valid", "no split file")
    assert find(folder).remarks == tuple(
        f"{name} is not used: validation rows are taken from the training rows"
        for name in ("dev.jsonl", "val-00000-of-00002.parquet", "validation.csv")
    )


@pytest.mark.parametrize(("names", "listed"), [([], "nothing"), (["b.csv", "training.csv"], "b.csv, training.csv")])
def test_a_folder_without_training_rows_is_refused_with_its_content(
    tmp_path: Path, names: list[str], listed: str
) -> None:
    for name in names:
        write_csv(tmp_path / name, labelled(3))
    assert refusal(tmp_path) == (
        f"--data {tmp_path}: holds no train.csv, train.tsv, train.jsonl or train.parquet (also .gz, .xz); it holds {listed}"
    )


@pytest.mark.parametrize("flag", ["--data", "--test-data"])
def test_a_pipe_is_refused_with_what_to_do(folder: Path, tmp_path: Path, flag: str) -> None:
    pipe = tmp_path / "rows.csv"
    os.mkfifo(pipe)
    expected = f"{flag} {pipe}: is a pipe or a device, and rows are read more than once; write them to a file first"
    assert (refusal(pipe) if flag == "--data" else refusal(folder, test_data=str(pipe))).startswith(expected)
    assert refusal("-").startswith("--data -: is a pipe")


def test_a_file_that_cannot_be_read_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, denied = folder / "train.csv", PermissionError(13, "Permission denied", folder / "train.csv")
    monkeypatch.setattr(sources, "find_columns", lambda *_, **__: (_ for _ in ()).throw(denied))
    assert refusal(folder) == f"--data {folder}: {path}: cannot be read: Permission denied"
    assert refusal("a" * 300).endswith(": cannot be read: File name too long")


def test_a_file_that_is_not_there_or_of_an_unknown_kind_is_refused(folder: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent.csv"
    assert refusal(folder, test_data=str(absent)) == f"--test-data {absent}: no such file"
    sheet = write(tmp_path / "rows.xlsx", b"PK")
    assert "rows.xlsx: unknown kind of file; known are .csv, " in refusal(sheet)
    assert "rows.xlsx: unknown kind of file" in refusal(folder, test_data=str(sheet))


def test_numbered_classes_mean_the_same_in_train_and_in_test(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "a" / "train.csv", [(number, "t", "d") for number in (1, 2, 5)], header=())
    write(tmp_path / "a" / "classes.txt", "\ufeffone\r\ntwo\r\n three \r\nfour\r\nfive\r\n\r\n")
    test = write_csv(tmp_path / "b" / "test.csv", [(5, "t", "d"), (1, "t", "d")], header=())
    data = find(train, test_data=str(test))
    assert data.classes == ("one", "two", "three", "four", "five")
    assert [data.numbers[label] for _, label in rows(data.test)] == [4, 0]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("", "holds nothing; expected two names or more"),
        ("one\n", "holds one; expected two names or more"),
        ("one\ntwo\none\n", "holds one, two, one; expected two names or more, each once"),
        (b"Stra\xdfe\nWeg\n", "is not UTF-8: "),
    ],
)
def test_a_list_of_classes_that_cannot_be_right_is_refused(tmp_path: Path, names: str | bytes, expected: str) -> None:
    listed = write(tmp_path / "classes.txt", names)
    assert refusal(write(tmp_path / "train.csv", "1,a,b\n")).startswith(f"{listed}: {expected}")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "headerless.csv"])
@pytest.mark.parametrize(
    ("values", "names", "places"),
    [
        ([1.0, 0.0], ("1.0", "0.0"), [0, 1]),
        ([1, 2], ("2", "1"), [1, 0]),
        ([-1, 0.5], ("0.5", "-1"), [1, 0]),
        (["caf\u00e9", "\u200btea\ufeff "], ("tea", "cafe\u0301"), [1, 0]),
        (["1", "0"], ("minus", "plus"), [1, 0]),
        ([1.0, 0.0], ("minus", "plus"), [1, 0]),
    ],
)
def test_class_names_mean_the_same_in_every_format(
    tmp_path: Path, kind: str, values: list[Any], names: tuple[str, ...], places: list[int]
) -> None:
    headerless = kind == "headerless.csv"
    if headerless and names == ("minus", "plus"):
        places, values = [0, 1], [1, 2]  # numbers of classes without a header are from 1
    columns = {"label": values * 3, "text": [f"some words {number}" for number in range(6)]}
    path = tmp_path / f"rows.{kind}"
    if headerless:
        write_csv(path, zip(*columns.values(), strict=True), header=())
    else:
        write_table(path, columns)
    flags = {"label_column": "1", "text_column": "2"} if headerless else {}
    data = find(path, class_names=names, **flags)
    assert data.classes == tuple(name.replace("e\u0301", "\u00e9") for name in names)
    assert [data.numbers[label] for _, label in rows(data.train)] == places * 3


def test_two_names_of_one_class_are_refused(folder: Path) -> None:
    expected = "--class-names: '1' and '1.0' are the same class; leave one out"
    assert refusal(folder, class_names=("1", "2", "1.0")) == expected


def test_test_rows_have_the_columns_of_the_training_rows(folder: Path) -> None:
    test = write_csv(folder / "test.csv", [("a", "b", "good")], header=("title", "text", "LABEL"))
    assert rows(find(folder).test) == [("b", "good")]
    write_csv(test, [("a", "good")], header=("title", "label"))
    assert refusal(folder) == f"{test}: no column is called 'text'; its columns are title, label"
    write_csv(test, [("a", "3")], header=("text", "id"))
    unlabelled = f"{test}: has no column 'label', the class in train.csv: nothing can be tested on it; "
    rest = ", and test rows are taken from the training rows"
    assert refusal(folder) == f"{unlabelled}move it elsewhere or pass --data {folder / 'train.csv'}{rest}"
    assert refusal(folder, test_data=str(test)) == f"{unlabelled}leave --test-data out{rest}"


@needs_ag_news
def test_the_real_folder_has_train_and_test_rows_of_its_four_classes(tmp_path: Path) -> None:
    data = find(AG_NEWS)
    assert (data.title, data.classes, data.remarks) == (AG_NEWS.name, AG_NEWS_CLASSES, ())
    assert files(data.test) == ["test.csv"]
    assert not isinstance(next(data.train.read())[1], BadRow)
    path = tmp_path / "rows.csv"
    path.symlink_to(AG_NEWS / "test.csv")
    assert find(path).ag_news, "a published file is known by its digest"


@pytest.mark.parametrize(
    ("name", "header", "known"),
    [
        ("rows.csv", ("Class Index", "Title", "Description"), True),
        ("ag_news/rows.csv", ("label", "title", "description"), True),
        ("AG-News.csv", (), True),
        ("rows.csv", ("label", "title", "description"), False),
        ("magnews.csv", (), False),
    ],
)
def test_ag_news_is_known_by_its_header_or_its_name(
    tmp_path: Path, name: str, header: tuple[str, ...], *, known: bool
) -> None:
    rows = [(number % 4 + 1, f"a title {number}", f"some words {number}") for number in range(8)]
    assert find(write_csv(tmp_path / "data" / name, rows, header=header)).ag_news is known


# The digest


def test_the_digest_stays_where_nothing_changes(folder: Path, tmp_path: Path) -> None:
    before = find(folder).digest
    write(folder / "notes.txt", "beside the data")
    (folder / "train.csv").touch()
    assert find(folder).digest == before
    assert find(shutil.copytree(folder, tmp_path / "elsewhere")).digest == before


def test_the_digest_changes_with_any_row(folder: Path) -> None:
    digests = {find(folder).digest}
    for change in range(4):
        train, test = labelled(20), labelled(6, classes=("good", "bad"))
        if change == 0:
            train[7] = (train[7][0] + "!", train[7][1])
        elif change == 1:
            train[19] = (train[19][0], "bad")
        elif change == 2:
            train[3], train[4] = train[4], train[3]
        else:
            test.pop()
        write_csv(folder / "train.csv", train)
        write_csv(folder / "test.csv", test)
        digests.add(find(folder).digest)
    (folder / "test.csv").unlink()
    digests.add(find(folder).digest)
    assert len(digests) == 6


def test_the_digest_distinguishes_train_from_test(folder: Path, tmp_path: Path) -> None:
    before = find(folder).digest
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    shutil.copy(folder / "train.csv", swapped / "test.csv")
    shutil.copy(folder / "test.csv", swapped / "train.csv")
    assert find(swapped).digest != before


def test_the_digest_changes_with_the_names_of_numbered_classes(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "train.csv", [(1, "t", "d"), (2, "t", "d")], header=())
    write(tmp_path / "classes.txt", "\n".join(AG_NEWS_CLASSES))
    before = find(path).digest
    write(tmp_path / "classes.txt", "\n".join(reversed(AG_NEWS_CLASSES)))
    assert find(path).digest != before


# The sample


def test_the_sample_has_the_size_of_its_name() -> None:
    assert len(rows(find("sample").train)) == 4000
    data = find("sample:150")
    assert len(rows(data.train)) == 150
    assert (data.title, data.test) == ("sample of 150 rows", None)
    assert {label for _, label in rows(data.train)} == set(data.classes)


def test_the_sample_depends_on_its_seed_and_size() -> None:
    assert rows(find("sample:150", seed=1).train) == rows(find("sample:150", seed=1).train)
    assert rows(find("sample:150", seed=1).train) != rows(find("sample:150", seed=2).train)
    digests = [find(f"sample:{size}", seed=seed).digest for size in (150, 151) for seed in (1, 2)]
    assert len(set(digests)) == 4
    assert find("sample:150", seed=1).digest == digests[0]
    assert find("sample").digest == find("sample:4000").digest


@pytest.mark.parametrize("count", ["0", "99", "-5", "1e6", "many", "4000.0", "4,000", "100000001"])
def test_a_size_that_the_sample_cannot_have_is_refused(count: str) -> None:
    output = refusal(f"sample:{count}")
    assert output == f"--data sample:{count}: sample:ROWS takes a number of rows from 100 to 100,000,000"
