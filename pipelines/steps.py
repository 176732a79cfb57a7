"""What each step of the pipeline does with the run folder; components and tests call these."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.run_folder import RunFolder
from server.cli import as_flags, fail
from server.errors import UserError
from trainer.config import EvaluateConfig, ExportConfig, GateConfig, PreprocessConfig, TrainConfig, part
from trainer.monitoring.console import print0


def preprocess(run: RunFolder) -> dict[str, Any]:
    from trainer.preprocess import preprocess as work

    earlier = tuple(path.parent for path in sorted(run.workspace.glob("*/dataset/dataset.json")))
    info = work(part(run.config, PreprocessConfig), run.dataset, earlier=earlier)
    return {"fingerprint": info["fingerprint"], "rows": {name: split["rows"] for name, split in info["splits"].items()}}


def train(run: RunFolder, *, task_config: object | None = None) -> dict[str, Any]:
    if run.cluster.launch == "job":
        return _train_as_job(run, task_config)
    config = part(run.config, TrainConfig)
    if config.resume == "never":  # once, and not again at every restart
        from trainer.checkpoint.checkpointer import start_over

        start_over(run.folder)
        config = config.model_copy(update={"resume": "auto"})
    ranks = _launch(run, "trainer.train", as_flags(config), max_restarts=run.config.max_restarts)
    trained = json.loads((run.model / "train_config.json").read_text(encoding="utf-8"))
    return {"ranks": ranks, "best_epoch": trained["best_epoch"], "epochs": trained["epochs"]}


def _train_as_job(run: RunFolder, task_config: object | None) -> dict[str, Any]:
    from pipelines.job.launcher import launch

    done = launch(
        part(run.config, TrainConfig), run.cluster.job,
        run_folder=run.folder, task_config=task_config, deadlines=run.cluster.deadlines,
    )  # fmt: skip
    trained = json.loads((run.model / "train_config.json").read_text(encoding="utf-8"))
    facts = {"job": done.job, "how": done.how, "pods": done.pods, "restarts": done.restarts}
    return facts | {"best_epoch": trained["best_epoch"], "epochs": trained["epochs"]}


def evaluate(run: RunFolder) -> dict[str, Any]:
    _launch(run, "trainer.evaluate", as_flags(part(run.config, EvaluateConfig)))
    metrics = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))
    return {name: metrics[name] for name in ("rows", "accuracy", "macro_f1", "expected_calibration_error")}


def gate(run: RunFolder) -> dict[str, Any]:
    from trainer.data.dataset import Dataset
    from trainer.evaluation.gate import gate as work

    metrics = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))
    return dict(work(part(run.config, GateConfig), metrics, Dataset(run.dataset), served=run.workspace / "served.json"))


def export(run: RunFolder) -> dict[str, Any]:
    from trainer.data.dataset import Dataset
    from trainer.export import export as work

    return work(part(run.config, ExportConfig), Dataset(run.dataset), run.folder)


def deploy(run: RunFolder) -> dict[str, Any]:
    if run.cluster.deploy == "helm":
        from pipelines.deploy.release import deploy_on_cluster

        return deploy_on_cluster(run, run.cluster.release)
    from pipelines.deploy.local import deploy_here

    return deploy_here(run)


_WORK: dict[str, Callable[..., dict[str, Any]]] = {
    "preprocess": preprocess,
    "train": train,
    "evaluate": evaluate,
    "gate": gate,
    "export": export,
    "deploy": deploy,
}


def run_step(step: str, run_folder: str, **given: object) -> str:
    """Do a step, or keep what it made earlier, and write both to run.json; returns the run folder, for the next step.

    `given` is what Kubeflow hands to the step besides.

    A fault that the user can mend ends the process with one line; any other with its traceback.
    """
    run = RunFolder(Path(run_folder))
    if run.is_kept(step):
        print0(f"{step}: kept from before")
        return run_folder
    run.update_step(step, status="running", started=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    started = time.monotonic()
    try:
        outcome = _WORK[step](run, **given)
    except BaseException as error:
        message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        run.update_step(step, status="failed", seconds=round(time.monotonic() - started, 2), error=message)
        if isinstance(error, UserError):
            fail(step, error)
        raise
    run.update_step(step, status="succeeded", seconds=round(time.monotonic() - started, 2), outcome=outcome)
    return run_folder


def _launch(run: RunFolder, module: str, flags: list[str], *, max_restarts: int = 0) -> int:
    """Run a module of the trainer on this machine; returns how many processes it had."""
    from trainer.distributed.launch import default_ranks, launch
    from trainer.monitoring.training_log import append_event

    def restarting(why: str) -> None:
        print0(f"train: {why}")
        append_event(run.folder / "logs", "restart", why=why)

    ranks = run.config.ranks or default_ranks()
    given = ["--dataset", str(run.dataset), "--output", str(run.folder), *flags]
    launch(module, given, ranks=ranks, max_restarts=max_restarts, restarting=restarting)
    return ranks
