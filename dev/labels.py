"""What inputs and outputs are called on the node: words instead of the ids that workflow files and the API use.

They go into locales/en with the schemas' other texts. Not into the schemas: frontends up to 1.47 show an input's
display name in every language.
"""

from __future__ import annotations

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

WRITTEN_SO = (
    *("API", "AR", "CFG", "CLIP", "DINOv2", "DreamSR", "FLUX", "JPEG", "LoRA", "LQ", "NR-IQA", "PURE", "URL", "VAE"),
    *("VICR", "VLM", "VOSR", "VQ"),
)
SPELLING = {word.lower(): word for word in WRITTEN_SO}


def label(name: str) -> str:
    """Words for an id: "tile_size" is "Tile size", "vae" is "VAE"."""
    if name in BETTER:
        return BETTER[name]
    first, *others = [SPELLING.get(word, word) for word in name.split("_")]
    return " ".join([first[:1].upper() + first[1:], *others])
