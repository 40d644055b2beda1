"""A server that is killed in a phase of a run, started anew, and asked for the same picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import websocket

from comfy_server import ComfyServer
from demo import node_of

from .methods import LOADERS, Graph, drop

PHASES = ("loading", "encoding", "sampling", "decoding", "saving")

LOAD = (*LOADERS, "LoraLoaderModelOnly")
ENCODE = ("RealISR_VOSRConditioning", "InpaintModelConditioning")
WHOLE = ("RealISR_RestorationCFGSampler", "RealISR_DreamSRRestore", "RealISR_ARTokenRestorer")
"""Nodes that encode, sample and decode: sampling begins with the first progress, decoding with the last."""


def phase_of(graph: Graph, kind: str, data: dict[str, Any]) -> str | None:
    """The phase that a message says has begun."""
    node = graph.get(str(data.get("node")), {}).get("class_type", "")
    if kind == "executing":
        if node in LOAD:
            return "loading"
        if node in (*ENCODE, *WHOLE):
            return "encoding"
        return {"VAEDecode": "decoding", "SaveImage": "saving"}.get(node)
    if kind == "progress" and node in (*WHOLE, "SamplerCustomAdvanced"):
        return "decoding" if node in WHOLE and data["value"] >= data["max"] else "sampling"
    return None


def kill_in(server: ComfyServer, graph: Graph, phase: str) -> bool:
    """Run a graph and kill the server as soon as it says that the phase has begun; whether it ever said so."""
    killed = []

    def kill(kind: str, data: dict[str, Any]) -> None:
        if phase_of(graph, kind, data) == phase:
            server.kill()
            killed.append(phase)

    try:
        server.client.run(graph, on_message=kill)
    except (ConnectionError, websocket.WebSocketException, OSError):
        if not killed:
            raise
    return bool(killed)


def picture_of(server: ComfyServer, graph: Graph) -> bytes:
    """The file that the graph's Save Image writes."""
    (file,) = server.client.run(graph).images(node_of(graph, "SaveImage"))
    return server.client.view(file)


def check(server: ComfyServer, method: str, graph: Graph, phase: str, expected: bytes) -> list[str]:
    """Kill, start anew, run again; what was wrong."""
    drop(server.client)
    models = {path: path.stat().st_mtime_ns for path in server.models.rglob("*")}
    if not kill_in(server, graph, phase):
        return [f"{method} has no phase of {phase}"]
    server.restart()
    wrong = []
    if picture_of(server, graph) != expected:
        wrong.append(f"{method}, killed while {phase}: another picture")
    if {path: path.stat().st_mtime_ns for path in server.models.rglob("*")} != models:
        wrong.append(f"{method}, killed while {phase}: files of models/ were touched")
    return wrong


Say = Callable[[str], None]


def check_all(server: ComfyServer, graphs: dict[str, Graph], say: Say = print) -> list[str]:
    """Every phase of every method; what was wrong."""
    wrong = []
    for method, graph in graphs.items():
        expected = picture_of(server, graph)
        for phase in PHASES:
            found = check(server, method, graph, phase, expected)
            say(f"{method}, killed while {phase}: {found or 'the same picture'}")
            wrong += found
    return wrong
