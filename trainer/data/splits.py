"""Assign rows to splits; count and digest the texts of test rows."""

import hashlib
import itertools
import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from server.errors import UserError
from trainer.data.dataset import SPLITS, read_texts
from trainer.monitoring.console import Progress, print0

Keys = npt.NDArray[np.uint64]
Labels = npt.NDArray[np.int32]
_PART = 1 << 20  # keys that are looked for at a time
MOST_LISTED = 8
"""Classes that a line of the log lists at most."""

_TRAIN, _VALIDATION, _TEST = range(len(SPLITS))


def listed(names: Sequence[str]) -> str:
    """Joins names for a message, some of many."""
    shown = ", ".join(name[:40] for name in names[:MOST_LISTED])
    return shown + (f" and {len(names) - MOST_LISTED:,} more" if len(names) > MOST_LISTED else "")


def split_rows(
    keys: Keys, labels: Labels, classes: Sequence[str], *, fractions: dict[str, float], seed: int
) -> npt.NDArray[np.uint8]:
    """Returns the split of each row, as its place in SPLITS: a text and the seed decide it, whatever the other rows are.

    Three things come before: each class keeps a row in train, rows of one text stay together, and no split is empty.
    """
    draws = _draws(keys, seed)
    test, held_out = fractions["test"], fractions["test"] + (1 - fractions["test"]) * fractions["validation"]
    assigned = np.full(len(keys), _TRAIN, dtype=np.uint8)
    assigned[draws < np.uint64(held_out * 2**64)] = _VALIDATION
    assigned[draws < np.uint64(test * 2**64)] = _TEST
    _keep_each_class(assigned, keys, labels, draws, classes)
    for name, fraction in fractions.items():
        if fraction and not (assigned == SPLITS.index(name)).any():
            _fill(assigned, keys, labels, draws, name)
    return assigned


def _draws(keys: Keys, seed: int) -> Keys:
    """Returns a number below 2^64 for each key, as if drawn: the same for the same key and seed (SplitMix64)."""
    mixed = keys + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _keep_each_class(
    assigned: npt.NDArray[np.uint8], keys: Keys, labels: Labels, draws: Keys, classes: Sequence[str]
) -> None:
    """Takes one text of each class that has none in train back to train."""
    lacking = np.setdiff1d(labels, labels[assigned == _TRAIN])
    if not len(lacking):
        return
    rows = np.flatnonzero(np.isin(labels, lacking))
    rows = rows[np.argsort(draws[rows], kind="stable")]
    highest = dict(zip(labels[rows].tolist(), keys[rows].tolist(), strict=True))  # the last of each class
    assigned[np.isin(keys, np.array([*highest.values()], dtype=np.uint64))] = _TRAIN
    print0(
        f"preprocess: one text of {listed([classes[number] for number in lacking])} is kept in train, which had none"
    )


def _fill(assigned: npt.NDArray[np.uint8], keys: Keys, labels: Labels, draws: Keys, name: str) -> None:
    """Takes a text from train for a split that has none; a class keeps a text there."""
    train = np.flatnonzero(assigned == _TRAIN)
    by_text = train[np.lexsort((keys[train], labels[train]))]
    new = np.diff(labels[by_text], prepend=-1).astype(bool) | np.insert(np.diff(keys[by_text]) != 0, 0, values=True)
    texts = by_text[new]  # one row of each text of a class
    needed = keys[texts][np.bincount(labels[texts])[labels[texts]] == 1]
    free = train[~np.isin(keys[train], needed)]
    if not len(free):
        count = len(np.unique(keys))
        raise UserError(f"{len(keys):,} rows of {count:,} texts are too few to take {name} rows from; give more")
    assigned[keys == keys[free[draws[free].argmin()]]] = SPLITS.index(name)


