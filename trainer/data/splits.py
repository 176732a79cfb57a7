"""Assign rows to splits; count and digest the texts of test rows."""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from server.errors import UserError
from trainer.data.dataset import SPLITS, UNUSED, read_texts
from trainer.monitoring.console import Progress


def split_rows(
    labels: npt.NDArray[np.int32], *, fractions: dict[str, float], max_train_rows: int | None, seed: int
) -> npt.NDArray[np.uint8]:
    """Returns the split of each row, as its place in SPLITS, or UNUSED; each class is divided in the same proportions.

    A class of two rows or more has a row in train and one in each split that takes a share, as far as they go.
    """
    random = np.random.default_rng([seed, 1])
    assigned = np.full(len(labels), SPLITS.index("train"), dtype=np.uint8)
    for label in range(int(labels.max()) + 1):
        rows = random.permutation(np.flatnonzero(labels == label))
        for name in ("test", "validation"):
            if fractions[name] and len(rows) > 1:
                taken, rows = np.split(rows, [max(1, round(len(rows) * fractions[name]))])
                assigned[taken] = SPLITS.index(name)
    for name, fraction in fractions.items():
        if fraction and not (assigned == SPLITS.index(name)).any():
            raise UserError(f"{len(labels)} rows are too few to take {name} rows from; give more")
    return _limit(assigned, labels, max_train_rows, random)


def _limit(
    assigned: npt.NDArray[np.uint8], labels: npt.NDArray[np.int32], limit: int | None, random: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Keeps the same share of training rows of each class, `limit` in all; the others become UNUSED."""
    train = np.flatnonzero(assigned == SPLITS.index("train"))
    if limit is None or limit >= len(train):
        return assigned
    shuffled = random.permutation(train)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    kept = by_class[np.arange(limit) * len(train) // limit]  # evenly along the classes
    assigned[train] = UNUSED
    assigned[kept] = SPLITS.index("train")
    return assigned


def count_duplicates(folder: Path, splits: npt.NDArray[np.uint8]) -> int:
    """Counts test rows whose text is in train too; needs memory for the test rows alone."""
    test = np.concatenate([_hashes(texts, splits[place], "test") for place, texts in read_texts(folder)])
    wanted = np.unique(test)
    seen = np.zeros(len(wanted), dtype=bool)
    for place, texts in read_texts(folder):
        hashes = _hashes(texts, splits[place], "train")
        places = np.searchsorted(wanted, hashes)
        found = places < len(wanted)
        found[found] = wanted[places[found]] == hashes[found]
        seen[places[found]] = True
    return int(np.isin(test, wanted[seen]).sum())


def test_digest(
    folder: Path, splits: npt.NDArray[np.uint8], labels: npt.NDArray[np.int32], classes: Sequence[str]
) -> str:
    """Returns a digest of (text, class name) of all test rows: how they are tokenised and numbered does not matter."""
    digest = hashlib.sha256()
    for place, texts in read_texts(folder):
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


def keys_of(texts: Iterable[str]) -> npt.NDArray[np.uint64]:
    """Returns the hash of each text, folded: near repeats have the same."""
    digests = b"".join(hashlib.blake2b(fold(text), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, dtype=np.uint64)


def text_keys(folder: Path, split_names: Iterable[str]) -> npt.NDArray[np.uint64]:
    """Returns the hashes of the texts in these splits of a dataset folder, of any format, sorted and each once."""
    splits = np.fromfile(folder / "splits.bin", dtype=np.uint8)
    wanted = np.isin(splits, [SPLITS.index(name) for name in split_names])
    found = [np.empty(0, dtype=np.uint64)]
    with Progress(f"reading the texts of {folder}", len(splits), "rows") as progress:
        for place, texts in read_texts(folder):
            found.append(keys_of(texts[row] for row in np.flatnonzero(wanted[place])))
            progress.advance(len(texts))
    return np.unique(np.concatenate(found))


def _hashes(texts: Sequence[str], splits: npt.NDArray[np.uint8], name: str) -> npt.NDArray[np.uint64]:
    chosen = np.flatnonzero(splits == SPLITS.index(name)).tolist()
    digests = b"".join(hashlib.blake2b(texts[row].encode(), digest_size=8).digest() for row in chosen)
    return np.frombuffer(digests, dtype=np.uint64)
