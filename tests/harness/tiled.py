"""Tiny networks of the host for sampling in tiles, and the same tiles run one by one by hand.

Nothing here imports the host before it is called: tests take the `host` fixture first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoints import fill, flux, taesd
from .host import InProcessHost

Entry = list[Any]
Conditioning = list[Entry]


def seeded(network: nn.Module, seed: int) -> nn.Module:
    """Random weights none of which is zero, so that every part shows in the output."""
    shapes = ((name, tuple(value.shape)) for name, value in network.state_dict().items())
    network.load_state_dict(fill(shapes, seed))
    return network


# --- models ----------------------------------------------------------------------------------------------------------

FLUX: dict[str, Any] = {"heads": 1, "double_blocks": 1, "single_blocks": 1, "context_width": 16, "pooled_width": 16}
"""Sizes for checkpoints.flux; text as `text` makes it."""

UNET = {
    "image_size": 32,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [2, 2],
    "channel_mult": [1, 2],
    "transformer_depth": [1] * 4,
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1] * 6,
    "context_dim": 16,
    "num_heads": 2,
    "num_head_channels": -1,
    "use_spatial_transformer": True,
    "legacy": False,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
}


def unet_model(seed: int = 0, in_channels: int = 4) -> Any:
    """A MODEL of SD 1.5's kind: 4 latent channels, text 16 wide, sides halved once; 9 channels for inpainting.

    Built as the host's loader does once it knows the sizes; it recognises SD 1.5 by the released ones only.
    """
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.SD15({**UNET, "in_channels": in_channels})
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device="cpu")
    seeded(model.diffusion_model, seed)
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.CoreModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


def unet_controlnet(seed: int = 1) -> Any:
    """A CONTROL_NET for `unet_model`, as the host loads one: hint of 3 channels, 8 pixels per cell."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.model_management
    import comfy.ops

    sizes = {name: value for name, value in UNET.items() if name not in ("out_channels",)}
    network = comfy.cldm.cldm.ControlNet(
        in_channels=4, hint_channels=3, **sizes, dtype=torch.float32, device="cpu", operations=comfy.ops.manual_cast
    )
    device = comfy.model_management.get_torch_device()
    return comfy.controlnet.ControlNet(seeded(network, seed), load_device=device)


def t2i_adapter(seed: int = 2) -> Any:
    """A T2I adapter with features as wide as `unet_model`'s first two levels."""
    import comfy.controlnet
    import comfy.t2i_adapter.adapter

    network = comfy.t2i_adapter.adapter.Adapter(
        cin=192, channels=[32, 64], nums_rb=1, ksize=1, sk=True, use_conv=False, xl=False
    )
    return comfy.controlnet.T2IAdapter(seeded(network, seed), network.input_channels, 8, "nearest-exact")


def flux_controlnet(seed: int = 3, *, latent: bool = False) -> Any:
    """A CONTROL_NET for a FLUX of the sizes FLUX.

    latent: the hint is encoded by a VAE, as in union and upscaler ones.
    """
    import comfy.controlnet
    import comfy.latent_formats
    import comfy.ldm.flux.controlnet
    import comfy.model_detection
    import comfy.model_management
    import comfy.ops

    sizes = comfy.model_detection.detect_unet_config(flux(**FLUX), "")
    network = comfy.ldm.flux.controlnet.ControlNetFlux(
        latent_input=latent,
        control_latent_channels=16 if latent else None,
        **sizes,
        dtype=torch.float32,
        device="cpu",
        operations=comfy.ops.manual_cast,
    )
    space = {"compression_ratio": 1, "latent_format": comfy.latent_formats.Flux()} if latent else {}
    return comfy.controlnet.ControlNet(
        seeded(network, seed),
        load_device=comfy.model_management.get_torch_device(),
        extra_conds=["y", "guidance"],
        **space,
    )


