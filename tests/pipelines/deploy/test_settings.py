"""The values that the deploy step gives to Helm."""

from pathlib import Path

import pytest

from pipelines.deploy.settings import DeployConfig, values_files
from server.errors import UserError


def test_values_reach_helm_as_they_were_given(tmp_path: Path) -> None:
    given = 'podLabels: {commit: "31407e02"}  # ours\n'
    values, model = values_files(DeployConfig(values=given), {"model": {"sha256": "31407e02"}}, tmp_path)
    assert values.read_text(encoding="utf-8") == given
    assert "sha256: '31407e02'" in model.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("values", "message"), [("a: [", "is not valid YAML"), ("- a", "holds a list, not values by name")]
)
def test_values_that_helm_cannot_read_are_refused(values: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        values_files(DeployConfig(values=values), {}, tmp_path)
