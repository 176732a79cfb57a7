"""The schedule of training: epochs, learning rate, warm-up and early stopping, chosen by data and encoder where they are not set.

Devlin et al. 2019 fine-tune BERT for 3 epochs at 2e-5 to 5e-5, Clark et al. 2020 smaller encoders at up to 3e-4; with few rows,
epochs are what is missing: Mosbach et al. 2021 take 20, with a warm-up, for a few thousand rows.
"""

import math
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from trainer.config import CHOSEN, TrainConfig
from trainer.monitoring.console import counted

_FEWEST_EPOCHS, _MOST_EPOCHS = 3, 20
_FEWEST_STEPS = 300
_ROWS_A_CLASS = 1200  # seen over all epochs: a fresh output learns from the rows of its class
_WARMUP_FRACTION, _MOST_WARMUP = 0.06, 0.2
_WARMUP_STEPS = 20
_TINY_RATE = 1e-3  # random weights have further to go
_RATE, _SIZE = 3e-4, 6 * 384**2  # the highest rate, and layers × width² of an encoder that learns at it
_LOWEST_RATE = 1e-5
_USUAL_RATE = 5e-5  # below which many rows do not bring the rate
_USUAL_ROWS = 32  # a step; Adam's rate goes with the root of its rows


class TrainPlan(TrainConfig):
    """Settings of the train step with none left to choose."""

    epochs: int
    learning_rate: float
    warmup_fraction: float


def make_plan(
    config: TrainConfig, encoder: PreTrainedConfig, *, rows: int, classes: int, step_rows: int, earlier: Mapping[str, Any]
) -> tuple[TrainPlan, str]:  # fmt: skip
    """Chooses what the settings leave open, or keeps what `earlier`, the settings of a resumed run, has; returns the reasons too."""
    if earlier:
        return TrainPlan.model_construct(**config.model_dump() | {name: earlier[name] for name in CHOSEN}), earlier[
            "chosen"
        ]
    given = {name: value for name in CHOSEN if (value := getattr(config, name)) is not None}
    steps_per_epoch = math.ceil(rows / step_rows)
    epochs, why_epochs = _choose_epochs(rows, classes, steps_per_epoch)
    steps = given.get("epochs", epochs) * steps_per_epoch
    seen = given.get("epochs", epochs) * rows / classes
    rate, why_rate = _choose_rate(config.model, encoder, seen, step_rows)
    warmup = max(_WARMUP_FRACTION, min(_MOST_WARMUP, round(_WARMUP_STEPS / steps, 2)))
    stops = "epochs" not in given and epochs > _FEWEST_EPOCHS
    chosen = {
        "epochs": epochs, "learning_rate": rate, "warmup_fraction": warmup,
        "early_stopping_patience": max(2, epochs // 2) if stops else None,
    }  # fmt: skip
    plan = TrainPlan.model_construct(**config.model_dump() | chosen | given)
    why = {"epochs": why_epochs, "learning_rate": why_rate, "warmup_fraction": f"of {counted(steps, 'step')}"}
    why |= dict.fromkeys(given, "as set")
    end = f"after {counted(plan.early_stopping_patience or 0, 'epoch')} without better validation accuracy"
    return plan, (
        f"{counted(plan.epochs, 'epoch')} ({why['epochs']}), learning rate {plan.learning_rate:g} ({why['learning_rate']}), warm-up "
        f"{plan.warmup_fraction:.0%} ({why['warmup_fraction']}), early stopping {end if plan.early_stopping_patience else 'never'}"
    )


def _choose_epochs(rows: int, classes: int, steps_per_epoch: int) -> tuple[int, str]:
    wanted = {
        f"{_FEWEST_EPOCHS} at least": _FEWEST_EPOCHS,
        f"{_FEWEST_STEPS} steps at least": math.ceil(_FEWEST_STEPS / steps_per_epoch),
        f"{rows:,} rows of {classes} classes, each to be seen {_ROWS_A_CLASS:,} times": math.ceil(_ROWS_A_CLASS * classes / rows),
    }  # fmt: skip
    why, epochs = max(wanted.items(), key=lambda found: found[1])
    return (epochs, why) if epochs <= _MOST_EPOCHS else (_MOST_EPOCHS, f"{_MOST_EPOCHS} at most")


def _choose_rate(model: str, encoder: PreTrainedConfig, seen: float, step_rows: int) -> tuple[float, str]:
    """Chooses the rate by the encoder's size; the more rows of a class are seen over all epochs, the lower, for they teach it more."""
    if model == "tiny":
        rate, why = _TINY_RATE, "random weights"
    else:
        layers, width = getattr(encoder, "num_hidden_layers", None) or 12, getattr(encoder, "hidden_size", None) or 768
        of_size = min(_RATE, max(_LOWEST_RATE, _RATE * _SIZE / (layers * width**2)))
        rate = max(of_size * min(1.0, math.sqrt(_ROWS_A_CLASS / seen)), min(of_size, _USUAL_RATE))
        why = f"{layers} layers of width {width}, {seen:,.0f} rows of a class seen"
    rate *= min(4.0, math.sqrt(step_rows / _USUAL_ROWS))
    return float(f"{rate:.2g}"), f"{why}, {counted(step_rows, 'row')} a step"


def schedule(step: float, total_steps: float, plan: TrainPlan) -> float:
    """Returns the learning rate of a step, counted from 0: up in a line over the warm-up, then down in a line to 0.

    Steps are counted in rows seen, so that a resume with another number of rows a step continues the same line.
    """
    warmup_steps = round(total_steps * plan.warmup_fraction)
    if step < warmup_steps:
        return plan.learning_rate * (step + 1) / warmup_steps
    return plan.learning_rate * (total_steps - step) / max(total_steps - warmup_steps, 1)
