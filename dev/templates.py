"""The shipped workflows: their titles in ComfyUI's template gallery, their names on the command line, what they need.

ComfyUI shows a pack's templates by the names of their files; so workflows/ has titles, numbered for one order, and
workflows/api/ has names to type. `extra.realisr.name` of a workflow is the name of its API twin.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from _pack import load_pack

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = ROOT / "workflows"
GIGABYTE = 1e9

METHODS = {
    "vosr": "VOSR",
    "vicr": "VICR",
    "dreamsr": "DreamSR",
    "pure": "PURE",
    "agent": "VICR",
    "vision": "VICR",
    "mm": "DreamSR",
    "patch": "FLUX",
}
"""First word of a template's name -> what its picture calls it."""


@dataclass(frozen=True)
class Template:
    path: Path
    """Of the workflow that is opened."""
    name: str
    """Of its API twin."""

    @property
    def title(self) -> str:
        return self.path.stem

    @property
    def is_app(self) -> bool:
        return self.title.endswith(".app")

    @property
    def twin(self) -> Path:
        return WORKFLOWS / "api" / f"{self.name}.json"

    @cached_property
    def parts(self) -> list[Any]:
        """Everything of the catalogue that its loaders choose."""
        load_pack()
        from realisr.services.model_catalogue import LOADERS, known
        from realisr.services.model_catalogue import METHODS as catalogue

        folders = sorted({part.folder for method in catalogue.values() for part in method.parts})
        nodes = read(self.twin).values()
        values = [value for node in nodes for value in node["inputs"].values() if is_file(value)]
        found = [known(folder, value) for value in values for folder in folders]
        # A loader of one method may leave a file's name to be found: "auto".
        methods = [LOADERS[node["class_type"]] for node in nodes if len(LOADERS.get(node["class_type"], ())) == 1]
        found += [part for (method,) in methods for part in catalogue[method].parts]
        return list({part.name: part for part in found if part is not None}.values())

    @property
    def need(self) -> str:
        """ready, chat (a chat server), download, or none where some weights have not been released."""
        if any(not part.page for part in self.parts):
            return "none"
        if self.parts or has_models(read(self.path)):
            return "download"
        return (
            "chat"
            if any(node["class_type"] == "RealISR_ChatEndpoint" for node in read(self.twin).values())
            else "ready"
        )

    @property
    def runs_here(self) -> bool:
        return self.need == "ready"

    @property
    def stamp(self) -> str:
        if self.need != "download":
            return {"ready": "Ready", "chat": "Needs a chat model", "none": "No public weights"}[self.need]
        sizes = [part.size for part in self.parts]
        return f"Download {sum(sizes) / GIGABYTE:.1f} GB" if sizes and all(sizes) else "Download"

    @property
    def method(self) -> str:
        first = self.name.removeprefix("app_").partition("_")[0]
        return METHODS.get(first, "RealISR")


def is_file(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) < 200 and "\n" not in value


def has_models(workflow: Mapping[str, Any]) -> bool:
    graphs = [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]
    return any(node.get("properties", {}).get("models") for graph in graphs for node in graph["nodes"])


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def templates() -> list[Template]:
    """All of them in the gallery's order."""
    return [Template(path, read(path)["extra"]["realisr"]["name"]) for path in sorted(WORKFLOWS.glob("*.json"))]


def template(name: str) -> Template:
    """The one whose API twin is called so."""
    return next(each for each in templates() if each.name == name)
