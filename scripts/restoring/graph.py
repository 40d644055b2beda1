"""The workflow: which file, what is changed in it, where the photo goes in and the result comes out."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import RestoreError

SHIPPED = Path(__file__).resolve().parent.parent.parent / "workflows" / "api"
DEFAULT_WORKFLOW = SHIPPED / "vosr_nano_restore.json"
PRESET = "preset"
SEEDS = ("seed", "noise_seed")
SIXTEEN_BITS = {"format": "png", "format.bit_depth": "16-bit", "format.input_color_space": "sRGB"}
"""Widgets of the host's SaveImageAdvanced."""

Graph = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """A workflow with the node that takes the image and the node whose images are the result."""

    graph: Graph
    load_node: str
    save_node: str

    def with_image(self, name: str) -> Graph:
        graph = copy.deepcopy(self.graph)
        graph[self.load_node]["inputs"]["image"] = name
        return graph

    def in_sixteen_bits(self) -> Job:
        """The same with results of 16 bits, where a Save Image node makes them; another node is left as it is."""
        node = self.graph[self.save_node]
        if node["class_type"] != "SaveImage":
            return self
        inputs = {**node["inputs"], **SIXTEEN_BITS}
        graph = {**self.graph, self.save_node: {**node, "class_type": "SaveImageAdvanced", "inputs": inputs}}
        return Job(graph, self.load_node, self.save_node)

    @property
    def save_class(self) -> str:
        return self.graph[self.save_node]["class_type"]

    @property
    def seeds(self) -> dict[str, int]:
        """NODE.INPUT -> number, for every seed widget."""
        return {
            f"{node}.{name}": content["inputs"][name]
            for node, content in self.graph.items()
            for name in SEEDS
            if isinstance(content["inputs"].get(name), int)
        }

    @property
    def digest(self) -> str:
        """Another for another workflow or settings; titles do not count."""
        nodes = {node: [content["class_type"], content["inputs"]] for node, content in self.graph.items()}
        text = json.dumps([nodes, self.load_node, self.save_node], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def workflow_names() -> list[str]:
    """Names that stand for a workflow of this repository."""
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def workflow_file(name: str) -> Path:
    """A file as it is, or the workflow of this repository with that name."""
    path, shipped = Path(name), SHIPPED / f"{name}.json"
    return shipped if not path.exists() and name in workflow_names() else path


def is_node(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)


def read_graph(path: Path) -> Graph:
    """A workflow file in API form. Raises RestoreError for anything else."""
    try:
        graph = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(workflow_names())
        raise RestoreError(
            f"there is no workflow file {path}, and no workflow of that name; known are {known}"
        ) from None
    except OSError as error:
        raise RestoreError(f"the workflow {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise RestoreError(f"{path} is not JSON: {error}") from error
    if isinstance(graph, dict) and "nodes" in graph and "links" in graph:
        raise RestoreError(f"{path} is the form ComfyUI's editor saves. Export it with File > Export (API).")
    if not isinstance(graph, dict) or not graph or not all(is_node(node) for node in graph.values()):
        raise RestoreError(f"{path} is not a workflow in API form")
    return graph


def describe(graph: Graph, nodes: Iterable[str]) -> str:
    return ", ".join(f"{node} ({graph[node]['class_type']})" for node in nodes) or "none"


def find_nodes(graph: Graph, name: str) -> list[str]:
    """Ids of the nodes with this id, class or title."""
    if name in graph:
        return [name]
    return [node for node, content in graph.items() if name in (content["class_type"], title_of(content))]


def title_of(content: dict[str, Any]) -> Any:
    meta = content.get("_meta")
    return meta.get("title") if isinstance(meta, dict) else None


def single_node(graph: Graph, name: str, option: str) -> str:
    """The one node with this id, class or title. Raises RestoreError with the nodes there are."""
    found = find_nodes(graph, name)
    if len(found) != 1:
        among = describe(graph, found or graph)
        raise RestoreError(
            f"the workflow has {len(found)} nodes '{name}' and one is needed; choose with {option}: {among}"
        )
    return found[0]


def apply_setting(graph: Graph, setting: str) -> None:
    """Change one widget, given as NODE.INPUT=VALUE, keeping the type of the value that is there."""
    target, equals, text = setting.partition("=")
    name = next((n for n in (target[:i] for i, c in enumerate(target) if c == ".") if find_nodes(graph, n)), "")
    if not equals or not name:
        raise RestoreError(f"--set {setting}: expected NODE.INPUT=VALUE; the nodes are {describe(graph, graph)}")
    node = single_node(graph, name, "--set ID.INPUT=VALUE")
    inputs, key = graph[node]["inputs"], target[len(name) + 1 :]
    widgets = {name: value for name, value in inputs.items() if not isinstance(value, list)}
    if key not in widgets:
        raise RestoreError(f"--set {setting}: node {node} has no widget '{key}', only {', '.join(widgets) or 'links'}")
    inputs[key] = parse_like(widgets[key], text, setting)


def parse_like(present: Any, text: str, setting: str) -> Any:
    if isinstance(present, bool):
        if text.lower() not in ("true", "false"):
            raise RestoreError(f"--set {setting}: expected true or false")
        return text.lower() == "true"
    if not isinstance(present, (int, float)):
        return text
    try:
        # JSON writes the float 2.0 as 2, so a whole number there may take a fraction here.
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise RestoreError(f"--set {setting}: expected a number") from None


def apply_preset(graph: Graph, preset: str) -> None:
    """Choose a preset in every node that has them. Raises RestoreError where none has."""
    nodes = [content for content in graph.values() if isinstance(content["inputs"].get(PRESET), str)]
    if not nodes:
        raise RestoreError(f"--preset {preset}: no node of this workflow has presets")
    for content in nodes:
        content["inputs"][PRESET] = preset


def read_job(path: Path, settings: Sequence[str], load_node: str, save_node: str, preset: str = "") -> Job:
    """The workflow of a file with its changes. Raises RestoreError."""
    graph = read_graph(path)
    if preset:
        apply_preset(graph, preset)
    for setting in settings:
        apply_setting(graph, setting)
    return Job(graph, single_node(graph, load_node, "--input-node"), single_node(graph, save_node, "--output-node"))
