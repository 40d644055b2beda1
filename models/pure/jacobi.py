"""Speculative Jacobi decoding: several guesses are checked per forward, and the distribution stays the same.

A window holds the last token and drafts of the next ones. One forward gives the distribution q of every slot in it. A
draft d, drawn from p, stands with probability min(1, q(d) / p(d)); at the first that falls a token is drawn from the
normalised residual max(q - p, 0), so that what is committed follows q exactly, as when drawing one by one. The slots
behind are drawn from their q and become the next window's drafts, each with the distribution it was drawn from; slots
not reached yet start from the uniform distribution. Row ends are certain: they ride along in a window and are never
computed. Images of a batch advance each at its own pace.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from . import logits as stages
from .draws import uniforms_on
from .grid import Grid
from .sequential import Buffers, Drawn, branch_caches, branch_offsets, check_finite
from .session import Session
from .vocabulary import BOI, EOI, IMAGE_TOKENS, NL, Vocabulary, index_to_id

WINDOW = 16


def leading(accepted: Tensor) -> Tensor:
    """How many of `[B, n]` are True before the first False."""
    return accepted.long().cumprod(dim=1).sum(dim=1)


def residual(target: Tensor, draft: Tensor) -> Tensor:
    """max(q - p, 0) of `[..., V]`, not normalised; q itself where rounding leaves nothing."""
    left = (target - draft).clamp(min=0)
    return torch.where(left.sum(dim=-1, keepdim=True) > 0, left, target)


def verify(
    drafts: Tensor, draft_p: Tensor, target: Tensor, free: Tensor, accept_u: Tensor, final_u: Tensor
) -> tuple[Tensor, Tensor]:
    """Speculative sampling: how many of the drafts stand, `[B]`, and the token that follows those, `[B]`.

    drafts: `[B, n]`, drawn from draft_p `[B, n, V]`. target: distributions `[B, n + 1, V]` given what stands before.
    free: `[B, n]`, False where a slot can take one token only, which then stands. accept_u, final_u: uniform numbers
    `[B, n]` and `[B]`. Drafts that stand and the final token follow `target` exactly.
    """
    ratio = probability_of(target[:, :-1], drafts) / probability_of(draft_p, drafts)
    stood = leading((accept_u < ratio) | ~free)
    rows = torch.arange(len(stood), device=stood.device)
    rejected_p = draft_p[rows, stood.clamp(max=drafts.shape[1] - 1)]
    none_rejected = (stood == drafts.shape[1])[:, None]
    return stood, stages.draw(residual(target[rows, stood], rejected_p.masked_fill(none_rejected, 0)), final_u)


class SlotTables:
    """Per slot n after the sizes (index n, also some beyond the end): forced token or -1, and image token number."""

    def __init__(self, grid: Grid, extra: int, device: torch.device):
        n = torch.arange(grid.length + extra + 1, device=device)
        ends_row = n % (grid.columns + 1) == 0
        beyond = n >= grid.length
        self.forced = torch.where(beyond, EOI, torch.where(ends_row, NL, -1))
        number = n - n // (grid.columns + 1) - 1
        self.token = torch.where(self.forced >= 0, grid.tokens, number)
        """Slots without an image token point to a column behind the last."""


class JacobiDecoder:
    """Draws one grid per image. Use once."""

    def __init__(
        self,
        session: Session,
        grid: Grid,
        sampling: stages.Sampling,
        guidance_scale: float,
        vocabulary: Vocabulary,
        window: int = WINDOW,
    ):
        device, batch = session.device, session.batch
        self.session = session
        self.grid = grid
        self.sampling = sampling
        self.guidance_scale = guidance_scale
        self.vocabulary = vocabulary
        self.window = window
        self.caches = branch_caches(session, guidance_scale != 1.0, grid.length + 3 + window)
        self.branches = len(self.caches)
        self.offsets = branch_offsets(session, self.branches)[:, None]
        self.tables = SlotTables(grid, 2 * window + 1, device)
        self.last = grid.length - 2
        self.buffers = Buffers(batch, grid.tokens + 1, device)
        self.ahead = torch.arange(window, device=device)
        # Slot of the last committed token, that token, and the drafts behind it with their distributions.
        self.committed = torch.zeros(batch, dtype=torch.long, device=device)
        self.drafts = torch.zeros(batch, window, dtype=torch.long, device=device)
        self.draft_p = torch.full((batch, window, IMAGE_TOKENS), 1 / IMAGE_TOKENS, device=device)
        self.counts = torch.zeros(2, dtype=torch.long, device=device)
        self.forwards = 0

    def uniforms(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Numbers of one window: for slots (to draw and to draft afresh), acceptance, and the token that ends it."""
        size = self.window
        drawn = uniforms_on(self.session.device, self.session.draws.take("jacobi", 3 * size + 1))
        slots, fresh, accept, final = drawn.split([size, size, size, 1], dim=1)
        return slots, fresh, accept, final[:, 0]

    def forward(self, ids: Tensor, positions: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Feed ids `[B, T]` at positions `[B, T]` in the image (BOI is 0); p, entropy and k of the next slots."""
        for cache, start in zip(self.caches, (max(self.session.starts), 0), strict=False):
            cache.set_span(start + length)
        rows = self.offsets + positions.repeat(self.branches, 1)
        hidden = self.session.forward(ids.repeat(self.branches, 1), rows, self.caches)
        logits = self.session.network.image_logits(hidden)
        if self.branches == 2:
            conditional, unconditional = logits.chunk(2)
            logits = stages.guide(conditional, unconditional, self.guidance_scale)
        self.forwards += 1
        return stages.distribution(logits, self.sampling)

    def open(self) -> None:
        """Feed BOI and the sizes, draw the first token, and fill the first window."""
        batch, device = self.session.batch, self.session.device
        opening = torch.tensor([[BOI, *self.grid.sizes()]], device=device).expand(batch, -1)
        positions = torch.arange(3, device=device).expand(batch, -1)
        p, entropy, k = self.forward(opening, positions, 3)
        _, fresh, _, final = self.uniforms()
        first = stages.draw(p[:, -1], final)
        self.buffers.index[:, 0], self.buffers.entropy[:, 0], self.buffers.k[:, 0] = first, entropy[:, -1], k[:, -1]
        self.drafts[:, 0] = first
        self.drafts[:, 1:] = (fresh[:, 1:] * IMAGE_TOKENS).long()
        self.committed += 1

    def advance(self, furthest: int) -> None:
        """One window: check the drafts, commit what stands and one token more, draft the next window.

        furthest: the largest slot committed by any image.
        """
        size = self.window
        slots_u, fresh_u, accept_u, final_u = self.uniforms()
        active = self.committed < self.last
        fed_slots = self.committed[:, None] + self.ahead
        fed_forced = self.tables.forced[fed_slots]
        ids = torch.where(fed_forced >= 0, fed_forced, index_to_id(self.drafts))
        q, entropy, k = self.forward(ids, fed_slots + 2, furthest + 2 + size)

        drafts = self.drafts[:, 1:]
        free = fed_forced[:, 1:] < 0
        stood, final = verify(drafts, self.draft_p[:, 1:], q, free, accept_u[:, 1:], final_u)
        self.store(torch.cat([drafts, final[:, None]], dim=1), final, stood, entropy, k, active)

        tested = (self.ahead[: size - 1] <= stood[:, None]) & free & active[:, None]
        self.counts += torch.stack([tested.sum(), (tested & (self.ahead[: size - 1] < stood[:, None])).sum()])
        self.draft(q, stood, final, slots_u, fresh_u)
        moved = torch.minimum(self.committed + stood + 1, torch.full_like(stood, self.last))
        self.committed.copy_(torch.where(active, moved, self.committed))

    def store(self, values: Tensor, final: Tensor, stood: Tensor, entropy: Tensor, k: Tensor, active: Tensor) -> None:
        """Write what was committed; window place i is slot committed + 1 + i."""
        column = self.tables.token[self.committed[:, None] + 1 + self.ahead]
        written = (self.ahead <= stood[:, None]) & active[:, None]
        column = torch.where(written, column, self.grid.tokens)
        values = torch.where(self.ahead == stood[:, None], final[:, None], values)
        self.buffers.index.scatter_(1, column, values)
        self.buffers.entropy.scatter_(1, column, entropy)
        self.buffers.k.scatter_(1, column, k)
        # The spare column gathers what belongs nowhere, which may be of a slot beyond the end.
        self.buffers.entropy[:, -1] = 0

    def draft(self, q: Tensor, stood: Tensor, final: Tensor, slots_u: Tensor, fresh_u: Tensor) -> None:
        """The next window: the token that ended this one, then draws from this forward's q, then uniform ones."""
        drawn = stages.draw(q, slots_u)
        source = stood[:, None] + self.ahead
        fresh = source >= self.window
        source = source.clamp(max=self.window - 1)
        drafts = torch.where(fresh, (fresh_u * IMAGE_TOKENS).long(), drawn.gather(1, source))
        drafts[:, 0] = final
        self.drafts.copy_(drafts)
        carried = q.gather(1, source[..., None].expand(-1, -1, IMAGE_TOKENS))
        self.draft_p.copy_(carried.masked_fill(fresh[..., None], 1 / IMAGE_TOKENS))

    def codes(self, rows: int) -> Tensor:
        """Codes of the first rows, `[B, rows, columns]` on the CPU."""
        index = self.buffers.index[:, : rows * self.grid.columns].cpu()
        return self.vocabulary.code_of_index()[index].unflatten(1, (rows, self.grid.columns))

    def decode(self) -> Drawn:
        """Draw the whole grid. The host looks at the progress once per window.

        Raises GenerationError where logits are not finite.
        """
        session, grid = self.session, self.grid
        self.open()
        rows = 0
        while True:
            state = torch.cat([self.committed, self.buffers.entropy.isnan().any()[None]]).tolist()
            *committed, invalid = state
            if invalid:
                check_finite(session, self.buffers.entropy, grid)
            done = min(slot - slot // (grid.columns + 1) for slot in committed)
            session.observer.step("image", done, grid.tokens)
            if done // grid.columns > rows:
                rows = done // grid.columns
                session.observer.rows(rows, partial(self.codes, rows))
            if done == grid.tokens:
                break
            self.advance(max(committed))
        proposed, accepted = self.counts.tolist()
        index, entropy, k = (x[:, :-1].cpu() for x in (self.buffers.index, self.buffers.entropy, self.buffers.k))
        return Drawn(index, entropy, k, self.forwards, proposed, accepted)


def probability_of(p: Tensor, index: Tensor) -> Tensor:
    """`[B, n]` probabilities that `[B, n, V]` gives to `[B, n]` indices."""
    return p.gather(-1, index[..., None])[..., 0]
