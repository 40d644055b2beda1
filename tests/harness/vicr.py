"""Tiny FLUX Fill runs in the host: conditioning, noise and samplers as an artist wires them, from given tensors.

Nothing here imports the host before it is called: tests take the `host` fixture first.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .checkpoints import StateDict
from .host import InProcessHost

LATENT_SCALE, LATENT_SHIFT = 0.3611, 0.1159

LORA_MODULES = (
    r"(transformer\.)?(x_embedder"
    r"|transformer_blocks\.\d+\.(norm1\.linear|attn\.to_[qkv]|attn\.to_out\.0|ff\.net\.2)"
    r"|single_transformer_blocks\.\d+\.(norm\.linear|proj_mlp|proj_out|attn\.to_[qkv]))"
)
"""The layers of FLUX Fill that VICR's LoRA trains, in diffusers' names, as a regular expression."""

LORA_RANK = 32


def load_fill(host: InProcessHost, name: str, weights: StateDict) -> Any:
    """A fresh MODEL of these weights through the host's own loader. `name` stands for the weights: a file is written
    once."""
    import nodes

    file = f"{name}.safetensors"
    if not (host.models / "diffusion_models" / file).is_file():
        host.save_model("diffusion_models", file, weights)
    return host.run(nodes.UNETLoader, unet_name=file, weight_dtype="default")[0]


def load_lora(host: InProcessHost, model: Any, name: str, weights: StateDict, strength: float = 1.0) -> Any:
    """The MODEL with a LoRA file through the host's own loader."""
    import nodes

    file = host.save_model("loras", f"{name}.safetensors", weights)
    return host.run(nodes.LoraLoaderModelOnly, model=model, lora_name=file, strength_model=strength)[0]


def load_bridge(host: InProcessHost, name: str, weights: StateDict) -> Any:
    from realisr.nodes.vicr_loaders import LoadVisionContextBridge

    file = host.save_model("model_patches", f"{name}.safetensors", weights)
    return host.run(LoadVisionContextBridge, bridge_name=file)[0]


def bridged(
    model: Any, wire: list[Any], bridge: Any, embeds: Tensor, strength: float = 1.0, tokens: Tensor | None = None
) -> tuple[Any, list[Any]]:
    """MODEL and CONDITIONING of the bridge node, for CLIP embeddings `[B, 768]` and tokens `[B, N, W]`."""
    from realisr.nodes.vicr import CLIPVisionContextBridge

    return InProcessHost.run(
        CLIPVisionContextBridge,
        model=model,
        conditioning=wire,
        bridge=bridge,
        strength=strength,
        clip_vision_output=SimpleNamespace(image_embeds=embeds, last_hidden_state=tokens),
    )


@dataclass(frozen=True)
class GivenNoise:
    """A NOISE of these numbers."""

    noise: Tensor
    seed: int = 0

    def generate_noise(self, latent: dict[str, Tensor]) -> Tensor:
        return self.noise


