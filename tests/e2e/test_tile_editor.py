"""The tile editor on Edit Patch Prompts in the browser, its captions from a chat server that speaks HTTP."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import pytest

from comfy_frontend import Frontend
from harness.chat_server import ChatRequest, ChatServer, Reply

NUMBERS = itertools.count(100, 100)
"""Ids of nodes that no other graph has: the frontend shows what it has for an id, of whatever graph that was."""

PLACE = re.compile(r"row (\d+) of (\d+).*column (\d+) of (\d+)")
HOSTILE = "<img src=x onerror=\"document.title='gotcha'\"><b>fur</b>"
COLUMNS = 4
ACROSS, DOWN, SIZE = (0, 40, 72, 96, 128), (0, 40, 64, 96), (128, 96)
"""Where the cells of the 3 x 4 tiles of `graph` end, and its picture, in pixels."""
AMBER, RED = [255, 176, 0], [255, 80, 80]


def place_of(request: ChatRequest) -> int:
    """Number of the tile that a request is about; 0 for the whole picture."""
    found = PLACE.search("\n".join(request.texts))
    return (int(found[1]) - 1) * int(found[4]) + int(found[3]) if found else 0


def describe(request: ChatRequest) -> Reply:
    number, seed = place_of(request), (request.body or {})["seed"]
    if number == 12:
        return "I'm sorry, no."
    return f"{HOSTILE} tile {number}, seed {seed}"


def caption(number: int, seed: int = 0) -> str:
    return f"{HOSTILE} tile {number}, seed {seed}"


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    with ChatServer(describe) as running:
        yield running


def photo(first: int, width: int, height: int, wrap: str = "none") -> dict[str, Any]:
    """Nodes that load a photo and lay tiles over it."""
    photo, scaled, grid = (str(first + n) for n in range(3))
    size = {"upscale_method": "area", "width": width, "height": height, "crop": "disabled"}
    tiles = {"size_of": [scaled, 0], "tile_size": 48, "overlap": 16, "align": 2, "wrap": wrap}
    return {
        photo: {"class_type": "RealISR_ExamplePhoto", "inputs": {"photo": "moose"}},
        scaled: {"class_type": "ImageScale", "inputs": {"image": [photo, 0], **size}},
        grid: {"class_type": "RealISR_TileGrid", "inputs": tiles},
    }


def graph(chat: ChatServer, first: int) -> dict[str, Any]:
    """Photo, tiles, captioner, editor and a preview of the prompts, their ids counted from `first`."""
    _, scaled, grid, endpoint, captioner, editor, preview = (str(first + n) for n in range(7))
    asks = {
        "base_url": chat.url,
        "model": "tiny-vlm",
        "key_variable": "OPENAI_API_KEY",
        "temperature": 0.2,
        "max_tokens": 4096,
        "timeout": 60,
        "retries": 0,
        "image_detail": "auto",
        "image_size": 64,
        "jpeg_quality": 90,
    }
    captions = {
        "image": [scaled, 0],
        "tile_grid": [grid, 0],
        "vlm": [endpoint, 0],
        "in_flight": 8,
        "seed": 0,
        "on_failure": "use the global prompt",
        "max_length": 1500,
        "global_instruction": "",
        "patch_instruction": "",
        "tell_global_prompt": False,
        "ask_again": "",
    }
    edits = {"tile_grid": [grid, 0], "text": "", "image": [scaled, 0], "captions": [captioner, 3]}
    return {
        **photo(first, *SIZE),
        endpoint: {"class_type": "RealISR_ChatEndpoint", "inputs": asks},
        captioner: {"class_type": "RealISR_PatchPromptCaptioner", "inputs": captions},
        editor: {"class_type": "RealISR_EditPatchPrompts", "inputs": edits},
        preview: {"class_type": "PreviewAny", "inputs": {"source": [editor, 1]}},
    }


class Panel:
    """The editor of the open workflow, as hands, eyes and screen readers have it."""

    def __init__(self, frontend: Frontend, editor: str):
        self.frontend = frontend
        self.editor = editor
        self.page = frontend.page
        box = self.page.locator(".realisr-tiles")
        self.box, self.stage, self.canvas = box, box.get_by_role("application"), box.locator("canvas")
        self.prompt = box.get_by_role("textbox", name="Prompt of the chosen tiles")
        self.all_text = box.get_by_role("textbox", name="All as text")
        self.status = box.get_by_role("status")

    def look(self) -> None:
        """Bring the node to the middle of the canvas, unmagnified."""
        self.page.evaluate("""() => {
            const { canvas, graph } = window.app;
            const node = graph.nodes.find(({ comfyClass }) => comfyClass === "RealISR_EditPatchPrompts");
            canvas.ds.scale = 1;
            canvas.ds.offset = [500 - node.pos[0], 150 - node.pos[1]];
            canvas.setDirty(true, true);
        }""")
        self.canvas.hover(trial=True)

    def told(self, *words: str) -> None:
        """Wait until the panel says all of these."""
        self.page.wait_for_function(
            "(words) => words.every((word) => document.querySelector('.realisr-tiles')?.textContent.includes(word))",
            arg=list(words),
            timeout=10_000,
        )

    def press(self, name: str) -> None:
        self.box.get_by_role("button", name=name, exact=True).click()

    def middle(self, number: int) -> dict[str, float]:
        """Of a tile's cell, on the canvas."""
        box = self.canvas.bounding_box()
        assert box is not None
        scale = min(box["width"] / SIZE[0], box["height"] / SIZE[1])
        row, column = divmod(number - 1, COLUMNS)
        x, y = sum(ACROSS[column : column + 2]) / 2, sum(DOWN[row : row + 2]) / 2
        return {
            "x": (box["width"] - SIZE[0] * scale) / 2 + x * scale,
            "y": (box["height"] - SIZE[1] * scale) / 2 + y * scale,
        }

    def click(self, number: int, *modifiers: Any) -> None:
        self.canvas.click(position=self.middle(number), modifiers=list(modifiers))

    def drawn(self) -> str:
        return self.canvas.evaluate("(canvas) => canvas.toDataURL()")

    def has_colour(self, colour: list[int]) -> bool:
        return self.canvas.evaluate(
            """(canvas, [red, green, blue]) => {
                const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
                for (let at = 0; at < data.length; at += 4) {
                    if (data[at] === red && data[at + 1] === green && data[at + 2] === blue) return true;
                }
                return false;
            }""",
            colour,
        )

    @property
    def text(self) -> str:
        return self.frontend.export_api()[self.editor]["inputs"]["text"]


