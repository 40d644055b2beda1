"""Memory of a server's process, read from /proc (Linux)."""

from __future__ import annotations

from pathlib import Path

from comfy_server import ComfyServer

from .waiting import wait_until

READABLE = Path("/proc/self/status").exists()


def resident_megabytes(server: ComfyServer) -> float:
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text(encoding="utf-8")
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 1024


def require_freed(server: ComfyServer, megabytes: float) -> None:
    """Raises AssertionError unless dropping models and caches brings the process below `megabytes`."""
    server.client.free()
    wait_until(lambda: resident_megabytes(server) < megabytes)
