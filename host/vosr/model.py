"""VOSR as a ComfyUI MODEL: the network on the host's layers, its conditions and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.ldm.modules.attention
import comfy.model_base
import comfy.model_management
import comfy.patcher_extension
import comfy.supported_models_base
import comfy.utils
import torch
from torch import Tensor

from ...models.vosr.config import VOSRConfig, gives_posterior_mean
from ...models.vosr.dit import Block, VOSRDiT
from ...models.vosr.sampling import weak_strength_from_args
from ..memory import NOTHING
from ..tiling.conditions import TILE
from .conditioning import ONCE, STRENGTH
from .conds import Context, ContextMemo, VisionCond
from .files import ARGS_KEY, args_to_tensor

SIGMA_TABLE_SIZE = 25200
"""Length of the host's sigma table. Divisible by most step counts up to 50, so that the `simple` scheduler gives
the method's linear schedule exactly; 1000, the host's usual length, would be off by up to 1e-3."""

PURE_NOISE = 0.999
"""Sigma above which a step starts from noise alone; samplers round 1 a little."""

MISSING_CONDITION = (
    "This VOSR model got a conditioning that is not its own (a text prompt?). Connect the full and weak outputs of "
    "VOSR Conditioning."
)


@dataclass(frozen=True)
class VOSRInfo:
    """What is known of a loaded checkpoint beyond its tensors."""

    name: str
    """As chosen in the loader."""
    config: VOSRConfig
    one_step: bool
    """A distilled student, which runs without guidance."""
    args: dict[str, Any] = field(default_factory=dict)
    """Its args.json, empty when it came without one."""

    @property
    def posterior_mean(self) -> bool:
        """Whether it runs in one step without guidance, and in no other way."""
        return gives_posterior_mean(self.args)

    def check_run(self, steps: int = 1, scale: float = 1.0) -> None:
        """Raises ValueError for steps or guidance that the network has not learnt."""
        if not self.posterior_mean:
            return
        if steps != 1:
            raise ValueError(
                f"{self.name} is a one-step model, trained for a single step from pure noise: {steps} steps would make "
                "the image worse, not better. Set steps to 1 (0 is the model's own), or load a multi-step VOSR model."
            )
        if scale != 1.0:
            raise ValueError(
                f"{self.name} is a one-step model without a weak condition: there is nothing to guide with. Set "
                "restoration_scale (cfg) to 1, or load a multi-step VOSR model."
            )

    @property
    def weak_strength(self) -> float:
        """w of the weak condition that it was trained for."""
        return weak_strength_from_args(self.args)


class HostVOSRDiT(VOSRDiT):
    """The network with the host's calling convention, attention, and wrapper and block-replacement hooks."""

    def forward(self, x, timestep, context=(), end_time=None, control=None, transformer_options=None, **kwargs):
        """x `[B, 2C, H, W]`, LQ latent first; timestep, end_time `[B]` in [0, 1]; context: a list of ContextKV."""
        options = transformer_options or {}
        wrappers = comfy.patcher_extension.get_all_wrappers(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, options)
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        return executor.execute(x, timestep, context, end_time, options)

    def _forward(self, x, timestep, context, end_time, transformer_options):
        heads = self.config.num_heads
        replacements = transformer_options.get("patches_replace", {}).get("dit", {})

        def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return comfy.ldm.modules.attention.optimized_attention(
                q, k, v, heads, skip_reshape=True, transformer_options=transformer_options
            )

        def run_block(index: int, block: Block, tokens: Tensor, modulation: Tensor, cos, sin, *rest) -> Tensor:
            replacement = replacements.get(("double_block", index))
            if replacement is None:
                return block(tokens, modulation, cos, sin, *rest)

            def original(args: dict[str, Any]) -> dict[str, Any]:
                return {"img": block(args["img"], args["vec"], *args["pe"], *rest)}

            args = {
                "img": tokens,
                "vec": modulation,
                "pe": (cos, sin),
                "transformer_options": transformer_options,
            }
            return replacement(args, {"original_block": original})["img"]

        return super().forward(
            x, timestep, end_time, context=context, attention=attention, run_block=run_block if replacements else None
        )


