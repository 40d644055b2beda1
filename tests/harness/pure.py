"""A small PURE in the layout of the released one: `nonwhy/PURE`'s folder and LlamaGen's `vq_ds8_c2i.pt`.

The transformer has the real vocabulary of 73728 and the real codebook of 16384 codes, and random layers a few numbers
wide. Its embedding and head are set by hand so that it answers as the trained model does: after the prompt it writes
`SENTENCE`, `CAPTION`, opens an image, and ends the turn after the image closes; which codes it draws is left to chance.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .checkpoints import Shapes, StateDict, conv, fill, norm

BOI, EOI, EOT, NEW_LINE, SIZE = 8197, 8196, 8710, 8803, 8804
VOCABULARY = 73728
PLAIN_VOCABULARY = 65536
FIRST_CODES = range(4, 8196)
SECOND_CODES = range(65536, 73728)
CODES = 16384
FIRST_TEXT = 16384
FIRST_WORD = FIRST_TEXT + 256

WORDS = ("Medium", " blur,", " small", " noise.", " The", " image", " shows", " random", " colours.")
SENTENCE = "Medium blur, small noise."
CAPTION = "The image shows random colours."

FOLDER, VQ_FILE = "PURE", "vq_ds8_c2i.pt"


@dataclass(frozen=True)
class Sizes:
    """Widths of the small transformer; the config.json of the released one has the same entries."""

    hidden: int = 32
    layers: int = 2
    heads: int = 2
    mlp: int = 48
    vocabulary: int = VOCABULARY

    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["ChameleonXLLMXForConditionalGeneration"],
            "model_type": "chameleon",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "hidden_act": "silu",
            "max_position_embeddings": 11776,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "rope_scaling": None,
            "attention_bias": False,
            "mlp_bias": False,
            "model_parallel_size": 1,
            "swin_norm": False,
            "mask_image_logits": False,
            "dropout": 0.05,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }


def word_ids() -> list[int]:
    return list(range(FIRST_WORD, FIRST_WORD + len(WORDS)))


def answer(ends_with: int = BOI) -> dict[int, int]:
    """token -> the token that follows it: the text, then `ends_with`; the image closes by itself, then the turn."""
    return {EOI: EOT, **dict(pairwise([EOT, *word_ids(), ends_with]))}


def endless_text() -> dict[int, int]:
    """A model that goes on talking."""
    words = word_ids()
    return {EOT: words[0], **dict(zip(words, [*words[1:], words[0]], strict=True))}


def layer_shapes(sizes: Sizes) -> Shapes:
    head = sizes.hidden // sizes.heads
    for layer in (f"model.layers.{index}" for index in range(sizes.layers)):
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield f"{layer}.self_attn.{part}.weight", (sizes.hidden, sizes.hidden)
        for part in ("gate_proj", "up_proj"):
            yield f"{layer}.mlp.{part}.weight", (sizes.mlp, sizes.hidden)
        yield f"{layer}.mlp.down_proj.weight", (sizes.hidden, sizes.mlp)
        yield f"{layer}.input_layernorm.weight", (sizes.hidden,)
        yield f"{layer}.post_attention_layernorm.weight", (sizes.hidden,)
    yield "model.norm.weight", (sizes.hidden,)
    for layer in (f"model.layers.{index}" for index in range(sizes.layers)):
        for part in ("q_norm", "k_norm"):
            yield f"{layer}.self_attn.{part}.weight_row", (head,)
            yield f"{layer}.self_attn.{part}.bias", (head,)


def backbone(seed: int = 0, sizes: Sizes | None = None, follows: Mapping[int, int] | None = None) -> StateDict:
    """The 3 + 13 x layers tensors of the transformer in bfloat16, that writes by `follows` (see `answer`)."""
    sizes = sizes or Sizes()
    follows = answer() if follows is None else follows
    tensors = fill(layer_shapes(sizes), seed)
    for name in [name for name in tensors if ".q_norm." in name or ".k_norm." in name]:
        tensors[name.removesuffix("_row")] = tensors.pop(name)[None]
    generator = torch.Generator().manual_seed(seed + 1)
    embedding = torch.randn(sizes.vocabulary, sizes.hidden, generator=generator)
    # Deviations that differ by direction make the entropy of the codes depend on what was read.
    deviation = torch.linspace(0.05, 0.9, sizes.hidden)
    head = torch.randn(sizes.vocabulary, sizes.hidden, generator=generator) * deviation
    text = torch.ones(sizes.vocabulary, 1)
    text[FIRST_CODES.start : FIRST_CODES.stop] = text[SECOND_CODES.start : SECOND_CODES.stop] = 0
    head = torch.where(text.bool(), head * 0.2, head)
    for token, following in follows.items():
        direction = embedding[token] / embedding[token].square().mean().sqrt()
        # Loud enough to outweigh what the layers add.
        embedding[token] = 6 * direction
        head[following] = 40 * direction / sizes.hidden
    tensors |= {"model.embed_tokens.weight": embedding, "lm_head.weight": head}
    return {name: value.to(torch.bfloat16) for name, value in tensors.items()}


# --- tokenizer -------------------------------------------------------------------------------------------------------


def byte_letters() -> list[str]:
    """GPT-2's printable letters for the bytes, in the order of their ids."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + rank) for rank in range(len(others))]


