"""Training: the same for any number of processes, resumed as if never stopped, and readable by `transformers`."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer, BertConfig, DistilBertConfig, DistilBertForSequenceClassification, pipeline

from server.errors import UserError
from server.files import atomic_directory
from trainer.checkpoint.saved_model import check_saved_model
from trainer.checkpoint.state import TrainState
from trainer.config import TrainConfig
from trainer.data.dataset import Dataset
from trainer.distributed.launch import launch
from trainer.distributed.process_group import Process
from trainer.model.classifier import build_model, freeze_unused
from trainer.model.optimizer import choose_precision, make_optimizer
from trainer.monitoring.training_log import read_log
from trainer.train import optimizer_step, train

pytestmark = pytest.mark.slow  # the module takes seconds

QUICK = TrainConfig(epochs=2, batch_size=32, precision="fp32", log_steps=1)


@pytest.fixture(scope="module")
def encoder_without_dropout(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns an encoder folder without dropout, whose draws differ between processes."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=dataset.vocabulary_size, dim=32, hidden_dim=64, n_layers=2, n_heads=2,
        dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0,
    )  # fmt: skip
    DistilBertForSequenceClassification(config).save_pretrained(folder)
    shutil.copytree(dataset.tokenizer_folder, folder, dirs_exist_ok=True)
    return folder


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_log(run / "logs") if line["kind"] == "train"]


def launched(
    dataset: Dataset, output: Path, model: Path, *, ranks: int, batch_size: int, accumulation_steps: int = 1
) -> list[float]:
    flags = [
        "--dataset", str(dataset.folder), "--output", str(output), "--model", str(model), "--epochs", "2", "--precision", "fp32",
        "--log-steps", "1", "--batch-size", str(batch_size), "--accumulation-steps", str(accumulation_steps), "--learning-rate", "1e-3",
    ]  # fmt: skip
    launch("trainer.train", flags, ranks=ranks)
    return losses(output)


def test_two_processes_learn_the_same_as_one(dataset: Dataset, encoder_without_dropout: Path, tmp_path: Path) -> None:
    one = launched(dataset, tmp_path / "one", encoder_without_dropout, ranks=1, batch_size=32)
    two = launched(dataset, tmp_path / "two", encoder_without_dropout, ranks=2, batch_size=16)
    assert len(one) > 20
    assert two == pytest.approx(one, rel=1e-4, abs=1e-5)
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-4)


def test_accumulated_steps_learn_the_same_as_one_large_batch(
    dataset: Dataset, encoder_without_dropout: Path, tmp_path: Path, process: Process
) -> None:
    config = QUICK.model_copy(update={"model": str(encoder_without_dropout), "epochs": 1, "learning_rate": 1e-3})
    train(config, dataset, tmp_path / "whole", process)
    accumulated = config.model_copy(update={"batch_size": 8, "accumulation_steps": 4})
    train(accumulated, dataset, tmp_path / "accumulated", process)
    assert losses(tmp_path / "accumulated") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4, abs=1e-5)


def test_the_loss_falls_and_the_log_has_speed_and_learning_rate(
    dataset: Dataset, tmp_path: Path, process: Process
) -> None:
    state = train(QUICK, dataset, tmp_path, process)
    lines = [line for line in read_log(tmp_path / "logs") if line["kind"] == "train"]
    assert sum(line["loss"] for line in lines[-5:]) < sum(line["loss"] for line in lines[:5])
    assert lines[-1]["samples"] == state.samples == 2 * len(dataset.train)
    for name in ("learning_rate", "samples_per_second", "tokens_per_second"):
        assert all(line[name] > 0 for line in lines)
    assert list((tmp_path / "logs").glob("events.out.tfevents.*"))


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(
    dataset: Dataset, tmp_path: Path, process: Process
) -> None:
    config = QUICK.model_copy(update={"epochs": 1})
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        train(config.model_copy(update={"seed": seed}), dataset, tmp_path / name, process)
    first, again, other = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("first", "again", "other")
    )
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not all(torch.equal(tensor, other[name]) for name, tensor in first.items())


def test_a_finished_run_started_again_trains_no_more(
    dataset: Dataset, tmp_path: Path, process: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    train(QUICK, dataset, tmp_path, process)
    before = losses(tmp_path)
    chosen_again = QUICK.model_copy(update={"epochs": None})
    train(chosen_again, dataset, tmp_path, process)
    assert losses(tmp_path) == before, "a resume keeps the epochs of the run"
    printed = capsys.readouterr().out
    assert "resuming from" in printed
    assert printed.count("train: 2 epochs (as set), learning rate 0.001 (random weights") == 2
    trained = json.loads((tmp_path / "model" / "train_config.json").read_text(encoding="utf-8"))["settings"]
    assert (trained["epochs"], trained["learning_rate"], trained["early_stopping_patience"]) == (2, 1e-3, None)
    assert check_saved_model(tmp_path / "model", chosen_again) == ""


def test_resuming_with_other_settings_is_refused_with_both_values(
    dataset: Dataset, tmp_path: Path, process: Process
) -> None:
    train(QUICK, dataset, tmp_path, process)
    with pytest.raises(UserError, match=r"made with epochs = 2, now it is 3.*--resume never"):
        train(QUICK.model_copy(update={"epochs": 3}), dataset, tmp_path, process)
    split_anew = copy.copy(dataset)
    split_anew.fingerprint = "another"
    with pytest.raises(UserError, match=r"made with dataset = \w+, now it is another \(other rows.*: --resume never"):
        train(QUICK, split_anew, tmp_path, process)
    train(QUICK.model_copy(update={"epochs": 3, "resume": "never"}), dataset, tmp_path, process)
    assert list(tmp_path.glob("before-*/checkpoints/epoch-0002/model.safetensors")), "the earlier checkpoints are kept"
    assert len(losses(tmp_path)) == 3 * len(losses(next(tmp_path.glob("before-*")))) // 2


def test_only_the_last_and_the_best_checkpoint_are_kept_and_no_temporary_folder(
    dataset: Dataset, tmp_path: Path, process: Process
) -> None:
    state = train(QUICK.model_copy(update={"epochs": 4, "keep_last": 1}), dataset, tmp_path, process)
    wanted = {"latest", "epoch-0004", f"epoch-{state.best_epoch:04}"}
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == wanted


def test_the_model_folder_loads_with_plain_transformers_and_gives_our_labels(
    dataset: Dataset, tmp_path: Path, process: Process
) -> None:
    train(QUICK, dataset, tmp_path, process)
    classify = pipeline("text-classification", str(tmp_path / "model"), device=-1)
    assert classify("Late goal wins the cup")[0]["label"] in dataset.classes
    text, row = dataset.test.text(0), dataset.test.tokens(0).tolist()
    assert AutoTokenizer.from_pretrained(tmp_path / "model")(text, truncation=True)["input_ids"] == row


def test_the_best_epoch_is_the_most_accurate_and_patience_ends_training() -> None:
    state = TrainState()
    for accuracy, loss in ((0.7, 0.9), (0.8, 0.5), (0.8, 0.4), (0.79, 0.1)):
        state.end_epoch(loss, accuracy, patience=2)
    assert (state.best_epoch, state.stopped_early) == (3, False)
    state.end_epoch(0.1, 0.79, patience=2)
    assert state.stopped_early
    assert "epoch 3" in state.conclusion()


def test_early_stopping_ends_a_run_before_its_epochs(dataset: Dataset, tmp_path: Path, process: Process) -> None:
    config = QUICK.model_copy(update={"epochs": 30, "learning_rate": 1e-12, "early_stopping_patience": 1})
    state = train(config, dataset, tmp_path, process)
    assert state.stopped_early
    assert state.epoch < 10


@pytest.mark.parametrize("size", [0.01, 100.0])
def test_gradients_are_clipped_as_pytorch_clips_them(size: float) -> None:
    models = [nn.Linear(8, 4), nn.Linear(8, 4)]
    models[1].load_state_dict(models[0].state_dict())
    ours, usual = (make_optimizer(model, TrainConfig(learning_rate=0.1)) for model in models)
    for model in models:
        torch.manual_seed(0)
        (size * model(torch.randn(5, 8)).square().sum()).backward()
    norm = optimizer_step(models[0], ours, 0.1, max_grad_norm=1.0)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(models[1].parameters(), 1.0))
    assert (float(norm) > 1) == (size > 1)
    usual.step()
    for mine, theirs in zip(*(optimizer.state.values() for optimizer in (ours, usual)), strict=True):
        torch.testing.assert_close(mine["exp_avg"], theirs["exp_avg"])


def test_matrices_decay_and_biases_do_not(dataset: Dataset) -> None:
    model = build_model("tiny", dataset, seed=0, device=torch.device("cpu"))
    matrices, others = make_optimizer(model, TrainConfig(weight_decay=0.1)).param_groups
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert all(parameter.ndim > 1 for parameter in matrices["params"])
    assert all(parameter.ndim <= 1 for parameter in others["params"])


def test_bf16_is_chosen_only_where_the_processor_computes_in_it() -> None:
    cpu = torch.device("cpu")
    assert choose_precision("fp32", cpu)[0] == torch.float32
    assert choose_precision("bf16", cpu)[0] == torch.bfloat16
    precision, reason = choose_precision("auto", cpu)
    assert ("not" in reason) == (precision == torch.float32)


def test_a_parameter_that_no_class_depends_on_is_frozen_and_named(dataset: Dataset) -> None:
    model = build_model("tiny", dataset, seed=0, device=torch.device("cpu"))
    model.register_parameter("spare", torch.nn.Parameter(torch.zeros(3)))
    assert freeze_unused(model) == ["spare"]
    assert not model.get_parameter("spare").requires_grad


def test_an_encoder_of_another_tokenizer_is_refused(
    dataset: Dataset, encoder_without_dropout: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(encoder_without_dropout, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["normalizer"]["lowercase"] = False
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(UserError, match="made with another tokenizer; preprocess with this model first"):
        build_model(str(other), dataset, seed=0, device=torch.device("cpu"))


def test_texts_longer_than_the_encoder_takes_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    from transformers import BertForSequenceClassification

    config = BertConfig(
        vocab_size=dataset.vocabulary_size, hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16,
        max_position_embeddings=32,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    shutil.copytree(dataset.tokenizer_folder, tmp_path, dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"--max-length 64: .* takes texts of 32 tokens at most"):
        build_model(str(tmp_path), dataset, seed=0, device=torch.device("cpu"))


def test_a_failing_process_ends_all_with_its_own_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^.*/nothing: is no dataset folder, it has no dataset.json"):
        launch("trainer.train", ["--dataset", str(tmp_path / "nothing"), "--output", str(tmp_path)], ranks=2)


def test_weights_can_be_read_by_whoever_the_umask_lets_read_the_files_beside_them(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "model") as folder:
        save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
        (folder / "config.json").write_text("{}", encoding="utf-8")
    weights, beside = ((tmp_path / "model" / name).stat().st_mode for name in ("model.safetensors", "config.json"))
    assert weights & 0o666 == beside & 0o666
