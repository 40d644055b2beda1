"""Weight files of quality metrics, random and in the layouts they are published in; small where the format allows."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from .checkpoints import StateDict

LIQE, MUSIQ, MANIQA = "liqe_koniq.pt", "musiq_koniq_ckpt-e95806b9.pth", "ckpt_koniq10k.pt"
TOPIQ, TOPIQ_FACE = "cfanet_nr_koniq_res50-9a73138b.pth", "topiq_nr_cgfiqa_res50-0a8b8e4f.pth"
LPIPS, ALEXNET = "LPIPS_v0.1_alex-df73285e.pth", "alexnet-owt-7be5be79.pth"
DISTS, VGG16 = "DISTS_weights-f5e65c96.pth", "vgg16-397923af.pth"
INCEPTION = "pt_inception-2015-12-05-6726825d.pth"
CLIP_VIT, CLIP_RESNET = "ViT-B-32.pt", "RN50.pt"
CLIP_TEXT = {
    "context_length": 77,
    "vocab_size": 49408,
    "transformer_width": 64,
    "transformer_heads": 1,
    "transformer_layers": 1,
}


PUBLISHED: dict[str, str] = {}
"""SHA-256 by file name of the small CLIPs."""


class Parameters(nn.Module):
    """Holds tensors under dotted names, and computes nothing."""

    def __init__(self, state_dict: StateDict):
        super().__init__()
        branches: dict[str, StateDict] = {}
        for key, value in state_dict.items():
            head, _, rest = key.partition(".")
            if rest:
                branches.setdefault(head, {})[rest] = value
            elif value.is_floating_point():
                self.register_parameter(head, nn.Parameter(value, requires_grad=False))
            else:
                self.register_buffer(head, value)
        for name, branch in branches.items():
            self.add_module(name, Parameters(branch))


def clip(kind: str, seed: int = 0) -> StateDict:
    """A CLIP of two layers with OpenAI's names and vocabulary; kind: `vit` or `resnet`."""
    from realisr.services.iqa.offline import importable

    with importable():
        from pyiqa.archs.clip_model import CLIP
    torch.manual_seed(seed)
    if kind == "vit":
        model = CLIP(64, 224, 2, 64, 32, **CLIP_TEXT)
    else:
        model = CLIP(64, 224, (1, 1, 1, 1), 8, None, **CLIP_TEXT)
    return randomised(model)


def randomised(module: nn.Module) -> StateDict:
    """Its state dict with biases, norms and zero-initialised weights moved off their initial values."""
    state_dict = module.state_dict()
    for name, value in state_dict.items():
        if value.is_floating_point() and not name.endswith("running_var"):
            value += 0.02 * torch.randn_like(value)
    return state_dict


def halved(state_dict: StateDict) -> StateDict:
    return {key: value.half() if value.is_floating_point() else value for key, value in state_dict.items()}


def save_clip(path: Path, state_dict: StateDict) -> None:
    """As OpenAI publishes it: a TorchScript archive in half precision."""
    torch.jit.save(torch.jit.script(Parameters(halved(state_dict))), str(path))
    PUBLISHED[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()


@contextlib.contextmanager
def small_clips_are_published() -> Iterator[None]:
    """While this lasts the SHA-256 that a CLIP's address names is that of the small one `save_clip` wrote last."""
    from realisr.services.iqa import weights

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "published_hash", lambda url: PUBLISHED.get(url.rpartition("/")[2], ""))
        yield


def save_liqe(folder: Path, seed: int = 0) -> StateDict:
    """LIQE's two files; returns what the trained one holds."""
    save_clip(folder / CLIP_VIT, clip("vit", seed))
    trained = {f"clip_model.{key}": value for key, value in clip("vit", seed + 1).items()}
    torch.save({"params": trained}, folder / LIQE)
    return trained


def save_clipiqa(folder: Path, seed: int = 0) -> StateDict:
    state_dict = clip("resnet", seed)
    save_clip(folder / CLIP_RESNET, state_dict)
    return state_dict


