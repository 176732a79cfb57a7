"""preprocess: from rows of any source to a dataset folder, once, and with nothing dropped in silence."""

import csv
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from server.errors import UserError
from tests.support.data import AG_NEWS, labelled, needs_ag_news, write, write_csv, write_json_lines
from trainer.config import PreprocessConfig
from trainer.data.dataset import SPLITS, Dataset, Split
from trainer.data.tables import AG_NEWS_CLASSES
from trainer.data.tokenizer import check_model, load_tokenizer, train_tokenizer
from trainer.preprocess import preprocess

ENCODER = os.environ.get("PRETRAINED_ENCODER", "")
"""Folder of a pretrained encoder with the uncased vocabulary, where there is one."""


def make(data: Path | str, output: Path, **settings: Any) -> Dataset:  # noqa: ANN401 - as PreprocessConfig takes it
    preprocess(PreprocessConfig(data=str(data), **settings), output)
    return Dataset(output)


def refusal(data: Path | str, output: Path, **settings: Any) -> str:  # noqa: ANN401 - as PreprocessConfig takes it
    """Why these rows cannot be used; nothing of them is left where the dataset would be."""
    beside = sorted(output.parent.iterdir())
    with pytest.raises(UserError) as refused:
        make(data, output, **settings)
    assert sorted(output.parent.iterdir()) == beside
    assert "\n" not in str(refused.value)
    return str(refused.value)


def rows(split: Split, classes: list[str]) -> list[tuple[str, str]]:
    return [(split.text(row), classes[split.labels[row]]) for row in range(len(split))]


def all_rows(dataset: Dataset) -> list[tuple[str, str]]:
    return [
        pair for split in (dataset.train, dataset.validation, dataset.test) for pair in rows(split, dataset.classes)
    ]


