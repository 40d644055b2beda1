"""scripts/restore.py --engine ray over a cluster of local nodes and a real S3 server, with everything in it killed.

    python3 dev/host_env.py run -- benchmarks/scale.py [--photos 300] [--parts alone,engine,hosts,killed] [--alone DIR]

alone: the photos through one ComfyUI, without a cluster: the results that all others must have, byte for byte.
engine: the same with the same ComfyUI, by an actor: what the engine takes of a photo's time. hosts: a cluster with one
node and one with two, each node's actor starting a ComfyUI of its own. killed: two nodes; after a sixth of the photos a
node is killed and another one joins, after a third the other node's ComfyUI, after half the driver, which then is
started again. Photos come from the S3 server and results go there. The model is VOSR nano, of 48 x 40 pixels.

--alone keeps what the part alone made, so that other parts can be run later without it.

The nodes share this machine's cores, so that two hosts are not twice as fast here as one.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from _pack import ROOT
from comfy_server import ComfyServer
from harness.cluster import RayNodes, contents, processes_with, read_until, start_restore, storage, stored
from host_env import Host, find_host

SIZE = (48, 40)
PARTS = ("alone", "engine", "hosts", "killed")
OWN = ("input", "output", "temp", "user")


def make_photos(folder: Path, count: int) -> None:
    chance = np.random.default_rng(13)
    for index in range(count):
        path = folder / f"{index // 100}" / f"{index:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(chance.integers(0, 256, (5, 6, 3), np.uint8))
        small.resize(SIZE, Image.Resampling.BICUBIC).save(path)


def comfyui_command(host: Host, base: Path) -> str:
    """A ComfyUI with the pack, for --comfyui."""
    (base / "custom_nodes").mkdir(parents=True)
    (base / "models").mkdir()
    (base / "custom_nodes" / "realisr").symlink_to(ROOT, target_is_directory=True)
    words = [str(host.python), str(host.comfyui / "main.py"), "--cpu", "--listen", "127.0.0.1", "--port", "{port}"]
    words += ["--base-directory", str(base), "--disable-auto-launch", "--disable-api-nodes"]
    words += ["--database-url", "sqlite:///{scratch}/user/comfyui.db"]
    return shlex.join(words) + "".join(f" --{name}-directory {{scratch}}/{name}" for name in OWN)


def scratch_folders() -> set[Path]:
    """Of ComfyUIs that actors have started, on all nodes."""
    return set(Path(tempfile.gettempdir()).glob(f"realisr-{'?' * 32}"))


def finish(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=3600)
    assert process.returncode == 0, out[-4000:]
    return out


class Show:
    def __init__(self, folder: Path, count: int, host: Host, target: Path):
        self.folder = folder
        self.target = target
        self.count = count
        self.photos = folder / "photos"
        make_photos(self.photos, count)
        self.comfyui = comfyui_command(host, folder / "base")
        self.expected: dict[str, bytes] = {}
        self.figures: dict[str, Any] = {}
        self.folders_before = scratch_folders()

    def seconds(self, name: str, arguments: list[str], environment: Mapping[str, str] | None = None) -> list[dict]:
        """A whole run: its seconds between the first and the last photo that was done."""
        report = self.folder / f"{name}.json"
        process = start_restore([*arguments, "--report", str(report)], environment)
        begun = time.monotonic()
        said = read_until(process, done=1)
        first = time.monotonic()
        assert process.poll() is None, "".join(said)
        finish(process)
        took = time.monotonic() - first
        rows = json.loads(report.read_text(encoding="utf-8"))["photos"]
        each = 1000 * took / (len(rows) - 1)
        self.note(f"{name}: {each:.0f} ms a photo; {took:.1f} s, after {first - begun:.1f} s for the first", each)
        return rows

    def note(self, text: str, value: Any = None) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
        self.figures[text.partition(":")[0]] = value

    def alone(self, server: ComfyServer) -> None:
        self.seconds("alone", [str(self.photos), str(self.target), "--server", server.url])

    def expect(self) -> None:
        self.expected = contents(self.target)
        assert len(self.expected) == self.count

    def engine(self, server: ComfyServer, environment: Mapping[str, str]) -> None:
        with RayNodes(1) as nodes:
            target = self.folder / "engine"
            ray = ["--server", server.url, "--engine", "ray", "--address", nodes.address]
            self.seconds("engine", [str(self.photos), str(target), *ray], environment)
            assert contents(target) == self.expected

    def cluster(self, nodes: RayNodes, target: str) -> list[str]:
        places = ["s3://photos/in", f"s3://photos/{target}", "--manifest", str(self.folder / "records" / target)]
        return [*places, "--engine", "ray", "--address", nodes.address, "--comfyui", self.comfyui, "--gpus", "0"]

    def hosts(self, system: Any, environment: Mapping[str, str]) -> None:
        for count in (1, 2):
            with RayNodes(count) as nodes:
                name = f"hosts_{count}"
                rows = self.seconds(name, self.cluster(nodes, name), environment)
                assert stored(system, f"photos/{name}") == self.expected
                shares = {host: sum(row["host"] == host for row in rows) for host in {row["host"] for row in rows}}
                self.note(f"shares of {count}: {shares}", shares)

    def killed(self, system: Any, environment: Mapping[str, str]) -> None:
        with RayNodes(2) as nodes:
            arguments = [*self.cluster(nodes, "killed"), "--hosts", "2"]
            begun = time.monotonic()
            driver = start_restore(arguments, environment)
            read_until(driver, self.count // 6)
            nodes.kill(0)
            nodes.add()
            self.note("killed a node, and added one")
            read_until(driver, self.count // 6)
            pid = self.comfyui_processes()[0]
            os.kill(pid, signal.SIGKILL)
            self.note(f"killed a ComfyUI: {pid}")
            read_until(driver, self.count // 6)
            assert driver.poll() is None
            driver.kill()
            driver.communicate()
            there = stored(system, "photos/killed")
            self.note(f"killed the driver: {len(there)} results are there", len(there))
            assert self.count // 2 <= len(there) < self.count
            report = self.folder / "killed.json"
            out = finish(start_restore([*arguments, "--report", str(report)], environment))
            self.note(f"killed, all of it: {time.monotonic() - begun:.1f} s", time.monotonic() - begun)
            rows = json.loads(report.read_text(encoding="utf-8"))["photos"]
            found = stored(system, "photos/killed")
            lost = self.expected.keys() - found.keys()
            doubled = found.keys() - self.expected.keys()
            differ = [name for name in self.expected.keys() & found.keys() if self.expected[name] != found[name]]
            done = sum(row["state"] == "done" for row in rows)
            self.note(f"result: {done} done, {len(lost)} lost, {len(doubled)} doubled, {len(differ)} differ")
            again = [row["name"] for row in rows if row.get("attempts", 1) > 1]
            self.note(f"begun more than once: {len(again)}", len(again))
            assert (done, lost, doubled, differ) == (self.count, set(), set(), []), out[-2000:]
        deadline = time.monotonic() + 30
        while (scratch_folders() - self.folders_before or self.comfyui_processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        left = self.comfyui_processes()
        self.note(f"ComfyUIs that still run: {len(left)}", len(left))
        folders = scratch_folders() - self.folders_before
        self.note(f"their folders that are left: {len(folders)}", len(folders))

    def comfyui_processes(self) -> list[int]:
        """Those that actors have started, without their guards and this script's other children."""
        guarded = set(processes_with("guard.py"))
        ours = processes_with(f"--base-directory {self.folder / 'base'} --disable-auto-launch")
        return [pid for pid in ours if pid not in guarded and pid not in processes_with("restore.py")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=300)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--alone", type=Path, metavar="DIR", help="for the results of one ComfyUI")
    asked = parser.parse_args()
    parts = asked.parts.split(",")
    host = find_host()
    assert host is not None
    with tempfile.TemporaryDirectory() as folder, storage() as (system, environment):
        show = Show(Path(folder), asked.photos, host, asked.alone or Path(folder) / "alone")
        system.put(str(show.photos), "photos/in", recursive=True)
        if "alone" in parts or "engine" in parts:
            with ComfyServer(host, Path(folder) / "server", {"realisr": ROOT}) as server:
                if "alone" in parts:
                    show.alone(server)
                show.expect()
                if "engine" in parts:
                    show.engine(server, environment)
        show.expect()
        if "killed" in parts:
            show.killed(system, environment)
        if "hosts" in parts:
            show.hosts(system, environment)


if __name__ == "__main__":
    main()
