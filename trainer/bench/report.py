"""Write measurements: tables, the machine, files and the plot of speed-up."""

import platform
import shlex
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel, ValidationError

from server.errors import UserError
from server.files import write_json
from server.inference.hardware import available_cpus
from trainer.evaluation.charts import HEIGHT, WIDTH, Point, Series, element, line_chart, note
from trainer.monitoring.console import print0

_STYLE = """
svg { font: 12px system-ui, sans-serif; background: #fff; fill: #444 }
.grid { stroke: #ddd } polyline { fill: none; stroke: #1d5f9e; stroke-width: 2 }
polyline.raw { stroke: #999; stroke-width: 1; stroke-dasharray: 4 4 } polyline.validation { stroke: #b2520a }
.dot { fill: #fff; stroke: #b2520a; stroke-width: 2 } .weak { fill: #1d5f9e } .strong { fill: #b2520a }
@media (prefers-color-scheme: dark) {
  svg { background: #15181c; fill: #bbb } .grid { stroke: #333 } polyline { stroke: #74b2f0 }
  polyline.validation, .dot { stroke: #f0a460 } .dot { fill: #15181c } .weak { fill: #74b2f0 } .strong { fill: #f0a460 }
}
"""

M = TypeVar("M", bound=BaseModel)


class Machine(BaseModel):
    """The machine on which something was measured."""

    device: str
    backend: str
    cores: int
    torch: str
    python: str

    def __str__(self) -> str:
        return f"{self.device}, {self.cores} cores, {self.backend}; torch {self.torch}, Python {self.python}"


def this_machine() -> Machine:
    on_gpu = torch.cuda.is_available()
    return Machine(
        device=f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}" if on_gpu else _processor(),
        backend="nccl" if on_gpu else "gloo",
        cores=available_cpus(), torch=torch.__version__, python=platform.python_version(),
    )  # fmt: skip


def most_ranks() -> int:
    """Counts the processes that are compared by default: one for each GPU, or two on a CPU."""
    return torch.cuda.device_count() or min(2, available_cpus())


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Returns Markdown whose columns also line up on a terminal, to the right."""
    header = list(rows[0])
    widths = [max(len(name), *(len(row[name]) for row in rows)) for name in header]
    rule = [f"{'-' * (width - 1)}:" for width in widths]
    lines = chain([header, rule], ([row[name] for name in header] for row in rows))
    return "\n".join(
        f"| {' | '.join(f'{cell:>{width}}' for cell, width in zip(line, widths, strict=True))} |" for line in lines
    )


def write(folder: Path, name: str, *, flags: Sequence[str], result: BaseModel, parts: Sequence[str]) -> None:
    """Prints `parts`; keeps them in <name>.md with the command that made them, and the result in <name>.json."""
    folder.mkdir(parents=True, exist_ok=True)
    print0("\n" + "\n\n".join(parts) + "\n")
    command = shlex.join(["distrinews", "bench", name, *flags])
    text = "\n\n".join([f"# {name.capitalize()}", *parts, f"Made by `{command}`."]) + "\n"
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    write_json(folder / f"{name}.json", result.model_dump(mode="json"))
    print0(f"bench: written to {folder / name}.md and .json")


def read(path: Path, kind: type[M]) -> M:
    """Reads a result that `write` wrote."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror}; name a result that distrinews bench wrote"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: is no result of distrinews bench: {place}: {first['msg']}") from error


def speedup_plot(weak: Sequence[Point], strong: Sequence[Point], *, most: int) -> str:
    """Draws weak and strong scaling beside the ideal, a straight line to `most`, as a self-contained SVG file."""
    series = [Series("raw", [(1, 1), (most, most)]), Series("train", weak), Series("validation", strong)]
    label = "Speed-up in tokens/s against the number of processes"
    chart = line_chart(series, label=label, x_name="processes")
    words = (("weak scaling", "weak"), ("strong scaling", "strong"), ("ideal (dashed)", "ideal"))
    legend = [note(70 + 130 * place, 14, text, "start", class_=name) for place, (text, name) in enumerate(words)]
    size = {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "width": WIDTH, "height": HEIGHT}
    whole = element("svg", element("style", _STYLE), chart, *legend, xmlns="http://www.w3.org/2000/svg", **size)
    return str(whole) + "\n"
