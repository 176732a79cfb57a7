"""Rows in their splits: a text in one for good, each class in train, test rows unchanged, repeats counted."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.errors import UserError
from tests.support.data import labelled, write_csv
from tests.support.datasets import all_rows, contents, make, of_each_class, refusal, rows
from trainer.data.dataset import SPLITS, Dataset
from trainer.data.splits import keys_of, limit_rows, split_rows, text_keys

pytestmark = pytest.mark.slow  # the module takes seconds


def split(
    texts: Sequence[str], labels: Sequence[int], *, test: float = 0.1, validation: float = 0.05, seed: int = 0
) -> dict[str, str]:
    """Splits rows of these texts and labels; returns the split of each text, of which all rows have to be in the same."""
    names = [f"c{number}" for number in range(max(labels) + 1)]
    fractions = {"test": test, "validation": validation}
    assigned = split_rows(keys_of(texts), np.array(labels, np.int32), names, fractions=fractions, seed=seed)
    found = dict(zip(texts, (SPLITS[number] for number in assigned), strict=True))
    assert [found[text] for text in texts] == [SPLITS[number] for number in assigned]
    return found


def test_every_row_is_in_one_split_in_the_order_of_the_source(sample: Dataset) -> None:
    splits = (sample.train, sample.validation, sample.test)
    assert all((np.diff(split.lines) > 0).all() for split in splits)
    assert sorted(np.concatenate([split.lines for split in splits]).tolist()) == list(range(1, 5001))


def test_a_text_keeps_its_split_whatever_rows_are_added_and_in_any_order() -> None:
    texts = [f"text {number}" for number in range(3000)]
    labels = [number % 7 for number in range(3000)]
    before = split(texts, labels)
    assert Counter(before.values()) == pytest.approx({"train": 2565, "validation": 135, "test": 300}, rel=0.3)
    more, of_more = [*texts, *(f"new {text}" for text in texts), *texts[:500]], [*labels, *labels, *labels[:500]]
    order = random.Random(1).sample(range(len(more)), len(more))
    after = split([more[row] for row in order], [of_more[row] for row in order])
    assert {text: after[text] for text in texts} == before
    other = split(texts, labels, seed=1)
    both = sum(before[text] == other[text] == "test" for text in texts)
    assert both == pytest.approx(30, abs=20)  # as of independent draws


def test_each_class_is_divided_in_about_the_same_proportions() -> None:
    labels = [0] * 8000 + [1] * 800
    found = split([str(row) for row in range(8800)], labels, test=0.2, validation=0.1)
    for label, count in enumerate((8000, 800)):
        of_class = Counter(found[str(row)] for row in range(8800) if labels[row] == label)
        for name, share in (("test", 0.2), ("validation", 0.08), ("train", 0.72)):
            assert of_class[name] == pytest.approx(count * share, abs=4 * (count * share * (1 - share)) ** 0.5)


@pytest.mark.parametrize("seed", range(5))
def test_each_class_keeps_a_row_in_train(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    texts, labels = [str(row) for row in range(300)], [row % 100 for row in range(300)]
    found = split(texts, labels, test=0.45, validation=0.4, seed=seed)
    assert {label for text, label in zip(texts, labels, strict=True) if found[text] == "train"} == set(range(100))
    assert " more is kept in train, which had none" in capsys.readouterr().out
    assert Counter(found.values())["train"] < 160
    found = split(texts, labels, seed=seed)
    assert Counter(found.values())["train"] > 220  # and not a third of each small class for every split


@pytest.mark.parametrize("seed", range(5))
def test_no_split_is_empty_while_a_class_has_two_texts(seed: int) -> None:
    found = split(["a", "A!", "b", "b", "c", "d", "d"], [0, 0, 0, 1, 1, 1, 2], test=0.01, validation=0.01, seed=seed)
    assert set(found.values()) == set(SPLITS)
    assert found["d"] == "train"  # the only text of class 2
    with pytest.raises(UserError, match="4 rows of 2 texts are too few to take test rows from"):
        split(["a", "A!", "b", "b"], [0, 0, 1, 1], seed=seed)


def test_validation_rows_come_from_train_and_test_rows_stay_as_they_are(tmp_path: Path) -> None:
    train = labelled(100)
    test = [(f"test {number}", "good" if number % 3 else "bad") for number in range(31)]
    write_csv(tmp_path / "news" / "train.csv", train)
    write_csv(tmp_path / "news" / "test.csv", test)
    dataset = make(tmp_path / "news", tmp_path / "dataset")
    assert rows(dataset.test, dataset.classes) == test
    assert 1 <= len(dataset.validation) <= 12
    assert sorted(rows(dataset.train, dataset.classes) + rows(dataset.validation, dataset.classes)) == sorted(train)


@pytest.mark.parametrize("limit", [7, 100, 101, 333])
def test_a_limit_of_training_rows_is_exact_and_keeps_the_proportions(
    tmp_path: Path, limit: int, capsys: pytest.CaptureFixture[str]
) -> None:
    came_in = labelled(600, classes=("a",)) + labelled(300, classes=("b",)) + labelled(100, classes=("c",))
    path = write_csv(tmp_path / "rows.csv", came_in)
    dataset, whole = (
        make(path, tmp_path / name, max_train_rows=most) for name, most in (("some", limit), ("all", None))
    )
    assert len(dataset.train) == limit
    assert dataset.info["unused_rows"] == len(whole.train) - limit
    assert f"preprocess: max_train_rows keeps {limit} of {len(whole.train)} training rows: " in capsys.readouterr().out
    kept = of_each_class(dataset.train, dataset)
    for name, count in of_each_class(whole.train, whole).items():
        assert abs(kept.get(name, 0) - limit * count / len(whole.train)) <= 1
    assert set(rows(dataset.train, dataset.classes)) < set(rows(whole.train, whole.classes))
    for split in ("validation", "test"):  # metrics of different trainings stay comparable
        assert rows(getattr(dataset, split), dataset.classes) == rows(getattr(whole, split), whole.classes)


@pytest.mark.parametrize(("limit", "quotas"), [(50, [45, 3, 1, 1]), (4, [1, 1, 1, 1]), (560, [520, 37, 2, 1])])
def test_each_class_keeps_a_row_under_a_limit(limit: int, quotas: list[int]) -> None:
    labels = np.repeat(np.arange(5, dtype=np.int32), [560, 40, 0, 2, 1])
    keys = keys_of(map(str, range(603)))
    kept = limit_rows(keys, labels, limit, seed=0)
    assert len(kept) == limit
    assert np.bincount(labels[kept], minlength=5)[[0, 1, 3, 4]].tolist() == quotas
    order = np.random.default_rng(0).permutation(603)
    again = limit_rows(keys[order], labels[order], limit, seed=0)
    assert set(keys[order][again]) == set(keys[kept])
    with pytest.raises(UserError, match=r"max_train_rows = 3 is less than the 4 classes of the .* give 4 or more"):
        limit_rows(keys, labels, 3, seed=0)


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


def test_training_rows_whose_text_is_in_the_test_file_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = labelled(200)
    write_csv(tmp_path / "train.csv", [*train, train[0]])
    test = [("new", "bad"), (train[0][0].upper(), "bad"), (train[1][0], "bad"), *train[50:60]]
    write_csv(tmp_path / "test.csv", test)
    dataset = make(tmp_path, tmp_path / "dataset")
    assert rows(dataset.test, dataset.classes) == test
    own = rows(dataset.train, dataset.classes) + rows(dataset.validation, dataset.classes)
    assert sorted(own) == sorted([*train[2:50], *train[60:]])
    assert dataset.info["unused_rows"] == 0
    assert dataset.info["repeats"] == {"exact": 12, "near": 1, "texts_of_two_classes": 1, "train_rows_left_out": 13}
    output = capsys.readouterr().out
    assert (
        "preprocess: 13 rows repeat the text of another, 12 exactly and 1 but for case, accents, punctuation" in output
    )
    assert "preprocess: 1 of the repeated texts have two classes or more" in output
    assert "preprocess: 13 training rows are left out: their texts are among the test rows" in output


def test_a_class_whose_training_rows_are_all_in_the_test_file_is_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", labelled(40))
    message = refusal(path, tmp_path / "dataset", test_data=str(path))
    assert message.startswith("all training rows of bad, good have their text among the test rows too; leave them in ")


def test_repeats_are_counted_exactly_and_nearly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trainer.monitoring.console._LINE_SECONDS", 0)
    came_in = [
        *labelled(60) * 2,
        *((text.title() + "!", label) for text, label in labelled(7)),
        ("A", "bad"),
        ("a", "good"),
    ]
    dataset = make(write_csv(tmp_path / "rows.csv", came_in), tmp_path / "dataset")
    assert dataset.info["repeats"] == {"exact": 60, "near": 8, "texts_of_two_classes": 1, "train_rows_left_out": 0}
    assert "preprocess: counting repeats: 129/129 rows (100%)" in capsys.readouterr().out
    where = [
        {text.lower().strip("!") for text, _ in rows(split, dataset.classes)} for split in (dataset.train, dataset.test)
    ]
    assert not where[0] & where[1]


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
