"""A long life of one server: runs of every method, each after a failure or a cancel at a random moment."""

from __future__ import annotations

import copy
import hashlib
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comfy_server import ComfyServer, PromptError, PromptInterrupted
from demo import node_of

from . import pure
from .methods import LOADERS, Graph, drop, graphs, inputs_of, with_seed
from .server_memory import resident_megabytes

KEPT_RESULTS = 400
"""Of the server's cache, so that the loaders' models live as long as the server. It drops all others in turn."""

HOST_PREVIEW = "ComfyUI_temp_"
"""Pictures of nodes of the host's, such as its crop; the host drops them at its next start."""

FAILURES = {
    "file": "Load",
    "forward": "failed on purpose",
    "late": "the text holds",
    "refused": "the workflow was refused",
}
"""Ways to fail -> what the error says: damaged weights, in the loader; in the middle of sampling; after decoding; and
a graph that is refused."""

CANCEL = "cancel"


@dataclass(frozen=True)
class Footprint:
    """What a server holds of the machine."""

    megabytes: float
    """Resident, after what is no longer used was given back."""
    allocated: float
    """Megabytes asked of the C allocator, without what it holds in between."""
    objects: int
    """Blocks of Python's own allocator."""
    tensors: float
    """Megabytes of live tensors."""
    threads: int
    open_files: int
    temporary: frozenset[str]

    def __str__(self) -> str:
        return (
            f"{self.megabytes:.1f} MB, {self.allocated:.1f} MB allocated, {self.objects} objects, "
            f"{self.tensors:.1f} MB of tensors, {self.threads} threads, {self.open_files} open files, "
            f"{len(self.temporary)} temporary files"
        )

    @classmethod
    def of(cls, server: ComfyServer, temporary: Path) -> Footprint:
        assert server.process is not None
        result = server.client.run({"1": {"class_type": "RealISRTest_GiveBack", "inputs": {}}})
        process = Path(f"/proc/{server.process.pid}")
        left = [*temporary.rglob("*"), *(server.base / "temp").rglob("*")]
        return cls(
            resident_megabytes(server),
            result.outputs["1"]["allocated"][0] / 2**20,
            result.outputs["1"]["objects"][0],
            result.outputs["1"]["bytes"][0] / 2**20,
            len(list((process / "task").iterdir())),
            len(list((process / "fd").iterdir())),
            frozenset(str(path) for path in left if path.is_file() and not path.name.startswith(HOST_PREVIEW)),
        )


DAMAGED = "damaged"
LOADED_NAMES = {
    "RealISR_LoadVOSRModel": {"model_name": f"{DAMAGED}.safetensors"},
    "UNETLoader": {"unet_name": f"{DAMAGED}.safetensors"},
    "RealISR_LoadARRestorer": {"model_name": DAMAGED},
}
"""Loader -> the input that names a damaged file."""


def save_damaged_files(models: Path) -> None:
    """Weights cut short: they are listed, and fail when they are read."""
    cut_copy(
        models / "diffusion_models" / "flux1-dev.safetensors", models / "diffusion_models" / f"{DAMAGED}.safetensors"
    )
    whole = models / "LLM" / pure.FOLDER
    (models / "LLM" / DAMAGED).mkdir()
    for path in whole.iterdir():
        target = models / "LLM" / DAMAGED / path.name
        if path.suffix == ".safetensors":
            cut_copy(path, target)
        else:
            target.write_bytes(path.read_bytes())


