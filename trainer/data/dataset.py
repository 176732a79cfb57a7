"""The dataset folder that preprocess writes: flat arrays on disk, read through memory maps, so that rows cost no memory.

dataset.json              class names, fingerprint, how it was made, counts
tokenizer/                as `transformers` saves it
train/ validation/ test/  tokens.bin   token ids of all rows, one after the other
                          tokens.ends  where each row ends in it (int64)
                          texts.bin    the texts, UTF-8     texts.ends
                          labels.bin   int32                lines.bin   int64: line in the source
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from server.errors import UserError
from server.files import recover_directory

SPLITS = ("train", "validation", "test")
Int64s = npt.NDArray[np.int64]


class RaggedWriter:
    """Appends rows of different lengths to `<name>.bin`, and where each ends to `<name>.ends`."""

    def __init__(self, folder: Path, name: str, stack: ExitStack) -> None:
        self._values = stack.enter_context((folder / f"{name}.bin").open("wb"))
        self._ends = stack.enter_context((folder / f"{name}.ends").open("wb"))
        self._end = 0

    def append(self, values: bytes, lengths: Sequence[int]) -> None:
        """Add rows: their values one after the other, and the length of each in values."""
        ends = self._end + np.cumsum(np.asarray(lengths, dtype=np.int64))
        self._values.write(values)
        self._ends.write(ends.tobytes())
        self._end = int(ends[-1]) if len(ends) else self._end


class RowWriter:
    """Writes texts, labels and lines of rows into a folder, and tokens where there are some."""

    def __init__(self, folder: Path, *, token_dtype: npt.DTypeLike | None = None) -> None:
        self._folder, self._token_dtype, self._stack = folder, token_dtype, ExitStack()

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True)
        self._texts = RaggedWriter(self._folder, "texts", self._stack)
        self._labels: IO[bytes] = self._stack.enter_context((self._folder / "labels.bin").open("wb"))
        self._lines: IO[bytes] = self._stack.enter_context((self._folder / "lines.bin").open("wb"))
        if self._token_dtype is not None:
            self._tokens = RaggedWriter(self._folder, "tokens", self._stack)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def append(self, texts: Sequence[bytes], labels: Iterable[int], lines: Iterable[int]) -> None:
        self._texts.append(b"".join(texts), [len(text) for text in texts])
        self._labels.write(np.fromiter(labels, dtype=np.int32).tobytes())
        self._lines.write(np.fromiter(lines, dtype=np.int64).tobytes())

    def append_tokens(self, rows: Sequence[Sequence[int]]) -> None:
        flat = np.fromiter((token for row in rows for token in row), dtype=self._token_dtype)
        self._tokens.append(flat.tobytes(), [len(row) for row in rows])


class Split:
    """The rows of one split. `labels` [rows], `lengths` [rows] in tokens; tokens and texts stay on disk until asked for."""

    def __init__(self, folder: Path, token_dtype: str) -> None:
        self.name = folder.name
        self.labels = np.fromfile(folder / "labels.bin", dtype=np.int32)
        self.lines = _mapped(folder / "lines.bin", np.int64)
        self._tokens = _mapped(folder / "tokens.bin", token_dtype)
        self._token_ends = _mapped(folder / "tokens.ends", np.int64)
        self._texts = _mapped(folder / "texts.bin", np.uint8)
        self._text_ends = _mapped(folder / "texts.ends", np.int64)
        self.lengths = np.diff(self._token_ends, prepend=0).astype(np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def tokens(self, row: int) -> npt.NDArray[Any]:
        return self._tokens[_start(self._token_ends, row) : self._token_ends[row]]

    def text(self, row: int) -> str:
        return self._texts[_start(self._text_ends, row) : self._text_ends[row]].tobytes().decode()


class Dataset:
    """A dataset folder, opened; UserError when the folder holds none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info = read_info(folder)
        self.classes: list[str] = self.info["classes"]
        self.fingerprint: str = self.info["fingerprint"]
        self.max_length: int = self.info["max_length"]
        self.pad_token_id: int = self.info["pad_token_id"]
        self.vocabulary_size: int = self.info["vocabulary_size"]
        self.tokenizer_folder = folder / "tokenizer"
        self.train, self.validation, self.test = (Split(folder / name, self.info["token_dtype"]) for name in SPLITS)


def read_info(folder: Path) -> dict[str, Any]:
    try:
        info: dict[str, Any] = json.loads((recover_directory(folder) / "dataset.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: is no dataset folder, it has no dataset.json; make it with the preprocess step"
        ) from error
    return info


def read_staged(folder: Path, chunk: int) -> Iterator[tuple[slice, list[str], Int64s]]:
    """Rows that a RowWriter wrote, in order and `chunk` at a time: which they are, their texts and their lines.

    Reads files instead of mapping them, so that pages already read do not count as memory of this process.
    """
    with (
        (folder / "texts.bin").open("rb") as texts,
        (folder / "texts.ends").open("rb") as ends,
        (folder / "lines.bin").open("rb") as lines,
    ):
        first = end = 0
        while ends_here := ends.read(8 * chunk):
            stops = np.frombuffer(ends_here, dtype=np.int64)
            block = texts.read(int(stops[-1]) - end)
            bounds = np.concatenate(([0], stops - end))
            found = [block[start:stop].decode() for start, stop in pairwise(bounds)]
            yield slice(first, first + len(found)), found, np.frombuffer(lines.read(8 * len(found)), dtype=np.int64)
            first, end = first + len(found), int(stops[-1])


def _mapped(path: Path, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")


def _start(ends: Int64s, row: int) -> int:
    return int(ends[row - 1]) if row else 0
