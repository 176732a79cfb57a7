"""The check of a model folder that a training left."""

import json
from pathlib import Path

from tests.support.jobs import leave_model
from trainer.checkpoint.saved_model import check_saved_model
from trainer.config import TrainConfig


def test_a_complete_model_has_no_fault_and_each_damage_is_named(tmp_path: Path) -> None:
    train, model = TrainConfig(epochs=2), tmp_path / "model"
    assert "is not there" in check_saved_model(model, train)
    leave_model(model, train)
    assert check_saved_model(model, train) == ""
    assert "was trained with epochs = 2, not 3" in check_saved_model(model, train.model_copy(update={"epochs": 3}))
    assert check_saved_model(model, train.model_copy(update={"log_steps": 3})) == ""
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-1])
    assert "it is cut off" in check_saved_model(model, train)
    (model / "model.safetensors").write_bytes(weights[:5])
    assert "model.safetensors is cut off" in check_saved_model(model, train)
    (model / "model.safetensors").unlink()
    assert "model.safetensors is missing or broken" in check_saved_model(model, train)
    (model / "config.json").write_text("{", encoding="utf-8")
    assert "config.json is missing or broken" in check_saved_model(model, train)


def test_the_model_that_the_trainer_saves_has_no_fault(finished_run: Path) -> None:
    settings = json.loads((finished_run / "model" / "train_config.json").read_text(encoding="utf-8"))["settings"]
    train = TrainConfig(**{name: settings[name] for name in TrainConfig.model_fields})
    assert check_saved_model(finished_run / "model", train) == ""
