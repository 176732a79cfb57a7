"""Find the rows that `--data` names, those to train on and those to test on, with a digest that changes when they do."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from server.errors import UserError
from trainer.config import PreprocessConfig
from trainer.data import sample
from trainer.data.classes import class_numbers, trimmed
from trainer.data.columns import BadRow, Columns, Layout, Row, Table, find_layout
from trainer.data.tables import JSON_ENDINGS, column_names, find_columns, read_table, table_format

if TYPE_CHECKING:
    import datasets

_SPLIT_FILE = r"(?P<split>{split})(-\d+-of-\d+)?\.([ct]sv|jsonl?|parquet)(\.gz|\.xz)?"
_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
_LOADERS = ("arrow", "csv", "json", "pandas", "parquet", "text", "xml")
"""Names that the `datasets` library reads as formats of the files in the working folder."""

_SAMPLE_ROWS = 4000
_AG_NEWS_NAME = re.compile(r"(?<![a-z])ag[ _-]?news(?![a-z])", re.IGNORECASE)
_AG_NEWS_COLUMNS = ["class index", "description", "title"]
_AG_NEWS_FILES = {
    29470338: "76a0a2d2f92b286371fe4d4044640910a04a803fdd2538e0f3f29a5c6f6b672e",  # train.csv
    1857427: "521465c2428ed7f02f8d6db6ffdd4b5447c1c701962353eb2c40d548c3c85699",  # test.csv
}
"""The sha256 of each file of AG News as it is published, by its size."""


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
    facts: Callable[[], Iterable[str]]
    """Returns what changes when any row may have changed."""
    layout: Layout | None = None
    """The columns, where rows have any."""
    classes: tuple[str, ...] = ()
    """Class names in order, where the user or the data set defines them."""
    numbers: Mapping[str, int] = field(default_factory=dict)
    """The place of each of these classes, by all that rows may hold for it."""
    ag_news: bool = False
    """Its header, digest or name says that it is AG News, whose classes 1 to 4 have names."""
    remarks: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """Changes when any row may have changed; files are read for it."""
        return hashlib.sha256("\n".join(self.facts()).encode()).hexdigest()


def find_data(config: PreprocessConfig) -> Data:
    """Finds the rows that the settings name; UserError when there are none, or none that can be read."""
    try:
        return _find(config)
    except OSError as error:
        where = f"{error.filename}: " if error.filename and str(error.filename) != config.data else ""
        raise UserError(f"--data {config.data}: {where}cannot be read: {error.strerror or error}") from error


def _find(config: PreprocessConfig) -> Data:
    if re.fullmatch(r"sample(:.*)?", config.data):
        return _sample(config)
    path = Path(config.data)
    if _is_hub_id(config.data):
        return _hub(config)
    if path.is_dir():
        return _saved(path, config) if _is_saved(path) else _folder(path, config)
    _check_file(
        f"--data {config.data}",
        path,
        f"file or folder {path.absolute()}; a dataset of the Hugging Face hub is named OWNER/NAME",
    )
    return _files(path.name, [path], [Path(config.test_data)] if config.test_data else [], config)


def _is_hub_id(data: str) -> bool:
    named_like_a_file = data in _LOADERS or re.search(r"\.(csv|tsv|jsonl?|parquet|gz|xz|txt)$", data)
    sample = re.fullmatch(r"sample(:.*)?", data)
    return bool(_HUB_ID.fullmatch(data)) and not (named_like_a_file or sample or Path(data).exists())


def _check_file(named: str, path: Path, missing: str = "file") -> None:
    """Raises UserError, with the flag and value that named it, when this is no file with an ending that is known."""
    if path.is_dir():
        raise UserError(f"{named}: is a folder; name a file of rows")
    if str(path) == "-" or (path.exists() and not path.is_file()):
        raise UserError(
            f"{named}: is a pipe or a device, and rows are read more than once; "
            "write them to a file first, such as rows.csv (.gz and .xz are read as they are)"
        )
    if not path.is_file():
        raise UserError(f"{named}: no such {missing}")
    table_format(path)


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
    facts = ("sample", str(sample.VERSION), str(rows), str(config.seed))
    numbers = class_numbers("sample", sample.CLASSES, numbered_from=None)
    return Data(f"sample of {rows:,} rows", source, None, lambda: facts, classes=sample.CLASSES, numbers=numbers)


def _folder(folder: Path, config: PreprocessConfig) -> Data:
    train = _split_files(folder, "train")
    if not train:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        raise UserError(
            f"--data {folder}: holds no train.csv, train.tsv, train.jsonl or train.parquet (also .gz, .xz); it holds {found}"
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
    for path in test:
        _check_file(f"--test-data {path}", path)
    ag_news = _is_ag_news(train[0])
    named = _listed_classes(train[0].parent / "classes.txt")
    columns = Columns(config.text_column, config.label_column)
    layout = find_columns(train, columns, class_first=ag_news or bool(named))
    for path in (*train, *test):
        _check_columns(path, layout, config, train)
    classes = tuple(map(trimmed, config.class_names or layout.classes or (named if layout.width else ())))
    numbers = class_numbers(
        "--class-names" if config.class_names else title,
        classes,
        numbered_from=None if layout.classes else 1 if layout.width else 0,
    )

    def source(paths: list[Path]) -> Source:
        name = f"{paths[0]}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
        return Source(name, lambda: ((str(path), row) for path in paths for row in read_table(path, layout)))

    ag_news = ag_news or sorted(name.lower() for name in (*layout.text, layout.label)) == _AG_NEWS_COLUMNS

    def facts() -> Iterator[str]:
        yield from ("train", *map(_file_digest, train), "test", *map(_file_digest, test))
        yield from ("classes", *classes, str(ag_news), str(layout))

    tests = source(test) if test else None
    return Data(title, source(train), tests, facts, layout, classes, numbers, ag_news, remarks)


def _is_ag_news(path: Path) -> bool:
    """Returns True if the name of a file or of its folder is that of AG News, or its content that of a published file."""
    if _AG_NEWS_NAME.search("/".join(path.absolute().parts[-2:])):
        return True
    return _AG_NEWS_FILES.get(path.stat().st_size) == _file_digest(path)


def _check_columns(path: Path, layout: Layout, config: PreprocessConfig, train: list[Path]) -> None:
    """Raises UserError when a file lacks a column of the training rows."""
    names = column_names(path, layout)
    if layout.width:
        return
    if table_format(path) in JSON_ENDINGS and layout.label in names and any(name in names for name in layout.text):
        return  # a key that all its records lack is empty
    here = {name.lower() for name in names}
    if path not in train and layout.label.lower() not in here >= {name.lower() for name in layout.text}:
        away = "leave --test-data out" if config.test_data else f"move it elsewhere or pass --data {train[0]}"
        raise UserError(
            f"{path}: has no column {layout.label!r}, the class in {train[0].name}: nothing can be tested on it; "
            f"{away}, and test rows are taken from the training rows"
        )
    Table(path, layout, names)


def _listed_classes(path: Path) -> tuple[str, ...]:
    """Reads class names, one a line; none where there is no such file."""
    if not path.is_file():
        return ()
    try:
        names = tuple(name.strip() for name in path.read_text(encoding="utf-8-sig").splitlines() if name.strip())
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8: {error}") from error
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f"{path}: holds {', '.join(names) or 'nothing'}; expected two names or more, each once")
    return names


def _is_saved(folder: Path) -> bool:
    """Returns True if the `datasets` library saved this folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _saved(folder: Path, config: PreprocessConfig) -> Data:
    import datasets

    found = _load(config, "saved by save_to_disk", lambda: datasets.load_from_disk(str(folder)))
    return hub_data(found if isinstance(found, dict) else datasets.DatasetDict(train=found), config)


