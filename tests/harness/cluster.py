"""A Ray cluster of several nodes and an S3 server on this machine, and scripts/restore.py as a process over them."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from _pack import ROOT

DONE = re.compile(r"\[\d+/\d+\] .*: \d+\.\d s")
"""A line of scripts/restore.py for a photo that it restored."""
SMALL_STORE = 80 * 2**20
"""Bytes of shared memory for a node: near the least that Ray takes, as containers have little."""


@contextlib.contextmanager
def storage(bucket: str = "photos") -> Iterator[tuple[Any, dict[str, str]]]:
    """An S3 server on loopback with an empty bucket: fsspec's file system for it, and the environment to reach it."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        boto3.client("s3").create_bucket(Bucket=bucket)
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        yield s3fs.S3FileSystem(use_listings_cache=False), environment
    finally:
        for name in environment:
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]
        server.stop()


class RayNodes:
    """`with RayNodes(2) as nodes:` a head without room for actors, and so many nodes with one CPU each.

    Each is a raylet of its own, as on a machine of its own. Nothing is sent to the outside.
    """

    def __init__(self, nodes: int):
        self.count = nodes
        self.cluster: Any = None
        self.nodes: list[Any] = []

    def __enter__(self) -> RayNodes:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        from ray.cluster_utils import Cluster

        self.cluster = Cluster()
        try:
            self.cluster.add_node(num_cpus=0, include_dashboard=False, object_store_memory=SMALL_STORE, wait=False)
            self.nodes = [self.add() for _ in range(self.count)]
            self.cluster.wait_for_nodes(120)
        except BaseException:
            self.cluster.shutdown()
            raise
        return self

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self) -> Any:
        return self.cluster.add_node(num_cpus=1, object_store_memory=SMALL_STORE, wait=False)

    def kill(self, index: int) -> None:
        """A machine is gone: nothing on it ends in order."""
        self.cluster.remove_node(self.nodes.pop(index), allow_graceful=False)

    def __exit__(self, *_: object) -> None:
        self.cluster.shutdown()


def processes_with(words: str) -> list[int]:
    """Ids of processes that run with these words on their command line."""
    import psutil

    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or ())
        if words in line and process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
            found.append(process.pid)
    return found


def start_restore(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """scripts/restore.py, whose lines for finished photos can be read as they come."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "restore.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(environment or {})},
    )


def read_until(process: subprocess.Popen[str], done: int) -> list[str]:
    """Its lines until so many photos are done, or it has ended."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if sum(DONE.match(each) is not None for each in lines) >= done:
            break
    return lines


def contents(folder: Path) -> dict[str, bytes]:
    """Every result in a folder: path in it -> bytes."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and ".realisr" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def stored(system: Any, folder: str) -> dict[str, bytes]:
    """Every object below a folder of a bucket: path in it -> bytes."""
    return {path[len(folder) + 1 :]: system.cat_file(path) for path in system.find(folder)}
