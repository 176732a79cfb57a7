"""Rules about the repository itself: floors, sizes, locked dependencies."""

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = ("server", "trainer", "pipelines")
FORBIDDEN = {
    "server": {"trainer", "pipelines", "torch", "transformers", "kfp", "kubernetes"},
    "trainer": {"pipelines", "kfp", "kubernetes", "fastapi", "starlette", "uvicorn"},
    "pipelines": {"tests", "fastapi", "starlette", "uvicorn"},
    "pipelines/cluster": {"pipelines.job", "pipelines.deploy", "pipelines.kubeflow"},
    "server/inference": {"fastapi", "starlette", "uvicorn", "server.http", "server.routes"},
}
"""Packages and modules that a floor imports nowhere, inside functions neither."""
EXCEPT = {"server/inference/backends/torch.py": {"torch", "transformers"}}
SHARED_BY_THE_SERVER = {"cli", "errors", "files", "model_folder", "inference"}
"""Modules of the server that the trainer may import."""
STARTS = {
    "server.main, server.http.server": {"torch", "transformers", "trainer", "pipelines", "opentelemetry.sdk", "server.observability.tracing"},
    "server.model_folder, server.inference.hardware, server.settings, server.inference.classifier": {"fastapi", "starlette", "uvicorn", "torch"},
    "pipelines.cli, pipelines.run, pipelines.status": {"kfp", "kubernetes", "torch", "transformers", "fastapi"},
    "pipelines.predict.command, pipelines.predict.models": {"kfp", "kubernetes", "torch", "fastapi"},
}  # fmt: skip
"""Modules, with those that a fresh interpreter does not load when it imports them."""


def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert len(found) > 3, package
    return found


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[str]:
    """Yields each module that a file imports, and each name that it takes from one, as a dotted name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("floor", FORBIDDEN)
def test_a_floor_imports_nothing_from_above_it(floor: str) -> None:
    assert FORBIDDEN[floor]
    for path in files(floor):
        allowed = EXCEPT.get(str(path.relative_to(ROOT)), set())
        wrong = [name for name in imported(path) if within(name, FORBIDDEN[floor] - allowed)]
        assert not wrong, f"{path}: {wrong}"


def test_the_trainer_imports_only_the_shared_part_of_the_server() -> None:
    taken = {name.split(".")[1] for path in files("trainer") for name in imported(path) if within(name, {"server"})}
    assert taken
    assert taken <= SHARED_BY_THE_SERVER


@pytest.mark.parametrize("modules", STARTS)
def test_a_fresh_interpreter_loads_no_package_that_a_command_does_not_need(modules: str) -> None:
    code = f"import sys, {modules}; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert STARTS[modules]
    assert "pydantic" in loaded.split()
    assert not STARTS[modules] & set(loaded.split())


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = {module_name(path): path for package in PACKAGES for path in files(package)}
    graph = {}
    for module, path in modules.items():
        names = set(imported(path))
        graph[module] = (
            {name for name in names if name in modules} | {name.rpartition(".")[0] for name in names}
        ) & set(modules) - {module}
    assert sum(map(len, graph.values())) > len(modules)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_no_file_function_or_folder_is_larger_than_one_idea() -> None:
    for path in (path for package in PACKAGES for path in files(package)):
        source = path.read_text(encoding="utf-8")
        assert len(source.splitlines()) <= 300, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name}"
    for folder in {path.parent for package in PACKAGES for path in files(package)}:
        entries = {entry.name for entry in folder.iterdir()} - {"__init__.py", "__pycache__", "py.typed", "README.md"}
        assert len(entries) <= 12, f"{folder}: {sorted(entries)}"


def test_no_test_module_imports_another() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        wrong = [name for name in imported(path) if re.match(r"tests\..*\btest_\w+", name)]
        assert not wrong, f"{path}: {wrong}"


def test_every_dependency_is_locked_and_the_ranges_are_open() -> None:
    locked = dict(
        line.split("==")
        for line in (ROOT / "images" / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line
    )
    names = {name.lower().replace("_", "-") for name in locked}
    requirements = PYPROJECT["project"]["dependencies"] + [
        line for extra in PYPROJECT["project"]["optional-dependencies"].values() for line in extra
    ]
    for line in requirements:
        name = re.match(r"[\w.-]+", line)
        assert name
        assert name[0].lower().replace("_", "-") in names, line
        assert "==" not in line or line.startswith("kfp"), f"{line}: the lock pins, the range does not"


def test_ci_calls_the_readme_s_test_command() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make run" in readme
    assert "make test" in readme


def test_nothing_that_runs_unpickles() -> None:
    for package in ("trainer", "server", "pipelines"):
        for path in (ROOT / package).glob("**/*.py"):
            source = path.read_text(encoding="utf-8")
            assert not re.search(r"torch\.load\(|import pickle|allow_pickle=True|import joblib", source), path


@pytest.mark.parametrize("moved", [False, True])
def test_make_sets_a_copied_or_moved_environment_up_anew(moved: bool, tmp_path: Path) -> None:
    project = tmp_path / "my project"
    for name in ("Makefile", "pyproject.toml", "images/constraints.txt", ".venv/bin/distrinews", ".venv/installed"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_bytes((ROOT / name).read_bytes() if name == "Makefile" else b"")
    interpreter = (tmp_path / "first" if moved else project) / ".venv/bin/python"
    (project / ".venv/bin/distrinews").write_text(f'#!/bin/sh\n\'exec\' "{interpreter}" "$0"\n', encoding="utf-8")
    done = subprocess.run(
        ["make", "-n", "--no-print-directory", "run"], cwd=project, capture_output=True, text=True, check=True
    )
    assert ("-m venv --clear .venv" in done.stdout) is moved
    assert done.stdout.endswith(".venv/bin/distrinews run --data sample\n")
