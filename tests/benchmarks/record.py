"""Waits for a quiet machine, reads memory, formats tables and records each measurement with its command."""

import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "docs" / "benchmarks"
_QUIET_LOAD = 1.0  # load of the last minute, below which half of two cores is free
_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16")


def wait_until_quiet(minutes: float) -> str:
    """Waits, up to a limit, until the processor is idle; returns a sentence with its load."""
    until = time.monotonic() + minutes * 60
    while (load := os.getloadavg()[0]) >= _QUIET_LOAD and time.monotonic() < until:
        print(f"waiting for a quiet machine: load {load:.2f}, wanted below {_QUIET_LOAD:.1f}", flush=True)
        time.sleep(15)
    if load < _QUIET_LOAD:
        return f"The load was {load:.2f} at the start: the machine was quiet."
    return f"The load was {load:.2f} at the start: others used the machine, so trust the ratios, not the speeds."


def memory(field: str) -> float:
    """Returns a field of /proc/self/status, such as VmRSS or VmHWM, in MB. ru_maxrss of a child would start at the value of its parent."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    assert found
    return int(found[1]) / 1024


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Returns a Markdown table whose first column is text and whose others are numbers."""
    header = list(rows[0])
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *[[str(cell) for cell in row.values()] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def write(name: str, *, title: str, command: str, packages: Sequence[str], parts: Sequence[str]) -> None:
    """Prints `parts` and writes them to docs/benchmarks/<name>.md, with the command, the processor and the versions."""
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    made = f"Made by `{command}` on {_processor()}; Python {platform.python_version()}, {versions}."
    text = "\n\n".join(part.strip() for part in (f"# {title}", *parts, made)) + "\n"
    print(text, flush=True)
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")


def _processor() -> str:
    described = Path("/proc/cpuinfo").read_text(encoding="utf-8") if platform.system() == "Linux" else ""
    facts = dict(line.split("\t", 1) for line in described.splitlines() if "\t" in line)
    words = {key: value.lstrip("\t: ") for key, value in facts.items()}
    flags = (words.get("flags") or words.get("Features") or "").split()
    features = ", ".join(flag for flag in _FEATURES if flag in flags) or "no vector extension that we look for"
    return f"{os.cpu_count()} cores of {words.get('model name', platform.machine())} ({features})"
