"""The dataset folder of preprocess against Arrow through `datasets`, for the same rows.

    python -m tests.benchmarks.dataset_format

Each measurement is a process of its own, the formats take turns, and the files stay in the page cache.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from tests.benchmarks.record import memory, table, wait_until_quiet, write
from trainer.data.batches import Batch, Rows, collate
from trainer.data.dataset import RowWriter, Split
from trainer.data.ingest import CHUNK
from trainer.data.sample import CLASSES, sample_rows
from trainer.data.tokenizer import train_tokenizer, use_all_cores

_BATCH_ROWS = 32
_MAX_LENGTH = 128
_PAD = 0
_TOKENIZER_ROWS = 20_000
_SEED = 0

Lengths = npt.NDArray[np.int32]
Reader = Callable[[Rows], Batch]


class Chunk(NamedTuple):
    ids: list[list[int]]
    texts: list[str]
    labels: list[int]
    lines: list[int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the sample")
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each, of which the median counts")
    parser.add_argument("--wait-minutes", type=float, default=10, help="for a quiet machine, at most")
    parser.add_argument("--measure", nargs=3, metavar=("WHAT", "FORMAT", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        what, name, folder = args.measure
        measured = _measure_write(name, Path(folder)) if what == "write" else _measure_read(name, Path(folder))
        print(json.dumps(measured))
    else:
        _compare(args.rows, rounds=args.rounds, wait_minutes=args.wait_minutes)


def _write_arrays(chunks: list[Chunk], folder: Path) -> None:
    with RowWriter(folder, token_dtype=np.uint16) as writer:
        for chunk in chunks:
            writer.append([text.encode() for text in chunk.texts], chunk.labels, chunk.lines)
            writer.append_tokens(chunk.ids)


def _open_arrays(folder: Path) -> tuple[Lengths, Reader]:
    split = Split(folder, "uint16")
    return split.lengths, lambda rows: collate(split, rows, pad_token_id=_PAD)


def _write_arrow(chunks: list[Chunk], folder: Path) -> None:
    from datasets import Features, List, Value
    from datasets.arrow_writer import ArrowWriter

    folder.mkdir()
    features = Features(
        {"ids": List(Value("uint16")), "texts": Value("string"), "labels": Value("int32"), "lines": Value("int64")}
    )
    with ArrowWriter(path=str(folder / "data.arrow"), features=features) as writer:
        for chunk in chunks:
            writer.write_batch(chunk._asdict())
        writer.finalize()


def _open_arrow(folder: Path, style: str) -> tuple[Lengths, Any]:
    import pyarrow.compute
    from datasets import Dataset

    dataset = Dataset.from_file(str(folder / "data.arrow"))
    lengths: Lengths = pyarrow.compute.list_value_length(dataset.data.column("ids")).to_numpy()
    return lengths, dataset.select_columns(["ids", "labels"]).with_format(style)


def _open_arrow_as_numpy(folder: Path) -> tuple[Lengths, Reader]:
    lengths, dataset = _open_arrow(folder, "numpy")

    def read(rows: Rows) -> Batch:
        found = dataset[rows]
        return _padded(list(found["ids"]), found["labels"])

    return lengths, read


def _open_arrow_as_tables(folder: Path) -> tuple[Lengths, Reader]:
    lengths, dataset = _open_arrow(folder, "arrow")

    def read(rows: Rows) -> Batch:
        found = dataset[rows]
        ids = found["ids"].combine_chunks()
        bounds = ids.offsets.to_numpy()[1:-1] - ids.offsets[0].as_py()
        return _padded(np.split(ids.flatten().to_numpy(), bounds), found["labels"].to_numpy())

    return lengths, read


def _padded(ids: list[npt.NDArray[Any]], labels: npt.NDArray[Any]) -> Batch:
    """What trainer.data.batches.collate makes, out of arrays that are read already."""
    lengths = np.array([len(row) for row in ids])
    padded = np.full((len(ids), int(lengths.max())), _PAD, dtype=np.int64)
    for place, row in enumerate(ids):
        padded[place, : len(row)] = row
    mask = np.arange(padded.shape[1]) < lengths[:, None]
    return Batch(
        torch.from_numpy(padded),
        torch.from_numpy(labels.astype(np.int64)),
        tokens=int(lengths.sum()),
        attention_mask=torch.from_numpy(mask.astype(np.int64)),
    )


_OURS = "our arrays"
_WRITERS = {_OURS: _write_arrays, "Arrow": _write_arrow}
_READERS = {
    _OURS: (_OURS, _open_arrays),
    'Arrow, `with_format("numpy")`': ("Arrow", _open_arrow_as_numpy),
    'Arrow, `with_format("arrow")`': ("Arrow", _open_arrow_as_tables),
}


def _measure_write(name: str, folder: Path) -> dict[str, float]:
    chunks = _chunks(folder)
    _import(name)
    target = folder / name
    shutil.rmtree(target, ignore_errors=True)
    started = time.perf_counter()
    _WRITERS[name](chunks, target)
    seconds = time.perf_counter() - started
    return {"write": seconds, "bytes": sum(file.stat().st_size for file in target.iterdir())}


def _measure_read(name: str, folder: Path) -> dict[str, float]:
    """Open, and read every row once, 32 at a time in random order."""
    written, open_rows = _READERS[name]
    started = time.perf_counter()
    _import(name)
    imported, before = time.perf_counter(), memory("RssAnon")
    lengths, read = open_rows(folder / written)
    opened = time.perf_counter()
    order = np.random.default_rng(_SEED).permutation(len(lengths))
    batches = [order[start : start + _BATCH_ROWS] for start in range(0, len(order), _BATCH_ROWS)]
    reading = time.perf_counter()
    sums = [(batch.tokens, int(batch.input_ids[0, 0]), int(batch.labels[0])) for batch in map(read, batches)]
    seconds = time.perf_counter() - reading
    assert sum(tokens for tokens, _, _ in sums) == int(lengths.sum())
    first = read(batches[0])
    assert first.attention_mask is not None
    return {
        "import": imported - started,
        "open": opened - imported,
        "batch": seconds / len(batches),
        "memory": memory("RssAnon") - before,
        "process": memory("VmHWM"),
        "content": int((first.input_ids * first.attention_mask).sum()) + int(first.labels.sum()),
    }


def _import(name: str) -> None:
    """Load what the format needs besides torch and numpy, so that its cost is counted apart."""
    if name != _OURS:
        import_module("datasets.arrow_writer")
        import_module("pyarrow.compute")


def _compare(rows: int, *, rounds: int, wait_minutes: float) -> None:
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        mean_length = _prepare(rows, Path(folder))
        load = wait_until_quiet(wait_minutes)
        for number in range(rounds):
            for what, names in (("write", _WRITERS), ("read", _READERS)):
                for name in names:
                    measured = _in_a_process(what, name, folder)
                    found.setdefault(name if what == "read" else f"write {name}", []).append(measured)
                    shown = (
                        f"{measured['write']:.2f} s" if what == "write" else f"{measured['batch'] * 1e6:.0f} µs a batch"
                    )
                    print(f"round {number + 1}/{rounds}: {what} {name}: {shown}", flush=True)
    contents = {measured["content"] for name in _READERS for measured in found[name]}
    assert len(contents) == 1, "the formats give different batches"
    how = (
        f"{rows:,} sample rows of {mean_length:.1f} tokens on average, as uint16, with their texts, classes and lines. "
        f"Medians of {rounds} rounds, each a process of its own. Opening includes the lengths of all rows, which batches of like "
        f"length need. A batch is {_BATCH_ROWS} random rows as padded int64 tensors with mask and labels; every row is read once. "
        f"Memory is what opening and reading add to the process, without pages of the files. {load}"
    )
    write(
        "dataset_format",
        title="Format of the dataset folder",
        command="python -m tests.benchmarks.dataset_format",
        packages=("numpy", "datasets", "pyarrow", "torch"),
        parts=[how, table([_row(name, found) for name in _READERS]), _conclusion(found)],
    )


def _prepare(rows: int, folder: Path) -> float:
    """Keep the rows as JSON Lines for the processes that write them; returns tokens a row."""
    use_all_cores()
    tokenizer = train_tokenizer(
        (text for text, _ in sample_rows(_TOKENIZER_ROWS, seed=_SEED)), max_length=_MAX_LENGTH
    ).backend_tokenizer
    tokenizer.enable_truncation(_MAX_LENGTH)
    sample = enumerate(sample_rows(rows, seed=_SEED), start=1)
    tokens = 0
    with (folder / "chunks.jsonl").open("w", encoding="utf-8") as file:
        while chunk := list(islice(sample, CHUNK)):
            texts = [text for _, (text, _) in chunk]
            ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
            labels = [CLASSES.index(label) for _, (_, label) in chunk]
            print(json.dumps([ids, texts, labels, [line for line, _ in chunk]]), file=file)
            tokens += sum(map(len, ids))
    return tokens / rows


def _chunks(folder: Path) -> list[Chunk]:
    with (folder / "chunks.jsonl").open(encoding="utf-8") as file:
        return [Chunk(*json.loads(line)) for line in file]


def _in_a_process(what: str, name: str, folder: str) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.dataset_format", "--measure", what, name, folder]
    measured: dict[str, float] = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
    return measured


def _middle(found: dict[str, list[dict[str, float]]], name: str, fact: str) -> float:
    key = name if fact not in {"write", "bytes"} else f"write {_READERS[name][0]}"
    return median(measured[fact] for measured in found[key])


def _row(name: str, found: dict[str, list[dict[str, float]]]) -> dict[str, str]:
    return {
        "Format": name,
        "On disk, MB": f"{_middle(found, name, 'bytes') / 1e6:.1f}",
        "Write, s": f"{_middle(found, name, 'write'):.2f}",
        "Import, s": f"{_middle(found, name, 'import'):.2f}",
        "Open, ms": f"{_middle(found, name, 'open') * 1e3:.1f}",
        "A batch, µs": f"{_middle(found, name, 'batch') * 1e6:.0f}",
        "Memory, MB": f"{_middle(found, name, 'memory'):.1f}",
        "Peak of the process, MB": f"{_middle(found, name, 'process'):.0f}",
    }


def _conclusion(found: dict[str, list[dict[str, float]]]) -> str:
    def times(fact: str) -> str:
        """How much more the faster way to read Arrow takes than ours."""
        ours, others = _middle(found, _OURS, fact), [_middle(found, name, fact) for name in _READERS if name != _OURS]
        return f"{min(others) / ours:.1f} ×"

    arrow = [name for name in _READERS if name != _OURS]
    seconds = median(_middle(found, name, "import") for name in arrow)
    megabytes = median(_middle(found, name, "process") for name in arrow) - _middle(found, _OURS, "process")
    return (
        f"Arrow takes {times('bytes')} the disk, {times('write')} the time to write, {times('open')} the time to open and, in the faster "
        f"of its two ways, {times('batch')} the time of a batch; `datasets` adds {seconds:.1f} s and {megabytes:.0f} MB to each process "
        f"that reads. So we keep our arrays, which need no more than numpy."
    )


if __name__ == "__main__":
    main()
