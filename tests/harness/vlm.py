"""A tiny LLaVA with random weights, as the folder that transformers publishes and loads.

It writes nonsense, but through the real network, tokenizer and processor.
"""

from __future__ import annotations

import string
from pathlib import Path

import torch

WORDS = ("a", "door", "red", "paint", "wood", "sky", "dog", "grass", "blur", "noise", "light", "stone")
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ ' ' }}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def tiny_tokenizer():
    """A handful of words, and letters, digits and a few marks for everything else.

    No braces: an answer that looks like JSON and is none is refused.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [*SPECIAL, *WORDS, *sorted({*string.ascii_lowercase, *string.digits, *",.:"} - {*WORDS})]
    tokenizer = Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(rf"\b({'|'.join(WORDS)})\b|\S"), "removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )


def tiny_qwen(stop_share: int = 8):
    """The host's own Qwen3-VL text encoder with its tokenizer, 2 + 2 layers of random weights, as a CLIP.

    Its vision part's sizes are fixed in a table by model type: use it where `QWEN3VL_VISION["qwen3vl_4b"]` is
    TINY_VISION. stop_share: one in so many words ends the answer.
    """
    import comfy.sd
    from comfy.text_encoders import qwen3vl

    class Target:
        params: dict = {}
        clip = qwen3vl.te(model_type="qwen3vl_4b")
        tokenizer = qwen3vl.tokenizer(model_type="qwen3vl_4b")

    sizes = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    options = {"qwen3vl_4b_model_config": sizes, "dtype": torch.float32}
    clip = comfy.sd.CLIP(Target, model_options=options, disable_dynamic=True)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in clip.cond_stage_model.named_parameters():
        value = torch.randn(parameter.shape, generator=generator) * (0.05 if parameter.ndim > 1 else 0.01)
        parameter.data = value + float(name.endswith("norm.weight"))
    clip.cond_stage_model.qwen3vl_4b.transformer.model.config.stop_tokens = list(range(0, 151936, stop_share))
    return clip


TINY_VISION = {"hidden_size": 128, "intermediate_size": 64, "depth": 2, "deepstack_visual_indexes": [0, 1]}


def save_tiny_llava(folder: Path, seed: int = 0, stop_often: bool = True, chat_template: bool = True) -> Path:
    """Write a random LLaVA (2 + 2 layers, width 32) into `folder`.

    stop_often: a good part of its words end the answer, so that sampled answers are short; without it none does.
    """
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
            projection_dim=32,
        ),
        text_config=LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            vocab_size=len(tokenizer),
            max_position_embeddings=8192,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    network = LlavaForConditionalGeneration(config)
    stops = range(len(tokenizer) - 12, len(tokenizer))
    network.generation_config.eos_token_id = [tokenizer.eos_token_id, *stops] if stop_often else None
    network.generation_config.pad_token_id = tokenizer.pad_token_id
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE if chat_template else None,
    )
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
