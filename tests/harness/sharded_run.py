"""One process of a training run that FSDP2 shards, on the CPU: `python sharded_run.py pure --config run.yaml ...`.

accelerate makes an FSDP run of accelerator processes only, although torch's FSDP2 runs on CPU processes (gloo) as well.
Here CPU processes are let in; everything after that is the real thing, `scripts/train.py` and what the launch
configuration says.
"""

from __future__ import annotations

import functools
import runpy
import sys
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

SCRIPTS = Path(__file__).parents[2] / "scripts"


def let_cpu_processes_shard() -> None:
    """Have accelerate take its FSDP plugin on CPU processes, as it does on others."""
    make = AcceleratorState.__init__

    @functools.wraps(make)
    def init(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **options: Any) -> None:
        make(self, *args, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is None or self.distributed_type != DistributedType.MULTI_CPU:
            return
        if self.mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self.mixed_precision)
        self.fsdp_plugin = fsdp_plugin
        self.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init


if __name__ == "__main__":
    let_cpu_processes_shard()
    sys.path[0] = str(SCRIPTS)
    runpy.run_path(str(SCRIPTS / "train.py"), run_name="__main__")
