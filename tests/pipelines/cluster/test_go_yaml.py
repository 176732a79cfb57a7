"""YAML is written for Go's parser and read as it reads it: the values are those of `kubectl annotate --local`."""

import pytest
import yaml

from pipelines.cluster import go_yaml

SCALARS = {
    "1e-5": 1e-5, "31407e02": 3140700.0, ".5e3": 500.0, ".5_0": 0.5, "1_0.5": 10.5, "1.e5": 1e5, "1_000": 1000, "0X1F": 31, "-0b11": -3, "0o17": 15, "010": 8,
    "08": 8.0, "0o8": "0o8", "1e999": "1e999", "12:30": "12:30", "2026-01-01": "2026-01-01", "2026-13-45": "2026-13-45", "=": "=", "y": True, "N": False,
    "on": True, "OFF": False, "yEs": "yEs", "~": None, "Null": None, "news": "news",
}  # fmt: skip


@pytest.mark.parametrize(("text", "value"), SCALARS.items())
def test_a_scalar_is_read_as_go_reads_it(text: str, value: object) -> None:
    assert go_yaml.load_all(f"a: {text}") == [{"a": value}]


def test_every_string_that_is_written_is_a_string_to_both_parsers() -> None:
    values = {text: [text, text.upper(), {text: text}] for text in (*SCALARS, ".inf", ".nan", "", "<<", "a: b", "- a")}
    written = go_yaml.dump(values)
    assert go_yaml.load_all(written) == [values]
    assert yaml.safe_load(written) == values
