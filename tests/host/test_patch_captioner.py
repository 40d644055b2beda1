"""Patch-Prompt Captioner and Edit Patch Prompts: a chat endpoint that speaks HTTP, and a tiny LLaVA."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from harness.chat_server import Answer, ChatRequest, ChatServer, Failure, Hang, Reply
from harness.host import InProcessHost
from harness.vlm import TINY_VISION, save_tiny_llava, tiny_qwen
from harness.waiting import HANG

KEY = "sk-test-71c0e5a9d2f8"
ENDPOINT = {
    "model": "tiny-vlm",
    "key_variable": "OPENAI_API_KEY",
    "temperature": 0.2,
    "max_tokens": 4096,
    "timeout": HANG,
    "retries": 0,
    "image_detail": "auto",
    "image_size": 1024,
    "jpeg_quality": 100,
}
WHOLE = "A harbour at dusk."
PLACE = re.compile(r"row (\d+) of (\d+).*column (\d+) of (\d+)")


def place_of(request: ChatRequest) -> tuple[int, int] | None:
    """(row, column) a request is about, from 1; None for the whole picture."""
    found = PLACE.search("\n".join(request.texts))
    return (int(found[1]), int(found[3])) if found else None


def describe(request: ChatRequest) -> Reply:
    """WHOLE, or a text that names the place and the colour of the tile."""
    place = place_of(request)
    if place is None:
        return WHOLE
    color = np.asarray(request.images[0]).mean((0, 1)).round().astype(int)
    return f"row {place[0]}, column {place[1]}, colour {' '.join(map(str, color))}"


@pytest.fixture(autouse=True)
def memory(host: InProcessHost, monkeypatch: pytest.MonkeyPatch) -> Any:
    from realisr.nodes.patch_prompts import PatchPromptCaptioner
    from realisr.services.vlm.memory import AnswerMemory

    fresh = AnswerMemory()
    monkeypatch.setattr(PatchPromptCaptioner, "memory", fresh)
    return fresh


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with ChatServer(describe) as server:
        yield server


def endpoint(chat: ChatServer, **options: Any) -> Any:
    from realisr.nodes.vlm import ChatEndpointNode

    return InProcessHost.run(ChatEndpointNode, **{"base_url": chat.url, **ENDPOINT, **options})[0]


def layout(rows: int, columns: int, tile: int = 16, overlap: int = 0) -> Any:
    from realisr.models.tiles.layout import TileLayout

    return TileLayout.fitted(rows * tile, columns * tile, tile, overlap)


def patchwork(rows: int, columns: int, tile: int = 16) -> torch.Tensor:
    """`[1, H, W, 3]`, every tile of one colour of its own, in steps a JPEG keeps apart."""
    red = torch.linspace(0.2, 0.8, rows).repeat_interleave(tile)[:, None].expand(rows * tile, columns * tile)
    green = torch.linspace(0.2, 0.8, columns).repeat_interleave(tile)[None].expand(rows * tile, columns * tile)
    return torch.stack([red, green, torch.full_like(red, 0.5)], dim=-1)[None]


def captioned(vlm: Any, rows: int, columns: int, **inputs: Any) -> tuple[str, list[str], str]:
    return run_captioner(vlm, rows, columns, **inputs)[:3]


def captions_of(vlm: Any, rows: int, columns: int, **inputs: Any) -> Any:
    return run_captioner(vlm, rows, columns, **inputs)[3]


def run_captioner(vlm: Any, rows: int, columns: int, **inputs: Any) -> Any:
    from realisr.nodes.patch_prompts import STOP, PatchPromptCaptioner

    given = {
        "image": patchwork(rows, columns),
        "tile_grid": layout(rows, columns),
        "vlm": vlm,
        "in_flight": 8,
        "seed": 7,
        "on_failure": STOP,
        "max_length": 1500,
        **inputs,
    }
    return InProcessHost.run(PatchPromptCaptioner, **given)


def asked(chat: ChatServer) -> Counter[Any]:
    """How often each place was asked for since the last look."""
    found = Counter(map(place_of, chat.requests))
    chat.requests.clear()
    return found


def test_sixty_tiles_eight_at_a_time(chat):
    lock, two = threading.Lock(), threading.Event()
    now, most = 0, 0

    def slowly(request: ChatRequest) -> Reply:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
            if now > 1:
                two.set()
        place = place_of(request)
        if place is not None:
            two.wait(HANG)  # the first of the tiles is not done before another is asked about
        time.sleep(0.01 if place is None else 0.01 + 0.04 * (sum(place) % 3))  # answers overtake each other
        with lock:
            now -= 1
        return describe(request)

    chat.default = slowly
    whole, prompts, _ = captioned(endpoint(chat), 6, 10)
    assert whole == WHOLE
    assert 1 < most <= 8
    assert len(prompts) == 60
    image = patchwork(6, 10)
    for number, prompt in enumerate(prompts):
        row, column = divmod(number, 10)
        assert prompt.startswith(f"row {row + 1}, column {column + 1}, colour ")
        told = torch.tensor([int(word) for word in prompt.split()[-3:]])
        assert (told - 255 * image[0, row * 16, column * 16]).abs().max() <= 2
    assert asked(chat) == Counter([None, *((row, column) for row in range(1, 7) for column in range(1, 11))])


def test_each_request_carries_its_own_tile(chat):
    """Overlapping tiles of a picture without two equal places, compared with what was decoded at the other end."""
    grid = layout(2, 3, tile=64, overlap=16)
    coarse = torch.rand(1, 3, 16, 24)
    image = torch.nn.functional.interpolate(coarse, (128, 192), mode="bilinear").movedim(1, -1)
    captioned(endpoint(chat), 1, 1, image=image, tile_grid=grid)
    assert not any(WHOLE in "".join(request.texts) for request in chat.requests), "by default a tile speaks for itself"
    chat.requests.clear()
    captioned(endpoint(chat), 1, 1, image=image, tile_grid=grid, tell_global_prompt=True, seed=8)
    columns = len(grid.grid.columns)
    tiles = [tile[0] for tile in grid.tiles(image, "test")]
    assert len(chat.requests) == len(tiles) + 1
    for request in chat.requests:
        (sent,) = (torch.from_numpy(np.asarray(each).copy()).float() / 255 for each in request.images)
        place = place_of(request)
        if place is None:
            assert (sent - image[0]).abs().mean() < 0.01
            continue
        distances = torch.stack([(sent - tile).abs().mean() for tile in tiles])
        own = (place[0] - 1) * columns + place[1] - 1
        assert distances[own] < 0.01
        assert distances.sort().values[1] > 0.05
        assert WHOLE in "".join(request.texts)
        assert (request.body or {})["seed"] == 8


def test_a_failing_tile_is_named_and_does_not_lose_the_others(chat):
    def failing(request: ChatRequest) -> Reply:
        return Failure(400, "no picture") if place_of(request) == (2, 3) else describe(request)

    chat.default = failing
    with pytest.raises(ValueError, match=r"1 of 60 tiles got no prompt\.\ntile 13 \(row 2, column 3\): .*no picture"):
        captioned(endpoint(chat), 6, 10)
    assert len(asked(chat)) == 61
    chat.default = describe
    _, prompts, _ = captioned(endpoint(chat, timeout=60.0, retries=2), 6, 10)
    assert asked(chat) == Counter([(2, 3)])
    assert [prompt.split(",")[0] for prompt in prompts[::10]] == [f"row {row}" for row in range(1, 7)]


def test_failing_tiles_can_have_the_global_prompt(chat, caplog):
    from realisr.nodes.patch_prompts import FALL_BACK

    caplog.set_level(logging.WARNING)
    chat.default = lambda request: "I'm sorry, no." if place_of(request) in [(1, 1), (2, 2)] else describe(request)
    _, prompts, text = captioned(endpoint(chat), 2, 2, on_failure=FALL_BACK)
    assert [prompt == WHOLE for prompt in prompts] == [True, False, False, True]
    assert f"=== tile 4 (row 2, column 2) ===\n{WHOLE}\n" in text
    told = r"2 of 4 tiles .*\ntile 1 \(row 1, column 1\), tile 4 \(row 2, column 2\): The model refused"
    assert re.search(told, caplog.text)
    asked(chat)
    chat.default = describe
    captioned(endpoint(chat), 2, 2, on_failure=FALL_BACK)
    assert asked(chat) == Counter([(1, 1), (2, 2)])


def test_without_a_global_prompt_nothing_else_is_asked(chat):
    from realisr.nodes.patch_prompts import FALL_BACK

    chat.default = Failure(400, "broken")
    with pytest.raises(ValueError, match=r"Patch-Prompt Captioner: no global prompt\. .*broken"):
        captioned(endpoint(chat), 2, 2, on_failure=FALL_BACK)
    assert len(chat.requests) == 1


def test_a_second_run_asks_nothing(chat, memory, monkeypatch):
    first = captioned(endpoint(chat), 2, 3)
    assert asked(chat).total() == 7
    assert KEY not in repr(memory.kept)
    monkeypatch.delenv("OPENAI_API_KEY")
    assert captioned(endpoint(chat), 2, 3) == first
    assert asked(chat).total() == 0


def test_only_edited_tiles_are_asked_again(chat):
    """The whole picture is too, and may be described in other words."""
    captioned(endpoint(chat), 3, 4)
    asked(chat)
    edited = patchwork(3, 4)
    edited[:, 20:30, 28:36] = 0.1
    chat.default = lambda request: describe(request) if place_of(request) else "A harbour, at night."
    whole, prompts, _ = captioned(endpoint(chat), 3, 4, image=edited)
    assert asked(chat) == Counter([None, (2, 2), (2, 3)])
    assert whole == "A harbour, at night."
    assert [prompt.split(", colour")[0] for prompt in prompts[4:8]] == [f"row 2, column {n}" for n in range(1, 5)]


@pytest.mark.parametrize(
    ("inputs", "options", "again"),
    [
        ({"seed": 8}, {}, 5),
        ({"max_length": 700}, {}, 5),
        ({"patch_instruction": "Only nouns."}, {}, 4),
        ({"global_instruction": "Only nouns."}, {}, 1),
        ({"global_prompt": "A quay."}, {}, 0),
        ({"tell_global_prompt": True}, {}, 4),
        ({"tell_global_prompt": True, "global_prompt": "A quay."}, {}, 4),
        ({}, {"temperature": 0.9}, 5),
        ({}, {"model": "another"}, 5),
        ({}, {"image_size": 64}, 5),
        ({"in_flight": 1}, {"timeout": 60.0, "max_tokens": 512}, 0),
    ],
)
def test_what_asks_again(chat, inputs, options, again):
    captioned(endpoint(chat), 2, 2)
    asked(chat)
    captioned(endpoint(chat, **options), 2, 2, **inputs)
    assert len(chat.requests) == again
    for request in chat.requests:
        body = request.body or {}
        assert body["seed"] == inputs.get("seed", 7)
        assert body["model"] == options.get("model", "tiny-vlm")


def test_a_global_prompt_of_ones_own(chat):
    whole, _, text = captioned(endpoint(chat), 1, 2, global_prompt=" A quay. ", patch_instruction="Nouns.")
    assert whole == "A quay."
    assert text.startswith("=== whole picture ===\nA quay.\n")
    assert asked(chat) == Counter([(1, 1), (1, 2)])


def test_the_pack_tells_the_model_what_a_part_is(chat):
    captioned(endpoint(chat), 1, 2, max_length=321)
    whole, *parts = sorted(chat.requests, key=lambda request: place_of(request) is not None)
    assert "only a part" in parts[0].texts[0]
    assert "At most" not in whole.texts[0]
    for request in chat.requests:
        assert "at most 321 characters" in request.texts[0]


@pytest.mark.timeout(HANG, func_only=True)
def test_cancel_stops_hanging_requests_and_keeps_what_came(chat):
    import comfy.model_management

    lock, hanging = threading.Lock(), 0

    def hang_below_the_first_row(request: ChatRequest) -> Reply:
        nonlocal hanging
        if (place_of(request) or (1, 1))[0] == 1:
            return describe(request)
        with lock:
            hanging += 1
            if hanging == 8:  # as many as are in flight: what was answered has been taken
                comfy.model_management.interrupt_current_processing()
        return Hang()

    chat.default = hang_below_the_first_row
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        captioned(endpoint(chat, timeout=2 * HANG), 4, 3)
    asked(chat)
    chat.default = describe
    captioned(endpoint(chat), 4, 3)
    assert asked(chat).total() == 9


def test_progress_counts_tiles(chat):
    import comfy.utils

    from realisr.host.progress import BEGUN, FINE

    seen: list[tuple[int, int]] = []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, *_, **__: seen.append((value, total)))
    chat.default = lambda request: Answer(str(describe(request)), delay=0.15)  # the host shows ten steps a second
    try:
        captioned(endpoint(chat), 2, 3, in_flight=1)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert seen == [(BEGUN, FINE), *((value, 7) for value in range(1, 8))]


def test_a_batch_is_refused_with_what_to_do(chat):
    with pytest.raises(ValueError, match=r"Captioner: image is a batch of 3 images.*Get Image from Batch"):
        captioned(endpoint(chat), 2, 2, image=patchwork(2, 2).expand(3, -1, -1, -1))
    assert chat.requests == []


def test_a_grid_for_another_image_is_refused(chat):
    with pytest.raises(ValueError, match=r"Captioner: the tile grid is for an image of 48x32 pixels, this one has 32x"):
        captioned(endpoint(chat), 2, 2, tile_grid=layout(2, 3))
    assert chat.requests == []


def test_the_text_can_be_edited(chat):
    from realisr.nodes.patch_prompts import EditPatchPrompts

    whole, prompts, text = captioned(endpoint(chat), 2, 3)
    assert InProcessHost.run(EditPatchPrompts, tile_grid=layout(2, 3), text=text) == (whole, prompts)
    edited = text.replace(prompts[4], "a red boat\nand its rope")
    _, changed = InProcessHost.run(EditPatchPrompts, tile_grid=layout(2, 3), text=edited)
    assert changed == [*prompts[:4], "a red boat\nand its rope", prompts[5]]
    with pytest.raises(ValueError, match=r"Edit Patch Prompts: the grid has 4 tiles .* the grid has no tile 5, tile 6"):
        InProcessHost.run(EditPatchPrompts, tile_grid=layout(2, 2), text=text)


@pytest.mark.parametrize(
    ("text", "told"),
    [(" \n", "text is empty"), ("a dog", "line 1 is before the first heading"), ("=== tile ===", "is no heading")],
)
def test_what_is_refused_before_the_queue(host, text, told):
    from realisr.nodes.patch_prompts import EditPatchPrompts

    assert told in str(EditPatchPrompts.validate_inputs(text))


def test_other_texts_pass(host):
    from realisr.nodes.patch_prompts import EditPatchPrompts

    assert EditPatchPrompts.validate_inputs() is True
    assert EditPatchPrompts.validate_inputs("=== tile 1 ===") is True
    assert EditPatchPrompts.validate_inputs("", None) is True, "captions are linked"


def edited(text: str, rows: int, columns: int, **inputs: Any) -> tuple[str, list[str], dict[str, Any]]:
    """Outputs of Edit Patch Prompts, and what it tells the browser."""
    from realisr.nodes.patch_prompts import EditPatchPrompts

    with torch.inference_mode():
        output = EditPatchPrompts.execute(tile_grid=layout(rows, columns), text=text, **inputs)
    (told,) = json.loads(json.dumps(output.ui))["tile_editor"]
    return *output.result, told


def test_captions_stand_where_nothing_was_written(chat):
    captions = captions_of(endpoint(chat), 2, 3)
    whole, prompts, told = edited("", 2, 3, captions=captions)
    assert (whole, prompts) == (WHOLE, list(captions.tiles))
    assert told["captions"] == {"whole": WHOLE, "tiles": prompts, "failed": {}}
    text = "=== tile 4 ===\na red boat\nand its rope\n\n=== tile 2 (row 1, column 2) ===\n"
    whole, changed, told = edited(text, 2, 3, captions=captions)
    assert (whole, changed) == (WHOLE, [prompts[0], "", prompts[2], "a red boat\nand its rope", *prompts[4:]])
    assert told["captions"]["tiles"] == prompts, "what was written does not hide the caption below"
    assert edited("=== whole picture ===\nA quay.", 2, 3, captions=captions)[:2] == ("A quay.", prompts)
    assert edited(captions.text, 2, 3)[:2] == (WHOLE, prompts)


def test_captions_and_texts_of_another_grid_are_refused(chat):
    captions = captions_of(endpoint(chat), 2, 3)
    with pytest.raises(ValueError, match=r"Edit Patch Prompts: the captions are of a grid of 2 rows of 3 tiles"):
        edited("", 3, 2, captions=captions)
    with pytest.raises(ValueError, match=r"the grid has no tile 7"):
        edited("=== tile 7 ===\na boat", 2, 3, captions=captions)
    with pytest.raises(ValueError, match=r"names tile 3 \(row 2, column 1\), but in the grid"):
        edited("=== tile 3 (row 2, column 1) ===\na boat", 2, 3, captions=captions)


def test_the_browser_is_told_which_tiles_failed(chat):
    from realisr.nodes.patch_prompts import FALL_BACK

    chat.default = lambda request: "I'm sorry, no." if place_of(request) == (2, 2) else describe(request)
    _, prompts, told = edited("", 2, 2, captions=captions_of(endpoint(chat), 2, 2, on_failure=FALL_BACK))
    assert prompts[3] == WHOLE
    assert list(told["captions"]["failed"]) == ["4"]
    assert "refused" in told["captions"]["failed"]["4"]


def test_the_browser_is_told_where_the_tiles_are(host):
    from PIL import Image

    from realisr.nodes.patch_prompts import EditPatchPrompts
    from realisr.nodes.tile_editor import LONGEST

    grid = layout(1, 3, tile=512, overlap=128)
    image = torch.rand(1, 64, 192, 4).repeat_interleave(8, 1).repeat_interleave(8, 2)
    text = "\n".join(["=== whole picture ===", *(f"=== tile {n} ===" for n in range(1, len(grid) + 1))])
    with torch.inference_mode():
        output = EditPatchPrompts.execute(tile_grid=grid, text=text, image=image)
    (told,) = output.ui["tile_editor"]
    assert (told["size"], told["tile"], told["text"]) == ([1536, 512], [512, 512], text)
    boxes = [(left, top) for top in told["rows"] for left in told["columns"]]
    assert boxes == [(box.left, box.top) for box in grid.pixel_boxes]
    assert "captions" not in told
    picture = told["picture"]
    with Image.open(host.base / picture["type"] / picture["subfolder"] / picture["filename"]) as saved:
        assert saved.size == (LONGEST, 341)
        shown = torch.from_numpy(np.asarray(saved).copy()).float() / 255
    assert (shown.mean((0, 1)) - image[0, ..., :3].mean((0, 1))).abs().max() < 0.01
    with pytest.raises(ValueError, match=r"Edit Patch Prompts: the tile grid is for an image of 1536x512"):
        EditPatchPrompts.execute(tile_grid=grid, text=text, image=image[:, :256])


def test_the_browser_is_told_nothing_to_draw_of_tiles_around_the_edge(host):
    """There a tile's places on the picture would be wrong: beyond its end, and under another tile's number."""
    from realisr.models.tiles.layout import TileLayout
    from realisr.nodes.patch_prompts import EditPatchPrompts

    grid = TileLayout.fitted(64, 128, 48, 16, wrap="left-right")
    text = "\n".join(["=== whole picture ===", *(f"=== tile {n} ===" for n in range(1, len(grid) + 1))])
    with torch.inference_mode():
        output = EditPatchPrompts.execute(tile_grid=grid, text=text, image=torch.rand(1, 64, 128, 3))
    (told,) = output.ui["tile_editor"]
    assert not {"size", "picture"} & told.keys()
    assert len(told["rows"]) * len(told["columns"]) == len(grid)


def test_tiles_can_be_asked_for_anew(chat):
    """And only these: the others are remembered. The same wish asks nothing again."""
    captioned(endpoint(chat), 2, 3)
    asked(chat)
    captioned(endpoint(chat), 2, 3, ask_again="2:1, 6:3")
    assert {place_of(request): (request.body or {})["seed"] for request in chat.requests} == {(1, 2): 8, (2, 3): 10}
    asked(chat)
    captioned(endpoint(chat), 2, 3, ask_again="2:1,6:3,99:1")
    assert asked(chat) == Counter()
    captioned(endpoint(chat), 2, 3, ask_again="0:1")
    assert asked(chat) == Counter([None])


def test_a_wish_that_cannot_be_read_is_refused_before_the_queue(host):
    from realisr.nodes.patch_prompts import PatchPromptCaptioner

    assert PatchPromptCaptioner.validate_inputs() is True
    assert PatchPromptCaptioner.validate_inputs(" 3:1 , 0:2 ") is True
    for wrong in ("3", "3:", "three:1", "3:1 4:1", "-1:2", "1" * 5000 + ":1"):
        assert "ask_again holds" in str(PatchPromptCaptioner.validate_inputs(wrong))


def load_llava(host: InProcessHost, name: str, temperature: float, max_tokens: int, **files: bool) -> Any:
    from realisr.nodes.vlm import LoadLocalVLM

    save_tiny_llava(host.models / "LLM" / name, **files)
    options = {"weight_dtype": "default", "temperature": temperature, "max_tokens": max_tokens, "image_size": 1024}
    return InProcessHost.run(LoadLocalVLM, model_name=name, **options)[0]


def test_a_local_model_answers_in_batches(host, memory):
    import comfy.utils

    vlm = load_llava(host, "patches", 2.0, 400)
    bars: list[tuple[int, int]] = []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, *_, **__: bars.append((value, total)))
    try:
        whole, prompts, text = captioned(vlm, 2, 3, in_flight=4, max_length=5000)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert whole
    assert len(prompts) == 6
    assert all(prompts)
    assert len(set(prompts)) > 1
    assert bars[-1] == (7, 7)
    assert {total for _, total in bars[-3:]} == {7}
    assert captioned(vlm, 2, 3, in_flight=4, max_length=5000) == (whole, prompts, text)
    assert len(memory) == 7


def test_a_host_encoder_is_asked_again_when_a_lora_changes_it(host, memory, monkeypatch):
    from comfy.text_encoders import qwen3vl

    from realisr.host.vlm import HostVLM

    monkeypatch.setitem(qwen3vl.QWEN3VL_VISION, "qwen3vl_4b", TINY_VISION)
    clip = tiny_qwen()
    first = captioned(clip, 1, 2, max_length=20000)
    assert len(first[1]) == 2
    copy = clip.clone()
    assert HostVLM(copy).identity == HostVLM(clip).identity
    assert captioned(copy, 1, 2, max_length=20000) == first
    assert len(memory) == 3
    key = next(name for name in clip.patcher.model_state_dict() if name.endswith("layers.0.mlp.up_proj.weight"))
    copy.add_patches({key: (torch.zeros_like(clip.patcher.model_state_dict()[key]),)})
    assert HostVLM(copy).identity != HostVLM(clip).identity
    captioned(copy, 1, 2, max_length=20000)
    assert len(memory) == 6


@pytest.mark.parametrize("chat_template", [True, False])
def test_a_batch_answers_as_one_by_one(host, chat_template):
    """Likeliest words, so that only the padding of the shorter questions could make a difference."""
    from realisr.services.vlm.questions import caption_question, refine_question

    vlm = load_llava(host, f"batch_{chat_template}", 0.0, 24, chat_template=chat_template)
    for parameter in vlm.local.network.parameters():  # so large that the answer depends on the question
        parameter.data.normal_(0, 0.5)
    questions = [
        caption_question(torch.rand(30, 40, 3), "tags"),
        refine_question(torch.rand(20, 20, 3), "a red door", torch.rand(50, 20, 3)),
        caption_question(torch.rand(10, 10, 3), "sentences"),
    ]
    device = torch.device("cpu")
    alone = [vlm.local.answer(question, device, lambda: None) for question in questions]
    assert len(set(alone)) > 1
    assert vlm.local.answers(questions, device, lambda: None) == alone


def test_a_local_model_asks_no_more_at_once_than_memory_has_held(host, monkeypatch):
    import comfy.model_management

    from realisr.services.vlm.questions import caption_question

    vlm = load_llava(host, "short_of_memory", 0.0, 4)
    asked, answers = [], type(vlm.local).answers

    def answering(self, questions, *rest):
        asked.append(len(questions))
        if len(questions) > 1:
            raise comfy.model_management.OOM_EXCEPTION("pretended")
        return answers(self, questions, *rest)

    monkeypatch.setattr(type(vlm.local), "answers", answering)
    questions = [caption_question(torch.rand(10, 10, 3), "tags")] * 4
    assert len(list(vlm.answers(questions, lambda: None, in_flight=2))) == 4
    assert asked[0] == 2 and set(asked[1:]) == {1}


def test_a_slow_tile_does_not_hold_up_the_others(chat):
    """The next request leaves as soon as one is answered, not when all of a group are."""
    lock, asked_for, all_others = threading.Lock(), set(), threading.Event()

    def reply(request: ChatRequest) -> Reply:
        if place_of(request) == (1, 1):
            return describe(request) if all_others.wait(HANG) else Failure(400, "held up the others")
        with lock:
            asked_for.add(place_of(request))
            if len(asked_for) == 12:  # eleven tiles and the whole picture
                all_others.set()
        return describe(request)

    chat.default = reply
    _, prompts, _ = captioned(endpoint(chat), 3, 4, in_flight=2)
    assert len(prompts) == 12
