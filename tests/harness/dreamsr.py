"""A tiny FLUX with a tiny MM-ControlNet in the in-process host, and ways to run and observe them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .checkpoints import fill

METADATA_KEY = "realisr.mm_controlnet"

TEXT_WIDTH, POOLED_WIDTH = 32, 768


def control_config(**sizes: Any):
    """An MMControlNetConfig that goes with the golden FLUX (hidden 256); keyword arguments override its sizes."""
    from realisr.models.dreamsr.config import MMControlNetConfig

    small = {
        "hidden_size": 256,
        "layers": 2,
        "text_width": TEXT_WIDTH,
        "pooled_width": POOLED_WIDTH,
        "mlp_hidden": 1024,
        "context_hidden": 1024,
    }
    return MMControlNetConfig(**(small | sizes))


def control_weights(config: Any = None, seed: int = 5) -> dict[str, Tensor]:
    """Random weights of an MM-ControlNet, none of them zero."""
    from realisr.models.dreamsr.mm_controlnet import MMControlNet

    with torch.device("meta"):
        shapes = MMControlNet(config or control_config()).state_dict()
    return fill(((name, tuple(value.shape)) for name, value in shapes.items()), seed)


def save_control(host: Any, name: str, weights: dict[str, Tensor], stated: dict[str, Any] | str | None = None) -> str:
    """Write an MM-ControlNet file into models/controlnet; `stated` is its metadata, None for a file without any."""
    path = host.models / "controlnet" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = None
    if stated is not None:
        metadata = {METADATA_KEY: stated if isinstance(stated, str) else json.dumps(stated)}
    save_file(weights, path, metadata)
    return name


def load_control(host: Any, name: str, weights: dict[str, Tensor], stated: Any = None, dtype: str = "fp32"):
    from realisr.host.dreamsr.control.loader import load_mm_control

    return load_mm_control(save_control(host, name, weights, stated), dtype)


def load_flux(host: Any, name: str, weights: dict[str, Tensor]):
    """A FLUX checkpoint through the host's own loader, in float32."""
    import nodes

    host.save_model("diffusion_models", name, weights)
    (model,) = host.run(nodes.UNETLoader, unet_name=name, weight_dtype="default")
    assert model.model_dtype() == torch.float32
    return model


@dataclass
class Scene:
    """Inputs of one model call. Latents are model space: what the network sees. t in [0, 1]."""

    z_t: Tensor
    z_lq: Tensor
    text: Tensor
    pooled: Tensor
    local_text: Tensor
    local_pooled: Tensor
    t: float = 0.7
    guidance: float = 3.5

    @classmethod
    def random(cls, size: tuple[int, int] = (6, 8), batch: int = 1, seed: int = 3) -> Scene:
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        return cls(
            randn(batch, 16, *size),
            randn(batch, 16, *size),
            randn(1, 5, TEXT_WIDTH),
            randn(1, POOLED_WIDTH),
            randn(1, 7, TEXT_WIDTH),
            randn(1, POOLED_WIDTH),
        )

    @property
    def positive(self) -> list[Any]:
        return [[self.text, {"pooled_output": self.pooled, "guidance": self.guidance}]]

    @property
    def local(self) -> list[Any]:
        return [[self.local_text, {"pooled_output": self.local_pooled}]]

    @property
    def negative(self) -> list[Any]:
        return [[-self.text, {"pooled_output": -self.pooled, "guidance": self.guidance}]]

    @property
    def latent(self) -> dict[str, Tensor]:
        """z_lq as a host LATENT."""
        from comfy.latent_formats import Flux

        return {"samples": Flux().process_out(self.z_lq)}


def apply_control(model: Any, control: Any, scene: Scene, **changes: Any) -> tuple[Any, list[Any], list[Any]]:
    """What Apply MM-ControlNet does. changes: positive, negative, latent, local, or fields of ApplyOptions."""
    from realisr.host.dreamsr.control.apply import apply_mm_control
    from realisr.host.dreamsr.control.conditioning import ApplyOptions

    inputs: dict[str, Any] = {
        "positive": scene.positive,
        "negative": None,
        "latent": scene.latent,
        "local": scene.local,
    }
    inputs |= {name: changes.pop(name) for name in list(changes) if name in inputs}
    return apply_mm_control(model, control, options=ApplyOptions(**changes), **inputs)


def velocity(
    model: Any, positive: list[Any], scene: Scene, negative: list[Any] | None = None, cfg: float = 1.0
) -> Tensor:
    """The model's velocity at (z_t, t) in one evaluation of the host's guider, guided where cfg is not 1."""
    import comfy.samplers

    results = []

    def evaluate_once(denoiser: Any, x: Tensor, sigmas: Tensor, extra_args: Any, callback: Any, **_: Any) -> Tensor:
        sigma = torch.full((x.shape[0],), scene.t)
        results.append((scene.z_t - denoiser(scene.z_t, sigma, **extra_args)) / scene.t)
        return x

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative if negative is not None else positive)
    guider.set_cfg(cfg)
    sigmas = torch.tensor([scene.t, 0.0])
    with torch.inference_mode():
        guider.sample(
            torch.zeros_like(scene.z_t),
            torch.zeros_like(scene.z_t),
            comfy.samplers.KSAMPLER(evaluate_once),
            sigmas,
            disable_pbar=True,
            seed=0,
        )
    return results[0]


def sample(
    model: Any,
    positive: list[Any],
    scene: Scene,
    negative: list[Any] | None = None,
    cfg: float = 1.0,
    steps: int = 3,
    sampler: str = "euler",
) -> Tensor:
    """The raw latent after a short run from noise, through the host's KSampler."""
    import nodes

    with torch.inference_mode():
        (out,) = nodes.common_ksampler(
            model,
            11,
            steps,
            cfg,
            sampler,
            "simple",
            positive,
            negative if negative is not None else scene.negative,
            {"samples": torch.zeros_like(scene.z_lq)},
        )
    return out["samples"]


@dataclass
class BlockRecorder:
    """Both streams of the DiT after each two-stream block, injections included, of the last model call."""

    streams: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def watch(self, model: Any) -> Any:
        """A clone of the MODEL that is recorded: the input of the next block is the output of this one."""
        clone, depth = model.clone(), len(model.model.diffusion_model.double_blocks)
        for block in range(1, depth):
            clone.set_model_patch_replace(self._entry(block - 1), "dit", "double_block", block)
        clone.set_model_patch_replace(self._joined(depth - 1), "dit", "single_block", 0)
        return clone

    def _entry(self, block: int) -> Callable[..., Any]:
        def record(args: dict[str, Any], extra: dict[str, Any]) -> Any:
            self.streams[block] = {"img": args["img"].clone(), "txt": args["txt"].clone()}
            return extra["original_block"](args)

        return record

    def _joined(self, block: int) -> Callable[..., Any]:
        def record(args: dict[str, Any], extra: dict[str, Any]) -> Any:
            count, total = args["transformer_options"]["img_slice"]
            text, image = args["img"].split([count, total - count], dim=1)
            self.streams[block] = {"img": image.clone(), "txt": text.clone()}
            return extra["original_block"](args)

        return record
