"""What `--data` means: which rows to train on and which to test on, and a digest that changes when they do."""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import sample
from trainer.config import PreprocessConfig
from trainer.errors import UserError
from trainer.tables import BadRow, Columns, Row, find_columns, read_records, read_table, table_classes, table_format

if TYPE_CHECKING:
    import datasets

_SPLIT_FILE = r"(?P<split>{split})(-\d+-of-\d+)?\.(csv|jsonl?|parquet)(\.gz|\.xz)?"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SAMPLE_ROWS = 4000


@dataclass(frozen=True)
class Source:
    """Rows of one split: `read` gives them as a stream, in the order of `files`."""

    name: str
    read: Callable[[], Iterator[tuple[str, Row | BadRow]]]
    """(file, row) pairs; file is what messages call it."""


@dataclass(frozen=True)
class Data:
    title: str
    train: Source
    test: Source | None
    digest: str
    """Changes when any row may have changed."""
    classes: tuple[str, ...] = ()
    """Class names where the data set brings them, in order."""
    remarks: tuple[str, ...] = ()


def find_data(config: PreprocessConfig) -> Data:
    """The rows that the settings name; UserError when there are none such."""
    if re.fullmatch(r"sample(:.*)?", config.data):
        return _sample(config)
    path = Path(config.data)
    if path.is_dir():
        return _folder(path, config)
    if path.is_file():
        return _files(path.name, [path], [Path(config.test_data)] if config.test_data else [], config)
    if _HUB_ID.fullmatch(config.data) and not re.search(r"\.(csv|jsonl?|parquet|gz|xz|txt)$", config.data):
        return _hub(config)
    raise UserError(f"--data {config.data}: no such file or folder")


def _sample(config: PreprocessConfig) -> Data:
    _, _, count = config.data.partition(":")
    if count and not (count.isdecimal() and 100 <= int(count) <= 100_000_000):
        raise UserError(f"--data {config.data}: sample:ROWS takes a number of rows from 100 to 100,000,000")
    rows = int(count) if count else _SAMPLE_ROWS
    source = Source(
        "sample",
        lambda: (
            ("sample", Row(text, label, number))
            for number, (text, label) in enumerate(sample.sample_rows(rows, seed=config.seed), start=1)
        ),
    )
    digest = _digest("sample", str(sample.VERSION), str(rows), str(config.seed))
    return Data(f"sample of {rows:,} rows", source, None, digest, sample.CLASSES)


def _folder(folder: Path, config: PreprocessConfig) -> Data:
    train = _split_files(folder, "train")
    if not train:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        raise UserError(
            f"--data {folder}: holds no train.csv, train.jsonl or train.parquet (also .gz, .xz); it holds {found}"
        )
    test = [Path(config.test_data)] if config.test_data else _split_files(folder, "test")
    unused = [path.name for path in _split_files(folder, "validation|valid|dev|val")]
    remarks = tuple(f"{name} is not used: validation rows are taken from the training rows" for name in unused)
    return _files(folder.name, train, test, config, remarks)


def _split_files(folder: Path, split: str) -> list[Path]:
    """The file of a split, or the numbered parts of it in order."""
    pattern = re.compile(_SPLIT_FILE.format(split=split))
    found = sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))
    if len(found) > 1 and not all("-of-" in path.name for path in found):
        raise UserError(
            f"{folder}: {' and '.join(path.name for path in found)} are both there; leave one, or name one with --data"
        )
    return found


def _files(
    title: str, train: list[Path], test: list[Path], config: PreprocessConfig, remarks: tuple[str, ...] = ()
) -> Data:
    for path in (*train, *test):
        if not path.is_file():
            raise UserError(f"--test-data {path}: no such file")
        table_format(path)
    columns = Columns(config.text_column, config.label_column, config.class_names)
    classes = config.class_names or table_classes(train[0], columns)

    def source(name: str, paths: list[Path]) -> Source:
        return Source(name, lambda: ((str(path), row) for path in paths for row in read_table(path, columns)))

    listed = [listing] if (listing := train[0].parent / "classes.txt").is_file() else []
    digest = _digest(
        "train", *map(_file_digest, train), "test", *map(_file_digest, test), "classes", *map(_file_digest, listed)
    )
    return Data(title, source("train", train), source("test", test) if test else None, digest, classes, remarks)


def _hub(config: PreprocessConfig) -> Data:
    if config.test_data:
        raise UserError(
            "test_data has no meaning with a Hugging Face dataset id, which brings its own test split: leave it out"
        )
    import datasets

    try:
        splits = datasets.load_dataset(config.data)
    except Exception as error:  # the library raises many kinds; each becomes one line with its reason
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"--data {config.data}: is no file or folder here, and cannot be had as a Hugging Face dataset: {reason}"
        ) from error
    return hub_data(splits, config)


def hub_data(splits: "datasets.DatasetDict", config: PreprocessConfig) -> Data:
    """The train and test splits of a loaded Hugging Face dataset."""
    if "train" not in splits:
        raise UserError(f"--data {config.data}: has no train split; it has {', '.join(splits)}")
    features = splits["train"].features
    label = find_columns(config.data, Columns(config.text_column, config.label_column), list(features))[1]
    classes = config.class_names or tuple(getattr(features[label], "names", ()))
    columns = Columns(config.text_column, config.label_column, classes)

    def source(split: str) -> Source:
        name = f"{config.data} {split}"
        return Source(
            split, lambda: ((name, row) for row in read_records(name, splits[split], list(features), columns))
        )

    digest = _digest(*(splits[name]._fingerprint for name in ("train", "test") if name in splits))  # noqa: SLF001 - the library's own digest has no other name
    return Data(config.data, source("train"), source("test") if "test" in splits else None, digest, classes)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
