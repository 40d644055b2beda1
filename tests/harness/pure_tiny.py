"""Tiny random PURE backbones for tests of decoding, with PURE's own vocabulary."""

from __future__ import annotations

import torch
from torch import nn

from realisr.models.pure.config import ChameleonConfig
from realisr.models.pure.transformer import Chameleon
from realisr.models.pure.vocabulary import BOI, EOT, SIZE_BASE, image_ids

TINY = ChameleonConfig(hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2, num_kv_heads=2)
PROMPT = [0, 16400, 16450, 16500, 8197, 8805, 8805, 30, 40, 8803, 8196, EOT]


def initialise(network: Chameleon, std: float = 0.02, generator: torch.Generator | None = None) -> Chameleon:
    """Random weights in place: normal with deviation `std`, norms at one."""
    for name, parameter in network.named_parameters():
        if name.endswith("norm.weight"):
            nn.init.ones_(parameter)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=std, generator=generator)
    return network


def random_network(seed: int = 0, image_scale: float = 1.0, varied: float = 1.0) -> Chameleon:
    """Random weights. image_scale: size of the image tokens' logits. varied: how different image tokens are as input.

    A trained model's next token depends little on exactly which code stands before it; `varied` below 1 imitates that.
    """
    generator = torch.Generator().manual_seed(seed)
    network = initialise(Chameleon(TINY), 0.3, generator).eval()
    with torch.no_grad():
        network.lm_head.image.weight.mul_(image_scale / 0.3)
        embedding = network.model.embed_tokens.weight
        ids = image_ids()
        embedding[ids] = embedding[5] + varied * (embedding[ids] - embedding[5])
    return network


def prefer(network: Chameleon, wanted: dict[int, int], strength: float = 50.0) -> Chameleon:
    """Make the model choose `wanted[token]` after a token: a row of the head looks at the token's own embedding.

    The layers are switched off, so that the last hidden state is the normalised embedding of the last token.
    """
    with torch.no_grad():
        for layer in network.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        head = network.lm_head.other.weight
        for following in wanted.values():
            head[head_row(following)] = 0
        for token, following in wanted.items():
            hidden = network.model.norm(network.model.embed_tokens.weight[token])
            head[head_row(following)] += strength * hidden
    return network


def head_row(token: int) -> int:
    """Row of a token that is no image token in the head's part for those."""
    return token if token < 4 else token - 8192


def answering_network(seed: int = 0, size: tuple[int, int] = (1, 1), **options) -> Chameleon:
    """A network that writes one word and starts an image of `size` patches."""
    words = {EOT: 20000, 20000: BOI, BOI: SIZE_BASE + size[0], SIZE_BASE + size[0]: SIZE_BASE + size[1]}
    return prefer(random_network(seed, **options), words)