def asked(chat: ChatServer) -> list[int]:
    """Which tiles were asked for since the last look."""
    found = sorted(map(place_of, chat.requests))
    chat.requests.clear()
    return found


def opened(canvas: Frontend, chat: ChatServer) -> Panel:
    """The editor after a first run."""
    first = next(NUMBERS)
    canvas.open_api(graph(chat, first))
    panel = Panel(canvas, str(first + 5))
    panel.told("Run once to see the photo and its tiles")
    canvas.run()
    panel.look()
    return panel


def test_a_tile_is_edited_captioned_again_and_given_back(canvas, chat):
    panel = opened(canvas, chat)
    panel.told("11 captioned", "1 failed")
    asked(chat)
    panel.click(6)
    assert panel.status.inner_text() == "Tile 6 (row 2, column 2)"
    assert panel.prompt.input_value() == caption(6)
    assert panel.text == "", "captions are not copied into the text"
    canvas.page.wait_for_function(
        "() => document.querySelector('.realisr-tiles .hint').textContent === ''"
    )  # the photo is there
    assert panel.has_colour(RED) and not panel.has_colour(AMBER)
    before = panel.drawn()
    panel.canvas.hover(position=panel.middle(3))
    assert panel.drawn() != before, "hover shows a tile's extent"
    panel.canvas.hover(position=panel.middle(6))
    assert panel.drawn() == before

    panel.prompt.fill("a wet nose\n=== shining ===")
    panel.told("10 captioned", "1 edited", "Use the caption again")
    assert panel.text == "=== tile 6 (row 2, column 2) ===\na wet nose\n === shining ==="
    panel.click(12)
    assert panel.has_colour(AMBER)
    panel.told("no caption: The model refused")
    panel.click(6)
    panel.press("Re-caption")
    panel.told("Caption:", caption(6, 1))
    assert asked(chat) == [6, 12], "only this tile, and the one that failed"
    assert panel.prompt.input_value().startswith("a wet nose"), "what was written stays"
    panel.press("Use the caption again")
    assert panel.prompt.input_value() == caption(6, 1)
    assert panel.text == ""
    assert canvas.page.title() != "gotcha"
    assert panel.box.locator("img, b").count() == 0
    wishes = [node["inputs"]["ask_again"] for node in canvas.export_api().values() if "ask_again" in node["inputs"]]
    assert wishes == ["6:1"]


