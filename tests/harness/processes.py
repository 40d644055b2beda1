"""Several processes of one run on this machine, with the environment that `accelerate launch` would give them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

LAUNCHED = ("ACCELERATE_", "FSDP_")


def launch_environment(config: Path) -> dict[str, str]:
    """What accelerate's launcher makes of a configuration file. Raises for one that it does not take."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    arguments = launch_command_parser().parse_args(["--config_file", str(config), "script.py"])
    validated, _, _ = _validate_launch_command(arguments)
    environment = prepare_multi_gpu_env(validated)
    return {name: value for name, value in environment.items() if name.startswith(LAUNCHED)}


def run_together(
    command: Sequence[str], environment: dict[str, str], count: int = 2, seconds: float = 240
) -> list[str]:
    """Outputs of a Python command, run as `count` processes that find each other. Raises AssertionError with them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        **environment,
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    failed = [output for process, output in zip(processes, outputs, strict=True) if process.returncode]
    assert not failed, "\n\n".join(failed)
    return outputs
