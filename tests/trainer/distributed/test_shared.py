"""One set of weights for all processes of a machine: they learn what replicas of DDP do, each updating a part."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from tests.support.ranks import in_ranks
from tests.trainer.distributed.test_rows import Frozen, Tied
from trainer.config import TrainConfig
from trainer.distributed.parallel import average_gradients, exchange, parallelize, whole_optimizer_state
from trainer.distributed.process_group import process_group
from trainer.distributed.rows import embedding_by_rows
from trainer.distributed.shared import SharedAdamW, SharedReplica
from trainer.model.optimizer import make_optimizer
from trainer.train import update

VOCABULARY = 500
CONFIG = TrainConfig()


def encoder() -> DistilBertForSequenceClassification:
    torch.manual_seed(0)
    sizes = DistilBertConfig(
        vocab_size=VOCABULARY, dim=32, hidden_dim=64, n_layers=2, n_heads=2,
        dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0,
    )  # fmt: skip
    return DistilBertForSequenceClassification(sizes)


def compare_with_ddp(tolerance: float) -> None:
    with process_group(timeout_minutes=1) as process:
        plain, ours = encoder(), encoder()
        shared = parallelize(ours, CONFIG, process)
        assert isinstance(shared, SharedReplica)
        replica = DistributedDataParallel(plain)
        optimizers = [make_optimizer(model, CONFIG) for model in (replica, shared)]
        for step in range(6):
            torch.manual_seed(100 * step + process.rank)
            two = [torch.randint(VOCABULARY, (2, 8)) for _ in range(2)]  # accumulated
            for model in (replica, shared):
                for ids in two:
                    with exchange(model, last=ids is two[-1]):
                        model(input_ids=ids).logits.square().sum().backward()
                average_gradients(model)
            for name, parameter in plain.named_parameters():
                assert parameter.grad is not None
                place = shared.places[ours.get_parameter(name)]
                own = range(max(place.start, shared.part.start), min(place.stop, shared.part.stop))
                expected = parameter.grad.flatten()[own.start - place.start : own.stop - place.start] if own else ()
                found = shared.own(shared.gradients, ours.get_parameter(name))
                torch.testing.assert_close(found, torch.as_tensor(expected), rtol=0, atol=tolerance)
            norms = [
                update(model, optimizer, learning_rate=1e-2, max_grad_norm=1.0)
                for model, optimizer in zip((replica, shared), optimizers, strict=True)
            ]
            torch.testing.assert_close(norms[1], norms[0])
            for name, parameter in plain.named_parameters():
                torch.testing.assert_close(ours.get_parameter(name), parameter, rtol=0, atol=1e-6)
        states = [whole_optimizer_state(optimizer, keep=True)["state"] for optimizer in optimizers]
        torch.testing.assert_close(states[1], states[0], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("ranks", "tolerance"), [(1, 0.0), (2, 0.0), (3, 1e-6)])
def test_gradients_weights_and_moments_are_those_of_ddp(ranks: int, tolerance: float) -> None:
    in_ranks(compare_with_ddp, tolerance, world_size=ranks)


def learn_with_other_gradients() -> None:
    with process_group(timeout_minutes=1) as process:
        for model in (Tied(), Frozen()):
            plain = copy.deepcopy(model)
            shared = SharedReplica.of(model, embedding_by_rows(model, model.embedding), process, timeout_minutes=1)
            assert shared is not None
            replica = DistributedDataParallel(plain)
            for one in (shared, replica):
                optimizer = make_optimizer(one, CONFIG)
                for _ in range(3):
                    one(torch.tensor([process.rank, 5])).square().sum().backward()
                    average_gradients(one)
                    update(one, optimizer, learning_rate=1e-2, max_grad_norm=1.0)
            for expected, found in zip(plain.parameters(), model.parameters(), strict=True):
                torch.testing.assert_close(found, expected)


def test_a_weight_that_is_used_otherwise_too_or_not_trained_is_right() -> None:
    in_ranks(learn_with_other_gradients, world_size=2)


def share_less_than_there_are_processes() -> None:
    with process_group(timeout_minutes=1) as process:
        model = nn.Linear(2, 3)
        shared = SharedReplica.of(model, None, process, timeout_minutes=1)
        assert shared is not None
        optimizer = make_optimizer(shared, CONFIG)
        before = model.weight.clone()
        model(torch.ones(1, 2)).sum().backward()
        average_gradients(shared)
        update(shared, optimizer, learning_rate=0.1, max_grad_norm=1.0)
        assert not torch.equal(before, model.weight)
        assert [state["step"].item() for state in optimizer.state.values()] == [1, 1]


def test_a_process_may_have_nothing_to_update() -> None:
    in_ranks(share_less_than_there_are_processes, world_size=4)


def skip_one() -> None:
    with process_group(timeout_minutes=1) as process:
        model = encoder()
        shared = parallelize(model, CONFIG, process)
        optimizer = make_optimizer(shared, CONFIG)
        assert isinstance(optimizer, SharedAdamW)
        ids = torch.tensor([[1, 2, 3]])
        before = copy.deepcopy(model.state_dict())
        worse = torch.inf if process.rank == 1 else 1.0
        (shared(input_ids=ids).logits.sum() * worse).backward()
        average_gradients(shared)
        assert not torch.isfinite(update(shared, optimizer, learning_rate=0.1, max_grad_norm=1.0))
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
        assert {state["step"].item() for state in optimizer.state.values()} == {0}
        shared(input_ids=ids).logits.sum().backward()
        average_gradients(shared)
        assert torch.isfinite(update(shared, optimizer, learning_rate=0.1, max_grad_norm=1.0))  # nothing is left of it
        assert {state["step"].item() for state in optimizer.state.values()} == {1}


def test_a_step_whose_gradients_are_not_finite_leaves_all_as_it_was() -> None:
    in_ranks(skip_one, world_size=2)


def train_without_a_gradient() -> None:
    with process_group(timeout_minutes=1) as process:
        model = nn.ModuleDict({"used": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
        shared = SharedReplica.of(model, None, process, timeout_minutes=1)
        assert shared is not None
        model["used"](torch.ones(1, 2)).sum().backward()
        with pytest.raises(RuntimeError, match=r"the loss does not depend on other\.weight, other\.bias"):
            average_gradients(shared)


def test_a_parameter_without_gradient_is_named() -> None:
    in_ranks(train_without_a_gradient, world_size=1)
