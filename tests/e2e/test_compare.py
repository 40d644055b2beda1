"""Compare Methods and Compare Sheet on a real server, with the files of a fresh install: only some methods can run."""

from __future__ import annotations

import json
import re

import pytest
from PIL import ImageChops

from _pack import ROOT
from comfy_client import PromptError

PHOTO = {"class_type": "RealISRTest_RandomImage", "inputs": {"seed": 3, "width": 96, "height": 64, "batch": 1}}
SWITCHES = {"bicubic": True, "vosr_nano": True, "vosr": True, "vicr": True, "dreamsr": True, "pure": True}
METHODS = {
    "class_type": "RealISR_CompareMethods",
    "inputs": {"image": ["1", 0], "scale": 2.0, **SWITCHES, "upscale_model": "none", "seed": 1, "prompt": ""},
}
SHEET_INPUTS = {"labels": "", "crops": 2, "crop_size": 32, "places": "", "cell": 128, "columns": 7, "metrics": ""}
SHEET = {"class_type": "RealISR_CompareSheet", "inputs": {"images.image0": ["2", 0], **SHEET_INPUTS}}
GRAPH = {
    "1": PHOTO,
    "2": METHODS,
    "3": SHEET,
    "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "sheet"}},
}


WORKFLOW = "compare_methods"
NANO_ONLY = {**METHODS, "inputs": {**METHODS["inputs"], "vosr": False, "vicr": False, "dreamsr": False, "pure": False}}


def entries_of(result, node: str = "3") -> list[dict]:
    (shown,) = result.outputs[node]["compare"]
    return shown["entries"]


def test_methods_without_files_are_cards_that_name_them(bare_models, server):
    result = server.client.run(GRAPH)
    entries = entries_of(result)
    assert [entry["label"] for entry in entries] == [
        "Bicubic",
        "VOSR nano",
        "VOSR 0.5B one-step",
        "VICR",
        "DreamSR",
        "PURE",
    ]
    assert ["file" in entry for entry in entries] == [True, True, False, False, False, False]
    assert all(re.fullmatch(r"\d+\.\d s(, peak \d+\.\d\d GiB)?", entry["notes"][0]) for entry in entries[:2])
    for entry, files in zip(entries[2:], FILES_OF, strict=True):
        assert all(file in entry["card"] for file in files), entry["card"]
    sheet = server.client.image(result.images("4")[0])
    assert sheet.size == (12 + 6 * (128 + 12), sheet.height)


FILES_OF = (
    ("diffusion_models/VOSR_0.5B_os", "vae/sd21_lwdecoder.pth", "clip_vision/dinov2_vitb14_pretrain.pth"),
    (
        "diffusion_models/flux1-fill-dev.safetensors",
        "text_encoders/t5xxl_fp16.safetensors",
        "model_patches/vicr_bridge.safetensors",
    ),
    ("diffusion_models/flux1-dev.safetensors", "controlnet/dreamsr_mm_controlnet.safetensors"),
    ("LLM/PURE",),
)


def test_the_bundled_model_gives_what_its_own_workflow_gives(server):
    """And only what changed runs again: the seed is every method's, the upscale model only its own."""
    own = json.loads((ROOT / "workflows" / "api" / "vosr_nano_restore.json").read_text(encoding="utf-8"))
    photo = next(node_id for node_id, node in own.items() if node["class_type"] == "LoadImage")
    sampler = next(node for node in own.values() if node["class_type"] == "RealISR_RestorationCFGSampler")
    sampler["inputs"] |= {"seed": 1, "resize.scale": 2.0}
    del sampler["inputs"]["mask"]  # the photo below has none
    own[photo] = PHOTO
    (expected,) = (node_id for node_id, node in own.items() if node["class_type"] == "SaveImage")
    alone = server.client.run(own)
    result = server.client.run({"1": PHOTO, "2": NANO_ONLY, "3": SHEET})
    shown = server.client.image(entries_of(result)[1]["file"])
    difference = ImageChops.difference(shown, server.client.image(alone.images(expected)[0]))
    # Pictures for the browser are rounded, saved ones cut off.
    assert max(high for _, high in difference.getextrema()) <= 1

    again = {**NANO_ONLY, "inputs": {**NANO_ONLY["inputs"], "bicubic": False}}
    result = server.client.run({"1": PHOTO, "2": again, "3": SHEET})
    ran = {data["node"] for kind, data in result.messages if kind == "executing" and data["node"]}
    assert not any(node.endswith(".5") for node in ran), "the sampler of a branch that did not change ran again"


