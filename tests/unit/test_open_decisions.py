"""docs/open-decisions.md: its settings exist, and the help of every node it names links to it."""

from __future__ import annotations

import json
import re

import pytest

from _pack import ROOT

PAGE = "docs/open-decisions.md"
ADDRESS = f"https://github.com/realisr/RealISR/blob/main/{PAGE}"
LANGUAGES = ("en", "zh")
NODES = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
# "VOSR Restore (Restoration-CFG Sampler)" goes by either.
IDS = {
    name: node_id
    for node_id, texts in NODES.items()
    for name in filter(None, re.split(r" \(|\)", texts["display_name"]))
}


def sections() -> dict[str, str]:
    """Text of each method's section, by its address."""
    parts = re.split(r"^## (.+)\n", (ROOT / PAGE).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {f"{ADDRESS}#{title.lower()}": text for title, text in zip(parts[::2], parts[1::2], strict=True)}


SECTIONS = sections()


def named_nodes(section: str) -> list[str]:
    """Node ids of a section's "Nodes:" line."""
    (line,) = re.findall(r"^Nodes: (.+)$", section, re.MULTILINE)
    return [IDS[name] for name in line.split(", ")]


def has_input(node_id: str, name: str) -> bool:
    # A dynamic input's own widgets carry its name before theirs.
    return any(key == name or key.endswith(f"_{name}") for key in NODES[node_id]["inputs"])


@pytest.mark.parametrize("address", SECTIONS)
def test_a_setting_is_an_input_of_the_node_it_is_said_to_be_on(address: str):
    rows = [line for line in SECTIONS[address].splitlines() if line.startswith("|")][2:]
    assert rows
    for row in rows:
        assert row.count("|") == 5, row
        where = row.split("|")[4]
        nodes = [node_id for name, node_id in IDS.items() if re.search(rf"\b{re.escape(name)}\b", where)]
        for name in re.findall(r"`(\w+)`", where) if nodes else []:
            assert any(has_input(node_id, name) for node_id in nodes), f"no `{name}` on {nodes}: {row}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_help_pages_of_the_nodes_link_to_their_section_and_no_others_do(language: str):
    linked = {
        (page.parent.name, target)
        for page in (ROOT / "js" / "docs").glob(f"*/{language}.md")
        for target in re.findall(rf"\(({re.escape(ADDRESS)}[^)]*)\)", page.read_text(encoding="utf-8"))
    }
    assert linked == {(node_id, address) for address, section in SECTIONS.items() for node_id in named_nodes(section)}
