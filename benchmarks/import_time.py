"""What the pack adds to ComfyUI's start-up.

    python3 dev/host_env.py run -- benchmarks/import_time.py [--runs 5] [--json]

Each run is a process of its own: it imports ComfyUI with its built-in nodes, then times ComfyUI's own loading of the
pack's folder (import, entry point, node list, schemas). Target: at most 50 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TARGET_MS = 50

MEASURE = """
import asyncio, json, sys, time
comfyui, base, *folders = sys.argv[1:]
sys.argv = sys.argv[:1]
sys.path.insert(0, comfyui)
began = time.process_time()
from comfy.cli_args import args
args.cpu = True
args.base_directory = base
import nodes
asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
host_cpu = time.process_time() - began

def load(folder):
    modules, ids = set(sys.modules), set(nodes.NODE_CLASS_MAPPINGS)
    wall, cpu = time.perf_counter(), time.process_time()
    loaded = asyncio.run(nodes.load_custom_node(folder))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "loaded": loaded,
        "milliseconds": 1000 * wall,
        "cpu_milliseconds": 1000 * cpu,
        "host_cpu_milliseconds": 1000 * host_cpu,
        "nodes": sorted(set(nodes.NODE_CLASS_MAPPINGS) - ids),
        "modules": sorted(set(sys.modules) - modules),
    }

print(json.dumps([load(folder) for folder in folders]))
"""


def measure(folders: Sequence[Path], comfyui: Path, base: Path) -> tuple[list[dict[str, Any]], str]:
    """Load packs one after the other into one fresh ComfyUI whose base directory is `base`.

    Returns what became of each folder, and the log. Of each: loaded (ComfyUI's verdict), milliseconds and
    cpu_milliseconds it took, host_cpu_milliseconds before it, the node ids it added, the modules it imported.
    """
    command = [sys.executable, "-c", MEASURE, str(comfyui), str(base), *map(str, folders)]
    # Empty means unset: without cached bytecode each start would compile the pack anew, as no user's does.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run(command, cwd=base, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print every run in full")
    asked = parser.parse_args()
    comfyui = Path(os.environ["COMFYUI_PATH"])
    with tempfile.TemporaryDirectory() as base:
        # The first start after an install compiles the bytecode; it does not count.
        measured = [measure([ROOT], comfyui, Path(base)) for _ in range(asked.runs + 1)][1:]
    runs = [pack for (pack,), _ in measured]
    if not all(run["loaded"] for run in runs):
        sys.exit(f"the pack does not load:\n{measured[0][1]}")
    if asked.json:
        print(json.dumps(runs, indent=2))
        return
    times = [run["milliseconds"] for run in runs]
    print(f"{len(runs[0]['nodes'])} nodes, {len(runs[0]['modules'])} modules")
    print(f"pack: median {statistics.median(times):.1f} ms, fastest {min(times):.1f} ms (target {TARGET_MS} ms)")
    print(f"host: median {statistics.median(run['host_cpu_milliseconds'] for run in runs):.0f} ms of CPU time")


if __name__ == "__main__":
    main()