class VOSRModelConfig(comfy.supported_models_base.BASE):
    """Made by the loader for one checkpoint; never added to the host's list of known models."""

    unet_extra_config: dict[str, Any] = {}
    sampling_settings = {"shift": 1.0, "multiplier": 1.0}
    # Half precision first: bfloat16 is the weak point of these networks (large residuals, few mantissa bits).
    supported_inference_dtypes = [torch.float16, torch.bfloat16, torch.float32]

    def __init__(self, info: VOSRInfo, latent_format: comfy.latent_formats.LatentFormat):
        # The base class instantiates the attribute; a checkpoint's latent space is known only here.
        self.latent_format = lambda: latent_format
        super().__init__({"config": info.config})
        self.info = info
        self.memory_usage_factor = info.config.hidden_size / 1024

    def model_type(self, state_dict, prefix=""):
        return comfy.model_base.ModelType.FLOW

    def inpaint_model(self):
        return False

    def get_model(self, state_dict, prefix="", device=None):
        return VOSRModel(self, device=device)

    def process_unet_state_dict_for_saving(self, state_dict):
        """With the host's prefix, and with the args: the tensors of some models do not tell what they are."""
        named = super().process_unet_state_dict_for_saving(state_dict)
        args = dict(self.info.args)
        if self.info.one_step:
            args.setdefault("distill_type", "onestep")
        return {**named, ARGS_KEY: args_to_tensor(args)} if args else named