def leave_out(train: Keys, test: Keys, labels: Labels, classes: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Returns the training rows whose text is among the test rows; UserError when a class has no others."""
    shared = _is_in(train, np.unique(test))
    if len(lost := np.setdiff1d(labels, labels[~shared])):
        names = listed([classes[number] for number in lost])
        raise UserError(
            f"all training rows of {names} have their text among the test rows too; leave them in one of both"
        )
    return shared


def limit_rows(keys: Keys, labels: Labels, limit: int, *, seed: int) -> npt.NDArray[np.int64]:
    """Returns the rows to keep, `limit` in all: of each class its share, and at least one; which ones, text and seed decide."""
    counts = np.bincount(labels)
    present = counts > 0
    if limit < present.sum():
        raise UserError(
            f"max_train_rows = {limit} is less than the {present.sum()} classes of the training rows, each of which needs one; "
            f"give {present.sum()} or more"
        )
    by_class = np.lexsort((_draws(keys, seed), labels))
    quotas = np.bincount(labels[by_class[np.arange(limit) * len(labels) // limit]], minlength=len(counts))
    for number in np.flatnonzero(present & (quotas == 0)):
        quotas[quotas.argmax()] -= 1
        quotas[number] = 1
    place = np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[by_class]]
    return np.sort(by_class[place < quotas[labels[by_class]]])


def count_repeats(folder: Path, keys: Keys, labels: Labels) -> dict[str, int]:
    """Counts rows that repeat the text of an earlier row, exactly or nearly, and texts that have two classes or more."""
    ordered = np.sort(keys)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    chosen = _is_in(keys, repeated)
    read = _with_progress("preprocess: counting repeats", folder, len(keys))
    texts = (text for place, texts in read for text in itertools.compress(texts, chosen[place]))
    exact = int(chosen.sum()) - len(np.unique(_hashes(text.encode() for text in texts))) if len(repeated) else 0
    own, of_own = keys[chosen], labels[chosen]
    order = np.lexsort((of_own, own))
    two_classes = (np.diff(own[order]) == 0) & (np.diff(of_own[order]) != 0)
    return {
        "exact": exact,
        "near": len(own) - len(repeated) - exact,
        "texts_of_two_classes": len(np.unique(own[order][1:][two_classes])),
    }


def _is_in(keys: Keys, wanted: Keys) -> npt.NDArray[np.bool_]:
    """Returns True for each key that is wanted; in parts, as it takes much memory."""
    parts = [keys[start : start + _PART] for start in range(0, len(keys), _PART)]
    return np.concatenate([np.empty(0, dtype=bool), *(np.isin(part, wanted) for part in parts)])


def test_digest(
    folder: Path, splits: npt.NDArray[np.uint8], labels: npt.NDArray[np.int32], classes: Sequence[str]
) -> str:
    """Returns a digest of (text, class name) of all test rows: how they are tokenised and numbered does not matter."""
    digest = hashlib.sha256()
    for place, texts in _with_progress("preprocess: reading test rows", folder, len(splits)):
        for row in np.flatnonzero(splits[place] == SPLITS.index("test")):
            digest.update(json.dumps([texts[row], classes[labels[place][row]]]).encode() + b"\n")
    return digest.hexdigest()[:16]


class _NotRead(dict[int, int | None]):
    """Maps each character that is left out of a folded text to None, and any other to itself."""

    def __missing__(self, character: int) -> int | None:
        left_out = unicodedata.category(chr(character)) in _LEFT_OUT
        return self.setdefault(character, None if left_out else character)


_LEFT_OUT = {"Cc", "Cf", "Mn", "Sk", "Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "Zl", "Zp", "Zs"}
_NOT_READ = _NotRead()
_ASCII_NOT_READ = bytes(character for character in range(128) if _NOT_READ[character] is None)
_ASCII_LOWER = bytes(range(256)).lower()


def fold(text: str) -> bytes:
    """Returns a text as UTF-8 without case, accents, punctuation and white space; one of nothing else keeps its punctuation.

    Texts that are equal after the normalisation of a tokenizer fold to the same, whichever the tokenizer is.
    """
    if text.isascii():
        folded = text.encode().translate(_ASCII_LOWER, _ASCII_NOT_READ)
    else:
        decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
        folded = decomposed.translate(_NOT_READ).encode()
    return folded or "".join(unicodedata.normalize("NFKD", text).split()).encode()


def keys_of(texts: Iterable[str]) -> Keys:
    """Returns the hash of each text, folded: near repeats have the same."""
    return _hashes(fold(text) for text in texts)


def _hashes(texts: Iterable[bytes]) -> Keys:
    return np.frombuffer(b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts), dtype=np.uint64)


def read_keys(folder: Path) -> Keys:
    """Returns the hash of the text of each row in a dataset folder."""
    found = [np.empty(0, dtype=np.uint64)]
    found += (keys_of(texts) for _, texts in _with_progress("comparing texts", folder))
    return np.concatenate(found)


def _with_progress(what: str, folder: Path, rows: int | None = None) -> Iterator[tuple[slice, list[str]]]:
    with Progress(what, rows, "rows") as progress:
        for place, texts in read_texts(folder):
            yield place, texts
            progress.advance(len(texts))


def text_keys(folder: Path, split_names: Iterable[str]) -> Keys:
    """Returns the hashes of the texts in these splits of a dataset folder, of any format, sorted and each once."""
    splits = np.fromfile(folder / "splits.bin", dtype=np.uint8)
    return np.unique(read_keys(folder)[np.isin(splits, [SPLITS.index(name) for name in split_names])])
