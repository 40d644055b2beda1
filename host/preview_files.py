"""Pictures of images for the browser, in the host's folder for temporary files, which each start empties."""

from __future__ import annotations

import logging
import os
import uuid
from pathlib import Path

import folder_paths
from PIL import Image
from torch import Tensor

from ..models.image import LANCZOS, to_bytes

log = logging.getLogger(__name__)

SUBFOLDER = "realisr"
QUALITY = 95


def save_preview(image: Tensor, side: int, content: str = "", lossless: bool = False) -> dict[str, str] | None:
    """Write a picture of an image `[H, W, C]` in 0..1, alpha left out; returns what the host's `/view` asks for.

    side: its longest side in pixels, at most. content: a name, the same for the same pixels: what is there is not
    written again. Without one the name comes only once, so that a workflow opened later never shows another run's
    picture. lossless: PNG in place of JPEG. None where the folder cannot be written to: no run fails for a preview.
    """
    folder = Path(folder_paths.get_temp_directory()) / SUBFOLDER
    name = f"{content or uuid.uuid4().hex}_{side}.{'png' if lossless else 'jpg'}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / name).is_file():
            picture = Image.fromarray(to_bytes(image[..., :3].float().nan_to_num()).cpu().numpy())
            picture.thumbnail((side, side), LANCZOS)
            part = folder / f"{name}.{uuid.uuid4().hex}.part"
            if lossless:
                picture.save(part, "PNG", compress_level=1)
            else:
                picture.save(part, "JPEG", quality=QUALITY, subsampling=0)
            os.replace(part, folder / name)
    except OSError as error:
        log.warning("RealISR: no picture for the browser, for %s cannot be written to: %s", folder, error)
        return None
    return {"filename": name, "subfolder": SUBFOLDER, "type": "temp"}
