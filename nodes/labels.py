"""What inputs and outputs are called on the node: words instead of the ids that workflow files and the API use."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from comfy_api.latest import io

BETTER = {
    "align": "Alignment",
    "base_url": "Address",
    "blur_sigma": "Blur (sigma)",
    "bridge": "Vision-context bridge",
    "bridge_name": "Vision-context bridge",
    "control_name": "MM-ControlNet",
    "decoder_name": "Decoder",
    "dit_blocks": "DiT blocks",
    "dtype": "Precision",
    "end_percent": "End at",
    "full": "Full condition",
    "image_count": "Number of images",
    "in_flight": "Requests at once",
    "joins": "Joined to",
    "k_max": "Most candidates (k max)",
    "k_min": "Fewest candidates (k min)",
    "key_variable": "API key variable",
    "lora_name": "LoRA",
    "lq_image": "Low-quality image",
    "mm_controlnet": "MM-ControlNet",
    "model_name": "Model",
    "mu": "Midpoint (mu)",
    "noise_sigma": "Noise (sigma)",
    "patch_prompt_reader": "Patch prompts read by",
    "restoration_scale": "Restoration strength",
    "size_of": "Size from",
    "start_percent": "Start at",
    "tell_global_prompt": "Tell the global prompt",
    "text_top_k": "Text candidates (top k)",
    "top_k": "Candidates (top k)",
    "vae_name": "VAE",
    "vision_name": "Vision encoder",
    "vq_name": "VQ autoencoder",
    "weak": "Weak condition",
    "weight_dtype": "Weight precision",
}
"""Id -> label, where the rule of `label` says too little."""

WRITTEN_SO = ("API", "AR", "CFG", "CLIP", "DINOv2", "FLUX", "JPEG", "LoRA", "LQ", "NR-IQA", "URL", "VAE", "VLM", "VQ")
SPELLING = {word.lower(): word for word in WRITTEN_SO}


@cache
def label(name: str) -> str:
    """Words for an id: "tile_size" is "Tile size", "vae" is "VAE"."""
    if name in BETTER:
        return BETTER[name]
    first, *others = [SPELLING.get(word, word) for word in name.split("_")]
    return " ".join([first[:1].upper() + first[1:], *others])


class Labelled(io.ComfyNode):
    """Gives a node's inputs and outputs their labels; in a class's bases it stands before the node."""

    @classmethod
    def FINALIZE_SCHEMA(cls) -> io.Schema:
        schema = super().FINALIZE_SCHEMA()
        label_inputs(schema.inputs)
        for output in schema.outputs:
            output.display_name = label(output.display_name or output.id or "")
        return schema


def label_inputs(inputs: Iterable[io.Input]) -> None:
    """Label inputs that have no display name of their own, and those that a dynamic combo's options bring."""
    for item in inputs:
        item.display_name = item.display_name or label(item.id)
        if isinstance(item, io.DynamicCombo.Input):
            for option in item.options:
                label_inputs(option.inputs)


@cache
def labelled(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node with labels, else the same."""
    return type(node.__name__, (Labelled, node), {"__module__": node.__module__, "__doc__": node.__doc__})
