"""Restore every image of a folder through a running ComfyUI.

    python scripts/restore.py photos restored
    python scripts/restore.py photos restored --server http://192.168.1.5:8188 --workflow my_workflow_api.json
    python scripts/restore.py photos restored --set "Restoration-CFG Sampler.steps=25" --set 4.model_name=VOSR_1.4B_ms

Needs Python and nothing else. The workflow is in API form (File > Export (API) in ComfyUI), with one Load Image and one
Save Image node. Each image becomes restored/<its name>.png; one that is there already is left out, so an
interrupted run goes on where it was. As with any Load Image, transparency is dropped. The server keeps its own copy
of uploads and results, in input/restore and where the workflow's Save Image puts them.

--set NODE.INPUT=VALUE changes a widget; NODE is an id, a class (RealISR_LoadVOSRModel) or a title.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import sys
import time
import urllib.error
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_client import HTTPClient, PromptError, PromptInterrupted

DEFAULT_WORKFLOW = Path(__file__).resolve().parent.parent / "workflows" / "api" / "vosr_nano_restore.json"
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
UPLOAD_FOLDER = "restore"

Graph = dict[str, dict[str, Any]]


class RestoreError(Exception):
    """The run cannot start; the message says what to change."""


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


def read_graph(path: Path) -> Graph:
    """A workflow file in API form. Raises RestoreError for anything else."""
    try:
        graph = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RestoreError(f"there is no workflow file {path}") from None
    except ValueError as error:
        raise RestoreError(f"{path} is not JSON: {error}") from error
    if isinstance(graph, dict) and "nodes" in graph and "links" in graph:
        raise RestoreError(f"{path} is the form ComfyUI's editor saves. Export it with File > Export (API).")
    if not isinstance(graph, dict) or not all(isinstance(n, dict) and "class_type" in n for n in graph.values()):
        raise RestoreError(f"{path} is not a workflow in API form")
    return graph


def describe(graph: Graph, nodes: Iterable[str]) -> str:
    return ", ".join(f"{node} ({graph[node]['class_type']})" for node in nodes) or "none"


def find_nodes(graph: Graph, name: str) -> list[str]:
    """Ids of the nodes with this id, class or title."""
    if name in graph:
        return [name]
    return [
        node
        for node, content in graph.items()
        if name in (content["class_type"], content.get("_meta", {}).get("title"))
    ]


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


def read_job(path: Path, settings: Sequence[str], load_node: str, save_node: str) -> Job:
    graph = read_graph(path)
    for setting in settings:
        apply_setting(graph, setting)
    return Job(graph, single_node(graph, load_node, "--input-node"), single_node(graph, save_node, "--output-node"))


def plan(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """(image, result) for every image of the folder. Raises RestoreError for an empty folder or clashing names."""
    if not source.is_dir():
        raise RestoreError(f"there is no folder {source}")
    images = sorted(path for path in source.iterdir() if path.suffix.lower() in SUFFIXES)
    if not images:
        raise RestoreError(f"{source} has no images ({', '.join(sorted(SUFFIXES))})")
    planned = [(path, target / f"{path.stem}.png") for path in images]
    results = [result for _, result in planned]
    if clashes := sorted({result.stem for result in results if results.count(result) > 1}):
        raise RestoreError(f"several images would become one result: {', '.join(clashes)}. Rename all but one of each.")
    if source.resolve() == target.resolve():
        raise RestoreError("the two folders are the same; results need one of their own")
    return planned


def check_server(client: HTTPClient) -> None:
    """Raises RestoreError unless a ComfyUI answers."""
    try:
        client.get("/system_stats")
    except (urllib.error.URLError, ConnectionError, ValueError) as error:
        raise RestoreError(f"no ComfyUI answers at {client.url} ({error}). Start it, or pass --server.") from error


def restore_image(client: HTTPClient, job: Job, image: Path, timeout: float) -> list[bytes]:
    """The PNG files the workflow makes of an image. A Ctrl-C takes the work off the server."""
    content = image.read_bytes()
    # By content, so that two runs at a time never swap images under each other.
    name = f"{hashlib.sha256(content).hexdigest()[:16]}{image.suffix.lower()}"
    prompt_id = client.submit(job.with_image(client.upload_bytes(content, name, UPLOAD_FOLDER)))
    try:
        outputs = client.wait(prompt_id, timeout)
    except (KeyboardInterrupt, TimeoutError):
        client.cancel(prompt_id)
        raise
    files = outputs.get(job.save_node, {}).get("images", [])
    if not files:
        raise PromptError(f"node {job.save_node} ({job.graph[job.save_node]['class_type']}) made no image")
    return [client.view(file) for file in files]


def save(result: Path, contents: Sequence[bytes]) -> None:
    """Write NAME.png, or NAME_1.png and so on for several; a file appears whole or not at all."""
    for index, content in enumerate(contents, 1):
        path = result if len(contents) == 1 else result.with_stem(f"{result.stem}_{index}")
        partial = path.with_suffix(".partial")
        partial.write_bytes(content)
        partial.replace(path)


def restore_folder(client: HTTPClient, job: Job, planned: Sequence[tuple[Path, Path]], timeout: float) -> int:
    """Restore what is not there yet; returns how many images failed."""
    failures = 0
    for index, (image, result) in enumerate(planned, 1):
        counter = f"[{index}/{len(planned)}] {image.name}"
        if result.exists() or result.with_stem(f"{result.stem}_1").exists():
            print(f"{counter}: {result} is there already")
            continue
        start = time.monotonic()
        try:
            save(result, restore_image(client, job, image, timeout))
        except (PromptError, PromptInterrupted, TimeoutError) as error:
            failures += 1
            print(f"{counter}: failed: {error}", file=sys.stderr)
        else:
            print(f"{counter}: {time.monotonic() - start:.1f} s")
    return failures


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of images")
    parser.add_argument("target", type=Path, help="folder for the results; made if needed")
    parser.add_argument("--server", default="http://127.0.0.1:8188", help="address of ComfyUI (default: %(default)s)")
    parser.add_argument("--workflow", type=Path, default=DEFAULT_WORKFLOW, help="API workflow (default: VOSR nano)")
    parser.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", dest="settings")
    parser.add_argument("--input-node", default="LoadImage", help="which Load Image, if there are several")
    parser.add_argument("--output-node", default="SaveImage", help="which Save Image, if there are several")
    parser.add_argument("--timeout", type=float, default=3600, help="longest time for one image, in seconds")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    asked = parse_arguments(argv)
    client = HTTPClient(asked.server.rstrip("/"))
    try:
        job = read_job(asked.workflow, asked.settings, asked.input_node, asked.output_node)
        planned = plan(asked.source, asked.target)
        check_server(client)
        asked.target.mkdir(parents=True, exist_ok=True)
        failures = restore_folder(client, job, planned, asked.timeout)
    except RestoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (urllib.error.URLError, ConnectionError) as error:
        print(f"error: lost {client.url} ({error}); run it again to go on", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run it again to go on", file=sys.stderr)
        return 130
    if failures:
        print(f"{failures} of {len(planned)} images failed", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
