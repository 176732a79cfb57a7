"""Health checks, each on a connection of its own as a kubelet does: from a process of their own, for the load generator is busy.
It goes before the server on its cores, for a kubelet has others.

python -m tests.benchmarks.serving.probes PORT PATH...

Goes on until standard input ends, then writes how many seconds each took.
"""

import itertools
import select
import sys
import time

from tests.benchmarks.serving.running import go_first, request

_PAUSE_SECONDS = 0.05


def main() -> None:
    go_first()
    port, paths, seconds = int(sys.argv[1]), sys.argv[2:], list[float]()
    for path in itertools.cycle(paths):
        began = time.perf_counter()
        request(port, "GET", path)
        seconds.append(time.perf_counter() - began)
        if select.select([sys.stdin], [], [], _PAUSE_SECONDS)[0]:
            break
    print(*seconds)


if __name__ == "__main__":
    main()
