"""kill -9 of a server in every phase of every method's run, then the same run on a server started anew.

    python3 dev/host_env.py run -- benchmarks/kills.py

Loading, encoding, sampling, decoding, saving, as the server tells its clients that they begin; five methods with small
random networks. The picture must be that of an undisturbed run byte for byte, and no file of models/ be touched.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

from _pack import load_pack  # noqa: E402
from comfy_server import ComfyServer  # noqa: E402
from host_env import find_host  # noqa: E402


def main() -> int:
    load_pack()
    from harness.kills import check_all
    from harness.methods import graphs, save_files

    host = find_host()
    assert host is not None, "no ComfyUI here: run `make setup` once, or set COMFYUI_PATH"
    nodes = {"realisr": ROOT, "realisr_test_nodes": ROOT / "tests" / "test_nodes"}
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = tempfile.TemporaryDirectory(prefix="realisr-kills-")
    with folder, ComfyServer(host, Path(folder.name), nodes) as server:
        save_files(server.models)
        wrong = check_all(server, graphs(server.client), lambda line: print(line, flush=True))
    print(f"{len(wrong)} wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