def test_tiles_around_the_edge_are_chosen_by_keyboard(canvas, chat):
    first = next(NUMBERS)
    canvas.open_api(graph(chat, first) | photo(first, *SIZE, wrap="left-right"))
    panel = Panel(canvas, str(first + 5))
    canvas.run()
    panel.look()
    panel.told("Tiles that go around the edge are not drawn.", "11 captioned")
    panel.click(6)
    assert panel.status.inner_text() == "Whole picture", "a click chooses none of them"
    panel.stage.focus()
    for key in ("Home", "ArrowRight", "ArrowDown"):
        canvas.page.keyboard.press(key)
    assert panel.status.inner_text() == "Tile 6 (row 2, column 2)"
    panel.prompt.fill("dry grass")
    panel.told("10 captioned", "1 edited")
    assert panel.text == "=== tile 6 (row 2, column 2) ===\ndry grass"


def test_several_tiles_by_keyboard_alone(canvas, chat):
    panel = opened(canvas, chat)
    panel.told("11 captioned")
    panel.stage.focus()
    keyboard = canvas.page.keyboard
    for key in ("Home", "ArrowRight", "ArrowDown", "Delete"):
        keyboard.press(key)
    assert panel.status.inner_text() == "Tile 6 (row 2, column 2)"
    keyboard.press("Shift+ArrowRight")
    keyboard.press("Shift+ArrowDown")
    assert panel.status.inner_text() == "4 tiles: what you write goes to all"
    assert panel.prompt.input_value() == ""
    keyboard.press("Enter")
    keyboard.type("dry grass")
    panel.told("4 edited")
    blocks = [f"=== tile {6 + n} (row 2, column {2 + n}) ===\ndry grass" for n in (0, 1)]
    blocks += [f"=== tile {10 + n} (row 3, column {2 + n}) ===\ndry grass" for n in (0, 1)]
    assert panel.text == "\n\n".join(blocks)
    keyboard.press("Escape")
    keyboard.press("ArrowUp")
    keyboard.press("End")
    panel.click(11, "Shift")
    assert panel.status.inner_text() == "2 tiles: what you write goes to all"
    panel.click(1, "Control")
    assert panel.status.inner_text() == "3 tiles: what you write goes to all"

    panel.press("Whole picture")
    assert panel.prompt.input_value() == caption(0)
    panel.prompt.fill("A quay.")
    panel.press("All as text")
    whole = f"=== whole picture ===\nA quay.\n\n{panel.text.split(chr(10) * 2, 1)[1]}"
    assert panel.all_text.input_value() == panel.text == whole
    panel.all_text.fill("=== tile 2 ===\n\n=== tile 3 ===\nsky")
    panel.press("All as text")
    panel.told("1 empty", "1 edited", "9 captioned")
    asked(chat)
    canvas.run()
    assert asked(chat) == [], "an edit asks for nothing"
    canvas.page.wait_for_function(
        "() => window.app.graph.nodes.find(({ type }) => type === 'PreviewAny').widgets[0].value.includes('sky')"
    )


