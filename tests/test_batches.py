"""Which rows each process sees."""

import numpy as np
import pytest

from trainer.batches import TrainingPlan, collate, own_rows
from trainer.dataset import Dataset

LENGTHS = np.random.default_rng(0).integers(5, 120, size=1003).astype(np.int32)


def plan(
    *, batch_size: int, rank: int = 0, world_size: int = 1, accumulation_steps: int = 1, seed: int = 0
) -> TrainingPlan:
    return TrainingPlan(
        LENGTHS,
        batch_size=batch_size,
        accumulation_steps=accumulation_steps,
        rank=rank,
        world_size=world_size,
        seed=seed,
    )


def rows_of_steps(made: TrainingPlan, epoch: int = 0) -> list[list[int]]:
    return [[int(row) for micro in step.micro_batches for row in micro] for step in made.epoch(epoch)]


def test_every_row_is_seen_once_an_epoch() -> None:
    seen = sorted(row for step in rows_of_steps(plan(batch_size=32)) for row in step)
    assert seen == list(range(len(LENGTHS)))


def test_an_epoch_depends_on_its_seed_and_number_alone() -> None:
    assert rows_of_steps(plan(batch_size=32), epoch=3) == rows_of_steps(plan(batch_size=32), epoch=3)
    assert rows_of_steps(plan(batch_size=32), epoch=3) != rows_of_steps(plan(batch_size=32), epoch=4)
    assert rows_of_steps(plan(batch_size=32, seed=1)) != rows_of_steps(plan(batch_size=32, seed=2))


@pytest.mark.parametrize(("world_size", "accumulation_steps"), [(2, 1), (4, 1), (1, 4), (2, 2), (3, 1)])
def test_processes_together_see_at_each_step_what_one_would_see(world_size: int, accumulation_steps: int) -> None:
    step_rows = 48
    alone = rows_of_steps(plan(batch_size=step_rows))
    batch_size = step_rows // (world_size * accumulation_steps)
    shares = [
        rows_of_steps(
            plan(batch_size=batch_size, rank=rank, world_size=world_size, accumulation_steps=accumulation_steps)
        )
        for rank in range(world_size)
    ]
    together = [sorted(row for share in step for row in share) for step in zip(*shares, strict=True)]
    assert together == [sorted(step) for step in alone]


def test_every_process_takes_part_in_every_forward_pass_even_with_no_row_left() -> None:
    lengths = LENGTHS[:33]  # 32 and 1 over: of four processes three have none in the last step
    plans = [
        TrainingPlan(lengths, batch_size=8, accumulation_steps=1, rank=rank, world_size=4, seed=0) for rank in range(4)
    ]
    shapes = [[len(step.micro_batches) for step in made.epoch(0)] for made in plans]
    assert shapes == [[1, 1]] * 4
    assert sorted(len(step.micro_batches[0]) for made in plans for step in made.epoch(0)) == [0, 0, 0, 1, 8, 8, 8, 8]


def test_next_to_nothing_is_padding() -> None:
    computed = real = 0
    for step in rows_of_steps(plan(batch_size=16)):
        computed += len(step) * int(LENGTHS[step].max())
        real += int(LENGTHS[step].sum())
    assert computed / real < 1.05


def test_processes_have_rows_of_like_length_at_the_same_step() -> None:
    longest = [
        [int(LENGTHS[step].max()) for step in rows_of_steps(plan(batch_size=16, rank=rank, world_size=2))]
        for rank in (0, 1)
    ]
    assert np.abs(np.array(longest[0]) - np.array(longest[1])).mean() < 3


def test_steps_that_compute_nearly_as_much_as_the_largest_are_known_where_they_are_few() -> None:
    lengths = np.where(np.arange(1000) % 20 == 0, 110, LENGTHS[:1000] % 60 + 5).astype(np.int32)
    few, many = (
        TrainingPlan(of, batch_size=8, accumulation_steps=1, rank=0, world_size=1, seed=0) for of in (lengths, LENGTHS)
    )
    tokens = {len(step.rows) * int(lengths[step.rows].max()): step.large for step in few.epoch(1)}
    assert {large for count, large in tokens.items() if count > 0.75 * max(tokens)} == {True}
    assert {large for count, large in tokens.items() if count <= 0.75 * max(tokens)} == {False}
    assert few.largest().large
    assert not any(step.large for step in many.epoch(1))


def test_evaluation_shares_hold_every_row_exactly_once() -> None:
    for world_size in (1, 2, 3, 7):
        shares = [own_rows(LENGTHS, batch_size=64, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert sorted(int(row) for share in shares for batch in share for row in batch) == list(range(len(LENGTHS)))


def test_collating_pads_to_the_longest_row_and_masks_the_padding(dataset: Dataset) -> None:
    rows = np.array([0, 1, 2])
    batch = collate(dataset.train, rows, pad_token_id=dataset.pad_token_id)
    assert batch.input_ids.shape[1] == dataset.train.lengths[rows].max()
    assert batch.attention_mask.sum(dim=1).tolist() == dataset.train.lengths[rows].tolist()
    assert batch.tokens == int(dataset.train.lengths[rows].sum())
    assert batch.input_ids[1, : dataset.train.lengths[1]].tolist() == dataset.train.tokens(1).tolist()
    assert (batch.input_ids[batch.attention_mask == 0] == dataset.pad_token_id).all()


def test_a_process_without_rows_computes_one_that_weighs_nothing(dataset: Dataset) -> None:
    batch = collate(dataset.train, np.array([], dtype=np.int64), pad_token_id=dataset.pad_token_id)
    assert (len(batch.input_ids), batch.weight, batch.tokens) == (1, 0.0, 0)
