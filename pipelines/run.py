"""The command `distrinews run`."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from pipelines.flags import parser
from pipelines.run_folder import STEPS, RunFolder
from server.cli import build, read_file
from server.errors import UserError
from trainer.config import GROUPS, RunConfig, own_fields

_PROGRAM = "distrinews run"
_SETTINGS_ERROR = "settings: error: "


def main(args: list[str] | None = None) -> None:
    """Run the pipeline; ends with status 1 when a step fails, 2 when a setting is wrong."""
    command = parser(
        _PROGRAM,
        "Run the whole pipeline on this machine: preprocess, train, evaluate, gate, export, deploy.",
        {group: (settings, own_fields(group)) for group, settings in GROUPS.items()},
    )
    here = command.add_argument_group("run")
    here.add_argument(
        "--config", metavar="FILE", type=Path, default=None, help="settings from a JSON or YAML file; flags win"
    )
    here.add_argument("--name", default=None, help="name of the run's folder (default: the time)")
    here.add_argument(
        "--runs-dir",
        metavar="DIR",
        type=Path,
        default=Path("runs"),
        help="where runs have their folders (default runs)",
    )
    here.add_argument("--from", metavar="STEP", dest="from_step", choices=STEPS, default="",
                      help=f"go on from a step of the run that --name names: {', '.join(STEPS)}")  # fmt: skip
    here.add_argument("--serve", action="store_true", default=False, help="serve the model when the pipeline is done")
    flags = vars(command.parse_args(args))
    place = {name: flags.pop(name) for name in ("config", "name", "runs_dir", "from_step", "serve")}
    if place["from_step"] and place["name"] is None:
        command.error(f"--from {place['from_step']}: say with --name in which run")
    try:
        folder = place["runs_dir"].absolute() / (place["name"] or time.strftime("%Y%m%d-%H%M%S"))
        earlier = RunFolder(folder).facts["settings"] if place["from_step"] else {}
        from_file = read_file(place["config"]) if place["config"] else {}
        config = build(RunConfig, {**earlier, **from_file, **flags})
    except UserError as error:
        command.exit(2, f"{_PROGRAM}: error: {error}\n")
    raise SystemExit(run(config, folder, from_step=place["from_step"], serve=place["serve"]))


def run(config: RunConfig, folder: Path, *, from_step: str = "", serve: bool = False) -> int:
    """Run the pipeline in this folder and tell how it ended; returns the exit status."""
    print(f"{_PROGRAM}: {folder}", flush=True)
    started = time.monotonic()
    from pipelines.local import run_pipeline  # half a second of kfp, not needed for --help

    try:
        succeeded, last_line = run_pipeline(config, folder, from_step=from_step)
    except KeyboardInterrupt:
        succeeded, last_line = False, "stopped by the keyboard"
    if not succeeded:
        _tell_failure(folder, last_line)
        return 1
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    low, high = metrics["accuracy_interval"]
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    print(f"""
done in {time.monotonic() - started:.0f} s: {folder.name}
  accuracy  {metrics["accuracy"]:.4f} on {metrics["rows"]:,} test rows (95 % interval {low:.4f} to {high:.4f})
  report    {shown / "report.html"}
  serve     distrinews serve {shown / "model"}
  ask       curl -s http://127.0.0.1:8080/predict -H 'Content-Type: application/json' -d '{{"text": "Late goal wins the cup"}}'""", flush=True)  # fmt: skip
    if serve:
        from server.cli import run_command
        from server.main import PROGRAM, Serve

        run_command(Serve, [str(folder / "model")], prog=PROGRAM)
    return 0


def _tell_failure(folder: Path, last_line: str) -> None:
    """The step that failed and its own error, last; it is all that most people read."""
    if last_line.startswith(_SETTINGS_ERROR):
        print(f"{_PROGRAM}: error: {last_line.removeprefix(_SETTINGS_ERROR)}", file=sys.stderr)
        return
    steps: dict[str, dict[str, Any]] = RunFolder(folder).facts["steps"]
    failed = next(step for step in STEPS if steps.get(step, {}).get("status") != "succeeded")
    where = "" if folder.parent == Path("runs").absolute() else f" --runs-dir {folder.parent}"
    print(
        f"\ngo on with: distrinews run{where} --name {folder.name} --from {failed}  (all output: {folder / 'pipeline.log'})",
        file=sys.stderr,
    )
    print(
        f"{_PROGRAM}: step {failed} failed: {steps.get(failed, {}).get('error', 'it was ended from outside')}",
        file=sys.stderr,
    )
