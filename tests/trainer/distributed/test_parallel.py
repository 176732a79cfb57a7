"""Weights and optimizer sharded over processes: the same losses as replicas, whole checkpoints, models that load anywhere."""

import copy
import shutil
from pathlib import Path
from typing import NamedTuple, cast

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from transformers import DistilBertConfig, DistilBertForSequenceClassification, PreTrainedModel

from server.errors import UserError
from tests.support.ranks import in_ranks
from trainer.config import TrainConfig
from trainer.data.batches import BatchSampler, Step
from trainer.data.dataset import Dataset
from trainer.distributed import parallel
from trainer.distributed.parallel import check, parallelize
from trainer.distributed.process_group import Process, process_group
from trainer.model.classifier import build_model, load_model
from trainer.model.optimizer import make_optimizer
from trainer.monitoring.training_log import read_log
from trainer.train import forward_backward, optimizer_step, train

ROWS_A_STEP = 36


class Learner(NamedTuple):
    raw_model: PreTrainedModel
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer


@pytest.fixture(scope="module")
def encoder(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a model without dropout, whose draws differ with the number of processes; its sizes do not divide by four."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=dataset.vocabulary_size, dim=30, hidden_dim=66, n_layers=2, n_heads=2,
        dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0,
    )  # fmt: skip
    DistilBertForSequenceClassification(config).save_pretrained(folder)
    shutil.copytree(dataset.tokenizer_folder, folder, dirs_exist_ok=True)
    return folder


def config(encoder: Path, **changes: object) -> TrainConfig:
    settings = {"model": str(encoder), "epochs": 1, "precision": "fp32", "log_steps": 1, "learning_rate": 1e-3}
    return TrainConfig.model_validate({**settings, "batch_size": ROWS_A_STEP, **changes})


def train_here(settings: TrainConfig, dataset: Path, output: Path) -> None:
    vars(parallel)["_POWER_SGD_START"] = 2  # a test does not take a hundred steps
    with process_group(timeout_minutes=1) as process:
        train(settings, Dataset(dataset), output, process)


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_log(run / "logs") if line["kind"] == "train"]


@pytest.fixture(scope="module")
def alone(dataset_folder: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    train_here(config(encoder), dataset_folder, folder)
    return folder


@pytest.mark.parametrize(
    ("world_size", "settings"),
    [
        (2, {"strategy": "fsdp", "accumulation_steps": 3}),
        (2, {"strategy": "ddp"}),
        (4, {"strategy": "fsdp"}),
        (4, {"strategy": "hsdp", "shard_ranks": 2}),
    ],
)
@pytest.mark.slow
def test_processes_learn_the_same_as_one_however_they_share_the_model(
    dataset_folder: Path, encoder: Path, alone: Path, tmp_path: Path, world_size: int, settings: dict[str, object]
) -> None:
    rows = ROWS_A_STEP // world_size // int(str(settings.get("accumulation_steps", 1)))
    in_ranks(train_here, config(encoder, batch_size=rows, **settings), dataset_folder, tmp_path, world_size=world_size)
    assert len(losses(alone)) > 5
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=1e-4, abs=1e-5)
    expected, found = (load_file(run / "model" / "model.safetensors") for run in (alone, tmp_path))
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)
    assert type(load_model(tmp_path / "model")) is DistilBertForSequenceClassification


def save_and_continue(settings: TrainConfig, folder: Path) -> None:
    """Trains two steps, saves, trains two more; a fresh model loads the checkpoint, repeats the two and ends equal."""
    dataset = Dataset(folder)
    with process_group(timeout_minutes=1) as process:
        plan = BatchSampler(
            dataset.train.lengths,
            TrainConfig(batch_size=8),
            rank=process.rank,
            world_size=process.world_size,
            packed=False,
        )
        steps = list(plan.epoch(0))[:4]

        def fresh(seed: int) -> Learner:
            raw_model = build_model("tiny", dataset, seed=seed, device=process.device)
            raw_model.train(mode=False)  # without dropout
            model = parallelize(raw_model, settings, process)
            return Learner(raw_model, model, make_optimizer(model, settings))

        def learn(learner: Learner, steps: list[Step]) -> None:
            for step in steps:
                forward_backward(learner.model, step, dataset, process, torch.float32)
                optimizer_step(learner.model, learner.optimizer, 1e-3, max_grad_norm=1.0)

        full = StateDictOptions(full_state_dict=True)
        first, second = fresh(seed=0), fresh(seed=1)
        learn(first, steps[:2])
        weights, moments = copy.deepcopy(get_state_dict(first.raw_model, first.optimizer, options=full))
        saved = cast("torch.Tensor", weights["classifier.weight"]).clone()
        set_state_dict(
            second.raw_model, second.optimizer, model_state_dict=weights, optim_state_dict=moments, options=full
        )
        learn(first, steps[2:])
        learn(second, steps[2:])
        expected, found = (
            cast("dict[str, torch.Tensor]", get_model_state_dict(learner.raw_model, options=full))
            for learner in (first, second)
        )
        assert not torch.equal(saved, expected["classifier.weight"])
        assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


@pytest.mark.slow
def test_saved_shards_are_whole_and_a_fresh_model_resumes_from_them_bit_for_bit(dataset_folder: Path) -> None:
    in_ranks(save_and_continue, TrainConfig(strategy="fsdp"), dataset_folder, world_size=2)


@pytest.mark.parametrize("compression", ["fp16", "powersgd"])
@pytest.mark.slow
def test_compressed_gradients_learn_nearly_the_same(
    dataset_folder: Path, encoder: Path, alone: Path, tmp_path: Path, compression: str
) -> None:
    half = config(encoder, batch_size=ROWS_A_STEP // 2, gradient_compression=compression)
    in_ranks(train_here, half, dataset_folder, tmp_path, world_size=2)
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=1e-2)


def test_bf16_gradients_that_cannot_be_added_and_shards_that_do_not_fit_are_refused() -> None:
    process = Process(0, 6, torch.device("cpu"))
    half = TrainConfig(gradient_compression="bf16")
    with pytest.raises(UserError, match=r"--gradient-compression bf16: gloo does not add bf16 .* NCCL does"):
        check(half, process, backend="gloo")
    check(half, process, backend="nccl")
    with pytest.raises(UserError, match=r"--shard-ranks 4: does not divide the 6 processes"):
        check(TrainConfig(strategy="hsdp", shard_ranks=4), process, backend="gloo")


@pytest.mark.parametrize(
    "settings", [{"strategy": "fsdp", "shard_ranks": 2}, {"strategy": "fsdp", "gradient_compression": "fp16"}]
)
def test_settings_of_one_strategy_are_refused_with_another(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="has no meaning with strategy = 'fsdp'"):
        TrainConfig.model_validate(settings)
