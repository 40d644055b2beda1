"""LPIPS 0.1 on VGG-16 (arXiv 1801.03924), differentiable, from files on this machine.

Written on torchvision's network because the packages that offer LPIPS fetch weights on their own when they are made,
and cannot be made without values for an estimate.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...models.state_dict import describe_state_dict

STAGES = (4, 9, 16, 23, 30)
"""Where the five stages end in torchvision's VGG-16: after relu1_2, 2_2, 3_3, 4_3 and 5_3."""
CHANNELS = (64, 128, 256, 512, 512)
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
"""From images in [-1, 1] to what VGG was trained on."""

BACKBONE_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
HEAD_URL = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/LPIPS_v0.1_vgg-a78928a0.pth"


class LPIPS(nn.Module):
    """Perceptual distance of image pairs, `[B, 3, H, W]` in [-1, 1] -> `[B]`. Frozen; gradients reach the images."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import vgg16

        self.features = vgg16(weights=None).features[: STAGES[-1]]
        for layer in self.features:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False
        self.weights = nn.ParameterList([torch.zeros(channels) for channels in CHANNELS])
        self.eval().requires_grad_(False)

    def stages(self, image: Tensor) -> list[Tensor]:
        """Features after each stage, of unit length over channels."""
        x = (image - image.new_tensor(SHIFT).view(3, 1, 1)) / image.new_tensor(SCALE).view(3, 1, 1)
        found = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index + 1 in STAGES:
                # Of this norm torch knows the derivative where all channels are 0 too.
                found.append(x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10))
        return found

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        distance = image.new_zeros(image.shape[0])
        for ours, theirs, weight in zip(self.stages(image), self.stages(reference), self.weights, strict=True):
            distance = distance + ((ours - theirs).square() * weight.view(-1, 1, 1)).sum(dim=1).mean(dim=(1, 2))
        return distance

    @classmethod
    def load(cls, backbone: Path, head: Path) -> LPIPS:
        """From torchvision's VGG-16 and the published linear layers (LPIPS 0.1, vgg).

        Raises FileNotFoundError for a missing file, ValueError for one that is something else.
        """
        with torch.device("meta"):
            network = cls()
        weights = {f"features.{name}": value for name, value in backbone_weights(backbone).items()}
        weights |= {f"weights.{stage}": value for stage, value in enumerate(head_weights(head))}
        network.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
        return network.requires_grad_(False)


def backbone_weights(path: Path) -> dict[str, Tensor]:
    content = read_pickle(path, "lpips.backbone", BACKBONE_URL)
    prefix = "features."
    names = [name for name in content if name.startswith(prefix)]
    found = {name.removeprefix(prefix): content[name] for name in names}
    with torch.device("meta"):
        wanted = {name: value.shape for name, value in LPIPS().features.state_dict().items()}
    if {name: value.shape for name, value in found.items()} != wanted:
        raise ValueError(
            f"lpips.backbone: {path} is not torchvision's VGG-16; it is {describe_state_dict(content)}. "
            f"Take {BACKBONE_URL}"
        )
    return found


def head_weights(path: Path) -> list[Tensor]:
    """The five stages' channel weights, `[C]` each."""
    content = read_pickle(path, "lpips.head", HEAD_URL)
    content = content.get("params", content)
    found = [content.get(f"lin{stage}.model.1.weight") for stage in range(len(CHANNELS))]
    sizes = [None if value is None else tuple(value.shape) for value in found]
    if sizes != [(1, channels, 1, 1) for channels in CHANNELS]:
        raise ValueError(
            f"lpips.head: {path} does not hold LPIPS's linear layers for VGG-16; it is "
            f"{describe_state_dict(content)}. Take {HEAD_URL}"
        )
    return [value.flatten() for value in found if value is not None]


def read_pickle(path: Path, setting: str, url: str) -> Mapping[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{setting}: there is no file {path}. Download {url} and name it there.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{setting}: {path} cannot be read ({str(error).splitlines()[0]}). Download {url}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{setting}: {path} holds no tensors by name. Download {url}")
    return content
