"""The dataset folder that preprocess writes: flat arrays, read through memory maps, so that rows cost little memory.

dataset.json   class names, columns, fingerprint, settings, counts
tokenizer/     as `transformers` saves it
texts.bin      the texts of all rows in the order of the source, UTF-8    texts.ends   where each row ends (int64)
tokens.bin     their token ids; unused rows have none                     tokens.ends
labels.bin     int32          lines.bin   int64: line in the source       splits.bin   uint8: place in SPLITS, or UNUSED
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from server.errors import UserError
from server.files import read_json, recover_directory
from server.model_folder import Padding

FORMAT = 3
"""Raise it when the same settings would write another dataset."""

SPLITS = ("train", "validation", "test")
UNUSED = 255
CHUNK = 2048  # rows in memory at a time: a few megabytes


class RaggedWriter:
    """Appends rows of different lengths to `<name>.bin`, and where each ends to `<name>.ends`."""

    def __init__(self, folder: Path, name: str, dtype: npt.DTypeLike) -> None:
        self._path, self._dtype, self._stack, self._end = folder / name, dtype, ExitStack(), 0

    def __enter__(self) -> Self:
        self._values = self._stack.enter_context(self._path.with_suffix(".bin").open("wb"))
        self._ends = self._stack.enter_context(self._path.with_suffix(".ends").open("wb"))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def append(self, rows: Sequence[bytes] | Sequence[Sequence[int]]) -> None:
        values = [row if isinstance(row, bytes) else np.asarray(row, dtype=self._dtype).tobytes() for row in rows]
        ends = self._end + np.cumsum([len(row) for row in rows], dtype=np.int64)
        self._values.write(b"".join(values))
        self._ends.write(ends.tobytes())
        self._end = int(ends[-1]) if len(ends) else self._end


class _Ragged:
    """Rows that a RaggedWriter wrote, memory-mapped."""

    def __init__(self, folder: Path, name: str, dtype: npt.DTypeLike) -> None:
        self._values, self.ends = _map(folder / f"{name}.bin", dtype), _map(folder / f"{name}.ends", np.int64)

    def __getitem__(self, row: int) -> npt.NDArray[Any]:
        return self._values[self.ends[row - 1] if row else 0 : self.ends[row]]


class Split:
    """Rows of one split in the order of the source. `labels` [rows], `lengths` [rows] in tokens; the rest stays on disk."""

    def __init__(self, name: str, rows: npt.NDArray[np.int64], folder: Path, token_dtype: str) -> None:
        self.name, self._rows = name, rows
        self._texts, self._tokens = _Ragged(folder, "texts", np.uint8), _Ragged(folder, "tokens", token_dtype)
        self._lines = _map(folder / "lines.bin", np.int64)
        self.labels: npt.NDArray[np.int32] = _map(folder / "labels.bin", np.int32)[rows]
        self.lengths: npt.NDArray[np.int32] = np.diff(self._tokens.ends, prepend=0)[rows].astype(np.int32)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def lines(self) -> npt.NDArray[np.int64]:
        """The line of each row in its source."""
        return np.asarray(self._lines[self._rows])

    def tokens(self, row: int) -> npt.NDArray[Any]:
        return self._tokens[self._rows[row]]

    def text(self, row: int) -> str:
        return self._texts[self._rows[row]].tobytes().decode()


class Dataset:
    """A dataset folder, opened; UserError when the folder holds none, or one of another format."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info = read_info(folder)
        if self.info.get("format") != FORMAT:
            raise UserError(
                f"{folder}: has dataset format {self.info.get('format', 1)}, this version reads format {FORMAT}; "
                "run the preprocess step again (--from preprocess); a training of it cannot be resumed, as the rows are split "
                "anew: add --resume never, which keeps its checkpoints aside"
            )
        self.classes: list[str] = self.info["classes"]
        self.fingerprint: str = self.info["fingerprint"]
        self.max_length: int = self.info["max_length"]
        self.padding = Padding(**self.info["padding"])
        self.vocabulary_size: int = self.info["vocabulary_size"]
        self.tokenizer_folder = folder / "tokenizer"
        splits = np.fromfile(folder / "splits.bin", dtype=np.uint8)
        self.train, self.validation, self.test = (
            Split(name, np.flatnonzero(splits == place), folder, self.info["token_dtype"])
            for place, name in enumerate(SPLITS)
        )


def read_info(folder: Path) -> dict[str, Any]:
    """Reads dataset.json; UserError where there is none."""
    try:
        return read_json(recover_directory(folder) / "dataset.json", fix="preprocess again")
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: is no dataset folder, it has no dataset.json; write one with the preprocess step"
        ) from error


def read_texts(folder: Path) -> Iterator[tuple[slice, list[str]]]:
    """Yields texts that a RowWriter wrote, some thousands at a time, and their place among the rows.

    Reads files instead of mapping them, so that pages already read do not count as memory of this process.
    """
    with (folder / "texts.bin").open("rb") as texts, (folder / "texts.ends").open("rb") as ends:
        first = end = 0
        while read := ends.read(8 * CHUNK):
            stops = np.frombuffer(read, dtype=np.int64)
            block = texts.read(int(stops[-1]) - end)
            bounds = [0, *(stops - end).tolist()]
            yield slice(first, first + len(stops)), [block[start:stop].decode() for start, stop in pairwise(bounds)]
            first, end = first + len(stops), int(stops[-1])


def _map(path: Path, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")
