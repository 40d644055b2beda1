"""`models`: which files a loader's methods need, and which of them are here."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from ...host.model_catalogue import place_of, presence
from ...host.pure.files import restorer_folders
from ...host.vosr.files import BUNDLED
from ...host.vosr.vae import PIXEL_UNSHUFFLE
from ...services.model_catalogue import LOADERS, METHODS, NANO, PURE_FOLDER, Method, Part, known, size_text

FOLDERS: Mapping[str, str] = {
    "RealISR_LoadVOSRModel": "diffusion_models",
    "RealISR_LoadVOSRVAE": "vae",
    "RealISR_LoadVOSRVisionEncoder": "clip_vision",
}
"""Where the file that such a loader chooses lies; it tells which of several methods is meant."""


async def checklist(request: web.Request) -> dict[str, Any]:
    """`?node=<class>&chosen=<its file widget>`: the methods of that loader with their parts, and which is meant
    by the choice, null where it tells nothing. Raises ValueError for a node without a checklist."""
    node = request.query.get("node", "")
    if node not in LOADERS:
        raise ValueError(f"{node[:80]!r} has no list of models.")
    # Looking into folders on a slow disk must not hold up the server.
    return await asyncio.to_thread(described, node, request.query.get("chosen", ""))


def described(node: str, chosen: str) -> dict[str, Any]:
    methods = [{"key": key, **described_method(METHODS[key])} for key in LOADERS[node]]
    return {"methods": methods, "meant": meant(node, chosen)}


def meant(node: str, chosen: str) -> str | None:
    """The method that a loader's choice belongs to."""
    keys = LOADERS[node]
    if len(keys) == 1:
        return keys[0]
    if chosen in (BUNDLED, PIXEL_UNSHUFFLE):
        return next(key for key in keys if METHODS[key].name == NANO)
    part = known(FOLDERS[node], chosen)
    return next((key for key in keys if part in METHODS[key].parts), None)


def described_method(method: Method) -> dict[str, Any]:
    return {"name": method.name, "parts": [described_part(part) for part in method.parts]}


def described_part(part: Part) -> dict[str, Any]:
    here = presence(part, elsewhere(part))
    return {
        "name": part.name,
        "folder": part.folder,
        "place": str(Path(place_of(part.folder)) / (part.name if part.is_folder else Path(part.name).parent)),
        "link": part.where,
        "size": size_text(part.size).replace("about", "≈"),
        "licence": part.licence,
        "note": part.note,
        "found": here.found,
        "of": here.of,
        "absent": list(here.absent),
    }


def elsewhere(part: Part) -> Iterable[Path]:
    """Where a folder may lie under a name of the user's."""
    return restorer_folders().values() if part == PURE_FOLDER else ()


ROUTES = [("GET", "models", checklist)]
