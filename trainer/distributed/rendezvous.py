"""Where processes that start together meet, and none that has ended."""

import time
import uuid
from datetime import timedelta

from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]  # public, but not in __all__

_SECONDS = 0.01  # from one look at the store to the next


def meet(store: Store, *, rank: int, world_size: int, timeout: timedelta) -> Store:
    """The part of a store that is of this start alone; returns when all its processes are there.

    torchrun keeps one store through its restarts, and the addresses in it of processes that have ended: who comes back first
    would call those. Its count of restarts is no name for a start, as machines count apart (pytorch issue 135712).
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"distrinews/rank-{rank}", own)
        start = store.get(f"distrinews/{own}").decode()  # nobody answers to who has ended
        store.add(f"distrinews/{start}", 1)
        return PrefixStore(start, store)
    deadline = time.monotonic() + timeout.total_seconds()
    while (met := store.add(f"distrinews/{own}", 0)) < world_size - 1:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{met + 1} of {world_size} processes met within {timeout}")
        for other in range(1, world_size):
            asking = store.get(f"distrinews/rank-{other}").decode()
            store.set(f"distrinews/{asking}", own)
        time.sleep(_SECONDS)
    return PrefixStore(own, store)