def of_each_class(split: Split, dataset: Dataset) -> dict[str, int]:
    return dict(Counter(label for _, label in rows(split, dataset.classes)))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an encoder, as far as preprocess looks at it."""
    folder = tmp_path_factory.mktemp("encoder")
    train_tokenizer((text for text, _ in labelled(50)), max_length=512).save_pretrained(folder)
    write(folder / "config.json", json.dumps({"model_type": "distilbert"}))
    return folder


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """5,000 rows: more than are read, tokenised and written at a time."""
    return make("sample:5000", tmp_path_factory.mktemp("sample") / "dataset", max_length=48)


# Rows and splits


def test_every_row_that_comes_in_is_in_one_split(tmp_path: Path) -> None:
    came_in = labelled(301, classes=("a", "b", "c"))
    dataset = make(write_csv(tmp_path / "rows.csv", came_in), tmp_path / "dataset")
    assert sorted(all_rows(dataset)) == sorted(came_in)
    assert dataset.info["bad_rows"] == {}
    assert dataset.info["unused_rows"] == 0
    assert sorted(path.name for path in dataset.folder.iterdir()) == [
        "dataset.json", "labels.bin", "lines.bin", "splits.bin", "texts.bin", "texts.ends", "tokenizer", "tokens.bin", "tokens.ends",
    ]  # fmt: skip


def test_rows_keep_their_line_in_the_source(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", [(f"two\nlines {text}", label) for text, label in labelled(60)])
    lines = path.read_text(encoding="utf-8").splitlines()
    dataset = make(path, tmp_path / "dataset")
    for split in (dataset.train, dataset.validation, dataset.test):
        for row in range(len(split)):
            assert split.text(row).splitlines()[1] in lines[split.lines[row]]


def test_rows_are_counted_the_same_whatever_is_read_at_a_time(sample: Dataset) -> None:
    assert [len(split) for split in (sample.train, sample.validation, sample.test)] == [4276, 224, 500]
    numbers = np.concatenate([sample.train.lines, sample.validation.lines, sample.test.lines])
    assert sorted(numbers.tolist()) == list(range(1, 5001))


def test_each_class_is_shared_out_in_the_same_proportions(tmp_path: Path) -> None:
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
def test_a_limit_of_training_rows_is_exact_and_takes_of_each_class_alike(tmp_path: Path, limit: int) -> None:
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
    for split in ("validation", "test"):  # what is compared stays comparable
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


def test_texts_that_stand_in_train_and_test_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


# Classes


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


def test_ag_news_keeps_its_own_order_of_classes(tmp_path: Path) -> None:
    came_in = [(4 - number % 4, f"title {number}", "words") for number in range(80)]
    dataset = make(write_csv(tmp_path / "train.csv", came_in, header=()), tmp_path / "dataset")
    assert dataset.classes == list(AG_NEWS_CLASSES)
    assert sorted(all_rows(dataset)) == sorted(
        (f"{title} {words}", AG_NEWS_CLASSES[number - 1]) for number, title, words in came_in
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
        f"{path}, line 4: unknown class: 'odd' is none of bad, good. "
        "Fix the row, or pass --bad-rows skip to leave such rows out"
    )


def test_a_class_of_test_rows_that_train_has_not_is_unknown(tmp_path: Path) -> None:
    write_csv(tmp_path / "news" / "train.csv", labelled(60))
    test = write_csv(tmp_path / "news" / "test.csv", [("fine", "good"), ("why", "odd"), ("no", "bad")])
    said = refusal(tmp_path / "news", tmp_path / "dataset")
    assert said.startswith(f"{test}, line 3: unknown class: 'odd' is none of bad, good.")
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
    path = write_csv(tmp_path / "rows.csv", labelled(2))
    assert refusal(path, tmp_path / "dataset") == "2 rows are too few to take test rows from; give more"
    two_each = write_csv(tmp_path / "more.csv", labelled(4))
    assert refusal(two_each, tmp_path / "dataset") == "4 rows are too few to take validation rows from; give more"


@pytest.mark.parametrize("content", ["text,label\n", "text,label\n\n\n"])
def test_a_file_without_rows_is_refused(tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "rows.csv", content)
    assert refusal(path, tmp_path / "dataset") == f"{path}: holds no row that can be used"


# Bad rows


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
    assert sorted(all_rows(dataset)) == sorted(labelled(200) + labelled(50))
    counts = {
        "empty text": 3,
        "not valid JSON": 1,
        "missing column": 1,
        "unknown class": 1,
        "wrong number of fields": 1,
    }
    assert dataset.info["bad_rows"] == counts
    said = capsys.readouterr().out
    assert "preprocess: skipped 7 bad rows (empty text 3, not valid JSON 1, missing column 1, " in said
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


# Tokens


def test_tokens_are_what_transformers_gives(tmp_path: Path, encoder: Path) -> None:
    came_in = [(f"{text} {'again ' * (number % 40)}", label) for number, (text, label) in enumerate(labelled(200))]
    path = write_csv(tmp_path / "rows.csv", [*came_in, ("Ünknown 世界 🌍!", "good"), ("ENDS[SEP]here", "bad")])
    for model in ("tiny", str(encoder)):
        dataset = make(path, tmp_path / f"dataset of {Path(model).name}", model=model, max_length=24)
        tokenizer = AutoTokenizer.from_pretrained(dataset.tokenizer_folder)
        truncated = 0
        for split in (dataset.train, dataset.validation, dataset.test):
            texts = [split.text(row) for row in range(len(split))]
            expected = tokenizer(texts, truncation=True, max_length=24)["input_ids"]
            assert [split.tokens(row).tolist() for row in range(len(split))] == expected
            assert split.lengths.tolist() == [len(tokens) for tokens in expected]
            truncated += sum(len(tokens) > 24 for tokens in tokenizer(texts)["input_ids"])
        assert truncated > 20
        assert sum(dataset.info["splits"][name]["truncated"] for name in SPLITS) == truncated
        assert dataset.vocabulary_size == len(tokenizer)
        assert dataset.pad_token_id == tokenizer.pad_token_id


def test_the_tokenizer_of_tiny_learns_from_training_rows_alone(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "rows.csv", [(f"{text} w{number}w", label) for number, (text, label) in enumerate(labelled(60))]
    )
    dataset = make(path, tmp_path / "dataset")
    learnt = AutoTokenizer.from_pretrained(dataset.tokenizer_folder).get_vocab()
    for split in (dataset.train, dataset.validation, dataset.test):
        words = [split.text(row).split()[-1] for row in range(len(split))]
        assert {word in learnt for word in words} == {split is dataset.train}


def test_the_tokenizer_of_tiny_knows_the_most_frequent_words_and_every_character() -> None:
    texts = ["Seldom SELDOM often often often", "same name", *(f"w{number}" for number in range(10_000))]
    vocabulary = train_tokenizer(iter(texts), max_length=32).get_vocab()
    assert len(vocabulary) == 8192
    by_number = sorted(vocabulary, key=vocabulary.__getitem__)
    characters = sorted(set("seldomoftensamenamew0123456789"))
    assert by_number[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert by_number[5 : 5 + 2 * len(characters)] == [*characters, *("##" + character for character in characters)]
    assert by_number[5 + 2 * len(characters) :][:6] == ["often", "seldom", "name", "same", "w0", "w1"]


def test_tokens_and_texts_are_read_through_memory_maps(sample: Dataset) -> None:
    def is_mapped(array: Any) -> bool:  # noqa: ANN401 - numpy's base may be anything
        return isinstance(array, np.memmap) or (array is not None and is_mapped(getattr(array, "base", None)))

    assert is_mapped(sample.train.tokens(17))
    assert is_mapped(sample.train._texts[17])
    assert is_mapped(sample.train._lines)
    with pytest.raises(ValueError, match="read-only"):
        sample.train.tokens(17)[0] = 0


def test_what_is_reported_is_what_is_there(sample: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = sample.info["splits"]
    for split in (sample.train, sample.validation, sample.test):
        found = info[split.name]
        assert found["rows"] == len(split)
        assert found["tokens"] == split.lengths.sum()
        assert found["truncated"] <= (split.lengths == 48).sum()
        assert found["classes"] == {
            name: int((split.labels == number).sum()) for number, name in enumerate(sample.classes)
        }
        assert found["length_percentiles"] == {
            str(percent): np.percentile(split.lengths, percent, method="inverted_cdf") for percent in (5, 50, 95, 99)
        }
    make("sample:5000", tmp_path / "dataset", max_length=48)
    said = capsys.readouterr().out
    counts = ", ".join(f"{name} 125 (25.0%)" for name in sample.classes)
    assert f"preprocess: test: 500 rows: {counts}\n" in said
    percentiles = "/".join(str(length) for length in info["test"]["length_percentiles"].values())
    assert f"{info['test']['tokens'] / 500:.1f} tokens a row, percentiles 5/50/95/99 {percentiles}; " in said
    assert f"{info['test']['truncated']} rows ({info['test']['truncated'] / 500:.1%}) truncated at 48" in said


def test_unused_validation_files_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_csv(tmp_path / "news" / "train.csv", labelled(60))
    write_csv(tmp_path / "news" / "dev.csv", labelled(9))
    make(tmp_path / "news", tmp_path / "dataset")
    assert "preprocess: dev.csv is not used: " in capsys.readouterr().out


@needs_ag_news
def test_the_real_test_split_is_whole(tmp_path: Path) -> None:
    file = AG_NEWS / "test.csv"
    dataset = make(file, tmp_path / "dataset", test_data=str(file))
    with file.open(encoding="utf-8", newline="") as source:
        texts = [" ".join(filter(None, map(str.strip, fields[1:]))) for fields in csv.reader(source)]
    assert [dataset.test.text(row) for row in range(len(dataset.test))] == texts
    assert of_each_class(dataset.test, dataset) == dict.fromkeys(AG_NEWS_CLASSES, 1900)


@needs_ag_news
@pytest.mark.skipif(not ENCODER, reason="needs the folder of an encoder in PRETRAINED_ENCODER")
def test_the_real_test_split_has_as_many_tokens_as_the_uncased_vocabulary_gives(tmp_path: Path) -> None:
    file = str(AG_NEWS / "test.csv")
    test = make(file, tmp_path / "dataset", test_data=file, model=ENCODER).info["splits"]["test"]
    assert test["rows"] == 7600
    assert test["tokens"] / 7600 == pytest.approx(52.3, rel=0.01)
    assert test["truncated"] / 7600 == pytest.approx(0.007, abs=0.0005)
    assert list(test["length_percentiles"].values()) == pytest.approx([31, 50, 79, 121], abs=1)


# A dataset that is used again


def test_the_same_settings_use_the_same_folder_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, output = PreprocessConfig(data="sample:200"), tmp_path / "dataset"
    first = preprocess(config, output)
    stamps = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    capsys.readouterr()
    assert preprocess(config, output) == first
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == stamps
    assert f"were preprocessed before: used again from {output}\n" in capsys.readouterr().out


def test_an_earlier_folder_with_the_same_settings_is_linked(tmp_path: Path) -> None:
    config, earlier, output = PreprocessConfig(data="sample:200"), tmp_path / "earlier", tmp_path / "run" / "dataset"
    other = tmp_path / "other"
    preprocess(config.model_copy(update={"seed": 7}), other)
    (tmp_path / "old").mkdir()
    write_json_lines(tmp_path / "old" / "dataset.json", [{"of": "a version that told no fingerprint"}])
    made = preprocess(config, earlier)
    assert preprocess(config, output, earlier=(tmp_path / "old", other, earlier)) == made
    assert contents(output) == contents(earlier)
    assert all(path.stat().st_nlink == 2 for path in output.rglob("*") if path.is_file())
    shutil.rmtree(earlier)
    assert len(Dataset(output).train) == made["splits"]["train"]["rows"]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1}, {"max_length": 64}, {"validation_fraction": 0.1}, {"test_fraction": 0.2}, {"max_train_rows": 50},
        {"bad_rows": "skip"},
    ],
)  # fmt: skip
def test_a_changed_setting_makes_a_new_dataset(tmp_path: Path, change: dict[str, Any]) -> None:
    path, output = write_csv(tmp_path / "rows.csv", labelled(100)), tmp_path / "dataset"
    config = PreprocessConfig(data=str(path))
    first = preprocess(config, output)
    second = preprocess(config.model_copy(update=change), output, earlier=(output,))
    assert second["fingerprint"] != first["fingerprint"]
    assert Dataset(output).fingerprint == second["fingerprint"]


def test_changed_rows_or_columns_make_a_new_dataset(tmp_path: Path) -> None:
    def fingerprint(**settings: Any) -> str:  # noqa: ANN401 - as PreprocessConfig takes it
        return make(path, tmp_path / "dataset", **settings).fingerprint

    path = write_csv(
        tmp_path / "rows.csv", [(text, label, "more") for text, label in labelled(60)], ("text", "label", "by")
    )
    prints = [fingerprint(), fingerprint(text_column=("text", "by")), fingerprint(class_names=("good", "bad"))]
    write_csv(path, [(text, label, "less") for text, label in labelled(60)], ("text", "label", "by"))
    prints.append(fingerprint())
    assert len(set(prints)) == 4


def test_another_tokenizer_makes_a_new_dataset_and_another_name_of_the_same_does_not(
    tmp_path: Path, encoder: Path
) -> None:
    def fingerprint(model: Path | str) -> str:
        return make("sample:200", tmp_path / "dataset", model=str(model)).fingerprint

    copy = shutil.copytree(encoder, tmp_path / "copy")
    assert fingerprint(copy) == fingerprint(encoder)
    train_tokenizer(iter(["other words"]), max_length=512).save_pretrained(copy)
    assert len({fingerprint(copy), fingerprint(encoder), fingerprint("tiny")}) == 3


def test_a_dataset_of_an_older_format_is_refused_and_made_anew(tmp_path: Path) -> None:
    config, output = PreprocessConfig(data="sample:200"), tmp_path / "dataset"
    made = preprocess(config, output)
    older = json.loads((output / "dataset.json").read_text("utf-8")) | {"fingerprint": "of another format"}
    del older["format"]
    (output / "dataset.json").write_text(json.dumps(older), "utf-8")
    with pytest.raises(
        UserError, match=r"has dataset format 1, this version reads format 2; make it anew with the prep"
    ):
        Dataset(output)
    assert preprocess(config, output) == made
    assert len(Dataset(output).train) == made["splits"]["train"]["rows"]


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


def test_a_folder_without_a_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no dataset folder, it has no dataset\.json; make it with the preprocess"):
        Dataset(tmp_path)


# Encoders


@pytest.mark.parametrize("model", ["./absent", "/no/such/model", "~/model", "a/b/c"])
def test_an_encoder_that_can_only_be_a_folder_must_be_there(model: str, tmp_path: Path) -> None:
    assert refusal("sample", tmp_path / "dataset", model=model) == f"--model {model}: no such folder"


def test_a_folder_without_an_encoder_is_refused(tmp_path: Path) -> None:
    assert "holds no config.json, so it is no encoder" in refusal("sample", tmp_path / "dataset", model=str(tmp_path))


def test_an_encoder_may_be_named_by_its_id() -> None:
    check_model("someone/encoder")
    check_model("tiny")


def test_an_encoder_without_its_vocabulary_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "config.json", json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match=r"its tokenizer has no vocabulary; is tokenizer\.json or vocab\.txt missing\?"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("content", ["{", "{}", '{"model": 5, "added_tokens": []}'])
def test_a_broken_tokenizer_is_refused_with_one_line(tmp_path: Path, encoder: Path, content: str) -> None:
    folder = shutil.copytree(encoder, tmp_path / "encoder")
    write(folder / "tokenizer.json", content)
    said = refusal("sample", tmp_path / "dataset", model=str(folder))
    assert said.startswith(f"--model {folder}: its tokenizer cannot be loaded: ")