def code_name(code: int) -> str:
    return "IMGIMG" + "".join("ABCDEFGHIJ"[int(digit)] for digit in str(code)) + "Z"


def vocabulary(size: int = VOCABULARY) -> dict[str, int]:
    """Names of ids 0..size-1 as the released tokenizer has them, but for the text, which has few words."""
    names = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    names |= {code_name(code): code + FIRST_CODES.start for code in range(len(FIRST_CODES))}
    names |= {"<eoss>": EOI, "<racm3:break>": BOI}
    names |= {f"<sentinel:{number}>": 8198 + number for number in range(512)}
    names |= {f"<reserved{number - 4:05d}>": number for number in range(8710, FIRST_TEXT)}
    names |= {letter: FIRST_TEXT + rank for rank, letter in enumerate(byte_letters())}
    names |= {word.replace(" ", "Ġ"): number for number, word in zip(word_ids(), WORDS, strict=True)}
    names |= {f"Ġfiller{number}": number for number in range(FIRST_WORD + len(WORDS), PLAIN_VOCABULARY)}
    if size > PLAIN_VOCABULARY:
        second = range(len(FIRST_CODES), CODES)
        names |= {code_name(code): SECOND_CODES.start + code - second.start for code in second}
    return names


def tokenizer_json(names: Mapping[str, int] | None = None) -> str:
    """A byte-level BPE without merges, in the format of `tokenizer.json`."""
    names = vocabulary() if names is None else names
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": number, "content": name, **flags} for name, number in names.items() if name.startswith("<")]
    model: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": dict(names),
        "merges": [],
    }
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": sorted(added, key=lambda t: t["id"]),
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": None,
            "decoder": byte_level,
            "model": model,
        },
        ensure_ascii=False,
    )


# --- VQGAN -----------------------------------------------------------------------------------------------------------


def residual(name: str, before: int, width: int) -> Shapes:
    yield from norm(f"{name}.norm1", before)
    yield from conv(f"{name}.conv1", before, width, 3)
    yield from norm(f"{name}.norm2", width)
    yield from conv(f"{name}.conv2", width, width, 3)
    if before != width:
        yield from conv(f"{name}.nin_shortcut", before, width, 1)


