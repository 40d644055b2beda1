"""Compare Methods and Compare Sheet on a real server, with the files of a fresh install: only some methods can run."""

from __future__ import annotations

import pytest

from comfy_client import PromptError

PHOTO = {"class_type": "RealISRTest_RandomImage", "inputs": {"seed": 3, "width": 96, "height": 64, "batch": 1}}
SWITCHES = {"bicubic": True, "vosr_nano": True, "vosr": True, "vicr": True, "dreamsr": True, "pure": True}
METHODS = {
    "class_type": "RealISR_CompareMethods",
    "inputs": {"image": ["1", 0], "scale": 2.0, **SWITCHES, "upscale_model": "none", "seed": 1, "prompt": ""},
}
SHEET_INPUTS = {
    "labels": "", "crops": 2, "crop_size": 32, "places": "", "cell": 128, "columns": 7, "metrics": ""
}
SHEET = {"class_type": "RealISR_CompareSheet", "inputs": {"images.image0": ["2", 0], **SHEET_INPUTS}}
GRAPH = {
    "1": PHOTO,
    "2": METHODS,
    "3": SHEET,
    "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "sheet"}},
}


def test_methods_without_files_are_cards_that_name_them(server):
    result = server.client.run(GRAPH)
    (shown,) = result.outputs["3"]["compare"]
    print(shown)
    server.client.image(result.images("4")[0]).save("/tmp/exp/sheet.png")
