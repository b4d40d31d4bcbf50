"""Memory of the process and of its GPU, and whether it stays flat."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

MIB = 1 << 20
# How much more the last quarter of a run may use than the second one, by medians.
ALLOWED_GROWTH = {"rss": 64 * MIB, "threads": 1, "allocated": 8 * MIB, "reserved": 64 * MIB, "used": 128 * MIB}

Sample = dict[str, float]  # "seconds" since the start, and amounts


def amounts(device: torch.device) -> dict[str, int]:
    """Bytes and threads of the process; on a GPU also torch's bytes there, its allocator's, and the whole process's."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    here = {"rss": pages * os.sysconf("SC_PAGE_SIZE"), "threads": len(list(Path("/proc/self/task").iterdir()))}
    if device.type != "cuda":
        return here
    allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    return {**here, "allocated": allocated, "reserved": reserved, "used": _used_by_this_process(device)}


def _used_by_this_process(device: torch.device) -> int:
    """Bytes of the GPU's memory; of all processes where the driver does not tell them apart."""
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, ValueError, KeyError):
        listed = subprocess.run(query, capture_output=True, text=True, check=False).stdout
        return int(dict(line.split(",") for line in listed.splitlines())[str(os.getpid())]) * MIB
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def growth(samples: Sequence[Sample], seconds: float) -> dict[str, dict[str, Any]]:
    """Medians of the second and the last quarter of a run, and whether their difference is allowed."""
    quarters = [[s for s in samples if start < s["seconds"] / seconds <= start + 0.25] for start in (0.25, 0.75)]
    found = {}
    for name, allowed in ALLOWED_GROWTH.items():
        if name in samples[0]:
            second, last = (statistics.median(s[name] for s in part or samples) for part in quarters)
            grown = {"second_quarter": second, "last_quarter": last, "growth": last - second}
            found[name] = {**grown, "allowed": allowed, "flat": last - second <= allowed}
    return found
