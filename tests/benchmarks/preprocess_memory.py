"""Peak memory of preprocess against the number of rows: ten times the rows should cost no more of it.

    python -m tests.benchmarks.preprocess_memory

Every measurement is a process of its own. Its peak is VmHWM of /proc, so this needs Linux.
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from statistics import median

from tests.benchmarks.record import memory, table, wait_until_quiet, write
from trainer.config import PreprocessConfig
from trainer.data.sample import sample_rows
from trainer.data.tokenizer import train_tokenizer
from trainer.preprocess import preprocess

_SEED = 0
_TOKENIZER_ROWS = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs=2, default=(50_000, 500_000), help="the two sizes to compare")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each, of which the median counts")
    parser.add_argument("--wait-minutes", type=float, default=10, help="for a quiet machine, at most")
    parser.add_argument("--measure", nargs=3, metavar=("DATA", "MODEL", "OUTPUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        _measure(*args.measure)
    else:
        _compare(tuple(args.rows), rounds=args.rounds, wait_minutes=args.wait_minutes)


def _measure(data: str, model: str, output: str) -> None:
    """One run in this process; its last line is what was measured."""
    imported = memory("VmRSS")
    started = time.perf_counter()
    preprocess(PreprocessConfig(data=data, model=model, seed=_SEED), Path(output))
    seconds = time.perf_counter() - started
    print(json.dumps({"imported": imported, "peak": memory("VmHWM"), "seconds": seconds}))


def _compare(sizes: tuple[int, ...], *, rounds: int, wait_minutes: float) -> None:
    load = wait_until_quiet(wait_minutes)
    found: dict[tuple[str, str, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {"`tiny`": "tiny", "WordPiece folder": str(_write_encoder(folder / "encoder"))}
        files = {rows: _write_csv(folder / f"{rows}.csv", rows) for rows in sizes}
        for turn, (source, (made_by, model), rows) in product(
            range(rounds), product(("sample", "CSV file"), models.items(), sizes)
        ):
            data = f"sample:{rows}" if source == "sample" else str(files[rows])
            measured = _in_a_process(data, model, folder / f"dataset-{turn}")
            found.setdefault((source, made_by, rows), []).append(measured)
            print(
                f"round {turn + 1}/{rounds}: {source}, {made_by}, {rows:,} rows: {_shown(measured, rows)}", flush=True
            )
    write(
        "preprocess_memory",
        title="Memory of preprocess",
        command="python -m tests.benchmarks.preprocess_memory",
        packages=("numpy", "tokenizers", "transformers", "torch"),
        parts=_report(found, sizes, f"Each line is the median of {rounds} processes. {load}"),
    )


def _write_encoder(folder: Path) -> Path:
    """A folder that `--model` takes: a small DistilBERT with random weights, and a WordPiece tokenizer of the sample."""
    from transformers import DistilBertConfig, DistilBertModel  # not in the processes that are measured

    tokenizer = train_tokenizer((text for text, _ in sample_rows(_TOKENIZER_ROWS, seed=_SEED)), max_length=512)
    tokenizer.save_pretrained(folder)
    config = DistilBertConfig(vocab_size=len(tokenizer), dim=32, hidden_dim=64, n_layers=1, n_heads=2)
    DistilBertModel(config).save_pretrained(folder)
    return folder


def _write_csv(path: Path, rows: int) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows(sample_rows(rows, seed=_SEED))
    return path


def _in_a_process(data: str, model: str, output: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.preprocess_memory", "--measure", data, model, str(output)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    shutil.rmtree(output)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _shown(measured: dict[str, float], rows: int) -> str:
    return f"peak {measured['peak']:.0f} MB, {measured['seconds']:.1f} s, {rows / measured['seconds']:,.0f} rows/s"


def _report(found: dict[tuple[str, str, int], list[dict[str, float]]], sizes: tuple[int, ...], how: str) -> list[str]:
    def middle(key: tuple[str, str, int], fact: str) -> float:
        return median(measured[fact] for measured in found[key])

    rows = [
        {
            "Rows from": source,
            "Tokenizer": made_by,
            "Rows": f"{count:,}",
            "After imports, MB": f"{middle(key, 'imported'):.0f}",
            "Peak, MB": f"{middle(key, 'peak'):.0f}",
            "Seconds": f"{middle(key, 'seconds'):.1f}",
            "Rows/s": f"{count / middle(key, 'seconds'):,.0f}",
        }
        for key in found
        for source, made_by, count in [key]
    ]
    small, large = sizes
    growth = {
        (source, made_by): middle((source, made_by, large), "peak") / middle((source, made_by, small), "peak") - 1
        for source, made_by, _ in found
    }
    extra = max(
        middle((source, made_by, large), "peak") - middle((source, made_by, small), "peak")
        for source, made_by in growth
    )
    conclusion = (
        f"With {large / small:.0f} times the rows the peak grows by {min(growth.values()):.1%} to {max(growth.values()):.1%} "
        f"(at most {extra:.0f} MB, {extra * 2**20 / (large - small):.0f} bytes a row). {how}"
    )
    return [conclusion, table(rows)]


if __name__ == "__main__":
    main()
