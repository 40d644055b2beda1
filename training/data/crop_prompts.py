"""The sidecar with a prompt for the whole photo and one for each of some crops (DreamSR, arXiv 2605.15682).

    {"prompt": "A street at dusk ...",
     "crops": [{"width": 2048, "height": 1365, "left": 96, "top": 410, "side": 512, "prompt": "A brick wall ..."}]}

A crop's width and height are those of the photo it is cut from, which may have been shrunk before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .crops import Crop
from .reading import PhotoError

NUMBERS = ("width", "height", "left", "top", "side")


@dataclass(frozen=True)
class CropPrompts:
    """What the sidecar holds."""

    prompt: str
    """Of the whole photo."""
    crops: Sequence[tuple[Crop, str]]

    def text(self) -> str:
        """As the sidecar has it."""
        crops = [{**asdict(crop), "prompt": prompt} for crop, prompt in self.crops]
        return json.dumps({"prompt": self.prompt, "crops": crops}, ensure_ascii=False, indent=1) + "\n"


def read_crop_prompts(text: str, side: int) -> CropPrompts:
    """The sidecar's text with the crops of this side. Raises PhotoError for another form, and where there is none."""
    try:
        content = json.loads(text)
        crops = [read_crop(each) for each in content["crops"]]
        whole = content["prompt"]
    except (ValueError, TypeError, KeyError) as error:
        raise PhotoError(f"its crop prompts are not of the documented form ({type(error).__name__}: {error})") from None
    fitting = [(crop, prompt) for crop, prompt in crops if crop.side == side]
    if not fitting:
        sides = sorted({crop.side for crop, _ in crops})
        raise PhotoError(f"it has no crop prompt for crops of {side}, only for {sides or 'none'}")
    if not isinstance(whole, str) or not whole.strip() or not all(prompt.strip() for _, prompt in fitting):
        raise PhotoError("one of its crop prompts is empty")
    return CropPrompts(whole.strip(), fitting)


def read_crop(entry: dict[str, Any]) -> tuple[Crop, str]:
    numbers = [entry[name] for name in NUMBERS]
    if not all(isinstance(number, int) for number in numbers) or not isinstance(entry["prompt"], str):
        raise ValueError(f"{entry} is no crop with a prompt")
    return Crop(*numbers), entry["prompt"]