def save_musiq(folder: Path, seed: int = 0) -> StateDict:
    """MUSIQ's one size: 27 million parameters."""
    from realisr.services.iqa.offline import importable

    with importable():
        from pyiqa.archs.musiq_arch import MUSIQ as Network
    torch.manual_seed(seed)
    state_dict = randomised(Network(pretrained=False))
    torch.save(state_dict, folder / MUSIQ)
    return state_dict


def save_maniqa(folder: Path, seed: int = 0) -> StateDict:
    """MANIQA's one size: 136 million parameters, saved in half precision."""
    from realisr.services.iqa.offline import importable, offline

    torch.manual_seed(seed)
    with importable(), offline("maniqa", "MANIQA", folder):
        from pyiqa.archs.maniqa_arch import MANIQA as Network

        network = Network(pretrained=False)
    state_dict = halved(randomised(network))
    torch.save(state_dict, folder / MANIQA)
    return state_dict


def save_topiq(folder: Path, name: str = TOPIQ) -> StateDict:
    """TOPIQ's one size on a ResNet-50: 36 million parameters."""
    from realisr.services.iqa.offline import importable

    with importable():
        from pyiqa.archs.topiq_arch import CFANet
    torch.manual_seed(0)
    state_dict = randomised(CFANet(use_ref=False, pretrained=False, backbone_pretrain=False))
    torch.save({"params": state_dict}, folder / name)
    return state_dict


def save_backbone(path: Path, network: nn.Module, seed: int) -> StateDict:
    """A torchvision classifier's file with random convolutions; returns these. The rest, unused, is one number."""
    generator = torch.Generator().manual_seed(seed)
    drawn: StateDict = {}
    kept: StateDict = {}
    for key, value in network.state_dict().items():
        if key.startswith("features."):
            scale = (2 / value[0].numel()) ** 0.5 if value.ndim == 4 else 0.1
            kept[key] = drawn[key] = scale * torch.randn(value.shape, generator=generator)
        else:
            kept[key] = torch.zeros(()).expand(value.shape)
    torch.save(kept, path)
    return drawn


def save_lpips(folder: Path, seed: int = 0) -> StateDict:
    """LPIPS on AlexNet, its two files; returns what its own holds."""
    from torchvision.models import alexnet

    with torch.device("meta"):
        backbone = alexnet()
    save_backbone(folder / ALEXNET, backbone, seed)
    generator = torch.Generator().manual_seed(seed)
    widths = (64, 192, 384, 256, 256)
    lins = {
        f"lin{index}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator)
        for index, width in enumerate(widths)
    }
    torch.save(lins, folder / LPIPS)
    return lins


def save_dists(folder: Path, seed: int = 0) -> StateDict:
    """DISTS on VGG-16, its two files; returns what its own holds."""
    from torchvision.models import vgg16

    with torch.device("meta"):
        backbone = vgg16()
    save_backbone(folder / VGG16, backbone, seed)
    generator = torch.Generator().manual_seed(seed)
    weights = {name: 0.1 + 0.01 * torch.randn(1, 1475, 1, 1, generator=generator) for name in ("alpha", "beta")}
    torch.save(weights, folder / DISTS)
    return weights


def save_inception(folder: Path, seed: int = 0) -> StateDict:
    """FID's Inception: 24 million parameters."""
    from realisr.services.iqa.offline import exchanged, importable

    torch.manual_seed(seed)
    with importable():
        from pyiqa.archs import inception
    with exchanged(inception, "load_pretrained_network", lambda *_: None):
        network = inception.fid_inception_v3()
    state_dict = {
        key: torch.randn_like(value) * (2 / value[0].numel()) ** 0.5 if value.ndim == 4 else value
        for key, value in network.state_dict().items()
    }
    torch.save(state_dict, folder / INCEPTION)
    return state_dict
