"""The frozen encoders of prompts (T5, CLIP) and images (CLIP), from ComfyUI's single files or transformers' folders."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...models.state_dict import require_layers
from .files import WeightFiles, assemble, not_a

log = logging.getLogger(__name__)

CLIP_HEAD = 64
CLIP_TOKENS = 77
CLIP_END = 49407
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
Shapes = Mapping[str, tuple[int, ...]]


def t5_sizes(shapes: Shapes) -> dict[str, Any]:
    """Arguments of T5Config for an encoder of T5 1.1."""
    buckets, heads = shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    vocabulary, width = shapes["shared.weight" if "shared.weight" in shapes else "encoder.embed_tokens.weight"]
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": shapes["encoder.block.0.layer.0.SelfAttention.q.weight"][0] // heads,
        "d_ff": shapes["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"][0],
        "num_layers": require_layers(shapes, "encoder.block."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
        "is_encoder_decoder": False,
        "use_cache": False,
    }


def clip_text_sizes(shapes: Shapes) -> dict[str, Any]:
    """Arguments of CLIPTextConfig for OpenAI's CLIP, whose heads are 64 wide."""
    vocabulary, width = shapes["embeddings.token_embedding.weight"]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": require_layers(shapes, "encoder.layers."),
        "num_attention_heads": max(1, width // CLIP_HEAD),
        "max_position_embeddings": shapes["embeddings.position_embedding.weight"][0],
        "hidden_act": "quick_gelu",
        "bos_token_id": 49406,
        "eos_token_id": CLIP_END,
    }


