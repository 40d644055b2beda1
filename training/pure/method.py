"""PURE in training (arXiv 2503.11073): next-token prediction over conversations about degraded pictures.

From PURE's or Lumina-mGPT's weights, every weight or a low-rank update of them. Its data are conversations
(`conversations.py`), its pictures tokenised once (`tokens.py`), its loss cross entropy over the answers (`losses.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...models.pure.options import GenerationOptions
from ...models.pure.prompt import INSTRUCTION, image_block, prompt_ids
from ...models.pure.session import GenerationError
from ...models.pure.vocabulary import PATCH_PIXELS, Vocabulary
from ...models.pure.vqgan import VQGAN, to_image, to_pixels
from ..data.cache import FeatureCache
from ..data.config import DataSettings, SourceSettings
from ..data.validation import validation_batch
from ..engine.draws import Draws
from ..engine.method import Batch, Method
from .config import PUREConfig
from .conversations import block_length
from .export import merged, write_folder
from .losses import counted_positions
from .network import PURENetwork
from .samples import ConversationSamples, collate, padded_batch, token_folder
from .start import Start, load_vqgan, load_weights, read_start, read_values
from .tokenizer import TextTokenizer, read_vocabulary
from .tokens import Tokeniser, file_mark

TEXT_LENGTH = 160
"""Tokens of instruction, degradation sentence and caption, about, for the estimate of a dry run."""

MOST_TEXT = 256
"""Tokens after which a validation answer without a picture is given up."""

EXPORT_FOLDER = "PURE"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class PUREMethod(Method[PUREConfig]):
    config_type = PUREConfig

    network: PURENetwork
    vqgan: VQGAN
    start: Start
    vocabulary: Vocabulary
    tokenizer: TextTokenizer

    # --- network -------------------------------------------------------------------------------------------------

    def build(self, device: torch.device) -> None:
        config = self.config
        self.start = read_start(config.start)
        if config.lora is not None and self.start.enlarged and not config.lora.embeddings:
            raise ValueError(
                f"{config.start} has no tokens for half of the image codes: set lora.embeddings, or start from PURE"
            )
        self.tokenizer, self.vocabulary = read_words(config)
        # What is trained stays in float32; frozen weights are read in the precision that is computed in.
        dtype = torch.float32 if config.lora is None else PRECISIONS[config.precision]
        network = PURENetwork(
            self.start.config, config.dropout, config.z_loss, config.gradient_checkpointing, dtype, torch.device("meta")
        )
        weights = load_weights(self.start, device, dtype, config.seed, config.zero_image_head)
        network.transformer.load_state_dict(weights, strict=True, assign=True)
        if config.lora is not None:
            torch.manual_seed(config.seed)  # peft draws the updates' first matrices
            network.add_lora(config.lora)
            self.trained_in_float32(network)
        self.network = network.to(device).train()
        if device.type != "meta":
            self.vqgan = load_vqgan(config.vqgan, device)

    @staticmethod
    def trained_in_float32(network: PURENetwork) -> None:
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    # --- data ----------------------------------------------------------------------------------------------------

    def samples(self) -> ConversationSamples:
        self.conversations = ConversationSamples(self.config, make_tokeniser(self.config))
        return self.conversations

    def collate(self, items: Sequence[Mapping[str, Any]]) -> Batch:
        return collate(items)

    def prepare(self, batch: Batch, draws: Draws) -> Batch:
        tokeniser = self.conversations.tokeniser
        pairs = [
            (item["ids"], item["labels"])
            if "ids" in item
            else tokeniser.tokenise(item["entry"], item["crops"], self.vqgan)
            for item in batch["items"]
        ]
        return prepared(*padded_batch(pairs, self.config.max_length), bool(self.config.z_loss), draws.device)

    def pictures(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Each conversation's first and last picture, laid in the corner of the largest of the batch."""
        crops = [self.conversations.tokeniser.crops(item["entry"]) for item in batch["items"]]
        height = max(crop.shape[0] for each in crops for crop in each)
        width = max(crop.shape[1] for each in crops for crop in each)
        out = {name: torch.zeros(len(crops), 3, height, width) for name in ("lq", "hq")}
        for index, each in enumerate(crops):
            for name, crop in (("lq", each[0]), ("hq", each[-1])):
                out[name][index, :, : crop.shape[0], : crop.shape[1]] = crop.movedim(-1, 0) / 255
        return {name: value.to(draws.device) for name, value in out.items()}

    def example_batch(self) -> Batch:
        side = self.config.data.side
        length = min(2 * block_length(side, side) + TEXT_LENGTH, self.config.max_length)
        answer = min(block_length(side, side) + TEXT_LENGTH * 3 // 4, length - 1)
        rows = self.config.batch * answer
        return {
            "ids": torch.zeros(self.config.batch, length, dtype=torch.long),
            "rows": torch.arange(rows),
            "following": torch.zeros(rows, dtype=torch.long),
            "own": torch.ones(rows, dtype=torch.bool),
        }

    # --- validation ----------------------------------------------------------------------------------------------

    def validation(self) -> Batch | None:
        data = self.config.data
        settings = DataSettings(
            sources=(SourceSettings(builtin=True),), crop=data.side, enlarge=True, degradation=data.degradation
        )
        return validation_batch(settings, self.config.validation, data.side)

    def restore(self, batch: Batch, draws: Draws) -> Tensor:
        """Answers to the validation images, as the node's defaults write them.

        A model that does not yet write a text and start a picture draws one without: `text` of `measure` is then 0.
        """
        with torch.autocast(draws.device.type, enabled=False):
            codes = self.vqgan.encode(to_pixels(to_bytes_last(batch["lq"])).to(draws.device)).cpu()
        prompts = [prompt_ids(self.tokenizer, INSTRUCTION, image_block(self.vocabulary.encode(grid))) for grid in codes]
        seeds = [draws.choice(2**31) for _ in prompts]
        size = (batch["lq"].shape[-2] // PATCH_PIXELS, batch["lq"].shape[-1] // PATCH_PIXELS)
        options = GenerationOptions(size=size, max_text_tokens=MOST_TEXT)
        self.wrote_text = True
        try:
            answers = self.answer(prompts, seeds, options)
        except GenerationError:
            self.wrote_text = False
            answers = self.answer(prompts, seeds, GenerationOptions(size=size, parts="none"))
        drawn = torch.stack([answer.codes for answer in answers])
        with torch.autocast(draws.device.type, enabled=False):
            return to_image(self.vqgan.decode(drawn.to(draws.device))).movedim(-1, 1)

    def answer(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], options: GenerationOptions) -> Any:
        from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

        if isinstance(self.network, FSDPModule):
            register_fsdp_forward_method(self.network, "answer")
        return self.network.answer(prompts, seeds, options, self.vocabulary)

    def measure(self, batch: Batch, restored: Tensor) -> dict[str, float]:
        return {"text": float(self.wrote_text)}

    # --- files ---------------------------------------------------------------------------------------------------

    def export(self, folder: Path, tensors: Mapping[str, Tensor], steps: int) -> list[Path]:
        """The folder `PURE` in `folder`: put it into the host's `LLM` folder."""
        config, lora = self.config, self.config.lora
        base: Mapping[str, Tensor] = {}
        if lora is not None:
            dtype = PRECISIONS[config.precision]
            base = load_weights(self.start, torch.device("cpu"), dtype, config.seed, config.zero_image_head)
        state = merged(tensors, base, lora.alpha / lora.rank if lora else 0.0)
        dtype = PRECISIONS[config.export_precision]
        return write_folder(folder / EXPORT_FOLDER, state, self.start.config, config.start, dtype, steps)


def read_words(config: PUREConfig) -> tuple[TextTokenizer, Vocabulary]:
    """The tokenizer of the start, and which token is which image code."""
    tokenizer = TextTokenizer(config.start / "tokenizer.json")
    return tokenizer, read_vocabulary(tokenizer, read_values(config.start))


def make_tokeniser(config: PUREConfig) -> Tokeniser:
    """Conversations to tokens, through the run's folder of them. Raises FileNotFoundError without the VQGAN."""
    if not config.vqgan.is_file():
        raise FileNotFoundError(f"{config.vqgan} is absent: `vqgan` is LlamaGen's vq_ds8_c2i.pt")
    tokenizer, vocabulary = read_words(config)
    settings = {
        "form": 1,
        "side": config.data.side,
        "seed": config.seed,
        "vqgan": file_mark(config.vqgan),
        "tokenizer": file_mark(tokenizer.path),
        "codes": vocabulary.source,
    }
    cache = FeatureCache(token_folder(config), settings)
    return Tokeniser(cache, tokenizer, vocabulary, config.data.side, config.seed)


def prepared(ids: Tensor, labels: Tensor, with_z_loss: bool, device: torch.device) -> Batch:
    """What `PURENetwork` takes, from ids and labels `[B, T]`."""
    rows, following, own = counted_positions(labels, with_z_loss)
    batch = {"ids": ids, "rows": rows, "following": following, "own": own}
    return {name: value.to(device) for name, value in batch.items()}


def to_bytes_last(images: Tensor) -> Tensor:
    """`[B, 3, H, W]` in [0, 1] -> 8-bit `[B, H, W, 3]`."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, -1)
