"""The built-in sample, on which the pipeline runs without a data set."""

import re
from collections import Counter
from hashlib import sha256
from random import Random
from statistics import mean, quantiles

import pytest

from trainer.data import sample
from trainer.data.sample import CLASSES, STORIES, TAILS, VERSION, WORDS, sample_rows

DIGESTS = {1: "67d239e04fb00a17"}
"""Digests of the first thousand rows of seed 0, by version."""


@pytest.fixture(scope="module")
def rows() -> list[tuple[str, str]]:
    return list(sample_rows(10_000, seed=0))


def test_every_row_is_one_line_of_finished_text(rows: list[tuple[str, str]]) -> None:
    for text, label in rows:
        assert label in CLASSES
        assert text == " ".join(text.split())
        assert not set("{}|/#") & set(text), text


def test_every_word_list_is_drawn_from() -> None:
    templates = STORIES + TAILS + " ".join(WORDS.values()) + "{dateline}"
    for name in WORDS:
        slot = name.split()[-1]
        assert any("{" + slot + ending in templates for ending in ("}", "1}", "2}")), name


@pytest.mark.parametrize("count", [1, 4, 7, 1_002])
def test_classes_are_balanced_within_one_row(count: int) -> None:
    counts = Counter(label for _, label in sample_rows(count, seed=3))
    assert counts.total() == count
    assert max(counts.values()) - min(counts[label] for label in CLASSES) <= 1


def test_classes_come_in_random_order(rows: list[tuple[str, str]]) -> None:
    labels = [label for _, label in rows]
    orders = Counter(tuple(labels[start : start + 4]) for start in range(0, len(labels), 4))
    assert len(orders) == 24  # all orders of four classes
    assert max(orders.values()) < 2 * min(orders.values())


def test_a_larger_sample_starts_with_the_smaller_one(rows: list[tuple[str, str]]) -> None:
    assert list(sample_rows(1_001, seed=0)) == rows[:1_001]


def test_another_seed_gives_other_rows(rows: list[tuple[str, str]]) -> None:
    texts = {text for text, _ in rows}
    assert sum(text in texts for text, _ in sample_rows(1_000, seed=1)) < 5


def test_rows_change_only_with_the_version(rows: list[tuple[str, str]]) -> None:
    assert sha256(repr(rows[:1_000]).encode()).hexdigest()[:16] == DIGESTS[VERSION]


def test_rows_are_made_one_at_a_time() -> None:
    assert next(sample_rows(10**12, seed=0)) == next(sample_rows(1, seed=0))


def test_texts_are_as_long_as_news(rows: list[tuple[str, str]]) -> None:
    words = [len(text.split()) for text, _ in rows]
    twentieths = quantiles(words, n=20)
    assert 35 <= mean(words) <= 40
    assert 17 <= twentieths[0] <= 23
    assert 57 <= twentieths[-1] <= 63


def test_few_texts_come_twice(rows: list[tuple[str, str]]) -> None:
    assert len({text for text, _ in rows}) > 0.995 * len(rows)


def test_no_team_plays_against_itself() -> None:
    draw = Random(0).random
    for _ in range(100):
        winner, loser = sample._fill("{mascot1} {mascot2}", "Sports", {}, draw).split()
        assert winner != loser


def test_headline_and_sentence_describe_the_same_match(rows: list[tuple[str, str]]) -> None:
    matches = [found for text, _ in rows if (found := re.search(r"(\d-\d) .* to beat (.+) (\d-\d) in", text))]
    assert len(matches) > 20
    for match in matches:
        score, loser, same_score = match.groups()
        assert score == same_score
        assert match.string.count(loser) >= 2, match.string


@pytest.mark.slow
def test_a_linear_model_learns_the_classes_but_not_all_rows(rows: list[tuple[str, str]]) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts, labels = zip(*rows[:5_000], strict=True)
    model = make_pipeline(TfidfVectorizer(), LogisticRegression())
    model.fit(texts[:4_000], labels[:4_000])
    assert 0.93 <= model.score(texts[4_000:], labels[4_000:]) <= 0.98
