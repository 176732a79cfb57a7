"""Batches give each process its rows."""

import numpy as np
import pytest

from tests.support.training import LENGTHS, sampler
from trainer.config import TrainConfig
from trainer.data.batches import BatchSampler, collate, computed_tokens, evaluation_shares
from trainer.data.dataset import Dataset


def rows_of_steps(made: BatchSampler, epoch: int = 0) -> list[list[int]]:
    return [[int(row) for micro in step.micro_batches for row in micro] for step in made.epoch(epoch)]


@pytest.mark.parametrize("packed", [True, False])
def test_every_row_is_seen_once_an_epoch(packed: bool) -> None:
    seen = sorted(row for step in rows_of_steps(sampler(batch_size=32, packed=packed)) for row in step)
    assert seen == list(range(len(LENGTHS)))


def test_an_epoch_depends_on_its_seed_and_number_alone() -> None:
    assert rows_of_steps(sampler(batch_size=32), epoch=3) == rows_of_steps(sampler(batch_size=32), epoch=3)
    assert rows_of_steps(sampler(batch_size=32), epoch=3) != rows_of_steps(sampler(batch_size=32), epoch=4)
    assert rows_of_steps(sampler(batch_size=32, seed=1)) != rows_of_steps(sampler(batch_size=32, seed=2))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("world_size", "accumulation_steps"), [(2, 1), (4, 1), (1, 4), (2, 2), (3, 1)])
def test_processes_together_see_the_rows_of_one_process_at_each_step(
    world_size: int, accumulation_steps: int, packed: bool
) -> None:
    step_rows = 48
    alone = rows_of_steps(sampler(batch_size=step_rows, packed=packed))
    batch_size = step_rows // (world_size * accumulation_steps)
    shares = [
        rows_of_steps(
            sampler(
                batch_size=batch_size,
                rank=rank,
                world_size=world_size,
                accumulation_steps=accumulation_steps,
                packed=packed,
            )
        )
        for rank in range(world_size)
    ]
    together = [sorted(row for share in step for row in share) for step in zip(*shares, strict=True)]
    assert together == [sorted(step) for step in alone]


def test_every_process_takes_part_in_every_forward_pass_even_with_no_row_left() -> None:
    lengths = LENGTHS[:33]  # 32 and 1 over: of four processes three have none in the last step
    plans = [
        BatchSampler(lengths, TrainConfig(batch_size=8), rank=rank, world_size=4, packed=True) for rank in range(4)
    ]
    shapes = [[len(step.micro_batches) for step in made.epoch(0)] for made in plans]
    assert shapes == [[1, 1]] * 4
    assert sorted(len(step.micro_batches[0]) for made in plans for step in made.epoch(0)) == [0, 0, 0, 1, 8, 8, 8, 8]


def test_next_to_nothing_is_padding_and_nothing_where_texts_are_packed() -> None:
    steps = rows_of_steps(sampler(batch_size=16))
    padded, packed = (sum(computed_tokens(LENGTHS[step], packed=how) for step in steps) for how in (False, True))
    assert packed == LENGTHS.sum()
    assert 1 < padded / packed < 1.05


def test_packed_texts_are_drawn_whatever_their_lengths() -> None:
    of_steps = [LENGTHS[step].mean() for step in rows_of_steps(sampler(batch_size=16, packed=True))]
    assert np.std(of_steps) == pytest.approx(LENGTHS.std() / 16**0.5, rel=0.25)  # as of rows that are independent


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_processes_have_packed_texts_of_as_many_tokens_in_each_pass(accumulation_steps: int) -> None:
    plans = [
        sampler(batch_size=16, rank=rank, world_size=2, accumulation_steps=accumulation_steps, packed=True) for rank in (0, 1)
    ]  # fmt: skip
    passes = np.array(
        [[LENGTHS[rows].sum() for step in made.epoch(0)[:15] for rows in step.micro_batches] for made in plans]
    )
    assert (np.abs(passes[0] - passes[1]) / passes.mean()).mean() < 0.006


def test_processes_have_rows_of_similar_length_at_each_step_where_they_are_padded() -> None:
    longest = [
        [int(LENGTHS[step].max()) for step in rows_of_steps(sampler(batch_size=16, rank=rank, world_size=2))]
        for rank in (0, 1)
    ]
    assert np.abs(np.array(longest[0]) - np.array(longest[1])).mean() < 3


@pytest.mark.parametrize("packed", [True, False])
def test_the_largest_step_of_all_epochs_is_known_and_not_of_the_first_alone(packed: bool) -> None:
    made, epochs = sampler(batch_size=8, packed=packed), 20
    of_epochs = [
        max(computed_tokens(LENGTHS[step.rows], packed=packed) for step in made.epoch(epoch)) for epoch in range(epochs)
    ]
    assert of_epochs[0] < max(of_epochs) or not packed
    found = made.largest_step(epochs)
    assert computed_tokens(LENGTHS[found.rows], packed=packed) == max(of_epochs)
    assert sorted(int(row) for micro in found.micro_batches for row in micro) == sorted(found.rows)


def test_where_rows_are_too_many_to_draw_the_longest_texts_are_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.batches._EXACT_ROWS", 1000)
    found = sampler(batch_size=8, packed=True).largest_step(3)
    assert LENGTHS[found.rows].sum() == np.sort(LENGTHS)[-8:].sum()


def test_evaluation_shares_hold_every_row_exactly_once() -> None:
    for world_size in (1, 2, 3, 7):
        shares = [
            evaluation_shares(LENGTHS, batch_size=64, rank=rank, world_size=world_size) for rank in range(world_size)
        ]
        assert sorted(int(row) for share in shares for batch in share for row in batch) == list(range(len(LENGTHS)))


def test_collating_pads_to_the_longest_row_and_masks_the_padding(dataset: Dataset) -> None:
    rows = np.array([0, 1, 2])
    batch = collate(dataset.train, rows, padding=dataset.padding)
    assert batch.input_ids.shape[1] == dataset.train.lengths[rows].max()
    assert batch.attention_mask is not None
    assert batch.attention_mask.sum(dim=1).tolist() == dataset.train.lengths[rows].tolist()
    assert batch.tokens == int(dataset.train.lengths[rows].sum())
    assert batch.input_ids[1, : dataset.train.lengths[1]].tolist() == dataset.train.tokens(1).tolist()
    assert (batch.input_ids[batch.attention_mask == 0] == dataset.padding.token_id).all()


def test_collating_packs_texts_one_after_the_other(dataset: Dataset) -> None:
    rows = np.array([2, 0, 1])
    batch = collate(dataset.train, rows, padding=dataset.padding, packed=True)
    texts = [dataset.train.tokens(row).tolist() for row in rows]
    assert batch.input_ids.tolist() == [[token for text in texts for token in text]]
    assert batch.inputs["position_ids"].tolist() == [[place for text in texts for place in range(len(text))]]
    assert batch.inputs["sequences"].lengths == [len(text) for text in texts]
    assert batch.input_ids[0, batch.inputs["sequences"].starts].tolist() == [text[0] for text in texts]
    assert batch.labels.tolist() == dataset.train.labels[rows].tolist()


@pytest.mark.parametrize("packed", [True, False])
def test_a_process_without_rows_computes_one_that_weighs_nothing(dataset: Dataset, packed: bool) -> None:
    batch = collate(dataset.train, np.array([], dtype=np.int64), padding=dataset.padding, packed=packed)
    assert (batch.input_ids.tolist(), batch.weight, batch.tokens) == ([[dataset.padding.token_id] * 2], 0.0, 0)
    assert batch.labels.tolist() == [0]
