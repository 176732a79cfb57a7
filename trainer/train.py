"""train: a dataset folder to a model folder, by as many processes as torchrun starts.

torchrun --nproc-per-node 2 -m trainer.train --dataset runs/x/dataset --output runs/x --epochs 3
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.profiler import record_function
from transformers import PreTrainedModel

from server.cli import parse
from server.files import atomic_directory, write_json
from trainer.checkpoint.checkpointer import Checkpointer, describe
from trainer.checkpoint.state import TrainState
from trainer.checkpoint.store import check_best, epoch_name, read_weights
from trainer.config import TrainArguments, TrainConfig
from trainer.data.batches import BatchSampler, Step, collate
from trainer.data.dataset import Dataset
from trainer.distributed.launch import worker
from trainer.distributed.parallel import gradient_norm, gradient_sync, parallelize
from trainer.distributed.process_group import Process, check_ranks_agree, on_main, process_group, seed_step
from trainer.evaluation.predict import validate
from trainer.model.classifier import build_trainable, save_model
from trainer.model.optimizer import choose_precision, make_optimizer
from trainer.model.packing import is_packed
from trainer.model.schedule import make_plan, schedule
from trainer.monitoring.console import print0
from trainer.monitoring.mlflow import MlflowTracker
from trainer.monitoring.monitor import Monitor


def train(config: TrainConfig, dataset: Dataset, output: Path, process: Process) -> TrainState:
    """Trains and writes <output>/model with the weights of the best epoch; resumes from the newest undamaged checkpoint."""
    check_ranks_agree(config, dataset)
    raw_model = build_trainable(config, dataset, process, try_export=True)
    model = parallelize(raw_model, config, process)
    optimizer = make_optimizer(model, config)
    sampler = BatchSampler(dataset.train.lengths, config, process.rank, process.world_size, packed=is_packed(raw_model))
    precision, reason = choose_precision(config.precision, process.device)
    provenance = describe(config, dataset, sampler, process)
    with Checkpointer(output, raw_model, optimizer, config, provenance, process) as checkpointer:
        state = checkpointer.resume()
        plan, reasons = make_plan(
            config, raw_model.config, rows=sampler.rows, classes=len(dataset.classes), step_rows=sampler.step_rows,
            earlier=checkpointer.earlier,
        )  # fmt: skip
        print0(f"train: {reasons}")
        provenance.update(plan.model_dump(mode="json"), chosen=reasons)  # which the checkpoints hold, too
        total_steps = plan.epochs * len(dataset.train) / sampler.step_rows

        with (
            MlflowTracker(output, provenance, process),
            Monitor(output, plan, dataset, state, process) as monitor,
            checkpointer.report_to(monitor),
        ):
            monitor.start(raw_model, sampler, f"{precision}: {reason}")
            if not state.finished(plan.epochs):
                warm_up(model, sampler.largest_step(plan.epochs), dataset, process, precision)
            while not state.finished(plan.epochs):
                state.start_segment(sampler.step_rows)
                for step in monitor.watch(sampler.epoch(state.epoch, state.segments)):
                    learning_rate = schedule(state.samples / sampler.step_rows, total_steps, plan)
                    seed_step(config.seed, step=state.step, rank=process.rank)
                    loss = forward_backward(model, step, dataset, process, precision)
                    norm = optimizer_step(model, optimizer, learning_rate, max_grad_norm=config.max_grad_norm)
                    state.advance(step.global_rows)
                    monitor.after_step(step, loss, norm, learning_rate)
                    checkpointer.after_step()
                score = validate(raw_model, dataset, process, monitor.beat, checkpointer.stop_if_asked)
                state.end_epoch(score.loss, score.accuracy, patience=plan.early_stopping_patience)
                monitor.after_epoch()
                checkpointer.save()
            checkpointer.wait()
            with monitor.paused():
                on_main(process, lambda: save_best(raw_model, dataset, output, state, provenance))
            monitor.end()
    dist.barrier()  # nobody leaves before everything is saved: a job may count as done when any process is
    return state


def warm_up(model: nn.Module, largest: Step, dataset: Dataset, process: Process, precision: torch.dtype) -> None:
    """Computes a row and then the largest step, without effect: what does not fit fails now and not after hours.

    After its first pass DDP orders its buckets, so that all steps add gradients in one order, those after a resume too.
    """
    for step in (Step([largest.micro_batches[0][:1]], largest.rows[:1], packed=largest.packed), largest):
        forward_backward(model, step, dataset, process, precision)
        model.zero_grad(set_to_none=True)


def forward_backward(
    model: nn.Module, step: Step, dataset: Dataset, process: Process, precision: torch.dtype
) -> Tensor:
    """Returns the sum of the loss over this rank's rows; gradients are those of the mean over the rows of all ranks."""
    total = torch.zeros((), device=process.device)
    for number, rows in enumerate(step.micro_batches, start=1):
        with record_function("load"):
            batch = collate(dataset.train, rows, padding=dataset.padding, packed=step.packed)
            batch = batch.to(process.device)
        with gradient_sync(model, when=number == len(step.micro_batches)):
            with (
                record_function("forward"),
                torch.autocast(process.device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16),
            ):
                logits = model(**batch.inputs).logits
            loss = functional.cross_entropy(logits.float(), batch.labels, reduction="sum") * batch.weight
            with record_function("backward"):
                # Ranks average their gradients; the number of rows makes that the mean over rows.
                (loss * process.world_size / step.global_rows).backward()
        total += loss.detach()
    return total


def optimizer_step(model: nn.Module, optimizer: Optimizer, learning_rate: float, *, max_grad_norm: float) -> Tensor:
    """Clips the gradients, steps unless they are not finite, and clears them; returns their norm."""
    with record_function("optimizer"):
        norm = gradient_norm(model)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        # As GradScaler sets them: fused AdamW divides by the first, and changes nothing where the second is 1.
        optimizer.grad_scale = (norm / max_grad_norm).clamp(min=1)  # type: ignore[attr-defined]
        optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
        optimizer.step()
        model.zero_grad(set_to_none=True)
    return norm


def save_best(
    model: PreTrainedModel, dataset: Dataset, output: Path, state: TrainState, provenance: dict[str, Any]
) -> None:
    """Writes the model folder with the weights of the best epoch, and train_config.json with how it was trained."""
    best = output / "checkpoints" / epoch_name(state.best_epoch)
    check_best(best)
    weights = read_weights(best)
    with atomic_directory(output / "model") as target:
        save_model(model, dataset, target, weights=weights)
        facts = {"settings": provenance, "best_epoch": state.best_epoch, "epochs": state.validation}
        write_json(target / "train_config.json", facts)
    print0(f"train: {state.conclusion()}; the model is in {output / 'model'}")


def main(args: list[str] | None = None) -> None:
    arguments = parse(TrainArguments, args, prog="python -m trainer.train")
    with process_group(timeout_minutes=arguments.timeout_minutes) as process:
        config = TrainConfig(**arguments.model_dump(include=set(TrainConfig.model_fields)))
        train(config, Dataset(arguments.dataset), arguments.output, process)


if __name__ == "__main__":
    worker(main)
