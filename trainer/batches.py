"""Which rows each process sees at each step: a pure function of (seed, epoch), with rows of like length together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from trainer.dataset import Split

Rows = npt.NDArray[np.int64]
_LARGE, _RARE = 0.75, 0.1  # of the tokens of the largest step; of all steps, at most
_MEGA_BATCH = 50  # optimizer steps whose rows are sorted by length together: random enough, and next to no padding


@dataclass(frozen=True)
class Batch:
    """`input_ids` and `attention_mask` [rows, length], `labels` [rows], int64."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    tokens: int
    """Real tokens, without padding."""
    weight: float = 1.0
    """0 where there is no row, and the one of padding stands in."""

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device. A GPU takes it from pinned memory when it comes to it, while the host goes on to the next."""
        own = [self.input_ids, self.attention_mask, self.labels]
        if device.type == "cuda":
            own = [tensor.pin_memory() for tensor in own]
        moved = [tensor.to(device, non_blocking=True) for tensor in own]
        return replace(self, input_ids=moved[0], attention_mask=moved[1], labels=moved[2])


@dataclass(frozen=True)
class Step:
    """What one optimizer step sees: the rows of this process, one array a forward pass, and the rows of all processes."""

    micro_batches: list[Rows]
    rows: Rows
    """Those of all processes."""
    large: bool = False
    """Whether it computes nearly as many tokens as the largest of its epoch, as few steps do, and so sets how much memory is needed."""

    @property
    def global_rows(self) -> int:
        return len(self.rows)


class TrainingPlan:
    """The steps of every epoch, for one process of `world_size`.

    A step's rows depend on the seed, the epoch and batch_size × world_size × accumulation_steps alone: two processes see
    together what one would see with twice the batch size.
    """

    def __init__(
        self,
        lengths: npt.NDArray[np.int32],
        *,
        batch_size: int,
        accumulation_steps: int,
        rank: int,
        world_size: int,
        seed: int,
    ) -> None:
        self._lengths, self._seed, self._rank, self._world_size = lengths, seed, rank, world_size
        self._micro_rows = batch_size * world_size
        self.step_rows = self._micro_rows * accumulation_steps
        self.steps_per_epoch = -(-len(lengths) // self.step_rows)

    def epoch(self, epoch: int, parts: Sequence[Sequence[int]] = ()) -> list[Step]:
        """The steps that an epoch has left.

        `parts` says what was done of it: [rows a step, steps done] of each world that trained it, one after the other,
        the last being this one. Each deals anew what the one before it left, so no row is seen twice, and none is lost.
        """
        left = np.arange(len(self._lengths))
        for number, (step_rows, done) in enumerate(parts or [(self.step_rows, 0)]):
            steps = self._deal(left, step_rows, [self._seed, 2, epoch] + ([number] if number else []))[done:]
            left = np.concatenate(steps) if steps else left[:0]
        tokens = np.array([self._tokens(rows) for rows in steps])
        large = tokens > _LARGE * tokens.max(initial=0)
        # Where they are many, each fits into the pieces that the one before left.
        rare = large.sum() <= _RARE * len(steps)
        return [self._own(rows, large=bool(one and rare)) for rows, one in zip(steps, large, strict=True)]

    def largest(self) -> Step:
        """The step of the first epoch that computes the most tokens, and needs the most memory."""
        return max(self.epoch(0), key=lambda step: self._tokens(step.rows))

    def _tokens(self, rows: Rows) -> int:
        """Computed for these rows, with padding."""
        return len(rows) * int(self._lengths[rows].max())

    def _deal(self, rows: Rows, step_rows: int, seed: list[int]) -> list[Rows]:
        random = np.random.default_rng(seed)
        order = rows[random.permutation(len(rows))]
        mega_rows = step_rows * _MEGA_BATCH
        megas = [order[start : start + mega_rows] for start in range(0, len(order), mega_rows)]
        by_length = [mega[np.argsort(self._lengths[mega], kind="stable")] for mega in megas]
        steps = [mega[start : start + step_rows] for mega in by_length for start in range(0, len(mega), step_rows)]
        return [steps[number] for number in random.permutation(len(steps))]

    def _own(self, rows: Rows, *, large: bool) -> Step:
        micro = [rows[start : start + self._micro_rows] for start in range(0, len(rows), self._micro_rows)]
        return Step([part[self._rank :: self._world_size] for part in micro], rows, large=large)


def own_rows(lengths: npt.NDArray[np.int32], *, batch_size: int, rank: int, world_size: int) -> list[Rows]:
    """Every row of a split once over all processes, none twice, in batches of like length; the share of one process.

    All have the same number of batches, the last perhaps empty: a sharded model computes on all processes or on none.
    """
    own = np.argsort(lengths, kind="stable")[rank::world_size]
    most = -(-len(lengths) // world_size)
    return [own[start : start + batch_size] for start in range(0, most, batch_size)]


def collate(split: Split, rows: Rows, *, pad_token_id: int) -> Batch:
    """These rows padded to the longest of them; where there are none, one row of padding, for a process must take part."""
    lengths = split.lengths[rows]
    longest = int(lengths.max()) if len(rows) else 2
    ids = np.full((max(len(rows), 1), longest), pad_token_id, dtype=np.int64)
    for place, row in enumerate(rows):
        ids[place, : lengths[place]] = split.tokens(int(row))
    mask = (np.arange(longest) < lengths[:, None]) if len(rows) else np.ones_like(ids)
    labels = split.labels[rows] if len(rows) else np.zeros(1)
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(mask.astype(np.int64)),
        torch.from_numpy(labels.astype(np.int64)),
        tokens=int(lengths.sum()),
        weight=float(len(rows) > 0),
    )
