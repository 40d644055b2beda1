"""VICR in training (arXiv 2606.00704): LoRA and Vision-Context Bridge on FLUX.1 Fill, by flow matching on diptychs.

The paper leaves open, and here is: the autoencoder's mean, not a sample, for both latents, as the nodes encode; noise
levels as FLUX's sampler visits them; FLUX's guidance 30, as in restoring; CLIP sees the LQ panel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...models.vicr.bridge import BridgeConfig
from ...models.vicr.diptych import split
from ..data.degradations import Degradations
from ..data.photos import Photos
from ..data.validation import validation_batch
from ..engine.draws import Draws
from ..engine.method import Batch, Method, Samples
from ..flux.autoencoder import load_autoencoder
from ..flux.config import DTYPES, model_file
from ..flux.encoders import CLIP_TEXT, CLIP_VISION, T5, ImageEncoder, TextEncoders, load_encoder
from ..flux.files import fingerprint
from ..flux.latent import shifted
from ..flux.prompts import Prompts
from ..flux.quantise import quantise
from ..flux.transformer import load_transformer
from .conditions import Diptychs, FixedDegradations
from .config import VICRConfig
from .export import read_bridge, write_files
from .losses import LAYOUT
from .network import VELOCITY, DiptychFill, build_network
from .restore import sample


class VICRMethod(Method[VICRConfig]):
    """A run of VICR, with sentences or tags as prompts."""

    config_type = VICRConfig

    network: DiptychFill

    def build(self, device: torch.device) -> None:
        config = self.config
        dtype = DTYPES[config.precision]
        self.degradations = Degradations(config.data.degradation)
        transformer = load_transformer(config.models.flux, torch.device("meta"), dtype)
        self.check_sizes(transformer.config)
        autoencoder = load_autoencoder(model_file(self.config.models, "vae", "vae"), device, dtype)
        vision = None
        if config.bridge.joins != "nothing" and config.models.clip_vision is not None:
            vision = ImageEncoder(load_encoder(CLIP_VISION, config.models.clip_vision, device, dtype))
        bridge, weights = self.bridge_config(transformer.config, vision)
        if device.type != "meta":
            # Tensor by tensor onto the device; by way of the CPU where it is to be quantised.
            first = device if config.base == "full" else torch.device("cpu")
            transformer = load_transformer(config.models.flux, first, dtype)
        transformer = quantise(transformer, config.base, device)
        if config.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        self.network = build_network(transformer, config.rank, bridge, config.guidance, config.seed)
        if weights and self.network.bridge is not None and device.type != "meta":
            self.network.bridge.load_state_dict(weights)
        self.diptychs = Diptychs(autoencoder, vision)
        self.open_caches(device, dtype)

    def check_sizes(self, flux: Any) -> None:
        """Raises ValueError for text encoders that are not this FLUX's."""
        meta = torch.device("meta")
        t5 = load_encoder(T5, model_file(self.config.models, "t5", "text_encoder_2"), meta, torch.float32)
        clip = load_encoder(CLIP_TEXT, model_file(self.config.models, "clip", "text_encoder"), meta, torch.float32)
        for name, found, wanted in (
            ("t5", t5.config.d_model, flux.joint_attention_dim),
            ("clip", clip.config.hidden_size, flux.pooled_projection_dim),
        ):
            if found != wanted:
                raise ValueError(f"models.{name} is {found} wide; this FLUX reads {wanted}")

    def bridge_config(self, flux: Any, vision: ImageEncoder | None) -> tuple[BridgeConfig | None, dict[str, Tensor]]:
        """The bridge's sizes, and its weights where it starts from a file.

        Its scale is a vector of one number, which files may hold too: FSDP2 shards no scalars.
        """
        settings = self.config.bridge
        if vision is None:
            return None, {}
        hidden = flux.num_attention_heads * flux.attention_head_dim
        width = hidden if settings.joins == "modulation" else flux.pooled_projection_dim
        if settings.file is None:
            return BridgeConfig(vision.width, settings.hidden or hidden, width, scale_shape=(1,)), {}
        config, weights = read_bridge(settings.file)
        if (config.embedding, config.width) != (vision.width, width):
            raise ValueError(
                f"bridge.file reads {config.embedding} and gives {config.width}; with this CLIP, this FLUX and "
                f"bridge.joins {settings.joins} it must read {vision.width} and give {width}"
            )
        return replace(config, scale_shape=(1,)), {**weights, "scale": weights["scale"].reshape(1)}

    def open_caches(self, device: torch.device, dtype: torch.dtype) -> None:
        config = self.config
        models = config.models
        folder = config.cache or config.out / "cache"
        t5, clip = model_file(models, "t5", "text_encoder_2"), model_file(models, "clip", "text_encoder")
        tokenizers = model_file(models, "tokenizers", "tokenizer_2")
        rest = device if config.encoders == "device" else torch.device("cpu")
        self.prompts = Prompts(TextEncoders(t5, clip, tokenizers, device, dtype, config.prompt_tokens, rest), folder)
        self.fixed = None
        if config.fixed_degradations:
            if not Photos(config.data, config.seed).repeats:
                raise ValueError("fixed_degradations: with data.augment crops do not come again; turn one of them off")
            seen = [models.clip_vision] if config.bridge.joins != "nothing" else []
            files = [fingerprint(path) for path in (model_file(models, "vae", "vae"), *seen) if path is not None]
            kinds = [kind.model_dump(mode="json") for kind in config.data.degradation]
            stated = {"files": files, "degradation": kinds, "dtype": str(dtype)}
            self.fixed = FixedDegradations(self.degradations, config.fixed_degradations, config.seed, stated, folder)

    # --- data ----------------------------------------------------------------------------------------------------

    def samples(self) -> Samples:
        return Photos(self.config.data, self.config.seed, needs_prompt=not self.config.empty_prompts)

    def pictures(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        hq = batch["hq"].to(draws.device)
        if self.fixed is not None:
            return {"hq": hq, "lq": self.fixed.lq(batch, draws.device)}
        return {"hq": hq, "lq": self.degradations(hq, draws)}

    def prepare(self, batch: Batch, draws: Draws) -> Batch:
        """`clean`, `masked` and `noise` `[B, 16, h, 2 w]`, `time` `[B]`, `text`, `pooled` and `embeds`."""
        if self.fixed is not None:
            seen = self.fixed.fetch(batch, draws.device, self.diptychs)
        else:
            seen = self.diptychs(**self.pictures(batch, draws))
        shape = seen["clean"].shape
        return {
            **seen,
            **self.prompts(batch["prompt"], draws.device),
            "time": self.times(shape, draws),
            "noise": draws.normal(*shape),
        }

    def times(self, shape: torch.Size, draws: Draws) -> Tensor:
        """Noise levels `[B]` in [0, 1) for diptych latents of that shape."""
        settings = self.config.time
        if settings.logit_normal is None:
            time = draws.uniform(shape[0])
        else:
            mean, deviation = settings.logit_normal
            time = torch.sigmoid(mean + deviation * draws.normal(shape[0]))
        return shifted(time, shape[-1] * shape[-2] // 4) if settings.shift else time

    def example_batch(self) -> Batch:
        config, flux = self.config, self.network.transformer.config
        side = config.data.crop // self.diptychs.autoencoder.cell
        latent = (config.batch, self.network.latent_channels, side, 2 * side)
        batch = {name: torch.zeros(latent) for name in ("clean", "masked", "noise")}
        batch["time"] = torch.zeros(config.batch)
        dtype = DTYPES[config.precision]
        batch["text"] = torch.zeros(config.batch, config.prompt_tokens, flux.joint_attention_dim, dtype=dtype)
        batch["pooled"] = torch.zeros(config.batch, flux.pooled_projection_dim, dtype=dtype)
        if self.network.bridge is not None:
            batch["embeds"] = torch.zeros(config.batch, self.network.bridge.config.embedding)
        return batch

    # --- results -------------------------------------------------------------------------------------------------

    def validation(self) -> Batch | None:
        config = self.config
        return validation_batch(config.data, config.validation, needs_prompt=not config.empty_prompts)

    def restore(self, batch: Batch, draws: Draws) -> Tensor:
        """A few images at a time, as training takes them."""
        restored = []
        size = self.config.batch
        for start in range(0, len(batch["lq"]), size):
            lq = batch["lq"][start : start + size].to(draws.device)
            prompts = self.prompts(batch["prompt"][start : start + size], draws.device)
            conditions = {**self.diptychs.conditions(lq), **prompts}

            def velocity(x: Tensor, time: Tensor, conditions: Batch = conditions) -> Tensor:
                return self.network(VELOCITY, {**conditions, "x": x, "time": time}, draws)["velocity"]

            noise = draws.normal(*conditions["masked"].shape)
            latent = sample(velocity, noise, self.config.sampling.steps)
            # Decoded whole, as the nodes do, then cut.
            panel = split(self.diptychs.autoencoder.decode(latent), LAYOUT)[1]
            restored.append(panel.add(1).div(2).clamp(0, 1).cpu())
        return torch.cat(restored)

    def export(self, folder: Path, tensors: Mapping[str, Tensor], steps: int) -> list[Path]:
        config = self.config
        stated = {
            "steps": steps,
            "panel": config.data.crop,
            "rank": config.rank,
            "guidance": config.guidance,
            "prompts": config.data.prompts,
            "bridge": config.bridge.joins,
        }
        return write_files(folder, config.export.name, tensors, DTYPES[config.export.dtype], stated)
