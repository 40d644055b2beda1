"""RealISR: four generative real-world super-resolution methods as ComfyUI nodes."""

import re

WEB_DIRECTORY = "./js"

MINIMUM_COMFYUI = "0.27.0"
"""The oldest ComfyUI that runs every node. 0.26.0 registers them and fails when one loads a model."""


def check_comfyui(found: str | None) -> None:
    """Raise ImportError when ComfyUI is older than the pack needs.

    found: ComfyUI's `__version__`, such as "0.30.0", or None where it has no `comfyui_version` module. Only the leading
    numbers count, so a development build of 0.30 is 0.30. A version without numbers is let through: a fork may count
    otherwise, and a wrong refusal would be worse than a later error.
    """
    numbers = re.match(r"v?(\d+(?:\.\d+)*)", found or "0")
    if numbers is None or release(numbers[1]) >= release(MINIMUM_COMFYUI):
        return
    raise ImportError(
        f"RealISR needs ComfyUI {MINIMUM_COMFYUI} or newer and this is {found or 'an older one without a version'}. "
        "Update ComfyUI (ComfyUI-Manager: Update ComfyUI; portable: update/update_comfyui.bat; git: git pull, then "
        "pip install -r requirements.txt) and restart it."
    )


def release(version: str) -> tuple[int, ...]:
    """(0, 30, 0) of "0.30" or "0.30.0"."""
    numbers = [int(part) for part in version.split(".")]
    return tuple(numbers + [0] * (3 - len(numbers)))


async def comfy_entrypoint():
    """Called by ComfyUI when it loads the pack; the nodes are imported here, not with the package."""
    try:
        from comfyui_version import __version__ as found
    except ImportError:
        found = None
    check_comfyui(found)

    from .nodes import RealISRExtension

    return RealISRExtension()
