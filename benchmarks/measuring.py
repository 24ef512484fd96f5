"""What a piece of work takes: memory on its device, and time."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile

MB = 1e6


def peak(run: Callable[[], None], cuda: bool) -> int:
    """Bytes that `run()` has on the device at its peak, beside what was there before."""
    if cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = sorted(
        (event.start_ns(), event.nbytes())
        for event in profiled.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    return max(accumulate(size for _, size in events))


def seconds(run: Callable[[], None]) -> float:
    """How long `run()` takes, on the GPU too."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
