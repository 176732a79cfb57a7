"""Find the rows that `--data` names, those to train on and those to test on, with a digest that changes when they do."""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from server.errors import UserError
from trainer.config import PreprocessConfig
from trainer.data import sample
from trainer.data.tables import AG_NEWS_CLASSES, BadRow, Columns, Row, Table, read_table, table_classes, table_format

if TYPE_CHECKING:
    import datasets

_SPLIT_FILE = r"(?P<split>{split})(-\d+-of-\d+)?\.(csv|jsonl?|parquet)(\.gz|\.xz)?"
_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
_LOADERS = ("arrow", "csv", "json", "pandas", "parquet", "text", "xml")
"""Names that the `datasets` library reads as formats of the files in the working folder."""

_SAMPLE_ROWS = 4000


@dataclass(frozen=True)
class Source:
    """Rows of one split: `read` streams them in the order of the files."""

    name: str
    """Name in messages about the whole source."""
    read: Callable[[], Iterator[tuple[str, Row | BadRow]]]
    """Yields (file, row) pairs; messages about the row name the file."""


@dataclass(frozen=True)
class Data:
    title: str
    train: Source
    test: Source | None
    digest: str
    """Changes when any row may have changed."""
    classes: tuple[str, ...] = ()
    """Class names in order, where the data set defines them."""
    remarks: tuple[str, ...] = ()


def find_data(config: PreprocessConfig) -> Data:
    """Finds the rows that the settings name; UserError when there are none."""
    if re.fullmatch(r"sample(:.*)?", config.data):
        return _sample(config)
    path = Path(config.data)
    if path.is_dir():
        return _folder(path, config)
    if path.is_file():
        return _files(path.name, [path], [Path(config.test_data)] if config.test_data else [], config)
    named_like_a_file = config.data in _LOADERS or re.search(r"\.(csv|tsv|jsonl?|parquet|gz|xz|txt)$", config.data)
    if _HUB_ID.fullmatch(config.data) and not named_like_a_file:
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
    remarks = tuple(_unused(path.name) for path in _matching(folder, "validation|valid|dev|val"))
    return _files(folder.name, train, test, config, remarks)


def _split_files(folder: Path, split: str) -> list[Path]:
    """Returns the file of a split, or its numbered parts in order."""
    found = _matching(folder, split)
    counts = {int(part[1]) if (part := re.search(r"-of-(\d+)\.", path.name)) else 1 for path in found}
    names = ", ".join(path.name for path in found[:10])
    if len(counts) > 1 or len(found) > max(counts, default=0):
        raise UserError(f"{folder}: which are the {split} rows? Leave one of {names}, or name one with --data")
    if counts and len(found) < max(counts):
        raise UserError(f"{folder}: holds {len(found)} of the {max(counts)} parts of {split}: {names}")
    return found


def _matching(folder: Path, split: str) -> list[Path]:
    pattern = re.compile(_SPLIT_FILE.format(split=split), re.IGNORECASE)
    return sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name) and path.is_file())


def _unused(name: str) -> str:
    return f"{name} is not used: validation rows are taken from the training rows"


def _files(
    title: str, train: list[Path], test: list[Path], config: PreprocessConfig, remarks: tuple[str, ...] = ()
) -> Data:
    for path in (*train, *test):
        if not path.is_file():
            raise UserError(f"--test-data {path}: no such file")
        table_format(path)
    numbered = _listed_classes(train[0].parent / "classes.txt")
    columns = Columns(config.text_column, config.label_column, config.class_names, numbered)
    classes = config.class_names or table_classes(train[0], columns)

    def source(paths: list[Path]) -> Source:
        name = f"{paths[0]}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
        return Source(name, lambda: ((str(path), row) for path in paths for row in read_table(path, columns)))

    digest = _digest(
        "train", *map(_file_digest, train), "test", *map(_file_digest, test), "classes", *classes, *numbered
    )
    return Data(title, source(train), source(test) if test else None, digest, classes, remarks)


def _listed_classes(path: Path) -> tuple[str, ...]:
    """Reads class names, one a line; those of AG News where there is no such file."""
    if not path.is_file():
        return AG_NEWS_CLASSES
    try:
        names = tuple(name.strip() for name in path.read_text(encoding="utf-8-sig").splitlines() if name.strip())
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8: {error}") from error
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f"{path}: holds {', '.join(names) or 'nothing'}; expected two names or more, each once")
    return names


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
            f"--data {config.data}: is no file or folder here, and cannot be loaded as a Hugging Face dataset: {reason}"
        ) from error
    return hub_data(splits, config)


def hub_data(splits: "datasets.DatasetDict", config: PreprocessConfig) -> Data:
    """Returns the train and test splits of a loaded Hugging Face dataset."""
    if "train" not in splits:
        raise UserError(f"--data {config.data}: has no train split; it has {', '.join(splits)}")
    columns = Columns(config.text_column, config.label_column, config.class_names)

    def table(split: str) -> Table:
        features = splits[split].features
        class_names = {name: tuple(getattr(feature, "names", None) or ()) for name, feature in features.items()}
        return Table(f"{config.data} {split}", columns, list(features), class_names=class_names)

    def read(split: str) -> Iterator[tuple[str, Row | BadRow]]:
        made = table(split)
        for line, record in enumerate(splits[split].select_columns([*made.text, made.label]), start=1):
            yield f"{config.data} {split}", made.row(record, line)

    used = [name for name in ("train", "test") if name in splits]
    sources = {split: Source(f"{config.data} {split}", partial(read, split)) for split in used}
    digest = _digest(*used, *(splits[name]._fingerprint for name in used))  # noqa: SLF001 - the library has no public name for its digest
    classes = config.class_names or table("train").classes
    remarks = tuple(_unused(f"the split {name}") for name in splits if name not in used)
    return Data(config.data, sources["train"], sources.get("test"), digest, classes, remarks)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
