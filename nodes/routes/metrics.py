"""Quality metrics: which there are, which work on this machine, and what the others need."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from ...host.iqa import weights_folder
from ...services.iqa.metrics import install_command, missing_modules
from ...services.iqa.offer import Offer, first_choice, offered


async def metrics(_: web.Request) -> dict[str, Any]:
    """Looks into folders, which may be slow ones."""
    return await asyncio.to_thread(described)


def described() -> dict[str, Any]:
    """All of it as JSON. Nothing heavy is imported."""
    folder = weights_folder()
    offers = offered(folder)
    missing = missing_modules()
    return {
        "folder": str(folder),
        "missing_packages": missing,
        "install": install_command() if missing else "",
        "first_choice": ", ".join(first_choice(offers)),
        "metrics": [described_offer(offer) for offer in offers],
    }


def described_offer(offer: Offer) -> dict[str, Any]:
    return {
        "name": offer.metric.name,
        "lower_is_better": offer.metric.lower_is_better,
        "needs_reference": offer.metric.needs_reference,
        "ready": offer.ready,
        "runs": offer.runs,
        "common": offer.common,
        "files": [{"name": url.rpartition("/")[2], "url": url, "found": found} for url, found in offer.files.items()],
    }


ROUTES = [("GET", "metrics", metrics)]
