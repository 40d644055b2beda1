"""DreamSR in training (arXiv 2605.15682): MM-ControlNet, then in alternation with the acceleration LoRA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...models.dreamsr.config import Injection
from ...models.dreamsr.mm_controlnet import MMControlNet
from ..data.augment import changes
from ..data.cache import FeatureCache
from ..data.crop_prompts import read_crop_prompts
from ..data.degradations import Degradations
from ..data.photos import Photos
from ..data.reading import PhotoError
from ..data.sources import sidecar
from ..data.validation import image_files, validation_batch
from ..engine.draws import Draws
from ..engine.method import Batch, Method
from ..flux.autoencoder import LATENT_CHANNELS, Autoencoder, load_autoencoder
from ..flux.config import DTYPES, model_file
from ..flux.encoders import TextEncoders
from ..flux.files import fingerprint
from ..flux.prompts import Prompts
from ..flux.quantise import quantise
from ..flux.transformer import load_transformer
from .config import DreamSRConfig
from .control import new_control, read_control
from .decoder import LatentDecoder, encode
from .discriminator import PatchDiscriminator
from .export import write_control, write_lora
from .flux import ControlledFlux
from .lora import add_lora, is_lora, read_lora
from .lpips import LPIPS
from .network import CONTROL, DISCRIMINATOR, LORA, RESTORE, DreamSRNetwork, Objective, Sampling
from .samples import DreamSRSamples, ErasedPairs

PREFIXES = {CONTROL: "flux.control.", LORA: "flux.transformer.", DISCRIMINATOR: "discriminator."}
"""Of what each turn trains."""


class DreamSRMethod(Method[DreamSRConfig]):
    """Stage 1 where the settings have no `lora`, the alternation where they have."""

    config_type = DreamSRConfig
    network: DreamSRNetwork
    injection: Injection
    autoencoder: Autoencoder

    def build(self, device: torch.device) -> None:
        config = self.config
        dtype = DTYPES[config.precision]
        self.degradations = Degradations(config.data.degradation)
        self.autoencoder = load_autoencoder(model_file(config.models, "vae", "vae"), device, dtype)
        if config.data.crop % (2 * self.autoencoder.cell):
            raise ValueError(f"data.crop is {config.data.crop}; it must be a multiple of {2 * self.autoencoder.cell}")
        # The control is copied from whole weights, before any are quantised.
        first = device if device.type == "meta" else torch.device("cpu")
        transformer: Any = load_transformer(config.models.flux, first, dtype)
        control = self.build_control(transformer).to(device)
        transformer = quantise(transformer, config.base, device)
        self.text_sizes = transformer.config.joint_attention_dim, transformer.config.pooled_projection_dim
        discriminator = self.build_adversary(transformer, device)
        flux = ControlledFlux(transformer, control, self.injection.dit_blocks or (), self.injection.text_residual)
        flux.recompute = config.gradient_checkpointing
        self.network = DreamSRNetwork(
            flux,
            LatentDecoder(self.autoencoder, config.gradient_checkpointing),
            self.build_lpips(device),
            discriminator,
            self.objective(),
            Sampling(config.restore.texture_start, config.restore.texture_steps),
        )
        turns = self.all_turns()
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(any(self.trains(turn, name) for turn in turns))
        if device.type != "meta":
            self.open_caches(device, dtype)

    def build_control(self, transformer: nn.Module) -> MMControlNet:
        settings = self.config.control
        depth = len(transformer.transformer_blocks)
        try:
            if settings.start is not None:
                control, injection = read_control(settings.start, transformer)
                blocks = injection.blocks(control.config.layers, depth)
                self.injection = Injection(blocks, injection.text_residual)
                return control
            if settings.dit_blocks is not None and len(set(settings.dit_blocks)) != settings.layers:
                raise ValueError(
                    f"dit_blocks names {len(set(settings.dit_blocks))} blocks, layers is {settings.layers}"
                )
            blocks = Injection(settings.dit_blocks).blocks(settings.layers, depth)
            self.injection = Injection(blocks, settings.text_residual)
            return new_control(transformer, settings.layers, blocks, self.config.seed)
        except ValueError as error:
            raise ValueError(f"control: {error}") from error

    def build_lpips(self, device: torch.device) -> LPIPS | None:
        settings = self.config.lpips
        if settings is None or self.config.losses.lpips == 0:
            return None
        if device.type == "meta":
            with torch.device("meta"):
                return LPIPS()
        return LPIPS.load(settings.backbone, settings.head).to(device)

    def build_adversary(self, transformer: nn.Module, device: torch.device) -> PatchDiscriminator | None:
        """Put the LoRA into the transformer and make its discriminator; None in stage 1."""
        settings = self.config.lora
        if settings is None:
            return None
        add_lora(transformer, settings.rank, settings.alpha, self.config.seed, settings.targets)
        if settings.start is not None and device.type != "meta":
            if not settings.start.is_file():
                raise FileNotFoundError(f"lora.start: there is no file {settings.start}")
            read_lora(transformer, load_file(settings.start), str(settings.start))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            return PatchDiscriminator(self.config.discriminator.width).to(device)

    def open_caches(self, device: torch.device, dtype: torch.dtype) -> None:
        config = self.config
        folder = config.cache or config.out / "cache"
        files = config.models
        t5, clip = model_file(files, "t5", "text_encoder_2"), model_file(files, "clip", "text_encoder")
        tokenizers = model_file(files, "tokenizers", "tokenizer_2")
        rest = device if config.encoders == "device" else torch.device("cpu")
        encoders = TextEncoders(t5, clip, tokenizers, device, dtype, config.prompt_tokens, rest)
        self.prompts = Prompts(encoders, folder)
        settings = {"files": fingerprint(model_file(config.models, "vae", "vae")), "dtype": str(dtype)}
        self.latents = FeatureCache(folder / "latents", settings)

    def objective(self) -> Objective:
        losses, lora = self.config.losses, self.config.lora
        removal = {} if lora is None else {"removal_time": lora.removal_time}
        return Objective(
            image_below=losses.image_below,
            pixel=losses.pixel,
            lpips=losses.lpips,
            adversarial=losses.adversarial,
            guidance=self.config.guidance,
            logit_normal=losses.logit_normal,
            **removal,
        )

    # --- turns ---------------------------------------------------------------------------------------------------

    def turns(self, step: int) -> Sequence[str]:
        settings = self.config.lora
        if settings is None or step % (settings.control_steps + settings.lora_steps) < settings.control_steps:
            return (CONTROL,)
        return (LORA, DISCRIMINATOR)

    def all_turns(self) -> Sequence[str]:
        return (CONTROL,) if self.config.lora is None else (CONTROL, LORA, DISCRIMINATOR)

    def trains(self, turn: str, name: str) -> bool:
        return name.startswith(PREFIXES[turn]) and (turn != LORA or is_lora(name))

    def parameters(self, turn: str) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, value) for name, value in self.network.named_parameters() if self.trains(turn, name))

    def parameter_groups(self, turn: str) -> list[dict[str, Any]]:
        rates = {
            LORA: self.config.lora.rate if self.config.lora else 1.0,
            DISCRIMINATOR: self.config.discriminator.rate,
        }
        return [{"params": list(self.parameters(turn)), "rate": rates.get(turn, 1.0)}]

    # --- data ----------------------------------------------------------------------------------------------------

    def samples(self) -> DreamSRSamples:
        config, erased = self.config, self.config.erased
        local = config.patch_prompts
        photos = Photos(config.data, config.seed, needs_prompt=not local, needs_crop_prompts=local)
        pairs = None if erased is None else ErasedPairs(erased.folder, config.seed, config.data.crop)
        share = 0.0 if erased is None else erased.share
        return DreamSRSamples(photos, pairs, share, config.seed, global_only=not local)

    def pictures(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        hq = batch["hq"].to(draws.device)
        lq = self.degradations(hq, draws)
        is_erased = batch["is_erased"].to(draws.device).view(-1, 1, 1, 1)
        return {"lq": lq, "hq": hq, "condition": torch.where(is_erased, batch["erased"].to(hq), lq)}

    def prepare(self, batch: Batch, draws: Draws) -> Batch:
        pictures = self.pictures(batch, draws)
        lq = encode(self.autoencoder, pictures["lq"])
        is_erased = batch["is_erased"].tolist()
        condition = lq.clone()
        for index in (index for index, erased in enumerate(is_erased) if erased):
            condition[index] = encode(self.autoencoder, pictures["condition"][index : index + 1])[0]
        return {
            "hq": self.clean_latents(batch, pictures["hq"]),
            "lq": lq,
            "condition": condition,
            "hq_image": 2 * pictures["hq"] - 1,
            **self.embedded(batch["prompt"], batch["crop_prompt"], draws.device),
        }

    def clean_latents(self, batch: Batch, hq: Tensor) -> Tensor:
        """Of the clean crops, kept on the disk where they come again."""

        def compute(indices: list[int]) -> dict[str, Tensor]:
            return {"latent": encode(self.autoencoder, hq[indices])}

        data = self.config.data
        if changes(data.augment) or not (self.config.patch_prompts or data.fixed_crops):
            return compute(list(range(len(hq))))["latent"]
        return self.latents.fetch(batch["name"], compute)["latent"].to(hq.device)

    def embedded(self, prompts: Sequence[str], local: Sequence[str], device: torch.device) -> dict[str, Tensor]:
        """Global and local prompts as the network reads them."""
        found = self.prompts([*prompts, *local], device)
        count = len(prompts)
        return {
            "tokens": found["text"][:count],
            "pooled": found["pooled"][:count],
            "local_tokens": found["text"][count:],
            "local_pooled": found["pooled"][count:],
        }

    def example_batch(self) -> Batch:
        config, (width, pooled_width) = self.config, self.text_sizes
        dtype, side = DTYPES[config.precision], config.data.crop // self.autoencoder.cell
        batch = {name: torch.zeros(config.batch, LATENT_CHANNELS, side, side) for name in ("hq", "lq", "condition")}
        batch["hq_image"] = torch.zeros(config.batch, 3, config.data.crop, config.data.crop)
        for prefix in ("", "local_"):
            batch[f"{prefix}tokens"] = torch.zeros(config.batch, config.prompt_tokens, width, dtype=dtype)
            batch[f"{prefix}pooled"] = torch.zeros(config.batch, pooled_width, dtype=dtype)
        return batch

    # --- results -------------------------------------------------------------------------------------------------

    def validation(self) -> Batch | None:
        """Images without a .txt go by the whole photo's prompt in their .crops.json, and without both by none."""
        data, settings = self.config.data, self.config.validation
        batch = validation_batch(data, settings)
        if batch is not None:
            files = [sidecar(path, data.crop_prompts) for path in image_files(settings)]
            batch["prompt"] = [
                prompt or (whole_prompt(file, data.crop) if file.is_file() else "")
                for prompt, file in zip(batch["prompt"], files, strict=True)
            ]
        return batch

    def restore(self, batch: Batch, draws: Draws) -> Tensor:
        """One image after another, with its prompt as the global and the local one."""
        restored = []
        for image, prompt in zip(batch["lq"], batch["prompt"], strict=True):
            lq = encode(self.autoencoder, image[None].to(draws.device))
            given = {"lq": lq, **self.embedded([prompt], [prompt], draws.device)}
            restored.append(self.network(RESTORE, given, draws)["image"])
        return ((torch.cat(restored) + 1) / 2).clamp(0, 1)

    def export(self, folder: Path, tensors: Mapping[str, Tensor], steps: int) -> list[Path]:
        settings, lora = self.config.export, self.config.lora
        dtype = DTYPES[settings.dtype]
        written = [write_control(folder, settings.name, tensors, self.injection, dtype)]
        if lora is not None:
            written.append(write_lora(folder, settings.name, tensors, lora.rank, lora.alpha, dtype))
        return written


def whole_prompt(file: Path, side: int) -> str:
    """The whole photo's prompt of a .crops.json. Raises ValueError for a file of another form."""
    try:
        return read_crop_prompts(file.read_text(encoding="utf-8"), side).prompt
    except PhotoError as error:
        raise ValueError(f"validation image {file.name}: {error}") from error
