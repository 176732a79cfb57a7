"""Records of a Parquet file, with the class names that the `datasets` library wrote into it."""

import gzip
import json
import lzma
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from server.errors import UserError

_BATCH = 4096  # rows: a few megabytes of text


class ParquetFile(NamedTuple):
    file: Any
    names: list[str]
    class_names: dict[str, tuple[str, ...]]
    """Names of the classes, by the column that numbers them from 0."""

    def records(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yields the values of these columns, row by row."""
        for batch in self.file.iter_batches(batch_size=_BATCH, columns=list(names)):
            for values in zip(*map(_values, batch.columns), strict=True):
                yield dict(zip(batch.schema.names, values, strict=True))


@contextmanager
def open_parquet(path: Path) -> Iterator[ParquetFile]:
    """Opens a file, also one with .gz or .xz; UserError when it is damaged or another kind of file."""
    import pyarrow as pa
    from pyarrow import parquet

    with tempfile.TemporaryDirectory() as folder:
        plain = path
        if path.suffix.lower() in (".gz", ".xz"):  # Parquet is read from its end: it has to be a plain file
            plain = Path(folder, "rows.parquet")
            opener: Any = gzip.open if path.suffix.lower() == ".gz" else lzma.open
            with opener(path, "rb") as packed, plain.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
        try:
            with parquet.ParquetFile(plain) as file:
                schema = file.schema_arrow
                info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
                features = info.get("info", {}).get("features", {})
                named = {name: tuple(feature["names"]) for name, feature in features.items() if "names" in feature}
                yield ParquetFile(file, schema.names, named)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: is no Parquet file, or a damaged one: {' '.join(str(error).split())}") from error


def _values(column: Any) -> list[Any]:  # noqa: ANN401 - pyarrow has no types
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:  # a text that is not UTF-8 does not hide the others
        plain = column.dictionary_decode() if hasattr(column, "dictionary_decode") else column
        return [value and value.decode(errors="surrogateescape") for value in plain.cast("binary").to_pylist()]
