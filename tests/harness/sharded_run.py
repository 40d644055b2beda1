"""FSDP2 on the CPU: what `accelerate launch` sets for a configuration, and CPU processes let in to it.

accelerate makes an FSDP run of accelerator processes only, although torch's FSDP2 runs on CPU processes (gloo) as well.
Everything after that is the real thing: `scripts/train.py`, and what the launch configuration says.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

LAUNCHED = ("ACCELERATE_", "FSDP_")


def launch_environment(config: Path) -> dict[str, str]:
    """What accelerate's launcher makes of a configuration file. Raises for one that it does not take."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    arguments = launch_command_parser().parse_args(["--config_file", str(config), "script.py"])
    validated, _, _ = _validate_launch_command(arguments)
    environment = prepare_multi_gpu_env(validated)
    return {name: value for name, value in environment.items() if name.startswith(LAUNCHED)}


def let_cpu_processes_shard() -> None:
    """Have accelerate take its FSDP plugin on CPU processes, as it does on others."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    make = AcceleratorState.__init__

    @functools.wraps(make)
    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **options: Any) -> None:
        make(self, *args, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is None or self.distributed_type != DistributedType.MULTI_CPU:
            return
        if self.mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self.mixed_precision)
        self.fsdp_plugin = fsdp_plugin
        self.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init