def _hub(config: PreprocessConfig) -> Data:
    import datasets

    found = _load(config, "from the Hugging Face hub", lambda: datasets.load_dataset(config.data))
    return hub_data(found, config)


def _load(config: PreprocessConfig, kind: str, load: "Callable[[], datasets.DatasetDict]") -> "datasets.DatasetDict":
    if config.test_data:
        raise UserError(
            f"--test-data has no meaning with a dataset {kind}, which brings its own test split: leave it out"
        )
    try:
        return load()
    except Exception as error:  # the library raises many kinds; each becomes one line with its reason
        reason = " ".join(str(error).split())[:300]
        here = "cannot be read" if Path(config.data).exists() else "is no file or folder here, and cannot be loaded"
        raise UserError(f"--data {config.data}: {here} as a dataset {kind}: {reason}") from error


def hub_data(splits: "datasets.DatasetDict", config: PreprocessConfig) -> Data:
    """Returns the train and test splits of a loaded Hugging Face dataset."""
    if "train" not in splits:
        raise UserError(f"--data {config.data}: has no train split; it has {', '.join(splits)}")
    features = splits["train"].features
    layout = find_layout(f"{config.data} train", Columns(config.text_column, config.label_column), list(features))
    layout = layout._replace(classes=tuple(getattr(features[layout.label], "names", None) or ()))

    def read(split: str) -> Iterator[tuple[str, Row | BadRow]]:
        name = f"{config.data} {split}"
        columns = list(splits[split].features)
        table = Table(name, layout, columns, class_names={layout.label: layout.classes})
        for line, record in enumerate(splits[split].select_columns([*table.text, table.label]), start=1):
            yield name, table.row(record, line)

    used = [name for name in ("train", "test") if name in splits]
    sources = {split: Source(f"{config.data} {split}", partial(read, split)) for split in used}
    facts = (*used, *(splits[name]._fingerprint for name in used), str(layout))  # noqa: SLF001 - the library has no public name for its digest
    classes = tuple(map(trimmed, config.class_names or layout.classes))
    numbers = class_numbers(
        "--class-names" if config.class_names else config.data, classes, numbered_from=None if layout.classes else 0
    )
    ag_news = _AG_NEWS_NAME.search(config.data) is not None
    remarks = tuple(_unused(f"the split {name}") for name in splits if name not in used)
    train, test = sources["train"], sources.get("test")
    title = config.data if _is_hub_id(config.data) else Path(config.data).name
    return Data(title, train, test, lambda: facts, layout, classes, numbers, ag_news, remarks)


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
