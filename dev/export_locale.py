"""Write locales/en/nodeDefs.json from the node schemas, with words for the ids: what a translator starts from.

The schemas are the one home of the English texts; run this after changing them, then bring the other languages of
locales/ up to date (tests/e2e/test_locales.py says what differs).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from _pack import ROOT
from comfy_server import ComfyServer
from host_env import make_host
from labels import label

LOCALES = ROOT / "locales"
PREFIX = "RealISR_"


def node_inputs(inputs: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, str]]]:
    """(key, texts) of every input of a node of /object_info, those that a dynamic combo's options bring included.

    The frontend looks texts up under the input's id with dots replaced.
    """
    for group in ("required", "optional"):
        for name, (kind, options) in inputs.get(group, {}).items():
            yield f"{prefix}{name}", {"name": options.get("display_name") or label(name), "tooltip": options["tooltip"]}
            if kind == "COMFY_DYNAMICCOMBO_V3":
                for option in options["options"]:
                    yield from node_inputs(option["inputs"], f"{prefix}{name}_")


def node_texts(node: Mapping[str, Any]) -> dict[str, Any]:
    """Everything of one node of /object_info that a reader sees, in the form of nodeDefs.json."""
    outputs = zip(node["output_name"], node["output_tooltips"], strict=True)
    return {
        "display_name": node["display_name"],
        "description": node["description"],
        "inputs": dict(node_inputs(node["input"])),
        "outputs": {
            str(index): {"name": label(name), "tooltip": tooltip} for index, (name, tooltip) in enumerate(outputs)
        },
    }


def pack_texts(object_info: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """node id -> texts, of the pack's nodes."""
    return {name: node_texts(object_info[name]) for name in sorted(object_info) if name.startswith(PREFIX)}


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as base,
        ComfyServer(make_host(), Path(base), {"realisr": ROOT}) as server,
    ):
        texts = pack_texts(server.client.object_info())
    path = LOCALES / "en" / "nodeDefs.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(texts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