def test_edits_and_captions_survive_saving_tabs_and_undo(canvas, chat):
    panel = opened(canvas, chat)
    panel.told("11 captioned")
    panel.click(2)
    panel.prompt.fill("a branch")
    panel.click(3)

    def complete() -> None:
        panel.told("10 captioned", "1 edited", "1 failed")
        panel.look()
        panel.click(2)
        assert panel.prompt.input_value() == "a branch"
        panel.click(4)
        assert panel.prompt.input_value() == caption(4)
        canvas.page.wait_for_function("() => document.querySelector('.realisr-tiles .hint').textContent === ''")

    complete()
    canvas.open(canvas.export_ui())
    complete()
    canvas.switch_tab_and_back()
    complete()
    canvas.undo_a_move()
    complete()
    panel.click(2)
    panel.press("Re-caption")
    panel.told("Caption:", caption(2, 1))
    assert panel.text.endswith("a branch")

    saved = canvas.export_ui()
    (node,) = [node for node in saved["nodes"] if str(node["id"]) == panel.editor]
    node["properties"]["realisr"]["tile_editor"]["picture"]["filename"] = "gone.png"
    with canvas.page.expect_console_message(lambda message: "gone.png" in message.location["url"]):
        canvas.open(saved)
    panel.told("Run once to see the photo", "10 captioned")
    panel.look()
    panel.click(2)
    assert panel.prompt.input_value() == "a branch"
    canvas.errors[:] = [error for error in canvas.errors if "gone.png" not in error]


def test_a_tile_is_captioned_again_inside_a_subgraph(canvas, chat):
    panel = opened(canvas, chat)
    panel.told("11 captioned")
    asked(chat)
    canvas.page.evaluate("""async () => {
        const { graph, canvas } = window.app;
        const inner = ["RealISR_PatchPromptCaptioner", "RealISR_EditPatchPrompts"];
        const items = new Set(graph.nodes.filter(({ comfyClass }) => inner.includes(comfyClass)));
        const { node } = graph.convertToSubgraph(items);
        canvas.setGraph(node.subgraph);
    }""")
    canvas.page.wait_for_function("() => window.app.canvas.graph !== window.app.rootGraph")
    canvas.page.wait_for_timeout(300)
    canvas.page.evaluate("""() => {
        const { canvas } = window.app;
        const node = canvas.graph.nodes.find(({ comfyClass }) => comfyClass === "RealISR_EditPatchPrompts");
        canvas.ds.scale = 1;
        canvas.ds.offset = [500 - node.pos[0], 150 - node.pos[1]];
        canvas.setDirty(true, true);
    }""")
    panel.told("11 captioned")
    panel.click(5)
    panel.press("Re-caption")
    canvas.page.wait_for_function(
        "(told) => [...document.querySelectorAll('.realisr-tiles textarea')].some(({ value }) => value === told)",
        arg=caption(5, 1),
    )
    assert asked(chat) == [5, 12]
    canvas.page.evaluate("() => window.app.canvas.setGraph(window.app.rootGraph)")


def test_four_hundred_tiles_are_one_canvas(canvas, chat):
    panel = opened(canvas, chat)
    panel.told("11 captioned")
    few = panel.box.locator("*").count()
    text = "=== whole picture ===\n\n" + "\n\n".join(f"=== tile {n} ===\nfur" for n in range(1, 401))
    first = next(NUMBERS)
    scaled, grid, panel.editor = str(first + 1), str(first + 2), str(first + 5)
    edits = {"tile_grid": [grid, 0], "text": text, "image": [scaled, 0]}
    many = photo(first, 656, 656) | {panel.editor: {"class_type": "RealISR_EditPatchPrompts", "inputs": edits}}
    canvas.open_api(many)
    panel.told("Run once to see the photo and its tiles")
    canvas.run()
    panel.told("400 edited")
    panel.look()
    assert panel.box.locator("*").count() <= few
    panel.stage.focus()
    canvas.page.keyboard.press("Control+a")
    assert panel.status.inner_text().startswith("400 tiles")
    panel.prompt.fill("moss")
    assert panel.text.count("\nmoss") == 400
