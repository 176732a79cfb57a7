"""The command `distrinews status`: it reads the training log alone, so it needs no PyTorch and disturbs no run."""

import json
import time
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import CliPositionalArg

from server.cli import Command
from server.errors import UserError
from trainer.monitoring.console import counted
from trainer.monitoring.training_log import read_log

_EVENTS_SHOWN = 12
_SILENT_SECONDS = 120  # a run that trains has a line more often than this
_FACTS = {"why", "norm", "consecutive", "loss", "median", "world_size", "best_epoch", "samples", "unsent_lines"}


class Status(Command):
    """Show how far a run's training is, how fast it trains, and its events."""

    folder: CliPositionalArg[Path]
    """The run's folder, such as runs/NAME."""

    as_json: bool = Field(default=False, alias="json")
    """Print one JSON object instead of lines."""

    def run(self) -> None:
        now = time.time()
        found = read_status(self.folder, now=now)
        print(json.dumps(found, ensure_ascii=False) if self.as_json else "\n".join(format_status(found, now=now)))


def read_status(run: Path, *, now: float) -> dict[str, Any]:
    """Summarizes the training log of a run."""
    lines = read_log(run / "logs")
    starts = [line for line in lines if line["kind"] == "start"]
    if not starts:
        raise UserError(f"{run}: training has not begun there: it has no logs/train.jsonl with a start")
    last = next((line for line in reversed(lines) if line["kind"] == "train"), starts[-1])
    since = [line for line in lines[lines.index(starts[-1]) :] if "samples" in line]
    done, total = max(since, key=lambda line: int(line["step"])), starts[-1]["total_samples"]
    speed = last.get("samples_per_second")
    state = _state([line for line in lines if line["kind"] != "mlflow"][-1], now)  # which may come after the end
    return {
        "run": str(run), "state": state, "step": done["step"], "samples": done["samples"], "total_samples": total,
        "epoch": sum(line["kind"] == "validation" for line in lines), "epochs": starts[-1]["epochs"],
        "world_size": starts[-1]["world_size"], "loss": last.get("loss"), "samples_per_second": speed,
        "tokens_per_second": last.get("tokens_per_second"),
        "eta_seconds": (total - done["samples"]) / speed if speed and state == "running" else None,
        "validation": next((line for line in reversed(lines) if line["kind"] == "validation"), None),
        "checkpoint": next((line for line in reversed(lines) if line["kind"] == "checkpoint"), None),
        "skipped": sum(line["kind"] == "skipped" for line in lines),
        "starts": len(starts), "environment": starts[-1]["environment"], "last_line": lines[-1]["time"],
        "events": [line for line in lines if line["kind"] not in ("train", "validation", "checkpoint")],
    }  # fmt: skip


def _state(last: dict[str, Any], now: float) -> str:
    if last["kind"] == "end":
        return "ended"
    if last["kind"] == "preemption":
        return "preempted"
    return "running" if now - last["time"] < _SILENT_SECONDS else "silent"


def format_status(found: dict[str, Any], *, now: float) -> list[str]:
    """Formats a status as lines to read."""
    share = found["samples"] / found["total_samples"]
    lines = [
        f"{found['run']}: {found['state']}, last line {_ago(now - found['last_line'])}",
        f"progress    step {found['step']:,}, {found['samples']:,} of {found['total_samples']:,} rows ({share:.0%}), {found['epoch']} of {found['epochs']} epochs done"
        + (f", ETA {_span(found['eta_seconds'])}" if found["eta_seconds"] is not None else ""),
    ]
    if found["samples_per_second"]:
        lines.append(
            f"speed       {found['samples_per_second']:,.0f} samples/s, {found['tokens_per_second']:,.0f} tokens/s, {counted(found['world_size'], 'process')}"
        )
    if found["loss"] is not None:
        validation = found["validation"]
        after = f"; validation {validation['loss']:.4f}, accuracy {validation['accuracy']:.4f}" if validation else ""
        lines.append(f"loss        {found['loss']:.4f}{after}")
    if saved := found["checkpoint"]:
        lines.append(
            f"checkpoint  {saved['name']}, {_ago(now - saved['time'])}, written in {saved['write_seconds']:.1f} s"
        )
    versions = ", ".join(f"{name} {version}" for name, version in found["environment"].items())
    events = f"{counted(found['starts'], 'start')}, {counted(found['skipped'], 'step')} skipped"
    lines += [f"with        {versions}", f"events      {events}"]
    return lines + [_event(event) for event in found["events"][-_EVENTS_SHOWN:]]


def _event(event: dict[str, Any]) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in event.items() if name in _FACTS)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time"]))
    return f"  {when}  step {event['step']:,}: {event['kind']}" + (f" ({facts})" if facts else "")


def _ago(seconds: float) -> str:
    return f"{_span(seconds)} ago"


def _span(seconds: float) -> str:
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
