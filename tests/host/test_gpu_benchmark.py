"""benchmarks/gpu.py on tiny networks: every kind of row runs, and has its figures."""

from __future__ import annotations

import json
import re
import subprocess
import sys

from _pack import ROOT

ROWS = "1K,8K,PURE,VICR,DreamSR"
"""Of VOSR two sizes of four: the others differ in nothing but their numbers."""


def test_every_row_runs_on_a_cpu(tmp_path):
    report = tmp_path / "figures.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--smoke", "--rows", ROWS, "--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(report.read_text(encoding="utf-8"))["rows"]
    assert len(rows) == 2 * 2 * 2 + 4
    assert [row["row"] for row in rows if row["seconds"] is None] == []
    assert all(row["seconds"] > 0 and row["peak"] > 0 and row["bound"] > 0 for row in rows)
    table = [line for line in done.stdout.splitlines() if line.startswith("| ") and "---" not in line]
    assert len(table) == 1 + len(rows)
    (pure,) = (row for row in rows if row["row"].startswith("PURE"))
    assert re.match(r"\d+ tokens/s; ", pure["notes"])
