"""train: a dataset folder to a model folder, by as many processes as torchrun starts.

torchrun --nproc-per-node 2 -m trainer.train --dataset runs/x/dataset --output runs/x --epochs 3
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.profiler import record_function
from transformers import PreTrainedModel

from server.cli import parse
from server.files import atomic_directory, write_json
from trainer.checkpoint.checkpointer import Checkpoints
from trainer.checkpoint.resuming import resume
from trainer.checkpoint.state import TrainState
from trainer.checkpoint.store import epoch_name, read_weights
from trainer.config import TrainConfig
from trainer.data.batches import BatchSampler, Step, collate
from trainer.data.dataset import Dataset
from trainer.distributed.alike import check_ranks_agree, environment
from trainer.distributed.launch import worker
from trainer.distributed.parallel import gradient_norm, gradient_sync, parallelize
from trainer.distributed.process_group import Process, process_group, seed_step
from trainer.distributed.watchdog import Watchdog
from trainer.evaluation.predict import validate
from trainer.model.classifier import build_model, freeze_unused, save_model
from trainer.model.optimizer import Meter, choose_precision, clip, make_optimizer, schedule
from trainer.model.packing import enable_packing, is_packed
from trainer.monitoring.console import Progress, print0
from trainer.monitoring.mlflow import MlflowTracker
from trainer.monitoring.monitor import Guard, profiler, skip_unless_finite
from trainer.monitoring.training_log import TrainingLog


class TrainArguments(TrainConfig):
    """Fine-tune a text classifier; torchrun starts it, with one process or many."""

    dataset: Path
    """Folder that preprocess wrote."""

    output: Path
    """Folder of the run, in which checkpoints, logs and model are written."""


def train(config: TrainConfig, dataset: Dataset, output: Path, process: Process) -> TrainState:
    """Train, keep the best epoch, and write <output>/model; <output>/checkpoints is gone on from where there is one."""
    bare, model, optimizer, unused = prepare(config, dataset, process)
    made_with = {
        **config.model_dump(mode="json"), "dataset": dataset.fingerprint, "world_size": process.world_size, "packed": is_packed(bare)
    }  # fmt: skip
    state = resume(output, bare, optimizer, config=config, made_with=made_with, process=process)
    plan = BatchSampler(
        dataset.train.lengths, config, rank=process.rank, world_size=process.world_size, packed=is_packed(bare)
    )
    precision = introduce(config, dataset, model, process, plan, unused)
    meter = Meter(process.device).take(state.meter)
    total_steps = config.epochs * len(dataset.train) / plan.step_rows

    with (
        TrainingLog(output / "logs", enabled=process.is_main, step=state.step) as log,
        MlflowTracker(output, made_with, process),
        Checkpoints(
            output / "checkpoints",
            config,
            made_with=made_with,
            process=process,
            log=log,
        ) as checkpoints,
        Watchdog(process.rank, minutes=config.hang_minutes) as watchdog,
        profiler(config.profile_steps, process, folder=output / "logs" / "profile") as profile,
    ):
        guard = Guard(state, log, dataset.train, most=config.max_skipped_steps, is_main=process.is_main)
        log.event(
            "start", step=state.step, samples=state.samples, epoch=state.epoch, epochs=config.epochs,
            world_size=process.world_size, total_samples=config.epochs * len(dataset.train), environment=environment(),
        )  # fmt: skip
        if not state.over(config.epochs):
            rehearse(model, plan, dataset, process, precision, epochs=config.epochs)
        while not state.over(config.epochs):
            state.begin(plan.step_rows)
            steps, done = plan.epoch(state.epoch, state.parts), state.epoch_steps
            with Progress(
                f"train: epoch {state.epoch + 1}/{config.epochs}", done + len(steps), "steps", start=done, shown=process.is_main
            ) as bar:  # fmt: skip
                for step in steps:
                    learning_rate = schedule(state.samples / plan.step_rows, total_steps, config)
                    seed_step(config.seed, step=state.step, rank=process.rank)
                    train_step(model, step, dataset, process, precision, meter)
                    with record_function("optimizer"):
                        norm = update(model, optimizer, learning_rate=learning_rate, max_grad_norm=config.max_grad_norm)
                    with record_function("log"):
                        state.count(step.global_rows)
                        guard.note(step, norm)
                        watchdog.beat(f"the step after {state.step:,}")
                        bar.advance()
                        if state.step % config.log_steps == 0 or step is steps[-1]:
                            seen = meter.read()
                            guard.loss(seen["loss"])
                            log.write(
                                "train", step=state.step, samples=state.samples, learning_rate=learning_rate, **seen
                            )
                            bar.note(loss=f"{seen['loss']:.3f}", speed=f"{seen['samples_per_second']:,.0f} samples/s")
                    with record_function("save"):
                        checkpoints.after_step(state, bare, optimizer, meter)
                    if profile is not None:
                        profile.step()
            validation = validate(
                bare, dataset, process, lambda: watchdog.beat("validation"),
                lambda: checkpoints.leave_if_told(state, bare, optimizer, meter),
            )  # fmt: skip
            state.end_epoch(validation, patience=config.early_stopping_patience)
            log.write("validation", step=state.step, **state.validation[-1])
            if process.is_main:
                print0(
                    f"train: epoch {state.epoch}: validation loss {validation.loss:.4f}, accuracy {validation.accuracy:.4f}"
                )
            checkpoints.save(state, bare, optimizer, meter)
            meter.restart()
            watchdog.beat("the next epoch")
        watchdog.stop()  # what is left has no steps
        checkpoints.wait()
        if process.is_main:
            write_model(bare, dataset, output, made_with=made_with, state=state)
        log.event("end", step=state.step, best_epoch=state.best_epoch)
    dist.barrier()  # nobody leaves before everything is saved: a job may count as done when any process is
    return state


def prepare(
    config: TrainConfig, dataset: Dataset, process: Process
) -> tuple[PreTrainedModel, nn.Module, torch.optim.Optimizer, list[str]]:
    """The model, the same as all processes train it, its optimizer, and names of parameters that the classes do not depend on.

    UserError where processes differ.
    """
    check_ranks_agree(config, dataset)
    bare = build_model(config.model, dataset, seed=config.seed, device=process.device)
    enable_packing(bare)
    unused = freeze_unused(bare)
    model = parallelize(bare, config, process)
    return bare, model, make_optimizer(model, config), unused


def train_step(
    model: nn.Module, step: Step, dataset: Dataset, process: Process, precision: torch.dtype, meter: Meter,
) -> None:  # fmt: skip
    """Forward and backward passes of one optimizer step; gradients are those of the mean loss over the rows of all processes."""
    for number, rows in enumerate(step.micro_batches, start=1):
        with record_function("load"):
            batch = collate(dataset.train, rows, pad_token_id=dataset.pad_token_id, packed=step.packed).to(
                process.device
            )
        with gradient_sync(model, when=number == len(step.micro_batches)):
            with (
                record_function("forward"),
                torch.autocast(process.device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16),
            ):
                logits = model(**batch.inputs).logits
            loss_sum = functional.cross_entropy(logits.float(), batch.labels, reduction="sum") * batch.weight
            # What is exchanged is the mean over processes of gradients; the true count of rows turns it into the mean over rows.
            mean = loss_sum * process.world_size / step.global_rows
            with record_function("backward"):
                mean.backward()
        meter.add(loss_sum, rows=len(rows), tokens=batch.tokens)


def rehearse(
    model: nn.Module, plan: BatchSampler, dataset: Dataset, process: Process, precision: torch.dtype, *, epochs: int
) -> None:
    """Computes a row and then the largest step before the first one: what does not fit ends training now and not after hours.

    After the first pass DDP arranges its buckets, so that all steps add gradients in one order, those after a resume too.
    Memory is asked for in this order so that activations, which come and go, have no gap to leave.
    """
    largest = plan.largest_step(epochs)
    for one in (Step([largest.micro_batches[0][:1]], largest.rows[:1], packed=plan.packed), largest):
        train_step(model, one, dataset, process, precision, Meter(process.device))
        model.zero_grad(set_to_none=True)


def write_model(
    model: PreTrainedModel, dataset: Dataset, output: Path, *, made_with: dict[str, Any], state: TrainState
) -> None:
    """The model folder with the weights of the best epoch, and train_config.json, which says how it was trained."""
    weights = read_weights(output / "checkpoints" / epoch_name(state.best_epoch))
    how = {"settings": made_with, "best_epoch": state.best_epoch, "epochs": state.validation}
    with atomic_directory(output / "model") as target:
        save_model(model, dataset, target, weights=weights)
        write_json(target / "train_config.json", how)
    print0(f"train: {state.conclusion()}; the model is in {output / 'model'}")


def update(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, *, learning_rate: float, max_grad_norm: float
) -> torch.Tensor:
    """Clip the gradients, step unless they are not finite, and forget them; returns their norm."""
    norm = gradient_norm(model)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    clip(optimizer, norm, max_norm=max_grad_norm)
    skip_unless_finite(optimizer, norm)
    optimizer.step()
    model.zero_grad(set_to_none=True)
    return norm


def introduce(
    config: TrainConfig,
    dataset: Dataset,
    model: torch.nn.Module,
    process: Process,
    plan: BatchSampler,
    unused: list[str],
) -> torch.dtype:
    """Say what will be trained and how; returns the number format."""
    precision, reason = choose_precision(config.precision, process.device)
    if process.is_main:
        parameters = sum(parameter.numel() for parameter in model.parameters())
        print0(
            f"train: {config.model} ({parameters:,} parameters) on {len(dataset.train):,} rows, {plan.step_rows} a step, "
            f"{plan.steps_per_epoch:,} steps an epoch; {process.world_size} processes on {process.device.type} with "
            f"{torch.get_num_threads()} threads each, {str(precision).removeprefix('torch.')}: {reason}"
        )
        if not plan.packed:
            print0(
                "train: this architecture is not known to read packed texts: those of like length come together, padded"
            )
        if unused:
            print0(
                f"train: {len(unused)} parameters that the classes do not depend on stay as they are: {', '.join(unused[:4])}"
            )
    return precision


def main() -> None:
    arguments = parse(TrainArguments, prog="python -m trainer.train")
    with process_group(timeout_minutes=arguments.timeout_minutes) as process:
        config = TrainConfig(**arguments.model_dump(include=set(TrainConfig.model_fields)))
        train(config, Dataset(arguments.dataset), arguments.output, process)


if __name__ == "__main__":
    worker(main)
