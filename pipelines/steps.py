"""The steps of the pipeline, each of which works in the run folder; components and tests call run_step."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.run_folder import RunFolder
from pipelines.signals import TERMINATED, exit_on_sigterm
from server.cli import as_flags, fail
from server.errors import UserError
from server.files import read_json
from trainer.config import CHOSEN, EvaluateConfig, ExportConfig, GateConfig, PreprocessConfig, TrainConfig, part
from trainer.monitoring.console import print0


def preprocess(run: RunFolder) -> dict[str, Any]:
    from trainer.preprocess import preprocess as work

    earlier = tuple(path.parent for path in sorted(run.workspace.glob("*/dataset/dataset.json")))
    info = work(part(run.settings, PreprocessConfig), run.dataset, earlier=earlier)
    return {"fingerprint": info["fingerprint"], "rows": {name: split["rows"] for name, split in info["splits"].items()}}


def train(run: RunFolder, *, task_config: object | None = None) -> dict[str, Any]:
    config = part(run.settings, TrainConfig)
    if config.resume == "never":
        _start_over(run)
        config = config.model_copy(update={"resume": "auto"})
    if run.settings.backend == "local":
        ranks = _launch(run, "trainer.train", as_flags(config), max_restarts=run.settings.max_restarts)
        outcome: dict[str, Any] = {"ranks": ranks}
    else:
        from pipelines.job.launcher import launch

        done = launch(
            config, run.settings.job, kind=run.settings.backend,
            run_folder=run.folder, task_config=task_config, deadlines=run.settings.deadlines,
        )  # fmt: skip
        outcome = {"job": done.job, "how": done.how, "pods": done.pods, "restarts": done.restarts}
    trained = read_json(run.model / "train_config.json", fix="resume with --from train")
    chosen = {name: trained["settings"].get(name) for name in (*CHOSEN, "chosen")}
    return outcome | {"best_epoch": trained["best_epoch"], "epochs": trained["epochs"], "schedule": chosen}


def _start_over(run: RunFolder) -> None:
    """Moves earlier checkpoints and logs aside, once: a step that is tried again resumes from what the first try saved."""
    if run.facts["steps"].get("train", {}).get("started_over"):
        return
    from trainer.checkpoint.lock import free_lock
    from trainer.checkpoint.state import start_over

    free_lock(run.folder)
    aside = start_over(run.folder)
    run.update_step("train", started_over=True)
    if aside:
        print0(f"train: starting over; the earlier checkpoints and logs are in {aside}")


def evaluate(run: RunFolder) -> dict[str, Any]:
    _launch(run, "trainer.evaluate", as_flags(part(run.settings, EvaluateConfig)))
    metrics = read_json(run.folder / "metrics.json", fix="resume with --from evaluate")
    return {name: metrics[name] for name in ("rows", "accuracy", "macro_f1", "expected_calibration_error")}


def gate(run: RunFolder) -> dict[str, Any]:
    from trainer.data.dataset import Dataset
    from trainer.evaluation.gate import gate as work
    from trainer.evaluation.predict import read_predictions

    dataset = Dataset(run.dataset)
    probabilities = read_predictions(run.folder / "predictions.npy", dataset)
    return dict(work(part(run.settings, GateConfig), probabilities, dataset, served=run.served))


def export(run: RunFolder) -> dict[str, Any]:
    from trainer.data.dataset import Dataset
    from trainer.export import export as work

    return work(part(run.settings, ExportConfig), Dataset(run.dataset), run.folder)


def deploy(run: RunFolder) -> dict[str, Any]:
    if run.settings.deploy.backend == "helm":
        from pipelines.deploy.release import deploy_on_cluster

        return deploy_on_cluster(run, run.settings.deploy)
    from pipelines.deploy.local import deploy_here

    return deploy_here(run, run.settings.deploy)


_WORK: dict[str, Callable[..., dict[str, Any]]] = {
    "preprocess": preprocess,
    "train": train,
    "evaluate": evaluate,
    "gate": gate,
    "export": export,
    "deploy": deploy,
}


def run_step(step: str, run_folder: str, **given: object) -> str:
    """Runs a step, or keeps what it made earlier, and records it in run.json; returns the run folder, for the next step.

    `given` is what Kubeflow passes to the step besides. A UserError ends the process with one line, any other fault with
    its traceback.
    """
    run = RunFolder(Path(run_folder))
    if run.is_kept(step):
        print0(f"{step}: kept from before")
        return run_folder
    run.update_step(step, status="running", started=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    started = time.monotonic()
    try:
        with exit_on_sigterm():
            outcome = _WORK[step](run, **given)
    except BaseException as error:
        message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        if isinstance(error, SystemExit) and error.code == TERMINATED:
            message = "it was terminated by SIGTERM"
        run.update_step(step, status="failed", seconds=round(time.monotonic() - started, 2), error=message)
        if isinstance(error, UserError):
            fail(step, error)
        raise
    run.update_step(step, status="succeeded", seconds=round(time.monotonic() - started, 2), outcome=outcome)
    return run_folder


def _launch(run: RunFolder, module: str, flags: list[str], *, max_restarts: int = 0) -> int:
    """Runs a module of the trainer on this machine; returns its number of processes."""
    from trainer.distributed.launch import default_ranks, launch
    from trainer.monitoring.training_log import append_event

    def record_restart(why: str) -> None:
        print0(f"train: {why}")
        append_event(run.folder / "logs", "restart", why=why)

    ranks = run.settings.ranks or default_ranks()
    given = ["--dataset", str(run.dataset), "--output", str(run.folder), *flags]
    launch(module, given, ranks=ranks, max_restarts=max_restarts, restarting=record_restart)
    return ranks