class VOSRModel(comfy.model_base.BaseModel):
    """Runs the network on a latent; on tiles of one where its patcher works in tiles (see loader.build_patcher)."""

    def __init__(self, model_config: VOSRModelConfig, device=None):
        super().__init__(
            model_config, model_type=comfy.model_base.ModelType.FLOW, device=device, unet_model=HostVOSRDiT
        )
        self.info = model_config.info
        self.model_sampling.set_parameters(shift=1.0, timesteps=SIGMA_TABLE_SIZE, multiplier=1.0)

    def concat_cond(self, **kwargs) -> Tensor:
        """The LQ latent times its strength, normalised. Raises ValueError when it does not fit the noise."""
        latent, noise = kwargs.get("concat_latent_image"), kwargs["noise"]
        if latent is None or STRENGTH not in kwargs:
            raise ValueError(MISSING_CONDITION)
        if latent.shape[1:] != noise.shape[1:]:
            raise ValueError(
                f"The LATENT being sampled is {list(noise.shape[1:])} but the VOSR conditioning was made for "
                f"{list(latent.shape[1:])} (channels, height, width). Sample the latent output of the same VOSR "
                "Conditioning node, with the VAE this model was trained for."
            )
        self.check_sides(noise)
        if noise.shape[0] % latent.shape[0]:
            raise ValueError(
                f"The LATENT being sampled holds {noise.shape[0]} latents, which is no multiple of the "
                f"{latent.shape[0]} images the VOSR conditioning was made for."
            )
        latent = self.process_latent_in(latent.to(kwargs["device"]))
        strength = self.info.weak_strength if kwargs[STRENGTH] is None else kwargs[STRENGTH]
        return strength * comfy.utils.repeat_to_batch_size(latent, noise.shape[0])

    def check_sides(self, x: Tensor) -> None:
        """Raises ValueError for a latent, or tiles of one, whose sides are no whole number of patches."""
        patch = self.info.config.patch_size
        if x.shape[-1] % patch or x.shape[-2] % patch:
            raise ValueError(
                f"VOSR needs latents and tiles whose sides are multiples of {patch}, got {list(x.shape[-2:])}. "
                f"VOSR Conditioning pads the image: sample its latent output, in tiles with an align of {patch}."
            )

    def extra_conds(self, **kwargs) -> dict[str, comfy.conds.CONDRegular]:
        out: dict[str, comfy.conds.CONDRegular] = {"c_concat": comfy.conds.CONDNoiseShape(self.concat_cond(**kwargs))}
        if "area" in kwargs:
            raise ValueError(
                "VOSR conditioning cannot be restricted to an area: the LQ image already says what is where."
            )
        width = self.info.config.context_width
        if width:
            features = kwargs["cross_attn"]
            if features.shape[-1] != width:
                raise ValueError(
                    f"This VOSR model reads vision features {width} wide, the conditioning's are "
                    f"{features.shape[-1]}: 0.5B models take DINOv2 ViT-B/14 (768), 1.4B models ViT-L/14 (1024)."
                )
            # A tile's contexts are kept with those of its canvas.
            canvas = kwargs.get("model_conds", {}).get("vision")
            memo = canvas.cond[0].memo if canvas else ContextMemo(self.context_budget())
            if kwargs.get(ONCE):
                memo = ContextMemo(NOTHING)
            out["vision"] = VisionCond([Context(features, memo, kwargs.get(TILE))])
        return out

    def context_budget(self) -> int:
        """Bytes of context one conditioning may keep: at most half the weights, and a quarter of what is free."""
        device = comfy.model_management.get_torch_device()
        weights = comfy.model_management.module_size(self.diffusion_model)
        return int(min(weights / 2, comfy.model_management.get_free_memory(device) / 4))

    def _apply_model(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor,
        c_crossattn=None,
        control=None,
        transformer_options: dict[str, Any] | None = None,
        vision: Sequence[Context] = (),
        **kwargs,
    ) -> Tensor:
        """Clean prediction `[B, C, H, W]` from x at sigma t `[B]`; `vision` lists the features of all items."""
        self.check_sides(x)
        self.check_time(t)
        options = dict(transformer_options or {})
        options["prefetch_dynamic_vbars"] = self.current_patcher is not None and self.current_patcher.is_dynamic()
        dtype = self.get_dtype_inference()
        noisy = self.model_sampling.calculate_input(t, x).to(dtype)
        fields = torch.cat([comfy.model_management.cast_to_device(c_concat, x.device, dtype), noisy], dim=1)
        # Sigma itself, not model_sampling.timestep(): sampling patches such as ModelSamplingSD3 count in thousands.
        time, network, keep = t.float(), self.diffusion_model, self.keeps_context()
        velocity = network(
            fields,
            time,
            context=[kv for context in vision for kv in context.encode(network, x.device, dtype, keep)],
            end_time=self.end_time(time, options),
            transformer_options=options,
        )
        return self.model_sampling.calculate_denoised(t, velocity.float(), x)

    def check_time(self, t: Tensor) -> None:
        """Raises ValueError where a sampler asks a network that knows pure noise alone for sigma t `[B]` below 1."""
        if self.info.posterior_mean and not t.is_meta and float(t.min()) < PURE_NOISE:
            raise ValueError(
                f"{self.info.name} is a one-step model, trained for a single step from pure noise: this sampler called "
                f"it at sigma {float(t.min()):.3g}. Use sampler euler with 1 step at denoise 1, or load a multi-step "
                "VOSR model."
            )

    def end_time(self, time: Tensor, transformer_options: dict[str, Any]) -> Tensor | None:
        """End r of the step that starts at each time `[B]`: the next sigma of the schedule, 0 without one."""
        if not self.info.config.has_end_time:
            return None
        sigmas = transformer_options.get("sample_sigmas")
        if sigmas is None:
            return torch.zeros_like(time)
        ends = sigmas.to(time)
        # Samplers that evaluate between two sigmas, and rounding, must not name the step's own start.
        earlier = ends[None, :] < time[:, None] - 1e-5
        return torch.where(earlier, ends[None, :], 0.0).amax(dim=1)

    def keeps_context(self) -> bool:
        """Weights that hooks change during the run would make remembered keys and values stale."""
        return self.current_patcher is None or self.current_patcher.current_hooks is None
