"""RealISR: four generative real-world super-resolution methods as ComfyUI nodes."""

WEB_DIRECTORY = "./js"


async def comfy_entrypoint():
    """Called by ComfyUI when it loads the pack; the nodes are imported here, not with the package."""
    from .nodes import RealISRExtension

    return RealISRExtension()