def clip_vision_sizes(shapes: Shapes) -> dict[str, Any]:
    """Arguments of CLIPVisionConfig for OpenAI's CLIP (its activation), with the projection."""
    width, _, patch, _ = shapes["vision_model.embeddings.patch_embedding.weight"]
    positions = shapes["vision_model.embeddings.position_embedding.weight"][0]
    layers = require_layers(shapes, "vision_model.encoder.layers.")
    if layers > 24:
        raise ValueError(f"it has {layers} layers, CLIP ViT-L/14 24")
    return {
        "hidden_size": width,
        "intermediate_size": shapes["vision_model.encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // CLIP_HEAD),
        "patch_size": patch,
        "image_size": patch * math.isqrt(positions - 1),
        "projection_dim": shapes["visual_projection.weight"][0],
        "hidden_act": "quick_gelu",
    }


@dataclass(frozen=True)
class Kind:
    """One of the encoders: how its files look and what is made of them."""

    what: str
    part: str
    """Its folder in a pipeline's."""
    prefix: str
    """What file names have before the module's, where they have it."""
    sizes: Callable[[Shapes], dict[str, Any]]
    make: Callable[[dict[str, Any]], nn.Module]
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Tensors of the module that files may hold under another name alone."""


def make_t5(arguments: dict[str, Any]) -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(**arguments))


def make_clip_text(arguments: dict[str, Any]) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(**arguments))


def make_clip_vision(arguments: dict[str, Any]) -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(CLIPVisionConfig(**arguments))


T5 = Kind(
    "T5 1.1 text encoder",
    "text_encoder_2",
    "",
    t5_sizes,
    make_t5,
    {"encoder.embed_tokens.weight": "shared.weight", "shared.weight": "encoder.embed_tokens.weight"},
)
CLIP_TEXT = Kind("CLIP text encoder", "text_encoder", "text_model.", clip_text_sizes, make_clip_text)
CLIP_VISION = Kind("CLIP ViT-L/14 vision encoder", "image_encoder", "", clip_vision_sizes, make_clip_vision)


def load_encoder(kind: Kind, path: Path, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """One of the encoders, frozen. Tensors that belong to CLIP's other half are left.

    Raises FileNotFoundError; ValueError for another file, naming what is missing.
    """
    files = WeightFiles(path, kind.part)
    names = files.without_prefix(kind.prefix) if kind.prefix else {name: name for name in files.homes}
    shapes = {name: files.shapes[stored] for name, stored in names.items()}
    try:
        arguments = kind.sizes(shapes)
        with torch.device("meta"):
            # transformers 4 keeps CLIP's text network one level further in.
            made = kind.make(arguments).state_dict()
            expected = {name.removeprefix(kind.prefix): tuple(value.shape) for name, value in made.items()}
    except KeyError as error:
        raise not_a(kind.what, files, f"it lacks {error}") from error
    except (ValueError, TypeError, RuntimeError) as error:
        raise not_a(kind.what, files, error) from error
    homes = {}
    for name, shape in expected.items():
        home = name if name in shapes else kind.aliases.get(name, name)
        if home not in shapes:
            raise not_a(kind.what, files, f"it lacks {name}")
        if shapes[home] != shape:
            raise not_a(kind.what, files, f"{name} is {list(shapes[home])}, expected {list(shape)}")
        homes[name] = names[home]

    def read(name: str) -> Tensor:
        return files.read(homes[name.removeprefix(kind.prefix)])

    return assemble(lambda: kind.make(arguments), None, read, device, dtype)


class ImageEncoder:
    """CLIP's projected image embedding, of images prepared as ComfyUI's CLIPVisionEncode does without cropping."""

    def __init__(self, network: nn.Module):
        self.network = network

    @property
    def width(self) -> int:
        """Of the embedding: 768."""
        return self.network.config.projection_dim

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """`[B, 3, H, W]` in [0, 1] -> `[B, width]` float32, not normalised."""
        weight = self.network.visual_projection.weight
        pixels = clip_pixels(images.to(weight.device), self.network.config.image_size)
        return self.network(pixel_values=pixels.to(weight.dtype)).image_embeds.float()


def clip_pixels(images: Tensor, side: int) -> Tensor:
    """Images `[B, 3, H, W]` in [0, 1] at CLIP's size, in 8-bit levels, normalised."""
    images = images.float()
    if images.shape[-2:] != (side, side):
        images = F.interpolate(images, size=(side, side), mode="bicubic", antialias=True)
    levels = (255 * images).clamp(0, 255).round() / 255
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (levels - mean) / std


@dataclass(frozen=True)
class Tokenizers:
    """Of CLIP and T5, read from a folder: training downloads nothing."""

    clip: Any
    t5: Any

    @classmethod
    def read(cls, folder: Path) -> Tokenizers:
        """From ComfyUI's own folder, or a FLUX folder of diffusers (tokenizer, tokenizer_2).

        Raises FileNotFoundError when it is neither.
        """
        from transformers import AutoTokenizer

        for clip, t5 in (("tokenizer", "tokenizer_2"), ("comfy/sd1_tokenizer", "comfy/text_encoders/t5_tokenizer")):
            if (folder / clip).is_dir() and (folder / t5).is_dir():
                read = AutoTokenizer.from_pretrained
                return cls(read(folder / clip, local_files_only=True), read(folder / t5, local_files_only=True))
        raise FileNotFoundError(
            f"{folder} has no tokenizers. Name ComfyUI's folder (with comfy/sd1_tokenizer in it) or a FLUX.1 folder of "
            "diffusers (with tokenizer and tokenizer_2)."
        )

    def ids(self, prompts: Sequence[str], tokens: int) -> tuple[Tensor, Tensor]:
        """(CLIP's `[B, 77]`, T5's `[B, tokens]`), padded as ComfyUI does; what is longer is cut, and logged."""
        prompts = [prompt.replace("\n", " ") for prompt in prompts]
        both = []
        for name, tokenizer, length in (("CLIP", self.clip, CLIP_TOKENS), ("T5", self.t5, tokens)):
            rows = tokenizer(list(prompts), padding="max_length", truncation=True, max_length=length)["input_ids"]
            for prompt, row in zip(prompts, tokenizer(list(prompts))["input_ids"], strict=True):
                if len(row) > length and name == "T5":
                    log.warning("a prompt has %d T5 tokens, %d are used: %.60s...", len(row), length, prompt)
            both.append(torch.tensor(rows))
        return both[0], both[1]


class TextEncoders:
    """Prompts as FLUX reads them: T5's tokens and CLIP's pooled vector, as ComfyUI encodes them.

    The networks are read when first needed. `rest`: where they are between calls, main memory or the device.
    """

    def __init__(
        self,
        t5: Path,
        clip: Path,
        tokenizers: Path,
        device: torch.device,
        dtype: torch.dtype,
        tokens: int,
        rest: torch.device,
    ):
        self.paths = (t5, clip)
        self.tokenizers = Tokenizers.read(tokenizers)
        self.device, self.dtype, self.tokens = device, dtype, tokens
        self.rest = rest
        self.networks: list[nn.Module] = []

    def read(self) -> list[nn.Module]:
        if not self.networks:
            kinds = (T5, CLIP_TEXT)
            pairs = zip(kinds, self.paths, strict=True)
            self.networks = [load_encoder(kind, path, self.rest, self.dtype) for kind, path in pairs]
        return self.networks

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(T5's tokens `[B, tokens, 4096]`, CLIP's pooled vectors `[B, 768]`), in the networks' precision."""
        clip_ids, t5_ids = self.tokenizers.ids(prompts, self.tokens)
        t5, clip = self.read()
        # T5's padding is read like words and none is masked, as FLUX was trained.
        text = t5.to(self.device)(t5_ids.to(self.device)).last_hidden_state
        t5.to(self.rest)
        pooled = clip.to(self.device)(clip_ids.to(self.device)).pooler_output
        clip.to(self.rest)
        return text, pooled
