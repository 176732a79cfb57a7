"""The schedule of training, as it is chosen by data and encoder."""

from typing import Any

import pytest
from transformers import BertConfig, DistilBertConfig, PreTrainedConfig

from trainer.config import TrainConfig
from trainer.model.schedule import make_plan, schedule

MINILM = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12)
LARGE = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"rows": 9503, "classes": 77}, (10, 3e-4, 0.06, 5)),  # Banking77: few rows of each class
        ({"rows": 114_000, "classes": 4}, (3, 5e-5, 0.06, None)),  # AG News: the usual rate
        ({"rows": 12_000, "classes": 4}, (3, 1.1e-4, 0.06, None)),
        ({"rows": 900_000, "classes": 2}, (3, 5e-5, 0.06, None)),
        ({"rows": 900_000, "classes": 2, "encoder": LARGE}, (3, 1.1e-5, 0.06, None)),
        ({"rows": 3420, "classes": 4, "model": "tiny"}, (3, 1e-3, 0.06, None)),  # the generated sample
        ({"rows": 950, "classes": 2}, (10, 1.5e-4, 0.07, 5)),  # few steps
        ({"rows": 200, "classes": 2}, (20, 2.3e-4, 0.14, 10)),
        ({"rows": 5000, "classes": 1000}, (20, 3e-4, 0.06, 10)),
        ({"rows": 9503, "classes": 77, "step_rows": 256}, (10, 8.4e-4, 0.06, 5)),  # eight processes
        ({"rows": 9503, "classes": 77, "encoder": DistilBertConfig()}, (10, 7.4e-5, 0.06, 5)),
        ({"rows": 9503, "classes": 77, "encoder": BertConfig()}, (10, 3.7e-5, 0.06, 5)),
        ({"rows": 9503, "classes": 77, "encoder": LARGE}, (10, 1.1e-5, 0.06, 5)),
        ({"rows": 9503, "classes": 77, "encoder": PreTrainedConfig()}, (10, 3.7e-5, 0.06, 5)),  # of unknown size
        ({"rows": 9503, "classes": 77, "epochs": 3}, (3, 3e-4, 0.06, None)),
        ({"rows": 9503, "classes": 77, "learning_rate": 5e-5, "warmup_fraction": 0.0}, (10, 5e-5, 0.0, 5)),
        ({"rows": 9503, "classes": 77, "early_stopping_patience": 15}, (10, 3e-4, 0.06, 15)),
    ],
)  # fmt: skip
def test_the_schedule_follows_rows_classes_and_encoder_where_it_is_not_set(
    data: dict[str, Any], expected: tuple[int, float, float, int | None]
) -> None:
    given = {name: value for name, value in data.items() if name in TrainConfig.model_fields}
    plan, _ = make_plan(
        TrainConfig(**{"model": "encoder"} | given), data.get("encoder", MINILM), rows=data["rows"], classes=data["classes"],
        step_rows=data.get("step_rows", 32), earlier={},
    )  # fmt: skip
    assert (plan.epochs, plan.learning_rate, plan.warmup_fraction, plan.early_stopping_patience) == expected


def test_the_choice_is_a_sentence_with_its_reasons_and_a_resume_keeps_it() -> None:
    config = TrainConfig(model="encoder", learning_rate=1e-4)
    plan, why = make_plan(config, MINILM, rows=9503, classes=77, step_rows=32, earlier={})
    assert why == (
        "10 epochs (9,503 rows of 77 classes, each to be seen 1,200 times), learning rate 0.0001 (as set), "
        "warm-up 6% (of 2,970 steps), early stopping after 5 epochs without better validation accuracy"
    )
    few = TrainConfig(model="encoder", epochs=1, learning_rate=1e-4)
    assert make_plan(few, MINILM, rows=30, classes=2, step_rows=32, earlier={})[1] == (
        "1 epoch (as set), learning rate 0.0001 (as set), warm-up 20% (of 1 step), early stopping never"
    )
    saved = plan.model_dump(mode="json") | {"chosen": why}
    assert make_plan(TrainConfig(model="encoder"), MINILM, rows=9503, classes=77, step_rows=64, earlier=saved) == (plan, why)  # fmt: skip


def test_the_learning_rate_rises_then_falls_to_nothing() -> None:
    config = TrainConfig(learning_rate=1.0, warmup_fraction=0.1)
    plan, _ = make_plan(config, MINILM, rows=3200, classes=2, step_rows=32, earlier={})
    rates = [schedule(step, 100, plan) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(1 / 90)
