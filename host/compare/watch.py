"""Seconds and peak memory of a part of a run."""

from __future__ import annotations

import re
import time
from pathlib import Path

import comfy.model_management
import torch

RESET_PEAK = "5"
"""Written to /proc/self/clear_refs: the process's peak of resident memory starts again from now."""


class Watch:
    """Started when made. On CUDA the peak is what PyTorch allocated; on a CPU under Linux the growth of the process's
    resident memory; elsewhere it is not known.
    """

    def __init__(self) -> None:
        self.device = comfy.model_management.get_torch_device()
        self.resident = 0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.device.type == "cpu" and reset_peak():
            self.resident = status_bytes("VmRSS")
        self.start = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def peak_bytes(self) -> int | None:
        """Since the start; None where the device or the system cannot tell."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return max(0, status_bytes("VmHWM") - self.resident) if self.resident else None


def reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text(RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def status_bytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


_running: dict[str, Watch] = {}


def start_watch(token: str) -> None:
    """Begin to measure under a name. What an interrupted run left is forgotten: one run is measured at a time."""
    _running.clear()
    _running[token] = Watch()


def stop_watch(token: str) -> tuple[float, int | None] | None:
    """(seconds, peak bytes or None) since start_watch; None where that measurement is not running."""
    watch = _running.pop(token, None)
    return None if watch is None else (watch.seconds(), watch.peak_bytes())