def attention(name: str, width: int) -> Shapes:
    yield from norm(f"{name}.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        yield from conv(f"{name}.{part}", width, width, 1)


def middle(name: str, width: int) -> Shapes:
    yield from residual(f"{name}.0", width, width)
    yield from attention(f"{name}.1", width)
    yield from residual(f"{name}.2", width, width)


def vqgan_shapes(widths: tuple[int, ...], blocks: int, z: int, codes: int) -> Shapes:
    last = len(widths) - 1
    before = widths[0]
    yield from conv("encoder.conv_in", 3, before, 3)
    for level, width in enumerate(widths):
        for block in range(blocks):
            yield from residual(f"encoder.conv_blocks.{level}.res.{block}", before, width)
            before = width
            if level == last:
                yield from attention(f"encoder.conv_blocks.{level}.attn.{block}", width)
        if level < last:
            yield from conv(f"encoder.conv_blocks.{level}.downsample.conv", width, width, 3)
    yield from middle("encoder.mid", before)
    yield from norm("encoder.norm_out", before)
    yield from conv("encoder.conv_out", before, z, 3)
    yield from conv("quant_conv", z, 8, 1)
    yield "quantize.embedding.weight", (codes, 8)
    yield "quantize.codebook_used", (65536,)
    yield from conv("post_quant_conv", 8, z, 1)
    yield from conv("decoder.conv_in", z, before, 3)
    yield from middle("decoder.mid", before)
    for level, width in enumerate(reversed(widths)):
        for block in range(blocks + 1):
            yield from residual(f"decoder.conv_blocks.{level}.res.{block}", before, width)
            before = width
            if level == 0:
                yield from attention(f"decoder.conv_blocks.{level}.attn.{block}", width)
        if level < last:
            yield from conv(f"decoder.conv_blocks.{level}.upsample.conv", width, width, 3)
    yield from norm("decoder.norm_out", before)
    yield from conv("decoder.conv_out", before, 3, 3)


def vqgan(
    seed: int = 0, *, widths: tuple[int, ...] = (32, 32, 32, 32), blocks: int = 2, z: int = 32, codes: int = CODES
) -> StateDict:
    """LlamaGen's VQ-8 with the real codebook, widths (128, 128, 256, 512) and z 256 made small."""
    return fill(vqgan_shapes(widths, blocks, z, codes), seed)


# --- files -----------------------------------------------------------------------------------------------------------

INDEX = "model.safetensors.index.json"


def shard_name(number: int, count: int) -> str:
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def save_sharded(folder: Path, tensors: Mapping[str, Tensor], shards: int = 2) -> None:
    """Weights in `shards` files and their index, as transformers writes them."""
    names = sorted(tensors)
    parts = [names[start::shards] for start in range(shards)]
    weight_map: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        file = shard_name(number, shards)
        save_file({name: tensors[name].contiguous() for name in part}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(value.nbytes for value in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def save_pure_folder(
    folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], tokenizer: str | None = None
) -> None:
    """The released folder: config.json, two shards with their index, tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2), encoding="utf-8")
    (folder / "tokenizer.json").write_text(tokenizer or tokenizer_json(), encoding="utf-8")
    save_sharded(folder, tensors)


def save_vqgan(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """The published pickle: the tensors are under the key `model`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": dict(tensors), "steps": 1}, path)


def save_released_files(models: Path) -> None:
    """Both parts where a user puts them: `LLM/PURE/` and `vae/vq_ds8_c2i.pt`."""
    sizes = Sizes()
    save_pure_folder(models / "LLM" / FOLDER, backbone(0, sizes), sizes.config())
    save_vqgan(models / "vae" / VQ_FILE, vqgan())


# --- runs ------------------------------------------------------------------------------------------------------------

DEFAULTS: dict[str, Any] = {
    "resize": {"resize": "scale factor", "scale": 1.0},
    "description": "",
    "guidance": "full",
    "tile_description": "shared",
    "seed": 7,
    "sampling": {"sampling": "entropy top-k", "k_min": 1, "k_max": 2000, "mu": 5.0},
    "decoding": {"decoding": "sequential"},
    "tiling": {"tiling": "custom", "tile_size": 64, "tile_overlap": 16},
    "color_fix": True,
    "temperature": 0.9,
    "guidance_scale": 0.8,
    "text_top_k": 1,
    "max_text_tokens": 64,
    "instruction": "Restore the image.",
    "batch_size": 0,
    "preview": True,
}
"""Inputs of AR Token Restorer for squares of 64 pixels, 64 tokens each."""

QUICK = {"tiling": {"tiling": "custom", "tile_size": 32, "tile_overlap": 8}}
"""16 tokens each."""


def picture(seed: int = 0, width: int = 64, height: int = 64, batch: int = 1, channels: int = 3) -> Tensor:
    """Smooth random images `[B, H, W, C]` in 0..1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, channels, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return smooth.clamp(0, 1).movedim(1, -1)


def run_restorer(model: Any, image: Tensor, **changes: Any) -> tuple[Any, ...]:
    """(image, degradation, description, entropy, tokens) of AR Token Restorer with DEFAULTS, or `changes` of them."""
    from realisr.nodes.pure import ARTokenRestorer

    from .host import InProcessHost

    return InProcessHost.run(ARTokenRestorer, model=model, image=image, **{**DEFAULTS, **changes})


def save_variant(models: Path, name: str, **made: Any) -> str:
    """A folder `LLM/<name>` whose model writes otherwise (`follows`, see `backbone`); returns the name."""
    sizes = Sizes()
    save_pure_folder(models / "LLM" / name, backbone(sizes=sizes, **made), sizes.config())
    return name