def light_vae(host: InProcessHost) -> Any:
    import nodes

    name = "tiled_taef1.safetensors"
    if not (host.models / "vae" / name).is_file():
        host.save_model("vae", name, taesd())
    return host.run(nodes.VAELoader, vae_name=name)[0]


def small_clip(seed: int = 4, width: int = 16) -> Any:
    """A CLIP of SD 1.5's kind, with the host's tokenizer and a small text network."""
    import comfy.sd
    import comfy.sd1_clip

    sizes = {
        "hidden_act": "quick_gelu",
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_attention_heads": 1,
        "num_hidden_layers": 2,
        "max_position_embeddings": 77,
        "vocab_size": 49408,
        "projection_dim": width,
        "eos_token_id": 49407,
        "layer_norm_eps": 1e-5,
    }
    network = partial(
        comfy.sd1_clip.SD1ClipModel, clip_model=partial(comfy.sd1_clip.SDClipModel, textmodel_json_config=sizes)
    )
    clip = comfy.sd.CLIP(SimpleNamespace(params={}, clip=network, tokenizer=comfy.sd1_clip.SD1Tokenizer))
    generator = torch.Generator().manual_seed(seed)
    for parameter in clip.cond_stage_model.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return clip


# --- evaluations -----------------------------------------------------------------------------------------------------


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text(seed: int, tokens: int = 4, width: int = 16, pooled: int = 16, **options: Any) -> Conditioning:
    """A CONDITIONING with random text."""
    return [[randn(1, tokens, width, seed=seed), {"pooled_output": randn(1, pooled, seed=seed + 1), **options}]]


def evaluate(
    model: Any,
    x: Tensor,
    sigma: float,
    positive: Conditioning,
    negative: Conditioning | None = None,
    cfg: float = 1.0,
    latent: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """What the model denoises `x` `[B, C, H, W]` to, in one evaluation of the host's guider.

    latent, mask: of a masked run, in model space and `[b, 1, H, W]`.
    """
    import comfy.samplers

    results = []

    def once(denoiser: Any, start: Tensor, sigmas: Tensor, extra_args: Any, callback: Any, **_: Any) -> Tensor:
        results.append(denoiser(x, torch.full((x.shape[0],), sigma), **extra_args))
        return start

    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive} if negative is None else {"positive": positive, "negative": negative})
    guider.set_cfg(cfg)
    raw = torch.zeros_like(x) if latent is None else model.model.process_latent_out(latent)
    with torch.inference_mode():
        guider.sample(
            torch.zeros_like(x),
            raw,
            comfy.samplers.KSAMPLER(once),
            torch.tensor([sigma, 0.0]),
            denoise_mask=mask,
            disable_pbar=True,
            seed=0,
        )
    return results[0]


def by_hand(grid: Any, x: Tensor, tile: Callable[[int, Any, Tensor], Tensor], weight: Tensor | None = None) -> Tensor:
    """The weighted mean of `tile(index, box, crop of x)`, summed up in double. weight: `[h, w]`, None for ones."""
    total, mass = torch.zeros_like(x, dtype=torch.float64), torch.zeros(x.shape[-2:], dtype=torch.float64)
    for index, box in enumerate(grid.boxes):
        own = torch.ones(box.height, box.width) if weight is None else weight
        box.crop(total).add_(tile(index, box, box.crop(x).contiguous()).double() * own)
        box.crop(mass).add_(own)
    return (total / mass).float()


def calls_of(model: Any, sizes: list[list[int]]) -> Any:
    """A clone of the MODEL that writes down the shape of what its network is given."""
    from comfy.patcher_extension import WrappersMP

    def record(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(list(x.shape))
        return executor(x, *args, **kwargs)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "calls", record)
    return clone


def node_lists(**inputs: Any) -> dict[str, Any]:
    """Inputs as the executor hands them to nodes that take lists; lists stay, all else is wrapped."""
    return {
        name: value if isinstance(value, Sequence) and name == "patch_prompts" else [value]
        for name, value in inputs.items()
    }
