"""Finds sources in tests and reads them."""

from pathlib import Path
from typing import Any

import pytest

from server.errors import UserError
from trainer.config import PreprocessConfig
from trainer.data.columns import Row
from trainer.data.sources import Data, Source, find_data


def find(data: Path | str, **settings: Any) -> Data:  # noqa: ANN401 - as PreprocessConfig takes it
    return find_data(PreprocessConfig(data=str(data), **settings))


def refusal(data: Path | str, **settings: Any) -> str:  # noqa: ANN401 - as PreprocessConfig takes it
    with pytest.raises(UserError) as refused:
        find(data, **settings)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def rows(source: Source | None) -> list[tuple[str, str]]:
    assert source is not None
    return [(row.text, row.label) for _, row in source.read() if isinstance(row, Row)]


def files(source: Source | None) -> list[str]:
    """Returns the names of the files that rows come from, in order."""
    assert source is not None
    return list(dict.fromkeys(Path(file).name for file, _ in source.read()))
