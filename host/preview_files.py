"""Small pictures of images for the browser, in the host's folder for temporary files, which each start empties."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import folder_paths
from PIL import Image
from torch import Tensor

from ..models.image import LANCZOS, to_bytes

log = logging.getLogger(__name__)

SUBFOLDER = "realisr"
SIDES = {"large": 1024, "small": 256}
"""Longest side in pixels: to compare, and to choose from."""
QUALITY = 95


def write_previews(image: Tensor, content: str) -> dict[str, dict[str, str]]:
    """Files of an image `[H, W, C]` in 0..1 by size, as the host's `/view` names them; alpha is left out.

    content: its name, the same for the same pixels: what is there is not written again. Nothing where the folder cannot
    be written to: a run does not fail for a preview.
    """
    folder = Path(folder_paths.get_temp_directory()) / SUBFOLDER
    names = {size: f"{content}_{side}.jpg" for size, side in SIDES.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        picture: Image.Image | None = None
        for size, side in SIDES.items():
            if (folder / names[size]).is_file():
                continue
            picture = picture or Image.fromarray(to_bytes(image[..., :3]).cpu().numpy())
            picture.thumbnail((side, side), LANCZOS)
            part = folder / f"{names[size]}.part"
            picture.save(part, "JPEG", quality=QUALITY, subsampling=0)
            os.replace(part, folder / names[size])
    except OSError as error:
        log.warning("RealISR: no previews of the candidates, for %s cannot be written to: %s", folder, error)
        return {}
    return {size: {"filename": name, "subfolder": SUBFOLDER, "type": "temp"} for size, name in names.items()}
