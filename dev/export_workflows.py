"""Write the API form of every workflow file with ComfyUI's real frontend: `make workflows`.

export_workflows.py                     workflows/TITLE.json -> workflows/api/NAME.json, for every template
export_workflows.py --layout X.json...  the other way: lay out API files as a start for drawing workflows/X.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from comfy_frontend import Frontend, find_browser
from comfy_server import ComfyServer
from host_env import make_host
from templates import ROOT, WORKFLOWS, Template, templates


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {path}")


def export(frontend: Frontend, template: Template) -> None:
    opened = frontend.open_file(template.path)
    if opened.missing_nodes or opened.errors:
        sys.exit(f"{template.title}: missing nodes {opened.missing_nodes}, errors {opened.errors}")
    write_json(template.twin, plain_ids(frontend.export_api()))


def plain_ids(api: dict[str, Any]) -> dict[str, Any]:
    """An API-form graph in which nodes of subgraphs go by their own ids: "12", not "7:12".

    So a node keeps its id in workflows/api/ when it moves into a subgraph: scripts and saved changes name it. Raises
    ValueError when two nodes would have the same id.
    """
    plain = {node: node.rpartition(":")[2] for node in api}
    if len(set(plain.values())) < len(plain):
        raise ValueError("two nodes of the workflow's subgraphs have the same id")

    def renamed(value: Any) -> Any:
        is_link = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and value[0] in plain
        return [plain[value[0]], value[1]] if is_link else value

    nodes = {
        plain[node]: {**each, "inputs": {name: renamed(value) for name, value in each["inputs"].items()}}
        for node, each in api.items()
    }
    return {node: nodes[node] for node in sorted(nodes, key=int)}


def lay_out(frontend: Frontend, path: Path) -> None:
    frontend.open_api(json.loads(path.read_text(encoding="utf-8")), path.stem)
    drawn = frontend.export_ui()
    drawn.setdefault("extra", {})["realisr"] = {"name": path.stem}
    write_json(WORKFLOWS / path.name, drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", nargs="+", type=Path, metavar="API_FILE")
    asked = parser.parse_args()
    browser = find_browser()
    if browser is None:
        sys.exit("this needs a browser: no chromium, chromium-browser or google-chrome on PATH")
    with (
        tempfile.TemporaryDirectory() as base,
        ComfyServer(make_host(), Path(base), {"realisr": ROOT}) as server,
        Frontend(server.url, browser) as frontend,
    ):
        for path in asked.layout or ():
            lay_out(frontend, path)
        for template in () if asked.layout else templates():
            export(frontend, template)


if __name__ == "__main__":
    main()
