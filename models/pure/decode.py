"""How PURE answers (arXiv 2503.11073): it reads the prompt, writes a text, and draws a grid of image tokens.

Read `generate`, then `decode`, then the two ways of a step: `Sequential` draws one token a forward, `Jacobi` checks a
window of guesses in one. Both feed every image of the batch and both guidance branches together; row ends are certain,
so they ride along with other tokens and are never computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from . import logits as stages
from .cache import KVCache
from .graphs import GraphedSteps
from .grid import Grid
from .jacobi import SlotTables, verify
from .options import GenerationOptions
from .prompt import Tokenizer, image_block
from .session import Draws, GenerationError, Observer, SeededDraws, Session
from .text import write, write_text
from .transformer import Chameleon
from .vocabulary import EOT, IMAGE_TOKENS, NL, Vocabulary, index_to_id


@dataclass(frozen=True)
class Generated:
    """One answer."""

    ids: list[int]
    """The answer's token ids: text, image block, end of turn."""
    text_ids: list[int]
    """What the image was conditioned on."""
    written_ids: list[int]
    """What the model wrote before any choice of text."""
    codes: Tensor
    """VQ codes, `[rows, columns]` long."""
    entropy: Tensor
    """Nats of every image token, `[rows, columns]`."""
    k: Tensor
    """Tokens each was drawn from, `[rows, columns]` long."""
    forwards: int
    """Of the whole batch this image was in."""
    proposed: int = 0
    """Drafts of Jacobi decoding that were tested in that batch."""
    accepted: int = 0
    """And those that stood."""


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

    draws: one seed per prompt. tokenizer: needed for answer parts other than full or none, and for descriptions.
    descriptions: text in place of the model's own caption, per prompt. device: where to compute, by default where the
    embedding is. dtype: what to compute in and keep the cache in, by default the embedding's.

    Raises GenerationError, naming the image, where the model writes no valid answer, ValueError on unusable inputs.
    """
    texts = list(descriptions) if descriptions is not None else [None] * len(prompts)
    check_inputs(network, prompts, texts, options, tokenizer)
    given = [tokenizer.encode(f" {text}") if text is not None and tokenizer else [] for text in texts]
    capacity = max(map(len, prompts)) + options.max_text_tokens + max(map(len, given)) + options.image_length
    streams = SeededDraws(draws) if isinstance(draws, Sequence) else draws
    session = Session(network, len(prompts), capacity, streams, observer, device, dtype)
    written, kept = write_text(session, session.read(prompts), options, texts, tokenizer)
    drawing = (Jacobi if options.decoding == "jacobi" else Sequential)(session, options, vocabulary)
    decode(drawing)
    return [
        # The end of turn is added by rule, where the reference spends a forward on it.
        Generated([*text, *image_block(ids), EOT], text, own, codes, entropy, k, session.forwards, *drawing.tested())
        for own, text, ids, codes, entropy, k in zip(written, kept, *drawing.results(), strict=True)
    ]


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
    if replaced and options.parts in ("perception", "none"):
        raise ValueError(
            f"a description is given but the text '{options.parts}' leaves descriptions out: choose 'full' or "
            "'understanding', or give no description"
        )
    if tokenizer is None and (replaced or options.parts in ("perception", "understanding")):
        raise ValueError(f"the text '{options.parts}' or a description needs the tokenizer")


@torch.no_grad()
def write_texts(
    network: Chameleon,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    options: GenerationOptions,
    observer: Observer | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> list[list[int]]:
    """Text ids the model writes to each prompt before it would start the image: what `generate` lets it write.

    Arguments and errors as in `generate`.
    """
    capacity = max(map(len, prompts)) + options.max_text_tokens + 1
    session = Session(network, len(prompts), capacity, SeededDraws(seeds), observer, device, dtype)
    return write(session, session.read(prompts), options)


# --- the image -------------------------------------------------------------------------------------------------------


def decode(drawing: Drawing) -> None:
    """Draw the whole grid of every image.

    Raises GenerationError where logits are not finite, at the latest after their row.
    """
    session, grid = drawing.session, drawing.grid
    rows = 0
    while drawing.done < grid.tokens:
        drawing.step()
        session.pacer.step()
        session.observer.step("image", drawing.done, grid.tokens)
        if drawing.done // grid.columns > rows:
            rows = drawing.done // grid.columns
            drawing.check_finite()
            session.observer.rows(rows, partial(drawing.codes, rows))


class Drawing:
    """Grids being drawn, one per image; a subclass knows how to take a step. Use once."""

    def __init__(self, session: Session, options: GenerationOptions, vocabulary: Vocabulary):
        device, batch = session.device, session.batch
        self.session, self.options, self.vocabulary = session, options, vocabulary
        self.grid = Grid(*options.size)
        # The unconditional branch starts at the image: it has seen neither the prompt nor the text.
        self.caches, self.starts = [session.cache], [session.starts]
        if options.guided:
            config, dtype = session.network.config, session.cache.keys.dtype
            self.caches.append(KVCache.allocate(config, batch, options.image_length, dtype, device))
            self.starts.append([0] * batch)
        self.offsets = torch.tensor(self.starts, device=device)[..., None]
        self.opening = torch.tensor([self.grid.opening()] * batch, device=device)
        # Per image token; the column behind the last takes what belongs nowhere.
        self.index = torch.zeros(batch, self.grid.tokens + 1, dtype=torch.long, device=device)
        self.entropy = torch.zeros(batch, self.grid.tokens + 1, device=device)
        self.k = torch.zeros(batch, self.grid.tokens + 1, dtype=torch.long, device=device)
        self.observed = stages.ObservedEntropy(batch, device) if options.sampling.observed_mu else None
        self.done = 0
        """Image tokens that every image has."""

    def step(self) -> None:
        """One forward; afterwards every image has at least one token more."""
        raise NotImplementedError

    def set_spans(self, length: int) -> None:
        """Let attention see an image of `length` tokens, BOI and sizes included, in every branch's cache."""
        for cache, starts in zip(self.caches, self.starts, strict=True):
            cache.set_span(max(starts) + length)

    def logits(self, ids: Tensor, positions: Tensor, last: int) -> Tensor:
        """Guided logits `[B, last, 16384]` of what follows the `last` last of ids `[B, T]`.

        positions: of ids, `[1 or B, T]`, counted from BOI.
        """
        branches = len(self.caches)
        rows = (self.offsets + positions).flatten(0, 1)
        # Counted by `step`: this may run inside a CUDA graph.
        hidden = self.session.network(ids.repeat(branches, 1), rows, self.caches, dtype=self.session.dtype)
        logits = self.session.network.image_logits(hidden[:, -last:])
        if branches == 1:
            return logits
        conditional, unconditional = logits.chunk(2)
        return stages.guide(conditional, unconditional, self.options.guidance_scale)

    def distribution(self, logits: Tensor, counted: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        return stages.distribution(logits, self.options.sampling, self.observed, counted)

    def commit(self, column: Tensor, index: Tensor, entropy: Tensor, k: Tensor, counted: Tensor | None = None) -> None:
        """Write image tokens `[B, T]` to columns `[B, T]`, in place. counted: which of them are new tokens."""
        self.index.scatter_(1, column, index)
        self.entropy.scatter_(1, column, entropy)
        self.k.scatter_(1, column, k)
        if self.observed is not None:
            self.observed.add(entropy, counted)

    def check_finite(self) -> None:
        """Raises GenerationError naming the first image token whose entropy is not a number."""
        for image, row in enumerate(self.entropy[:, :-1].isnan().tolist(), start=1):
            if True in row:
                at, grid = row.index(True), self.grid
                raise GenerationError(
                    f"image {image}: the model's logits are not finite at image token {at + 1} of {grid.tokens} (row "
                    f"{at // grid.columns + 1}, column {at % grid.columns + 1}). Load the model in a wider data type "
                    "(bf16 or fp32 instead of fp16), or check its file."
                )

    def codes(self, rows: int) -> Tensor:
        """Codes of the first rows, `[B, rows, columns]` on the CPU."""
        index = self.index[:, : rows * self.grid.columns].cpu()
        return self.vocabulary.code_of_index()[index].unflatten(1, (rows, self.grid.columns))

    def results(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Token ids, codes, entropies and k of the image tokens, each `[B, rows, columns]` on the CPU."""
        shape = (self.grid.rows, self.grid.columns)
        index, entropy, k = (x[:, :-1].cpu().unflatten(1, shape) for x in (self.index, self.entropy, self.k))
        return index_to_id(index), self.codes(self.grid.rows), entropy, k

    def tested(self) -> tuple[int, int]:
        """Drafts that were tested, and those that stood."""
        return 0, 0


class Sequential(Drawing):
    """One token of every image per forward.

    A step works entirely in buffers that never move, and the host neither reads nor decides anything, so it can be
    replayed as a CUDA graph.
    """

    def __init__(self, session: Session, options: GenerationOptions, vocabulary: Vocabulary):
        super().__init__(session, options, vocabulary)
        device, batch = session.device, session.batch
        self.graphs = GraphedSteps(options.cuda_graphs and device.type == "cuda")
        self.uniforms = session.uniforms("image", self.grid.tokens)
        # The token chosen last, and the row end that may follow it.
        self.fed = torch.full((batch, 2), NL, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.number = torch.zeros(1, dtype=torch.long, device=device)
        self.length = 0

    def step(self) -> None:
        if self.done == 0:
            ids = self.opening
        else:
            ids = self.fed[:, : 2 if self.done % self.grid.columns == 0 else 1]
        self.length += ids.shape[1]
        self.set_spans(self.length)
        kind = (ids.shape[1], *(cache.span for cache in self.caches))
        self.graphs.run(kind, lambda: self.draw(ids))
        self.session.forwards += 1
        self.done += 1

    def draw(self, ids: Tensor) -> None:
        """Feed ids `[B, T]`, choose the next image token, and move on."""
        positions = self.position + torch.arange(ids.shape[1], device=ids.device)
        p, entropy, k = self.distribution(self.logits(ids, positions, last=1))
        index = stages.draw(p[:, 0], self.uniforms.index_select(1, self.number)[:, 0])[:, None]
        self.commit(self.number.expand(len(index), 1), index, entropy, k)
        self.fed[:, :1] = index_to_id(index)
        self.position += ids.shape[1]
        self.number += 1


class Jacobi(Drawing):
    """Speculative Jacobi decoding: several guesses are checked per forward, and the distribution stays the same.

    A window holds the last token and drafts of the next ones. One forward gives the distribution q of every slot in
    it; `verify` keeps the drafts that stand and draws the token after them. The slots behind are drawn from their q and
    become the next window's drafts, each with the distribution it was drawn from; slots not reached yet start from the
    uniform distribution. Images of a batch advance each at its own pace.
    """

    def __init__(self, session: Session, options: GenerationOptions, vocabulary: Vocabulary):
        super().__init__(session, options, vocabulary)
        device, batch, window = session.device, session.batch, options.window
        self.tables = SlotTables(self.grid, 2 * window + 1, device)
        self.last = self.grid.length - 2
        self.ahead = torch.arange(window, device=device)
        # Slot of the last committed token, that token, and the drafts behind it with their distributions.
        self.committed = torch.zeros(batch, dtype=torch.long, device=device)
        self.furthest = 0
        self.drafts = torch.zeros(batch, window, dtype=torch.long, device=device)
        self.draft_p = torch.full((batch, window, IMAGE_TOKENS), 1 / IMAGE_TOKENS, device=device)
        self.counts = torch.zeros(2, dtype=torch.long, device=device)

    def step(self) -> None:
        if self.done == 0:
            self.open()
        else:
            self.advance()
        self.session.forwards += 1
        # The host looks at the progress once per window.
        committed = self.committed.tolist()
        self.furthest = max(committed)
        self.done = min(slot - slot // (self.grid.columns + 1) for slot in committed)

    def window_uniforms(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Numbers of one window: for slots (to draw and to draft afresh), acceptance, and the token that ends it."""
        size = self.options.window
        slots, fresh, accept, final = self.session.uniforms("jacobi", 3 * size + 1).split([size, size, size, 1], dim=1)
        return slots, fresh, accept, final[:, 0]

    def open(self) -> None:
        """Feed BOI and the sizes, draw the first token, and fill the first window."""
        self.set_spans(3)
        positions = torch.arange(3, device=self.opening.device)
        p, entropy, k = self.distribution(self.logits(self.opening, positions, last=1))
        _, fresh, _, final = self.window_uniforms()
        first = stages.draw(p[:, 0], final)[:, None]
        self.commit(torch.zeros_like(first), first, entropy, k)
        self.drafts[:, :1] = first
        self.drafts[:, 1:] = (fresh[:, 1:] * IMAGE_TOKENS).long()
        self.committed += 1

    def advance(self) -> None:
        """One window: check the drafts, commit what stands and one token more, draft the next window."""
        size = self.options.window
        slots_u, fresh_u, accept_u, final_u = self.window_uniforms()
        active = (self.committed < self.last)[:, None]
        slots = self.committed[:, None] + self.ahead
        forced = self.tables.forced[slots]
        ids = torch.where(forced >= 0, forced, index_to_id(self.drafts))
        self.set_spans(self.furthest + 2 + size)
        following = self.tables.token[slots + 1]
        counted = following < self.grid.tokens
        q, entropy, k = self.distribution(self.logits(ids, slots + 2, last=size), counted)

        drafts, free = self.drafts[:, 1:], forced[:, 1:] < 0
        stood, final = verify(drafts, self.draft_p[:, 1:], q, free, accept_u[:, 1:], final_u)
        stood, final = stood[:, None], final[:, None]
        new = (self.ahead <= stood) & active
        values = torch.where(self.ahead == stood, final, torch.cat([drafts, final], dim=1))
        self.commit(torch.where(new, following, self.grid.tokens), values, entropy, k, counted & new)

        tested = new[:, : size - 1] & free
        self.counts += torch.stack([tested.sum(), (tested & (self.ahead[: size - 1] < stood)).sum()])
        self.draft(q, stood, final, slots_u, fresh_u)
        moved = (self.committed + stood[:, 0] + 1).clamp(max=self.last)
        self.committed.copy_(torch.where(active[:, 0], moved, self.committed))

    def draft(self, q: Tensor, stood: Tensor, final: Tensor, slots_u: Tensor, fresh_u: Tensor) -> None:
        """The next window: the token that ended this one, then draws from this forward's q, then uniform ones."""
        size = self.options.window
        source = stood + self.ahead
        fresh = source >= size
        source = source.clamp(max=size - 1)
        drawn = stages.draw(q, slots_u).gather(1, source)
        self.drafts.copy_(torch.where(fresh, (fresh_u * IMAGE_TOKENS).long(), drawn))
        self.drafts[:, :1] = final
        carried = q.gather(1, source[..., None].expand(-1, -1, IMAGE_TOKENS))
        self.draft_p.copy_(carried.masked_fill(fresh[..., None], 1 / IMAGE_TOKENS))

    def tested(self) -> tuple[int, int]:
        proposed, accepted = self.counts.tolist()
        return proposed, accepted
