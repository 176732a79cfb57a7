"""Whether PyTorch can compute on a GPU here, found out before PyTorch is imported, which takes seconds."""

import ctypes
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple


class Gpu(NamedTuple):
    usable: bool
    why_not: str = ""
    """Empty where there is no device at all, which needs no reason."""


@cache
def gpu() -> Gpu:
    """What --engine auto goes by."""
    if not cuda_devices():
        return Gpu(usable=False)
    missing = [package for package in ("torch", "transformers") if find_spec(package) is None]
    if missing:
        return Gpu(
            usable=False, why_not=f"{' and '.join(missing)} not installed (pip install 'distrinews[server-torch]')"
        )
    from server.inference.backends.torch import no_cuda_reason

    return Gpu(usable=not no_cuda_reason(), why_not=no_cuda_reason())


def cuda_devices() -> int:
    """CUDA devices that this process may use, as the driver counts them, so with CUDA_VISIBLE_DEVICES; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return 0 if failed else count.value
