"""Writing whole answers (arXiv 2503.11073): read the prompt, write the text, draw the token grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from . import logits as stages
from .answer import GUIDANCE, Guidance, Writer, kept_ids, needs_writing
from .cache import KVCache, bytes_per_token
from .config import ChameleonConfig
from .draws import Draws, SeededDraws, uniforms_on
from .grid import MAX_PATCHES, Grid, check_patches
from .jacobi import WINDOW, JacobiDecoder
from .observer import Observer
from .prompt import Tokenizer
from .sequential import Drawn, SequentialDecoder
from .session import Session
from .transformer import Chameleon
from .vocabulary import BOI, EOI, EOT, MAX_SIDE, NL, SIZE_BASE, Vocabulary, index_to_id, size_id

Decoding = Literal["sequential", "jacobi"]
DECODING: tuple[Decoding, ...] = get_args(Decoding)

LONGEST_IMAGE = max(Grid(MAX_PATCHES // width, width).length for width in range(8, MAX_SIDE + 1)) + 3


@dataclass(frozen=True)
class GenerationOptions:
    """How answers are written; the defaults are the paper's.

    sampling: how image tokens are drawn. guidance_scale: 1 switches guidance off and halves the cache. text_top_k: 1
    is greedy. max_text_tokens: where a text counts as endless. size: (height, width) of the image in patches of 32
    pixels, or None to let the model write it. restrict_sizes: of the model's own size tokens, allow only those that
    state a side of 1 to 32 patches (the reference allows any token). guidance: which text the image is conditioned on.
    decoding: one token a forward, or speculative Jacobi windows of `window` tokens, whose result has the same
    distribution. cuda_graphs: replay sequential steps as CUDA graphs; only for weights that stay on
    the device.
    """

    sampling: stages.Sampling = field(default_factory=stages.Sampling)
    guidance_scale: float = 0.8
    text_top_k: int = 1
    max_text_tokens: int = 512
    size: tuple[int, int] | None = None
    restrict_sizes: bool = True
    guidance: Guidance = "full"
    decoding: Decoding = "sequential"
    window: int = WINDOW
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        if self.guidance not in GUIDANCE:
            raise ValueError(f"unknown text guidance '{self.guidance}': choose one of {', '.join(GUIDANCE)}")
        if self.decoding not in DECODING:
            raise ValueError(f"unknown decoding '{self.decoding}': choose one of {', '.join(DECODING)}")
        for name, lowest in (("text_top_k", 1), ("max_text_tokens", 1), ("window", 2)):
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least {lowest}")
        if self.size is not None:
            check_patches(*self.size)

    @property
    def image_length(self) -> int:
        """Largest number of positions an image takes in a cache."""
        longest = LONGEST_IMAGE if self.size is None else Grid(*self.size).length + 3
        return longest + (self.window if self.decoding == "jacobi" else 0)

    @property
    def guided(self) -> bool:
        return self.guidance_scale != 1.0


@dataclass(frozen=True)
class Generated:
    """One answer.

    ids: the answer's token ids: text, image block, end of turn. text_ids: what the image was conditioned on.
    written_ids: what the model wrote before any choice of text. codes: VQ codes, `[rows, columns]` long. entropy (nats)
    and k: of every image token, `[rows, columns]`. forwards: of the whole batch this image was in. proposed, accepted:
    drafts tested and accepted by Jacobi decoding in that batch.
    """

    ids: list[int]
    text_ids: list[int]
    written_ids: list[int]
    codes: Tensor
    entropy: Tensor
    k: Tensor
    forwards: int
    proposed: int = 0
    accepted: int = 0


def cache_bytes(
    config: ChameleonConfig, options: GenerationOptions, batch: int, prompt_tokens: int, dtype: torch.dtype
) -> int:
    """Memory of the key-value caches of a run: prompt, text and image, and the image again when guided."""
    tokens = prompt_tokens + options.max_text_tokens + options.image_length * (2 if options.guided else 1)
    return batch * tokens * bytes_per_token(config, dtype)


@torch.no_grad()
def generate(
    network: Chameleon,
    prompts: Sequence[Sequence[int]],
    draws: Draws | Sequence[int],
    options: GenerationOptions,
    vocabulary: Vocabulary,
    tokenizer: Tokenizer | None = None,
    descriptions: Sequence[str | None] | None = None,
    observer: Observer | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> list[Generated]:
    """Answer every prompt (`prompt.prompt_ids`) in parallel.

    draws: one seed per prompt. tokenizer: needed for a guidance other than full or none, and for descriptions.
    descriptions: text in place of the model's own caption, per prompt. device: where to compute, by default where the
    embedding is. dtype: what to compute in and keep the cache in, by default the embedding's.

    Raises GenerationError, naming the image, where the model writes no valid answer, ValueError on unusable inputs.
    """
    texts = list(descriptions) if descriptions is not None else [None] * len(prompts)
    check_inputs(network, prompts, texts, options, tokenizer)
    weight = network.model.embed_tokens.weight
    device, dtype = device or weight.device, dtype or weight.dtype
    given = [tokenizer.encode(f" {text}") if text is not None and tokenizer else [] for text in texts]
    room = options.max_text_tokens + max(map(len, given))
    capacity = max(map(len, prompts)) + room + options.image_length
    cache = KVCache.allocate(network.config, len(prompts), capacity, dtype, device)
    streams = SeededDraws(draws) if isinstance(draws, Sequence) else draws
    session = Session(network, cache, [0] * len(prompts), streams, observer or Observer(), dtype)
    hidden = session.read(prompts)
    written, kept = write_text(session, hidden, options, texts, tokenizer)
    results: dict[int, Generated] = {}
    for grid, images in image_groups(session, options):
        part = session if len(images) == session.batch else session.select(images)
        drawn = draw_images(part, grid, options, vocabulary)
        for row, image in enumerate(images):
            results[image] = assemble(written[image], kept[image], drawn, row, grid, vocabulary, part.forwards)
    return [results[image] for image in range(len(prompts))]


def check_inputs(
    network: Chameleon,
    prompts: Sequence[Sequence[int]],
    texts: Sequence[str | None],
    options: GenerationOptions,
    tokenizer: Tokenizer | None,
) -> None:
    network.config.require_image_vocabulary()
    if not prompts:
        raise ValueError("there is no prompt to answer")
    if len(texts) != len(prompts):
        raise ValueError(f"there are {len(texts)} descriptions for {len(prompts)} prompts")
    replaced = any(text is not None for text in texts)
    if replaced and options.guidance in ("perception", "none"):
        raise ValueError(
            f"a description is given but text guidance '{options.guidance}' leaves descriptions out: choose 'full' or "
            "'understanding', or give no description"
        )
    if tokenizer is None and (replaced or options.guidance in ("perception", "understanding")):
        raise ValueError(f"text guidance '{options.guidance}' or a description needs the tokenizer")


def write_text(
    session: Session,
    hidden: Tensor,
    options: GenerationOptions,
    descriptions: Sequence[str | None],
    tokenizer: Tokenizer | None,
) -> tuple[list[list[int]], list[list[int]]]:
    """Let the model write and bring the context in line with the guidance: (written, kept) text ids per image."""
    guidance = options.guidance
    written: list[list[int]] = [[] for _ in descriptions]
    only_sentence = guidance == "perception" or (guidance == "full" and None not in descriptions)
    if any(needs_writing(guidance, text) for text in descriptions):
        writer = Writer(session, hidden, options.text_top_k, options.sampling.temperature, options.max_text_tokens)
        written = writer.write(tokenizer if only_sentence else None)
    pairs = zip(written, descriptions, strict=True)
    kept = [kept_ids(ids, guidance, text, tokenizer) for ids, text in pairs]
    if kept == written and not only_sentence:
        session.starts = [start + len(ids) for start, ids in zip(session.starts, kept, strict=True)]
    else:
        session.append(kept)
    return written, kept


def image_groups(session: Session, options: GenerationOptions) -> list[tuple[Grid, list[int]]]:
    """Images by size; one group when the size is given, as many as there are sizes when the model states them."""
    if options.size is not None:
        return [(Grid(*options.size), list(range(session.batch)))]
    groups: dict[Grid, list[int]] = {}
    for image, grid in enumerate(write_sizes(session, options)):
        groups.setdefault(grid, []).append(image)
    return list(groups.items())


def write_sizes(session: Session, options: GenerationOptions) -> list[Grid]:
    """Let the model state height and width of each image. Raises GenerationError on what is no size."""
    device = session.device
    starts = torch.tensor(session.starts, device=device)[:, None]
    uniforms = uniforms_on(device, session.draws.take("size", 2))
    token = torch.full((session.batch, 1), BOI, device=device)
    sides = []
    for slot in range(2):
        hidden = session.feed(token, starts + slot, max(session.starts) + slot + 1)
        logits = session.network.logits(hidden[:, -1])
        if options.restrict_sizes:
            first, last = size_id(1), size_id(MAX_SIDE)
            allowed = torch.full_like(logits, -torch.inf)
            allowed[:, first : last + 1] = logits[:, first : last + 1]
            logits = allowed
        p, entropy, _ = stages.distribution(logits, options.sampling)
        token = stages.draw(p, uniforms[:, slot])[:, None]
        sides.append((token[:, 0] - SIZE_BASE).tolist())
        for image, invalid in enumerate(entropy.isnan().tolist()):
            if invalid:
                raise session.error(image, "the model's logits are not finite where it states the image's size.")
    grids = []
    for image, (height, width) in enumerate(zip(*sides, strict=True)):
        try:
            check_patches(height, width)
        except ValueError as error:
            raise session.error(
                image, f"the model asked for {error}. Give the size instead of leaving it to the model."
            ) from error
        grids.append(Grid(height, width))
    return grids


def draw_images(session: Session, grid: Grid, options: GenerationOptions, vocabulary: Vocabulary) -> Drawn:
    shared = (session, grid, options.sampling, options.guidance_scale, vocabulary)
    if options.decoding == "jacobi":
        return JacobiDecoder(*shared, window=options.window).decode()
    return SequentialDecoder(*shared, cuda_graphs=options.cuda_graphs).decode()


def assemble(
    written: list[int], kept: list[int], drawn: Drawn, row: int, grid: Grid, vocabulary: Vocabulary, forwards: int
) -> Generated:
    """One image's answer. The end of turn is added by rule, where the reference spends a forward on it."""
    shape = (grid.rows, grid.columns)
    index = drawn.index[row].view(shape)
    body = [token for line in index_to_id(index).tolist() for token in (*line, NL)]
    return Generated(
        ids=[*kept, BOI, *grid.sizes(), *body, EOI, EOT],
        text_ids=kept,
        written_ids=written,
        codes=vocabulary.code_of_index()[index],
        entropy=drawn.entropy[row].view(shape),
        k=drawn.k[row].view(shape),
        forwards=forwards,
        proposed=drawn.proposed,
        accepted=drawn.accepted,
    )