def cut_copy(path: Path, target: Path) -> None:
    content = path.read_bytes()
    target.write_bytes(content[: len(content) // 2])


def failing(graph: Graph, kind: str, forward: int, run: int) -> Graph:
    """The graph so changed that it fails in one of the FAILURES. run: a number of its own."""
    broken = copy.deepcopy(graph)
    loader = next(key for key, node in graph.items() if node["class_type"] in LOADED_NAMES)
    if kind == "file":
        broken[loader]["inputs"].update(LOADED_NAMES[graph[loader]["class_type"]])
    elif kind == "forward":
        for node in broken.values():
            for name, value in node["inputs"].items():
                if value == [loader, 0]:
                    node["inputs"][name] = ["fail", 0]
        inputs = {"model": [loader, 0], "forward": forward, "run": run}
        broken["fail"] = {"class_type": "RealISRTest_FailAtForward", "inputs": inputs}
    elif kind == "late":
        inputs = {"image": inputs_of(broken, "SaveImage")["images"], "text": "bad", "word": "bad"}
        inputs_of(broken, "SaveImage")["images"] = ["fail", 0]
        broken["fail"] = {"class_type": "RealISRTest_FailOnText", "inputs": inputs}
    else:
        inputs_of(broken, "LoadImage")["image"] = "gone.png"
    return broken


@dataclass
class Soak:
    """Runs on one server. `temporary`: the folder that the server was given for temporary files."""

    server: ComfyServer
    temporary: Path
    seed: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    results: dict[tuple[str, int], str] = field(default_factory=dict)
    """(method, seed) -> SHA-256 of the picture."""
    wrong: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """method -> of its last whole run."""

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self.graphs = graphs(self.server.client)

    def run(self, method: str, seed: int) -> None:
        """One run to its end; a seed that ran before must give the same picture."""
        graph = with_seed(self.graphs[method], seed)
        start = time.monotonic()
        result = self.server.client.run(graph)
        self.seconds[method] = time.monotonic() - start
        (file,) = result.images(node_of(graph, "SaveImage"))
        found = hashlib.sha256(self.server.client.view(file)).hexdigest()
        if self.results.setdefault((method, seed), found) != found:
            self.wrong.append(f"{method} with seed {seed} gives another picture than before")
        self.counts["runs"] += 1

    def disturb(self, method: str, seed: int) -> None:
        """A failure or a cancel, drawn."""
        kinds = [kind for kind in FAILURES if kind != "forward" or method != "PURE"]
        kind = self.draw.choice([CANCEL] * len(kinds) + kinds)
        if kind == CANCEL:
            self.cancel(with_seed(self.graphs[method], seed), self.draw.uniform(0, self.seconds[method]))
            return
        try:
            forward = 1 if method == "VOSR, one step" else self.draw.randint(1, 2)
            self.server.client.run(failing(with_seed(self.graphs[method], seed), kind, forward, seed))
            self.wrong.append(f"{method}: {kind} did not fail")
        except PromptError as error:
            self.counts[f"failed: {kind}"] += 1
            told = str(error).partition("\n")[0]
            if FAILURES[kind] not in told:
                self.wrong.append(f"{method}: {kind} failed with: {told}")

    def cancel(self, graph: Graph, after: float) -> None:
        """Run a graph and cancel it so many seconds after it started, which may be too late."""
        timers: list[threading.Timer] = []

        def begin(kind: str, _: dict[str, Any]) -> None:
            if kind == "execution_start":
                timers.append(threading.Timer(after, self.server.client.interrupt))
                timers[-1].start()

        try:
            self.server.client.run(graph, on_message=begin)
            self.counts["cancelled too late"] += 1
        except PromptInterrupted:
            self.counts["cancelled"] += 1
        finally:
            for timer in timers:
                timer.join()

    def round(self, number: int) -> None:
        """Every method once undisturbed, each after something that went wrong."""
        for method in self.graphs:
            # Failures come with numbers of their own, so that nothing of them is reused.
            self.disturb(method, 10_000_000 + number)
            self.run(method, number)
        # A server's list of what ran grows with every prompt, by design.
        self.server.client.post("/history", {"clear": True})

    def warnings(self) -> list[str]:
        """Lines in which the host says that a model is not let go."""
        return [line for line in self.server.log().splitlines() if "memory leak" in line]

    def digests(self) -> dict[str, str]:
        """method and loader -> SHA-256 of the weights as they lie in the server, all patches taken back."""
        drop(self.server.client, results=False)
        found = {}
        for method, graph in self.graphs.items():
            loaders = [key for key, node in graph.items() if node["class_type"] in LOADERS]
            asked = {key: {"class_type": "RealISRTest_WeightsDigest", "inputs": {"of": [key, 0]}} for key in loaders}
            nodes = {f"of {key}": node for key, node in asked.items()}
            result = self.server.client.run({**{key: graph[key] for key in loaders}, **nodes})
            for key in loaders:
                shown = result.outputs[f"of {key}"]
                assert shown["tensors"][0] > 0
                found[f"{method}: {graph[key]['class_type']}"] = shown["digest"][0]
                self.threads = shown["threads"]
        return found

    def again(self, most: int = 10) -> None:
        """Some of the results once more, with models read anew from their files."""
        drop(self.server.client)
        for method, seed in self.draw.sample(sorted(self.results), min(most, len(self.results))):
            self.run(method, seed)
            self.counts["made again"] += 1
