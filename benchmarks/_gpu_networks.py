"""Networks of the real sizes with random weights, for gpu.py: through the loaders of the pack and of ComfyUI.

Every builder is given a device. On "meta" it makes what the host knows of a model's files, on any other the model
itself: the tensors a loader is handed there take no memory, and the weights are drawn in place once they lie where
the host puts them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")

DEVIATION = 0.02
"""Of the random weights."""

WORDS = 60
"""Tokens of the text that PURE writes before the picture."""


@dataclass(frozen=True)
class Sizes:
    """What is run, and how large."""

    vosr: Mapping[str, Mapping[str, Any]]
    vision: Mapping[str, int]
    """Depth of DINOv2 by VOSR model."""
    images: Mapping[str, int]
    """Sides in pixels by what they are called."""
    steps: int
    """Of guided VOSR."""
    flux: Mapping[str, int]
    control: Mapping[str, int]
    dreamsr: tuple[int, int, int, int]
    """(width, height, tile, overlap) in pixels."""
    texture_steps: int
    panels: tuple[int, ...]
    vicr_steps: int
    vae_width: int
    pure: Mapping[str, int]
    pure_side: int


REAL = Sizes(
    vosr={
        "0.5B": {
            "latent_channels": 4, "hidden_size": 1024, "depth": 28, "num_heads": 16, "mlp_hidden": 2730,
            "context_width": 768, "context_hidden": 3072,
        },
        "1.4B": {
            "latent_channels": 16, "hidden_size": 1536, "depth": 36, "num_heads": 24, "mlp_hidden": 4096,
            "context_width": 1024, "context_hidden": 4608,
        },
    },
    vision={"0.5B": 12, "1.4B": 24},
    images={"1K": 1024, "2K": 2048, "4K": 4096, "8K": 8192},
    steps=25,
    flux={"heads": 24, "double_blocks": 19, "single_blocks": 38, "context_width": 4096, "pooled_width": 768},
    control={},
    dreamsr=(2560, 1440, 1024, 256),
    texture_steps=16,
    panels=(512, 1024),
    vicr_steps=30,
    vae_width=128,
    pure={},
    pure_side=512,
)  # fmt: skip

TINY = Sizes(
    vosr={
        name: {
            "latent_channels": channels, "hidden_size": 64, "depth": 2, "num_heads": 2, "mlp_hidden": 170,
            "context_width": 32, "context_hidden": 96, "train_grid": 8,
        }
        for name, channels in (("0.5B", 4), ("1.4B", 16))
    },
    vision={"0.5B": 1, "1.4B": 1},
    images={"1K": 64, "2K": 128, "4K": 144, "8K": 160},
    steps=2,
    flux={"heads": 1, "double_blocks": 1, "single_blocks": 1, "context_width": 32, "pooled_width": 768},
    control={
        "hidden_size": 128, "layers": 1, "text_width": 32, "mlp_hidden": 256, "context_hidden": 256,
    },
    dreamsr=(96, 64, 64, 16),
    texture_steps=2,
    panels=(32, 64),
    vicr_steps=2,
    vae_width=32,
    pure={"hidden_size": 32, "intermediate_size": 48, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2},
    pure_side=32,
)  # fmt: skip


class Networks:
    """Builds networks of some sizes. folder: the host's models folder, in which only names are looked up."""

    def __init__(self, sizes: Sizes, dtype: torch.dtype, folder: Path):
        self.sizes, self.dtype, self.folder = sizes, dtype, folder

    # --- VOSR --------------------------------------------------------------------------------------------------------

    def vosr(self, name: str, one_step: bool, device: torch.device) -> Any:
        from realisr.host.vosr.files import VOSRFile
        from realisr.host.vosr.loader import build_patcher
        from realisr.host.vosr.model import VOSRInfo
        from realisr.models.vosr.config import VOSRConfig
        from realisr.models.vosr.dit import VOSRDiT

        config = VOSRConfig(**self.sizes.vosr[name], has_end_time=one_step)
        with torch.device("meta"):
            shapes = {key: tuple(value.shape) for key, value in VOSRDiT(config).state_dict().items()}
        info, source = VOSRInfo(f"VOSR {name}", config, one_step), VOSRFile(name, Path("-"))
        return self.made(device, shapes, lambda weights: build_patcher(info, source, weights, {}, disable_dynamic=True))

    def vosr_vae(self, name: str, device: torch.device) -> Any:
        from harness.checkpoints import autoencoder_kl_shapes
        from realisr.host.vosr.autoencoders import kl_vae, qwen_vae
        from realisr.models.vosr.qwen_vae import QwenImageVAE, QwenVAEConfig

        width = self.sizes.vae_width
        if name == "0.5B":
            shapes = dict(autoencoder_kl_shapes(4, width, width))
            return self.made(device, shapes, lambda weights: kl_vae("SD 2.1 VAE", weights), torch.float32)
        module = QwenImageVAE(QwenVAEConfig(base_dim=width * 3 // 4), device="meta")
        shapes = {key: tuple(value.shape) for key, value in module.named_parameters()}
        return self.made(device, shapes, lambda weights: qwen_vae("Qwen-Image VAE", weights), torch.float32)

    def dinov2(self, name: str, device: torch.device) -> Any:
        """On the meta device what is known of the file, elsewhere the encoder."""
        from harness.checkpoints import dinov2_shapes
        from realisr.host.vosr.vision import VisionSize, dinov2_from_tensors

        shapes = dict(dinov2_shapes(self.sizes.vosr[name]["context_width"], self.sizes.vision[name]))
        if device.type != "meta":
            return self.made(device, shapes, lambda weights: dinov2_from_tensors("DINOv2", weights), torch.float32)
        file = self.folder / "clip_vision" / "dinov2.safetensors"
        described = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
        return VisionSize.of_file(file, lambda _: (described, {}))

    # --- FLUX --------------------------------------------------------------------------------------------------------

    def flux(self, fill: bool, device: torch.device) -> Any:
        import comfy.sd

        from harness.checkpoints import FLUX_FILL_FEATURES, FLUX_LATENT_FEATURES, flux_shapes

        features = FLUX_FILL_FEATURES if fill else FLUX_LATENT_FEATURES
        shapes = dict(flux_shapes(features, **self.sizes.flux, guidance=True))
        load = comfy.sd.load_diffusion_model_state_dict
        return self.made(device, shapes, lambda weights: load(weights, {}, disable_dynamic=True))

    def flux_vae(self, device: torch.device) -> Any:
        import comfy.sd

        from harness.checkpoints import autoencoder_kl_shapes

        width = self.sizes.vae_width
        # The host knows the encoder by its real width alone.
        shapes = {
            key: shape
            for key, shape in autoencoder_kl_shapes(16, 128, width)
            if not key.startswith(("quant_conv", "post_quant_conv"))
        }
        return self.made(device, shapes, lambda weights: comfy.sd.VAE(sd=weights))

    def control(self, device: torch.device) -> Any:
        from realisr.host.dreamsr.control.loader import load_mm_control
        from realisr.models.dreamsr.config import MMControlNetConfig
        from realisr.models.dreamsr.mm_controlnet import MMControlNet

        with torch.device("meta"):
            network = MMControlNet(MMControlNetConfig(**self.sizes.control))
        shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
        path = self.folder / "controlnet" / "control.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        place = device if device.type == "meta" else None

        def load(weights: dict[str, Tensor]) -> Any:
            return load_mm_control(path.name, "default", True, lambda _: (weights, {}), place)

        return self.made(device, shapes, load)

    def lora(self) -> Any:
        """A plain LoRA of rank 64 on the queries, keys and values of the blocks with two streams."""
        from realisr.host.dreamsr.lora import AccelerationLoRA

        width, weights = 128 * self.sizes.flux["heads"], {}
        for block in range(self.sizes.flux["double_blocks"]):
            layer = f"lora_unet_double_blocks_{block}_img_attn_qkv"
            weights[f"{layer}.lora_down.weight"] = DEVIATION * torch.randn(64, width, dtype=self.dtype)
            weights[f"{layer}.lora_up.weight"] = DEVIATION * torch.randn(3 * width, 64, dtype=self.dtype)
        return AccelerationLoRA(weights, "acceleration LoRA")

    def bridge(self) -> Any:
        from realisr.host.vicr.loader import managed_bridge
        from realisr.models.vicr.bridge import BridgeConfig, VisionContextBridge

        width = 128 * self.sizes.flux["heads"]
        config = BridgeConfig(768, width, width)
        return managed_bridge(config, VisionContextBridge(config).state_dict())

    def prompt(self, tokens: int = 256) -> list[Any]:
        width, pooled = self.sizes.flux["context_width"], self.sizes.flux["pooled_width"]
        return [[torch.randn(1, tokens, width), {"pooled_output": torch.randn(1, pooled), "guidance": 3.5}]]

    # --- PURE --------------------------------------------------------------------------------------------------------

    def pure_config(self) -> Any:
        from realisr.models.pure.config import ChameleonConfig

        return ChameleonConfig(**self.sizes.pure)

    def tokenizer(self) -> Any:
        from harness.pure import tokenizer_json
        from realisr.host.pure.tokenizer import TextTokenizer

        path = self.folder / "tokenizer.json"
        path.write_text(tokenizer_json(), encoding="utf-8")
        return TextTokenizer(path)

    def pure(self) -> Any:
        """An ARRestorer that writes WORDS tokens of text and then a picture."""
        import comfy.model_management
        from comfy.model_patcher import ModelPatcher

        from realisr.host.pure.model import ARRestorer, Backbone
        from realisr.models.pure.transformer import Chameleon
        from realisr.models.pure.vocabulary import Vocabulary
        from realisr.models.pure.vqgan import VQGAN

        device = comfy.model_management.get_torch_device()
        network = answering(filled(Chameleon(self.pure_config(), self.dtype, device))).eval().requires_grad_(False)
        vqgan = filled(VQGAN(self.vqgan_config(), torch.float32, device)).eval().requires_grad_(False)
        patchers = [ModelPatcher(each, device, device) for each in (Backbone(network), vqgan)]
        vocabulary = Vocabulary.formula()
        return ARRestorer("PURE", network.config, *patchers, self.tokenizer(), vocabulary, self.dtype)

    def vqgan_config(self) -> Any:
        from realisr.models.pure.vqgan import VQConfig

        return replace(VQConfig(), base=self.sizes.vae_width)

    # --- all ---------------------------------------------------------------------------------------------------------

    def made(
        self,
        device: torch.device,
        shapes: Mapping[str, tuple[int, ...]],
        load: Callable[[dict[str, Tensor]], T],
        dtype: torch.dtype | None = None,
    ) -> T:
        """What `load` makes of tensors of these shapes, on the meta device, or with random weights."""
        if device.type == "meta":
            with torch.device("meta"), torch.no_grad():
                return load({key: torch.empty(shape, dtype=dtype or self.dtype) for key, shape in shapes.items()})
        zero = torch.zeros((), dtype=dtype or self.dtype, device=device)
        loaded = load({key: zero.expand(shape) for key, shape in shapes.items()})
        for module in modules_of(loaded):
            filled(module)
        return loaded


def modules_of(loaded: Any) -> list[nn.Module]:
    """The networks in what a loader gives."""
    if hasattr(loaded, "first_stage_model"):
        return [loaded.first_stage_model]
    patcher = getattr(loaded, "patcher", loaded)
    return [getattr(patcher.model, "diffusion_model", patcher.model)]


@torch.no_grad()
def filled(module: nn.Module) -> Any:
    """The module with random weights: all alike but for norms, which stay at 1."""
    for name, parameter in module.named_parameters():
        if "norm" in name and name.endswith(("weight", "scale")) and parameter.ndim == 1:
            parameter.fill_(1)
        else:
            parameter.normal_(std=DEVIATION)
    return module


@torch.no_grad()
def answering(network: Any) -> Any:
    """A Chameleon whose layers take their time and change nothing, so that its text is WORDS tokens long."""
    from realisr.models.pure.vocabulary import BOI, EOT

    for layer in network.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    words = range(17000, 17000 + WORDS)
    embedding, head = network.model.embed_tokens.weight, network.lm_head.other.weight
    for before, after in zip((EOT, *words), (*words, BOI), strict=True):
        # The rows of the head leave out the 8192 codes that lie before these tokens.
        head[after - 8192] = 4 * embedding[before] / embedding[before].float().square().mean().sqrt()
    return network