def test_the_shipped_workflow_makes_a_sheet(bare_models, server):
    """As shipped but for the picture, which a CPU would take long over."""
    graph = json.loads((ROOT / "workflows" / "api" / f"{WORKFLOW}.json").read_text(encoding="utf-8"))
    graph["1"] = PHOTO
    result = server.client.run(graph)
    (shown,) = result.outputs["3"]["compare"]
    assert [entry["label"] for entry in shown["entries"] if "file" in entry] == ["Bicubic", "VOSR nano"]
    assert server.client.image(result.images("4")[0]).width == 12 + 6 * (320 + 12)


def test_a_broken_upscale_model_is_a_card_too(server):
    gone = {**NANO_ONLY, "inputs": {**NANO_ONLY["inputs"], "upscale_model": "gone.pth"}}
    entries = entries_of(server.client.run({"1": PHOTO, "2": gone, "3": SHEET}))
    assert entries[-1]["label"] == "gone.pth"
    assert "models/upscale_models/gone.pth" in entries[-1]["card"]


def test_any_images_labels_places_and_scores(server):
    graph = {
        "1": {**PHOTO, "inputs": {**PHOTO["inputs"], "batch": 2}},
        "2": {
            "class_type": "ImageScale",
            "inputs": {"image": ["1", 0], "upscale_method": "bilinear", "width": 48, "height": 32, "crop": "disabled"},
        },
        "3": {
            "class_type": "RealISR_CompareSheet",
            "inputs": {
                **SHEET_INPUTS,
                "images.image0": ["1", 0],
                "images.image1": ["2", 0],
                "labels": "left\n\nsmall",
                "places": "50 50; 0 100",
                "columns": 3,
                "metrics": "entropy",
            },
        },
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["3", 1]}},
    }
    result = server.client.run(graph)
    (shown,) = result.outputs["3"]["compare"]
    assert [entry["label"] for entry in shown["entries"]] == ["left", "Image 2", "small", "Image 4"]
    assert shown["places"] == [[0.5, 0.5], [0.0, 1.0]]
    assert all(entry["notes"][0].startswith("entropy ") for entry in shown["entries"])
    assert len({server.client.image(entry["file"]).size for entry in shown["entries"]}) == 1
    assert result.outputs["4"]["text"][0].splitlines()[0].startswith("left\tentropy ")


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"places": "here"}, "Write x and y in percent"), ({"metrics": "pique"}, "Did you mean piqe")],
)
def test_what_cannot_work_is_refused_before_the_run(server, changed: dict[str, str], message: str):
    sheet = {**SHEET, "inputs": {**SHEET["inputs"], "images.image0": ["1", 0], **changed}}
    with pytest.raises(PromptError, match=message):
        server.client.run({"1": PHOTO, "3": sheet})


def test_the_sheet_is_compared_and_marked_on_the_node(canvas):
    hostile = "<img src=x onerror=alert(1)>"
    graph = {
        "1": {**PHOTO, "inputs": {**PHOTO["inputs"], "batch": 3}},
        "3": {**SHEET, "inputs": {**SHEET_INPUTS, "images.image0": ["1", 0], "labels": f"one\ntwo\n{hostile}"}},
    }
    page = canvas.page
    canvas.open_api(graph)
    canvas.run()
    page.wait_for_function("() => document.querySelectorAll('.realisr-slider img:not([hidden])').length === 2")
    left, right = page.query_selector_all(".realisr-compare select")
    assert [option.text_content() for option in left.query_selector_all("option")] == ["one", "two", hostile]
    right.select_option("1")
    note = page.query_selector(".realisr-compare small")
    assert note.text_content().startswith("one") and "two" in note.text_content()
    slider = page.query_selector(".realisr-slider input")
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert float(slider.input_value()) > 50

    page.get_by_role("button", name="Mark places").click()
    box = page.query_selector(".realisr-slider").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    places = "() => window.app.graph.getNodeById(3).widgets.find(({ name }) => name === 'places').value"
    x, y = page.evaluate(places).split()
    assert abs(float(x) - 50) < 2 and abs(float(y) - 50) < 2

    canvas.open(canvas.export_ui())
    canvas.switch_tab_and_back()
    canvas.undo_a_move()
    page.wait_for_function("() => document.querySelectorAll('.realisr-slider img:not([hidden])').length === 2")
    selects = page.query_selector_all(".realisr-compare select")
    assert [select.evaluate("(select) => select.selectedOptions[0].textContent") for select in selects] == [
        "one",
        "two",
    ]
    assert page.evaluate(places).split() == [x, y]
    page.get_by_role("button", name="Automatic").click()
    assert page.evaluate(places) == ""
