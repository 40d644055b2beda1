"""Translations and help pages say something about every node, input and output there is, and about nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from _pack import ROOT
from export_locale import LOCALES, PREFIX, pack_texts

LANGUAGES = ("en", "zh")
HELP = ROOT / "js" / "docs"
# The frontend's message format gives these a meaning of their own.
MESSAGE_SYNTAX = re.compile(r"[{}|@]")


@pytest.fixture(scope="module")
def schema_texts(server) -> dict[str, Any]:
    return pack_texts(server.client.object_info())


def read(language: str) -> dict[str, Any]:
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def leaves(texts: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(texts, dict):
        for key, value in texts.items():
            yield from leaves(value, f"{path}/{key}")
    else:
        yield path, texts


def test_english_is_what_the_schemas_say(schema_texts):
    assert read("en") == schema_texts, "run dev/export_locale.py"


def test_chinese_is_complete(schema_texts):
    assert dict(leaves(read("zh"))).keys() == dict(leaves(schema_texts)).keys()


def test_chinese_is_translated():
    english = dict(leaves(read("en")))
    tooltips = {path: text for path, text in leaves(read("zh")) if path.endswith(("/tooltip", "/description"))}
    same = [path for path, text in tooltips.items() if text == english[path]]
    assert same == []
    assert all(re.search("[\u4e00-\u9fff]", text) for text in tooltips.values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_upsets_the_message_format(language: str):
    upset = [f"{path}: {text}" for path, text in leaves(read(language)) if MESSAGE_SYNTAX.search(text)]
    assert upset == []


def test_the_server_hands_out_the_translations(server):
    assert server.client.get("/i18n")["zh"]["nodeDefs"].items() >= read("zh").items()


def test_there_is_a_help_page_for_every_node_and_no_other(schema_texts):
    assert {folder.name for folder in HELP.iterdir()} - {"images"} == schema_texts.keys()


@pytest.mark.parametrize("language", LANGUAGES)
def test_help_pages_name_every_input_and_output(schema_texts, language: str):
    missing = []
    for node_id, texts in read(language).items():
        page = (HELP / node_id / f"{language}.md").read_text(encoding="utf-8")
        # A dynamic input's own widgets go by their short names on the node.
        parents = [key for key in schema_texts[node_id]["inputs"] if f"`{key}`" in page]
        for key, words in texts["inputs"].items():
            if not any(f"**{words['name']}**{named}" in page for named in written(key, remove_parent(key, parents))):
                missing.append(f"{node_id}: {key}")
        labels = [words["name"] for words in texts.get("outputs", {}).values()]
        missing += [f"{node_id}: {label}" for label in labels if f"**{label}**" not in page]
    assert missing == []


def written(*names: str) -> list[str]:
    """How a help page follows an input's label with its id."""
    return [f"{bracket}`{name}`" for name in names for bracket in (" (", "（")]


@pytest.mark.parametrize("language", LANGUAGES)
def test_help_pages_have_no_tables(language: str):
    """The panel that shows them is too narrow: what lies outside of it cannot be read."""
    tables = [page.parent.name for page in HELP.glob(f"*/{language}.md") if "\n|" in page.read_text(encoding="utf-8")]
    assert tables == []


def remove_parent(key: str, parents: list[str]) -> str:
    return next((key.removeprefix(f"{parent}_") for parent in parents if key.startswith(f"{parent}_")), key)


@pytest.mark.parametrize("language", LANGUAGES)
def test_help_pages_are_titled_and_served_where_the_frontend_looks(server, language: str):
    for node_id, texts in read(language).items():
        page = server.client.request(f"/extensions/realisr/docs/{node_id}/{language}.md").decode()
        assert page.startswith(f"# {texts['display_name']}\n")


def named_workflows(text: str) -> list[str]:
    """Workflows go by their file names in italics, and nothing else in a help page is written so."""
    return re.findall(r"(?<!\*)\*([a-z0-9]+(?:_[a-z0-9]+)+)\*(?!\*)", text)


@pytest.mark.parametrize("language", LANGUAGES)
def test_help_pages_name_workflows_that_exist(language: str):
    named = {
        (name, page.parent.name)
        for page in HELP.glob(f"*/{language}.md")
        for name in named_workflows(page.read_text(encoding="utf-8"))
    }
    methods = {name.partition("_")[0] for name, _ in named}
    assert methods >= {"vosr", "vicr", "dreamsr", "pure"}
    assert [each for each in named if not (ROOT / "workflows" / "api" / f"{each[0]}.json").is_file()] == []


def test_any_workflow_is_recognised_by_its_name():
    assert named_workflows("see *dreamsr_4k*, *pure_512*，*no_such*; `a_b` **c_d** *word*") == [
        "dreamsr_4k",
        "pure_512",
        "no_such",
    ]


NAMES = re.compile(r"adain|RGB|moose|0 to ln 16384|(bf|fp)\d+(_\w+)?")
"""Values of dropdowns that are names in every language."""


def fixed_choices(inputs: dict[str, Any]) -> Iterator[str]:
    """The values of all dropdowns, those that a dynamic one's options bring included; of lists of files the phrases.

    What files there are depends on the tests before. Their names have no spaces.
    """
    for name, (kind, options) in (*inputs.get("required", {}).items(), *inputs.get("optional", {}).items()):
        lists_files = name.endswith("_name") or name == "upscale_model"
        if kind == "COMBO":
            yield from (value for value in options["options"] if not lists_files or " " in value)
        elif kind == "COMFY_DYNAMICCOMBO_V3":
            for option in options["options"]:
                yield option["key"]
                yield from fixed_choices(option["inputs"])


def test_chinese_has_words_for_what_dropdowns_offer(server):
    nodes = server.client.object_info().items()
    values = {value for name, node in nodes if name.startswith(PREFIX) for value in fixed_choices(node["input"])}
    texts = json.loads((LOCALES / "zh" / "main.json").read_text(encoding="utf-8"))["realisr"]
    translated = {key.removeprefix("choice.") for key in texts if key.startswith("choice.")}
    assert {value for value in values if not NAMES.fullmatch(value)} <= translated
    assert translated <= values | {"none", "auto"}


def test_the_frontend_shows_chinese(frontend, server):
    """One node in the real frontend: dynamic widgets are looked up under names made from theirs."""
    server.client.post("/settings", {"Comfy.Locale": "zh"})
    try:
        frontend.page.reload(wait_until="domcontentloaded")
        frontend.page.wait_for_function("() => window.app?.vueAppReady", timeout=120_000)
        labels = frontend.page.evaluate("""() => {
            const node = LiteGraph.createNode("RealISR_DegradeImage");
            const mode = node.widgets.find((widget) => widget.name === "degradation");
            mode.value = "simple";
            const sockets = node.inputs.map((input) => input.label ?? input.localized_name);
            return [node.title, ...sockets, ...node.widgets.map((widget) => widget.label ?? widget.name),
                mode.options.getOptionLabel(mode.value), mode.value];
        }""")
    finally:
        server.client.post("/settings", {"Comfy.Locale": "en"})
        frontend.page.reload(wait_until="domcontentloaded")
        frontend.page.wait_for_function("() => window.app?.vueAppReady", timeout=120_000)
    texts = read("zh")["RealISR_DegradeImage"]
    assert labels[0] == texts["display_name"]
    shown = ("image", "scale", "degradation", "degradation_noise_sigma")
    assert {texts["inputs"][key]["name"] for key in shown} <= set(labels)
    assert labels[-2:] == ["简单 (simple)", "simple"], "the value stays what is stored"
