"""Which row goes to which split, and which texts stand in two of them."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from server.errors import UserError
from trainer.data.dataset import SPLITS, read_staged

UNUSED = 255
_CHUNK = 8192


def split_rows(
    labels: npt.NDArray[np.int32], *, fractions: dict[str, float], max_train_rows: int | None, seed: int
) -> npt.NDArray[np.uint8]:
    """The split of each row, as its place in SPLITS, or UNUSED; every class is shared out in the same proportions.

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
    return _limited(assigned, labels, max_train_rows, random)


def _limited(
    assigned: npt.NDArray[np.uint8], labels: npt.NDArray[np.int32], limit: int | None, random: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Of each class the same share of training rows, so that they are `limit` in all; the others become UNUSED."""
    train = np.flatnonzero(assigned == SPLITS.index("train"))
    if limit is None or limit >= len(train):
        return assigned
    shuffled = random.permutation(train)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    kept = by_class[np.arange(limit) * len(train) // limit]  # evenly along the classes
    assigned[train] = UNUSED
    assigned[kept] = SPLITS.index("train")
    return assigned


def count_duplicates(dataset: Path) -> int:
    """Test rows whose text stands in train too; needs memory for the test rows only."""
    wanted = np.unique(np.concatenate([*_hashes(dataset / "test"), np.empty(0, dtype=np.uint64)]))
    seen = np.zeros(len(wanted), dtype=bool)
    for hashes in _hashes(dataset / "train"):
        places = np.searchsorted(wanted, hashes)
        found = places < len(wanted)
        found[found] = wanted[places[found]] == hashes[found]
        seen[places[found]] = True
    shared = wanted[seen]
    return sum(int(np.isin(hashes, shared).sum()) for hashes in _hashes(dataset / "test"))


def test_digest(dataset: Path) -> str:
    """Equal for equal test texts with equal classes, however they were tokenised."""
    digest = hashlib.sha256()
    for name in ("texts.bin", "texts.ends", "labels.bin"):
        with (dataset / "test" / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _hashes(folder: Path) -> Iterator[npt.NDArray[np.uint64]]:
    for _, texts, _ in read_staged(folder, _CHUNK):
        digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
        yield np.frombuffer(digests, dtype=np.uint64)
