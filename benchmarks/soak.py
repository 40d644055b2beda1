"""Soak: one server that runs every method again and again, each time after a failure or a cancel.

    make soak N=300
    python3 dev/host_env.py run -- benchmarks/soak.py [--runs 300 --seed 0 --minutes 60]

Five methods with small random networks under the released names. Before every run the same graph fails (damaged
weights, an exception in the middle of sampling, one after decoding, a graph that is refused) or is cancelled at a
random moment; the run after it must end. After every tenth of the rounds, 20 at most, weights are hashed as they lie in
memory; then the server lets go of its models and results (its cache keeps a key of every node that never ran), and what
it still holds is measured: resident memory, what is allocated of it, live tensors, threads, open files, temporary
files. Some pictures are made once more at the end and must be the same byte for byte. Linux only (/proc). Exit status 1
when something was wrong or grew since the first measurement. Targets: memory within 50 MB; all else the same.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

from _pack import load_pack  # noqa: E402
from comfy_server import ComfyServer  # noqa: E402
from host_env import find_host  # noqa: E402

GROWTH = 50.0
"""Megabytes."""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="undisturbed runs per method")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="end after so long, however many there were"
    )
    asked = parser.parse_args(argv)
    load_pack()
    from harness.methods import drop, save_files
    from harness.soak import KEPT_RESULTS, Footprint, Soak, save_damaged_files

    host = find_host()
    assert host is not None, "no ComfyUI here: run `make setup` once, or set COMFYUI_PATH"
    nodes = {"realisr": ROOT, "realisr_test_nodes": ROOT / "tests" / "test_nodes"}
    with tempfile.TemporaryDirectory(prefix="realisr-soak-") as folder:
        temporary = Path(folder) / "tmp"
        temporary.mkdir()
        os.environ |= {"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
        with ComfyServer(host, Path(folder) / "server", nodes, ("--cache-lru", str(KEPT_RESULTS))) as server:
            save_files(server.models)
            save_damaged_files(server.models)
            soak = Soak(server, temporary, asked.seed)
            for method in soak.graphs:
                soak.run(method, 9_999_999)
            weights, kept = soak.digests(), True
            every = max(1, min(asked.runs // 10, 20))
            start, before = time.monotonic(), None
            for number in range(asked.runs):
                soak.round(number)
                late = time.monotonic() - start > 60 * asked.minutes
                if late or (number + 1) % every == 0:
                    kept &= soak.digests() == weights
                    drop(server.client)
                    after = Footprint.of(server, temporary)
                    before = before or after
                    print(f"{number + 1:5} runs each, {time.monotonic() - start:6.0f} s: {after}", flush=True)
                if late:
                    break
            threads = soak.threads
            soak.again()
            leaks = soak.warnings()
    assert before is not None
    print(dict(sorted(soak.counts.items())))
    print(f"before: {before}\nafter:  {after}\nPython's threads: {threads}")
    print(f"weights {'bitwise the same' if kept else 'CHANGED'} ({len(weights)} parts)")
    print(f"temporary files left: {sorted(after.temporary - before.temporary)}")
    print(f"models that the host found not let go: {len(leaks)}")
    for line in soak.wrong:
        print(f"WRONG: {line}")
    grown = after.megabytes - before.megabytes > GROWTH or after.threads > before.threads
    left = after.temporary != before.temporary or any(name.startswith("realisr") for name in threads)
    return int(bool(soak.wrong or leaks) or grown or left or not kept)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