@dataclass(frozen=True)
class Scene:
    """What a diptych is completed from. masked: the encoded masked canvas as a VAE gives it, `[B, 16, h, w]`."""

    text: Tensor
    pooled: Tensor
    masked: Tensor
    noise: Tensor
    guidance: float = 30.0
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def random(
        cls, size: tuple[int, int] = (4, 8), batch: int = 1, text_width: int = 32, seed: int = 7, **rest: Any
    ) -> Scene:
        generator = torch.Generator().manual_seed(seed)
        draw = [
            torch.randn(shape, generator=generator)
            for shape in (
                (1, 5, text_width),
                (1, 768),
                (batch, 16, *size),
                (batch, 16, *size),
            )
        ]
        return cls(*draw, **rest)

    @classmethod
    def of_case(cls, case: Any) -> Scene:
        """The inputs of a golden case."""
        return cls(*(case[f"in/{name}"] for name in ("txt", "pooled", "vae_latent_raw", "noise")))

    def with_text(self, seed: int) -> Scene:
        """Another prompt."""
        generator = torch.Generator().manual_seed(seed)
        text, pooled = (torch.randn(old.shape, generator=generator) for old in (self.text, self.pooled))
        return replace(self, text=text, pooled=pooled)

    @property
    def mask(self) -> Tensor:
        """The diptych's mask as InpaintModelConditioning stores it, `[1, 1, H, W]` in pixels."""
        from realisr.models.vicr.diptych import target_mask

        height, width = (8 * side for side in self.noise.shape[-2:])
        return target_mask(height, width // 2, "side by side")[None]

    @property
    def wire(self) -> list[Any]:
        """The CONDITIONING, with canvas, mask and guidance."""
        return [
            [
                self.text,
                {
                    "pooled_output": self.pooled,
                    "concat_latent_image": self.masked,
                    "concat_mask": self.mask,
                    "guidance": self.guidance,
                    **self.options,
                },
            ]
        ]

    @property
    def empty(self) -> dict[str, Tensor]:
        return {"samples": torch.zeros_like(self.noise)}

    def sigmas(self, steps: int) -> Tensor:
        from realisr.nodes.vicr import FLUXFillSigmas

        return InProcessHost.run(
            FLUXFillSigmas, latent=self.empty, steps=steps, denoise=1.0, base_shift=0.5, max_shift=1.15
        )[0]


def sample(model: Any, scene: Scene, sigmas: Tensor | int = 3, **run: Any) -> Tensor:
    """Raw latent sampled by SamplerCustomAdvanced with euler.

    sigmas: the levels or the number of steps. run: wire (a CONDITIONING other than the scene's own), negative and cfg.
    """
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import BasicGuider, CFGGuider, SamplerCustomAdvanced

    wire = run.get("wire", scene.wire)
    if "negative" in run:
        (guider,) = InProcessHost.run(
            CFGGuider, model=model, positive=wire, negative=run["negative"], cfg=run.get("cfg", 3.0)
        )
    else:
        (guider,) = InProcessHost.run(BasicGuider, model=model, conditioning=wire)
    out, _ = InProcessHost.run(
        SamplerCustomAdvanced,
        noise=GivenNoise(scene.noise),
        guider=guider,
        sampler=comfy.samplers.sampler_object("euler"),
        latent_image=scene.empty,
        sigmas=scene.sigmas(sigmas) if isinstance(sigmas, int) else sigmas,
    )
    return out["samples"]


def velocity(model: Any, scene: Scene, x: Tensor, time: Tensor, wire: list[Any] | None = None) -> Tensor:
    """What the model predicts at `x` (model space) and `time` `[1]`, as velocity: one evaluation by the host."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(scene.wire if wire is None else wire, scene.wire)
    guider.set_cfg(1.0)
    seen = []

    def once(wrapped: Any, start: Tensor, sigmas: Tensor, extra_args: dict[str, Any], *_: Any, **__: Any) -> Tensor:
        denoised = wrapped(x, time, **extra_args)
        seen.append((x - denoised) / time)
        return denoised

    with torch.inference_mode():
        guider.sample(
            torch.zeros_like(x),
            torch.zeros_like(x),
            comfy.samplers.KSAMPLER(once),
            torch.tensor([1.0, 0.0]),
            disable_pbar=True,
            seed=0,
        )
    return seen[0]


def model_space(raw: Tensor) -> Tensor:
    return (raw - LATENT_SHIFT) * LATENT_SCALE


TINY_VAE = {"width": 32, "layers": 1, "latent_channels": 16}


def tiny_vaes(seed: int = 5) -> tuple[Any, Any]:
    """One small KL autoencoder of FLUX's kind (8x, 16 channels) as the host's VAE and as diffusers' AutoencoderKL.

    Its posterior has next to no spread, because diffusers' pipeline draws from it and the host takes the mean.
    """
    import comfy.sd
    from comfy.diffusers_convert import convert_vae_state_dict
    from diffusers import AutoencoderKL

    width, layers, channels = TINY_VAE.values()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # diffusers takes its models' common methods from bases it gives no types for.
        theirs: Any = AutoencoderKL(
            block_out_channels=(width,) * 4,
            layers_per_block=layers,
            latent_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=32,
            scaling_factor=LATENT_SCALE,
            shift_factor=LATENT_SHIFT,
        )
        theirs.eval()
    with torch.no_grad():
        theirs.quant_conv.weight[channels:] = 0
        theirs.quant_conv.bias[channels:] = -30
    sizes = {
        "double_z": True,
        "z_channels": channels,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": width,
        "ch_mult": [1, 1, 1, 1],
        "num_res_blocks": layers,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    ours = comfy.sd.VAE(
        convert_vae_state_dict(theirs.state_dict()),
        dtype=torch.float32,
        config={"params": {"ddconfig": sizes, "embed_dim": channels}},
    )
    return ours, theirs


def diffusers_fill(weights: StateDict, vae: Any) -> Any:
    """diffusers' FluxFillPipeline over a transformer of these (FLUX-named) weights."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxFillPipeline, FluxTransformer2DModel

    from .checkpoints import flux_diffusers

    renamed = flux_diffusers(weights)
    heads = weights["img_in.weight"].shape[0] // 128
    transformer: Any = FluxTransformer2DModel(
        in_channels=weights["img_in.weight"].shape[1],
        out_channels=64,
        num_layers=count(renamed, "transformer_blocks"),
        num_single_layers=count(renamed, "single_transformer_blocks"),
        attention_head_dim=128,
        num_attention_heads=heads,
        joint_attention_dim=weights["txt_in.weight"].shape[1],
        pooled_projection_dim=weights["vector_in.in_layer.weight"].shape[1],
        guidance_embeds=True,
    )
    transformer.load_state_dict(renamed)
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        shift=3.0,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
    pipeline: Any = FluxFillPipeline(scheduler, vae, None, None, None, None, transformer.eval())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def count(state_dict: StateDict, group: str) -> int:
    return 1 + max(int(name.split(".")[1]) for name in state_dict if name.startswith(f"{group}."))
