"""Rows in their splits: every row in one, each class in the same proportions, test rows unchanged."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.data import labelled, write_csv
from tests.support.datasets import all_rows, contents, make, of_each_class, rows
from trainer.data.dataset import Dataset
from trainer.data.splits import keys_of, text_keys

pytestmark = pytest.mark.slow  # the module takes seconds


def test_rows_are_counted_the_same_whatever_is_read_at_a_time(sample: Dataset) -> None:
    assert [len(split) for split in (sample.train, sample.validation, sample.test)] == [4276, 224, 500]
    numbers = np.concatenate([sample.train.lines, sample.validation.lines, sample.test.lines])
    assert sorted(numbers.tolist()) == list(range(1, 5001))


def test_each_class_is_divided_in_the_same_proportions(tmp_path: Path) -> None:
    came_in = labelled(1000, classes=("common",)) + labelled(100, classes=("seldom",)) + labelled(3, classes=("rare",))
    dataset = make(
        write_csv(tmp_path / "rows.csv", came_in), tmp_path / "dataset", test_fraction=0.2, validation_fraction=0.1
    )
    assert of_each_class(dataset.test, dataset) == {"common": 200, "seldom": 20, "rare": 1}
    assert of_each_class(dataset.validation, dataset) == {"common": 80, "seldom": 8, "rare": 1}
    assert of_each_class(dataset.train, dataset) == {"common": 720, "seldom": 72, "rare": 1}


def test_validation_rows_come_from_train_and_test_rows_stay_as_they_are(tmp_path: Path) -> None:
    train = labelled(100)
    test = [(f"test {number}", "good" if number % 3 else "bad") for number in range(31)]
    write_csv(tmp_path / "news" / "train.csv", train)
    write_csv(tmp_path / "news" / "test.csv", test)
    dataset = make(tmp_path / "news", tmp_path / "dataset")
    assert rows(dataset.test, dataset.classes) == test
    assert of_each_class(dataset.validation, dataset) == {"bad": 2, "good": 2}
    assert sorted(rows(dataset.train, dataset.classes) + rows(dataset.validation, dataset.classes)) == sorted(train)


@pytest.mark.parametrize("limit", [7, 100, 101, 333])
def test_a_limit_of_training_rows_is_exact_and_keeps_the_proportions(tmp_path: Path, limit: int) -> None:
    came_in = labelled(600, classes=("a",)) + labelled(300, classes=("b",)) + labelled(100, classes=("c",))
    path = write_csv(tmp_path / "rows.csv", came_in)
    dataset, whole = (
        make(path, tmp_path / name, max_train_rows=most) for name, most in (("some", limit), ("all", None))
    )
    assert len(dataset.train) == limit
    assert dataset.info["unused_rows"] == len(whole.train) - limit
    kept = of_each_class(dataset.train, dataset)
    for name, count in of_each_class(whole.train, whole).items():
        assert abs(kept.get(name, 0) - limit * count / len(whole.train)) <= 1
    assert set(rows(dataset.train, dataset.classes)) < set(rows(whole.train, whole.classes))
    for split in ("validation", "test"):  # metrics of different trainings stay comparable
        assert rows(getattr(dataset, split), dataset.classes) == rows(getattr(whole, split), whole.classes)


def test_a_limit_above_the_training_rows_takes_all(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", labelled(100))
    dataset = make(path, tmp_path / "dataset", max_train_rows=10_000)
    assert len(all_rows(dataset)) == 100
    assert dataset.info["unused_rows"] == 0


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", labelled(200))
    one, two = (make(path, tmp_path / name, seed=5, max_train_rows=90) for name in ("one", "two"))
    assert contents(one.folder) == contents(two.folder)
    other = make(path, tmp_path / "other", seed=6, max_train_rows=90)
    assert set(rows(other.test, other.classes)) != set(rows(one.test, one.classes))


def test_texts_that_are_in_train_and_test_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = labelled(200)
    write_csv(tmp_path / "news" / "train.csv", train)
    test = [("new", "bad"), train[0], train[0], (train[1][0], "bad"), *train[50:60]]
    write_csv(tmp_path / "news" / "test.csv", test)
    dataset = make(tmp_path / "news", tmp_path / "dataset")
    held_out = {text for text, _ in rows(dataset.validation, dataset.classes)}
    shared = sum(text != "new" and text not in held_out for text, _ in test)
    assert 5 < shared <= 13
    assert dataset.info["test_texts_also_in_train"] == shared
    assert f"preprocess: {shared} of the test texts are in train too" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A good day", "a  GOOD day!"), ("Ärger in Köln", "arger, in KOLN"), ("a\u200bb\x07", "ab"), ("ﬁne Straße", "fine STRASSE"),
        ("``quoted''", '"quoted"'), ("\uff01\uff01", "! !"), ("co-operate", "cooperate"),
    ],
)  # fmt: skip
def test_near_repeats_have_the_same_key(one: str, other: str) -> None:
    assert keys_of([one]) == keys_of([other])


@pytest.mark.parametrize(
    ("one", "other"), [("C++", "C"), ("!!!", "?"), ("good 😀", "good 😡"), ("5 $", "5 €"), ("一", "二")]
)
def test_other_texts_have_other_keys(one: str, other: str) -> None:
    assert keys_of([one]) != keys_of([other])


def test_the_keys_of_splits_are_sorted_and_each_once(tmp_path: Path) -> None:
    train, test = [*labelled(60), *labelled(60)], [("A test.", "bad"), ("a TEST", "bad")]
    write_csv(tmp_path / "train.csv", train)
    write_csv(tmp_path / "test.csv", test)
    folder = make(tmp_path, tmp_path / "dataset").folder
    expected = sorted(int(keys_of([text])[0]) for text, _ in labelled(60))
    assert text_keys(folder, ("train", "validation")).tolist() == expected
    assert text_keys(folder, ("test",)).tolist() == keys_of(["a test"]).tolist()


def test_the_digest_of_test_rows_depends_on_texts_and_class_names_alone(tmp_path: Path, encoder: Path) -> None:
    def digest(test: list[tuple[str, str]], **settings: Any) -> str:  # noqa: ANN401 - as PreprocessConfig takes it
        file = write_csv(tmp_path / "test.csv", test)
        made = make(train, tmp_path / "dataset", test_data=str(file), **settings)
        return str(made.info["test_digest"])

    train, test = write_csv(tmp_path / "train.csv", labelled(60)), labelled(10)
    same = [
        digest(test),
        digest(test, model=str(encoder)),
        digest(test, class_names=("good", "bad")),
        digest(test, seed=3),
    ]
    assert len(set(same)) == 1
    exchanged = [(text, {"good": "bad", "bad": "good"}[label]) for text, label in test]
    assert len({same[0], digest(exchanged), digest(test[1:]), digest(test[::-1])}) == 4
