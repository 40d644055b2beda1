"""The parts of a loaded AR restorer: the transformer and the VQGAN as models the host manages, and the tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...models.pure.config import ChameleonConfig
from ...models.pure.vocabulary import Vocabulary
from ...models.pure.vqgan import VQGAN
from .tokenizer import TextTokenizer

VQ_ACTIVATIONS = 6
"""Feature maps of the full resolution that the VQGAN has in memory at once, generously."""


def codes_memory(base: int, height: int, width: int) -> int:
    """Bytes in which a VQGAN of so many channels at full resolution encodes or decodes one image in float32."""
    tokens = (height // 8) * (width // 8)
    return 4 * (height * width * base * VQ_ACTIVATIONS + 3 * tokens**2)


class Backbone(nn.Module):
    """The transformer as the host's model patchers want a model: with the device it is on."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.device: torch.device | None = None


@dataclass(frozen=True)
class ARRestorer:
    """What travels from the loader to the restorer node."""

    name: str
    config: ChameleonConfig
    backbone: ModelPatcher
    """The transformer under the host's management; it is `network`."""
    vqgan: ModelPatcher
    """The VQGAN likewise; it is `vq`."""
    tokenizer: TextTokenizer
    vocabulary: Vocabulary
    dtype: torch.dtype
    """What the transformer computes in."""

    @property
    def network(self) -> nn.Module:
        return self.backbone.model.network

    @property
    def vq(self) -> VQGAN:
        return self.vqgan.model

    @property
    def weights_stay(self) -> bool:
        """Whether the transformer, once loaded, lies whole on a CUDA device and is used as it lies there."""
        model = self.backbone.model
        return (
            comfy.model_management.is_device_cuda(self.backbone.load_device)
            and not self.backbone.is_dynamic()
            and not model.model_lowvram
            and not any(getattr(module, "comfy_cast_weights", False) for module in model.modules())
        )

    def load_vqgan(self, height: int, width: int, *together: ModelPatcher) -> None:
        """The VQGAN on its device with room for one image of that size, and other patchers with it."""
        comfy.model_management.load_models_gpu([self.vqgan, *together], memory_required=self.vq_memory(height, width))

    def vq_memory(self, height: int, width: int) -> int:
        """Bytes for encoding or decoding one image of that size in float32."""
        return codes_memory(self.vq.config.base, height, width)

    def encode(self, pixels: Tensor) -> Tensor:
        """Codes `[B, H/8, W/8]` on the CPU, of pixels `[B, 3, H, W]` in -1..1, one image after another."""
        self.load_vqgan(*pixels.shape[-2:])
        codes = [self.vq.encode(image.to(self.vqgan.load_device, torch.float32)).cpu() for image in pixels.split(1)]
        return torch.cat(codes)

    def decode(self, codes: Tensor) -> Tensor:
        """Pixels `[B, 3, 8h, 8w]` on the CPU, unclamped, of codes `[B, h, w]`; the VQGAN is loaded already."""
        pixels = [self.vq.decode(image.to(self.vqgan.load_device)).cpu() for image in codes.split(1)]
        return torch.cat(pixels)
