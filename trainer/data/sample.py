"""News-like rows from word lists of our own, in sample.txt: the whole pipeline runs on them without a download.

A template is a format string. `{team}` draws from the list of that name; `{team1}` draws once a row, so that headline and
sentences speak of the same team; `{win/draw}` draws one of the words written there; `{2-9}` draws a whole number.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.resources import files
from itertools import zip_longest
from random import Random
from typing import TypeVar

VERSION = 1
"""Raise it when the same seed would give other rows."""

CLASSES = ("World", "Sports", "Business", "Sci/Tech")

MIXED_SHARE = 0.05  # rows whose story two classes have in the same words: often only a guess is left, as in real news
COMMON_SHARE = 0.15  # rows whose story all classes have, each with its own few words for who and what
TAIL_SHARE = 0.45  # rows with a second sentence; half of these sentences are the same in all classes


def _read() -> tuple[dict[str, str], str, str]:
    """Reads the word lists, stories and second sentences of sample.txt."""
    text = files("trainer.data").joinpath("sample.txt").read_text(encoding="utf-8")
    words, stories, tails = re.split(
        r"^== \w+ ==\n", re.sub(r"^# .*\n", "", text, flags=re.MULTILINE), flags=re.MULTILINE
    )[1:]
    return dict(line.split(":", 1) for line in re.sub(r"\n +", " ", words.strip()).splitlines()), stories, tails


WORDS, STORIES, TAILS = _read()

T = TypeVar("T")
Draw = Callable[[], float]


@cache
def _stories(text: str, label: str, classes: int) -> list[tuple[list[str], list[str]]]:
    """Returns headlines and sentences of the stories that so many classes share, this one among them."""
    blocks = re.findall(r"^(.+) #(.*)\n((?:[^#\n]+\n)+)", text, re.MULTILINE)
    shared = [block for block in blocks if label in block[0] and block[0].count(",") == classes - 1]
    return [(headlines.split("|"), sentences.splitlines()) for _, headlines, sentences in shared]


@cache
def _parts(template: str, label: str) -> list[tuple[str, Sequence[str | int], str]]:
    """Splits a template into literals, each with the choices that follow it and their name if they are drawn once a row."""
    pieces = re.split(r"\{((?:[^{}]|\{[^{}]*\})*)\}", template)  # a choice may hold slots, but these no further choices
    parts: list[tuple[str, Sequence[str | int], str]] = []
    for literal, slot in zip_longest(pieces[::2], pieces[1::2], fillvalue=""):
        if limits := re.fullmatch(r"(\d+)-(\d+)", slot):
            parts.append((literal, range(int(limits[1]), int(limits[2]) + 1), ""))
        elif "/" in slot or not slot:
            parts.append((literal, slot and slot.split("/"), ""))
        else:
            name = slot.rstrip("12")
            words = WORDS.get(f"{label} {name}") or WORDS[name]
            parts.append((literal, [" ".join(word.split()) for word in words.split("|")], slot if slot != name else ""))
    return parts


def _pick(choices: Sequence[T], draw: Draw) -> T:
    return choices[int(draw() * len(choices))]


def _fill(template: str, label: str, known: dict[str, str], draw: Draw) -> str:
    if "{" not in template:
        return template
    text = ""
    for literal, choices, key in _parts(template, label):
        text += literal
        if key in known:
            text += known[key]
        elif choices:
            while (value := _fill(str(_pick(choices, draw)), label, known, draw)) in known.values():
                pass  # no team plays against itself
            if key:
                known[key] = value
            text += value
    return text


def _row(label: str, draw: Draw) -> str:
    luck = draw()
    classes = 2 if luck < MIXED_SHARE else len(CLASSES) if luck < MIXED_SHARE + COMMON_SHARE else 1
    headlines, sentences = _pick(_stories(STORIES, label, classes), draw)
    templates = [_pick(headlines, draw).strip(), "{dateline}", _pick(sentences, draw)]
    if draw() < TAIL_SHARE:
        [(_, tails)] = _stories(TAILS, label, _pick((1, len(CLASSES)), draw))
        templates.append(_pick(tails, draw))
    known: dict[str, str] = {}
    texts = [_fill(template, label, known, draw) for template in templates]
    return " ".join(text[0].upper() + text[1:] for text in texts if text)


def sample_rows(rows: int, *, seed: int) -> Iterator[tuple[str, str]]:
    """Yields (text, class name) pairs, each class as often as the others; a larger sample starts with the smaller one."""
    draw = Random(seed).random  # the one method whose numbers stay the same in every version of Python
    order = list(CLASSES)
    for row in range(rows):
        if row % len(CLASSES) == 0:
            order.sort(key=lambda _: draw())
        label = order[row % len(CLASSES)]
        yield _row(label, draw), label
