"""Which rows each process sees at each step: a pure function of (seed, epoch)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trainer.data.dataset import Split
from trainer.model.packing import Texts

Rows = npt.NDArray[np.int64]
_MEGA_BATCH = 50  # optimizer steps whose rows are sorted by length together where they are padded: next to no padding


@dataclass(frozen=True)
class Batch:
    """`labels` [rows], int64, and the texts: packed [1, tokens], or padded [rows, length]."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    tokens: int
    """Real tokens, without padding."""
    attention_mask: torch.Tensor | None = None
    """[rows, length], int64, of padded texts."""
    texts: Texts | None = None
    """Of packed ones."""
    weight: float = 1.0
    """0 where there is no row, and the one of padding stands in."""

    @property
    def inputs(self) -> dict[str, Any]:
        """The model's arguments."""
        if self.texts is None:
            return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return {"input_ids": self.input_ids, "position_ids": self.texts.positions, "texts": self.texts}

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device. A GPU takes it from pinned memory when it comes to it, while the host goes on to the next."""

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

        return replace(
            self,
            input_ids=moved(self.input_ids),
            labels=moved(self.labels),
            attention_mask=None if self.attention_mask is None else moved(self.attention_mask),
            texts=self.texts and self.texts.moved(moved),
        )


@dataclass(frozen=True)
class Step:
    """What one optimizer step sees: the rows of this process, one array a forward pass, and the rows of all processes."""

    micro_batches: list[Rows]
    rows: Rows
    """Those of all processes."""
    packed: bool = False
    """Whether the texts of a forward pass are packed; else they are padded."""

    @property
    def global_rows(self) -> int:
        return len(self.rows)


class BatchSampler:
    """The steps of every epoch, for one process of `world_size`.

    A step's rows depend on the seed, the epoch and batch_size × world_size × accumulation_steps alone: two processes see
    together what one would see with twice the batch size. Packed texts are drawn at random; where they are padded, rows of like
    length come together.
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
        packed: bool,
    ) -> None:
        self._lengths, self._seed, self._rank, self._world_size = lengths, seed, rank, world_size
        self.packed = packed
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
        return [self._own(rows, share) for rows, share in zip(steps, self._shares(steps), strict=True)]

    def largest(self) -> Step:
        """The step of the first epoch that computes the most tokens, and needs the most memory."""
        return max(self.epoch(0), key=lambda step: computed_tokens(self._lengths[step.rows], packed=self.packed))

    def _deal(self, rows: Rows, step_rows: int, seed: list[int]) -> list[Rows]:
        random = np.random.default_rng(seed)
        order = rows[random.permutation(len(rows))]
        mega_rows = step_rows * (1 if self.packed else _MEGA_BATCH)
        megas = [order[start : start + mega_rows] for start in range(0, len(order), mega_rows)]
        by_length = [mega[np.argsort(self._lengths[mega], kind="stable")] for mega in megas]
        steps = [mega[start : start + step_rows] for mega in by_length for start in range(0, len(mega), step_rows)]
        return [steps[number] for number in random.permutation(len(steps))]

    def _shares(self, steps: list[Rows]) -> list[Rows]:
        """Of each step's rows, which pass of which process each goes to, so that all have as many and compute alike."""
        shares: dict[int, Rows] = {}
        for size in {len(rows) for rows in steps}:
            of_size = [number for number, rows in enumerate(steps) if len(rows) == size]
            lengths = np.stack([self._lengths[steps[number]] for number in of_size])
            shares.update(zip(of_size, balance(lengths, self._passes(size) * self._world_size), strict=True))
        return [shares[number] for number in range(len(steps))]

    def _own(self, rows: Rows, share: Rows) -> Step:
        """What this process does of a step."""
        own = [rows[share == number * self._world_size + self._rank] for number in range(self._passes(len(rows)))]
        return Step(own, rows, packed=self.packed)

    def _passes(self, rows: int) -> int:
        return -(-rows // self._micro_rows)


def balance(lengths: npt.NDArray[np.int32], shares: int) -> Rows:
    """Have texts go to `shares` that compute alike: to which one each of `lengths` [steps, texts] goes, as many to all.

    The longest go first, one to each share, and of the next ones the longest to where the fewest tokens are so far.
    """
    longest_first = np.argsort(-lengths, axis=1, kind="stable")
    share, tokens = np.empty(lengths.shape, np.int64), np.zeros((len(lengths), shares), np.int64)
    for start in range(0, lengths.shape[1], shares):
        some = longest_first[:, start : start + shares]
        fewest = np.argsort(tokens, axis=1, kind="stable")[:, : some.shape[1]]
        np.put_along_axis(share, some, fewest, axis=1)
        dealt = np.take_along_axis(tokens, fewest, axis=1) + np.take_along_axis(lengths, some, axis=1)
        np.put_along_axis(tokens, fewest, dealt, axis=1)
    return share


def computed_tokens(lengths: npt.NDArray[np.int32], *, packed: bool) -> int:
    """Of a batch, with its padding."""
    return int(lengths.sum()) if packed else len(lengths) * int(lengths.max(initial=0))


def evaluation_shares(lengths: npt.NDArray[np.int32], *, batch_size: int, rank: int, world_size: int) -> list[Rows]:
    """Every row of a split once over all processes, none twice, in batches of like length; the share of one process.

    All have the same number of batches, the last perhaps empty: a sharded model computes on all processes or on none.
    """
    own = np.argsort(lengths, kind="stable")[rank::world_size]
    most = -(-len(lengths) // world_size)
    return [own[start : start + batch_size] for start in range(0, most, batch_size)]


def collate(split: Split, rows: Rows, *, pad_token_id: int, packed: bool = False) -> Batch:
    """These rows packed, or padded to the longest of them; where there are none, one row of padding, for a process must take part."""
    texts = [split.tokens(int(row)) for row in rows] or [np.full(2, pad_token_id)]
    lengths = [len(text) for text in texts]
    labels = torch.from_numpy((split.labels[rows] if len(rows) else np.zeros(1)).astype(np.int64))
    tokens, weight = int(split.lengths[rows].sum()), float(len(rows) > 0)
    if packed:
        ids = torch.from_numpy(np.concatenate(texts).astype(np.int64))[None]
        return Batch(ids, labels, tokens, texts=Texts.of(lengths), weight=weight)
    padded = np.full((len(texts), max(lengths)), pad_token_id, dtype=np.int64)
    for place, text in enumerate(texts):
        padded[place, : len(text)] = text
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    return Batch(torch.from_numpy(padded), labels, tokens, attention_mask=torch.from_numpy(mask), weight=weight)
