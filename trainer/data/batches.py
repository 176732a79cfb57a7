"""The rows that each process sees at each step: a pure function of (seed, epoch)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from server.inference.encoder import pad
from server.model_folder import Padding
from trainer.config import TrainConfig
from trainer.data.dataset import Split

Rows = npt.NDArray[np.int64]
_MEGA_BATCH = 50  # optimizer steps whose rows are sorted by length together where they are padded: next to no padding
_MULTIPLE = 8  # of which padded lengths are, as fused kernels want them
_EXACT_ROWS = 10_000_000  # over all epochs, of which the largest step is found within about a second


@dataclass(frozen=True)
class PackedSequences:
    """The places of texts that are packed into one sequence."""

    lengths: list[int]
    """Tokens of each text."""
    positions: torch.Tensor
    """[1, tokens], int64: of each token in its text."""
    starts: torch.Tensor
    """[texts], int64: where each text begins."""

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Self:
        each = torch.tensor(lengths)
        starts = each.cumsum(0) - each
        return cls(list(lengths), (torch.arange(int(each.sum())) - starts.repeat_interleave(each))[None], starts)

    @cached_property
    def padding(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Each token's place among `texts` × `longest` padded ones, [tokens], and a mask of tokens, [texts, longest]."""
        longest = -(-max(self.lengths) // _MULTIPLE) * _MULTIPLE
        ends = torch.cat([self.starts[1:], self.starts.new_full((1,), self.positions.shape[1])])
        lengths = ends - self.starts
        texts = torch.arange(len(self.lengths), device=lengths.device)
        of_text = texts.repeat_interleave(lengths, output_size=self.positions.shape[1])
        return of_text * longest + self.positions[0], torch.arange(longest, device=lengths.device) < lengths[:, None]

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        return replace(self, positions=move(self.positions), starts=move(self.starts))


@dataclass(frozen=True)
class Batch:
    """`labels` [rows], int64, and the texts: packed [1, tokens], or padded [rows, length]."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    tokens: int
    """Real tokens, without padding."""
    attention_mask: torch.Tensor | None = None
    """[rows, length], int64, of padded texts."""
    sequences: PackedSequences | None = None
    """Places of packed texts."""
    weight: float = 1.0
    """0 where there is no row, and one of padding takes its place."""

    @property
    def inputs(self) -> dict[str, Any]:
        """The model's arguments."""
        if self.sequences is None:
            return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return {"input_ids": self.input_ids, "position_ids": self.sequences.positions, "sequences": self.sequences}

    def to(self, device: torch.device) -> "Batch":
        """Copies the batch to a device. A GPU takes it from pinned memory while the host prepares the next."""

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

        return replace(
            self,
            input_ids=moved(self.input_ids),
            labels=moved(self.labels),
            attention_mask=None if self.attention_mask is None else moved(self.attention_mask),
            sequences=self.sequences and self.sequences.moved(moved),
        )


@dataclass(frozen=True)
class Step:
    """The rows of one optimizer step: those of this process, one array a forward pass, and those of all processes."""

    micro_batches: list[Rows]
    rows: Rows
    """Rows of all processes."""
    packed: bool = False
    """True where the texts of a forward pass are packed; else they are padded."""

    @property
    def global_rows(self) -> int:
        return len(self.rows)


class BatchSampler:
    """The steps of every epoch, for one process of `world_size`.

    A step's rows depend on the seed, the epoch and batch_size × world_size × accumulation_steps alone: two processes see
    together what one would see with twice the batch size. Packed texts are drawn at random; where they are padded, rows of
    similar length come together.
    """

    def __init__(
        self, lengths: npt.NDArray[np.int32], config: TrainConfig, rank: int = 0, world_size: int = 1, *, packed: bool
    ) -> None:
        self._lengths, self._seed, self._rank, self._world_size = lengths, config.seed, rank, world_size
        self.packed, self.rows = packed, len(lengths)
        self._micro_rows = config.batch_size * world_size
        self.step_rows = self._micro_rows * config.accumulation_steps
        self.steps_per_epoch = -(-len(lengths) // self.step_rows)

    def epoch(self, epoch: int, segments: Sequence[Sequence[int]] = ()) -> list[Step]:
        """Returns the steps that are left of an epoch.

        `segments` lists [rows a step, steps done] of each world that trained it, in order, the last being this one. Each
        samples anew what the one before it left, so no row is seen twice, and none is lost.
        """
        left = np.arange(len(self._lengths))
        for number, (step_rows, done) in enumerate(segments or [(self.step_rows, 0)]):
            steps = self._steps(left, step_rows, [self._seed, 2, epoch] + ([number] if number else []))[done:]
            left = np.concatenate(steps) if steps else left[:0]
        return [self._own(rows, share) for rows, share in zip(steps, self._shares(steps), strict=True)]

    def largest_step(self, epochs: int) -> Step:
        """Returns the step of all epochs that computes the most tokens, and needs the most memory.

        Padded texts, and packed ones where there are too many rows to draw every epoch, have the longest texts as a bound.
        """
        if self.packed and epochs * len(self._lengths) <= _EXACT_ROWS:
            rows = max(
                (self._fullest(epoch) for epoch in range(epochs)), key=lambda rows: int(self._lengths[rows].sum())
            )
        else:
            rows = np.argsort(self._lengths, kind="stable")[-self.step_rows :]
        return self._own(rows, self._shares([rows])[0])

    def _fullest(self, epoch: int) -> Rows:
        """Returns the rows of the step of one epoch that has the most tokens of packed texts."""
        order = np.random.default_rng([self._seed, 2, epoch]).permutation(len(self._lengths))
        starts = np.arange(0, len(order), self.step_rows)
        start = starts[np.add.reduceat(self._lengths[order], starts).argmax()]
        rows = order[start : start + self.step_rows]
        return rows[np.argsort(self._lengths[rows], kind="stable")]

    def _steps(self, rows: Rows, step_rows: int, seed: list[int]) -> list[Rows]:
        random = np.random.default_rng(seed)
        order = rows[random.permutation(len(rows))]
        mega_rows = step_rows * (1 if self.packed else _MEGA_BATCH)
        megas = [order[start : start + mega_rows] for start in range(0, len(order), mega_rows)]
        by_length = [mega[np.argsort(self._lengths[mega], kind="stable")] for mega in megas]
        steps = [mega[start : start + step_rows] for mega in by_length for start in range(0, len(mega), step_rows)]
        return [steps[number] for number in random.permutation(len(steps))]

    def _shares(self, steps: list[Rows]) -> list[Rows]:
        """Assigns each step's rows to the passes of the processes, so that all have as many rows and tokens."""
        shares: dict[int, Rows] = {}
        for size in {len(rows) for rows in steps}:
            of_size = [number for number, rows in enumerate(steps) if len(rows) == size]
            lengths = np.stack([self._lengths[steps[number]] for number in of_size])
            shares.update(zip(of_size, balance(lengths, self._passes(size) * self._world_size), strict=True))
        return [shares[number] for number in range(len(steps))]

    def _own(self, rows: Rows, share: Rows) -> Step:
        """Returns this process's part of a step."""
        own = [rows[share == number * self._world_size + self._rank] for number in range(self._passes(len(rows)))]
        return Step(own, rows, packed=self.packed)

    def _passes(self, rows: int) -> int:
        return -(-rows // self._micro_rows)


def balance(lengths: npt.NDArray[np.int32], shares: int) -> Rows:
    """Assigns texts to `shares` with about as many tokens each: returns the share of each of `lengths` [steps, texts].

    The longest are assigned first, one to each share, and of the next ones the longest to the share with the fewest tokens.
    """
    longest_first = np.argsort(-lengths, axis=1, kind="stable")
    share, tokens = np.empty(lengths.shape, np.int64), np.zeros((len(lengths), shares), np.int64)
    for start in range(0, lengths.shape[1], shares):
        some = longest_first[:, start : start + shares]
        fewest = np.argsort(tokens, axis=1, kind="stable")[:, : some.shape[1]]
        np.put_along_axis(share, some, fewest, axis=1)
        assigned = np.take_along_axis(tokens, fewest, axis=1) + np.take_along_axis(lengths, some, axis=1)
        np.put_along_axis(tokens, fewest, assigned, axis=1)
    return share


def computed_tokens(lengths: npt.NDArray[np.int32], *, packed: bool) -> int:
    """Counts the tokens that a batch computes, with its padding."""
    return int(lengths.sum()) if packed else len(lengths) * int(lengths.max(initial=0))


def evaluation_shares(lengths: npt.NDArray[np.int32], *, batch_size: int, rank: int, world_size: int) -> list[Rows]:
    """Returns one process's share of a split, in batches of similar length: over all processes every row once, none twice.

    All have the same number of batches, the last perhaps empty: a sharded model computes on all processes or on none.
    """
    own = np.argsort(lengths, kind="stable")[rank::world_size]
    most = -(-len(lengths) // world_size)
    return [own[start : start + batch_size] for start in range(0, most, batch_size)]


def collate(split: Split, rows: Rows, *, padding: Padding, packed: bool = False) -> Batch:
    """Makes a batch of rows, packed or padded to the longest; of no rows one of padding, since every process must take part."""
    texts = [split.tokens(int(row)) for row in rows] or [np.full(2, padding.token_id)]
    lengths = [len(text) for text in texts]
    labels = torch.from_numpy((split.labels[rows] if len(rows) else np.zeros(1)).astype(np.int64))
    tokens, weight = int(split.lengths[rows].sum()), float(len(rows) > 0)
    if packed:
        ids = torch.from_numpy(np.concatenate(texts).astype(np.int64))[None]
        return Batch(ids, labels, tokens, sequences=PackedSequences.of(lengths), weight=weight)
    padded, mask = (torch.from_numpy(array) for array in pad(texts, max(lengths), padding))
    return Batch(padded, labels, tokens, attention_mask=mask, weight=weight)
