"""Rules about the repository itself."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FORBIDDEN = {
    "server": {"trainer", "pipelines", "torch", "transformers", "kfp", "kubernetes"},
    "trainer": {"pipelines", "kfp", "kubernetes", "fastapi", "uvicorn"},
    "pipelines": set(),
}
ALLOWED = {
    "server/inference/backends/torch.py": {"torch", "transformers"}
}  # loaded only where it runs, which is tested


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    files = list((ROOT / package).glob("**/*.py"))
    assert len(files) > 3
    for path in files:
        assert not imported(path) & (FORBIDDEN[package] - ALLOWED.get(f"{package}/{path.name}", set())), path


def test_importing_the_server_loads_neither_torch_nor_the_trainer_nor_what_makes_traces() -> None:
    code = "import sys, server.main, server.http.server; print(sorted({'torch', 'transformers', 'trainer', 'pipelines', 'kfp', 'server.observability.tracing', 'opentelemetry.sdk'} & set(sys.modules)))"
    said = subprocess.run([".venv/bin/python", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said == "[]\n"


def test_every_dependency_is_locked_and_the_ranges_are_open() -> None:
    locked = dict(
        line.split("==")
        for line in (ROOT / "images" / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line
    )
    names = {name.lower().replace("_", "-") for name in locked}
    asked = PYPROJECT["project"]["dependencies"] + [
        line for extra in PYPROJECT["project"]["optional-dependencies"].values() for line in extra
    ]
    for line in asked:
        name = re.match(r"[\w.-]+", line)
        assert name
        assert name[0].lower().replace("_", "-") in names, line
        assert "==" not in line or line.startswith("kfp"), f"{line}: the lock pins, the range does not"


def test_ci_calls_the_readme_s_test_command() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make run" in readme
    assert "make test" in readme


def test_no_file_is_larger_than_one_idea() -> None:
    for package in ("trainer", "server", "pipelines"):
        for path in (ROOT / package).glob("**/*.py"):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, path


def test_nothing_that_runs_unpickles() -> None:
    for package in ("trainer", "server", "pipelines"):
        for path in (ROOT / package).glob("**/*.py"):
            source = path.read_text(encoding="utf-8")
            assert not re.search(r"torch\.load\(|import pickle|allow_pickle=True|import joblib", source), path
