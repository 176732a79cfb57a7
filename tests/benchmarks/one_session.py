"""What one ONNX Runtime session costs in a process that has nothing else: `one_session MODEL TOKENS` prints it as JSON.

TOKENS is an .npz of token ids, one array a text.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

from tests.benchmarks.record import memory


def open_session(path: Path, *, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def main() -> None:
    model, tokens = map(Path, sys.argv[1:])
    with np.load(tokens) as file:
        texts = list(file.values())
    started = time.perf_counter()
    session = open_session(model, threads=1)
    seconds = time.perf_counter() - started
    for ids in texts:
        session.run(None, {"input_ids": ids[None], "attention_mask": np.ones_like(ids[None])})
    print(json.dumps({"load": seconds, "resident": memory("VmRSS"), "peak": memory("VmHWM")}))


if __name__ == "__main__":
    main()
