"""What a node shows while it works: one bar over all its stages and tiles, and a line of text under the node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.utils
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context
from torch import Tensor, nn

Preview = tuple[str, Any, int | None]
"""What the host's bars take as a picture: (format, PIL image, longest side it is sent at)."""

FINE = 10_000
"""Units of a bar over stages of different kinds."""

BEGUN = FINE // 200
"""What a bar shows as soon as the node works: one at 0 looks like one that hangs. Less than a step of most samplers."""


class NodeBar:
    """The node's one bar over stages of different kinds, which never falls back.

    Whatever moves a bar of its own within a stage (the host's tiled VAE, a sampler, another NodeBar) moves this one
    over the stage's share instead. weight: of all stages together.
    """

    def __init__(self, weight: float):
        self.weight = weight
        self.passed = 0.0
        self.shown = 0
        self.bar = comfy.utils.ProgressBar(FINE)
        self.show(0.0)

    def show(self, weight: float, preview: Preview | None = None) -> None:
        """So much of the weight is done."""
        self.shown = max(self.shown, BEGUN, min(round(FINE * weight / self.weight), FINE))
        self.bar.update_absolute(self.shown, FINE, preview)

    @contextmanager
    def stage(self, weight: float = 1.0) -> Iterator[None]:
        """The next stage, which is over at the end of the block."""
        start, outer = self.passed, comfy.utils.PROGRESS_BAR_HOOK

        def move(value: float, total: float, preview: Preview | None = None, **_: Any) -> None:
            self.show(start + weight * value / max(total, 1), preview)

        if outer is not None:
            comfy.utils.set_progress_bar_global_hook(move)
        try:
            yield
        finally:
            comfy.utils.set_progress_bar_global_hook(outer)
        self.passed = start + weight
        self.show(self.passed)


def new_bar() -> Callable[[float], None]:
    """A bar for work that tells how much of it is done, in 0..1."""
    bar = comfy.utils.ProgressBar(FINE)
    return lambda done: bar.update_absolute(FINE * done)


def begin() -> None:
    """Show that the node works, where it is not known yet how much there is to do."""
    comfy.utils.ProgressBar(FINE).update_absolute(BEGUN)


@contextmanager
def following(network: nn.Module, forwards: int = 1) -> Iterator[None]:
    """A bar that moves as the layers of a network are run, for a forward that takes long. Also ends it on a cancel."""
    modules = list(network.modules())
    # A compiled network would be compiled again for the hooks.
    compiled = any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in modules)
    layers = [] if compiled else [module for module in modules if next(module.children(), None) is None]
    bar = comfy.utils.ProgressBar(max(len(layers) * forwards, 1))

    def advance(*_: Any) -> None:
        bar.update(1)

    handles = [layer.register_forward_hook(advance) for layer in layers] if bar.hook is not None else []
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class TileProgress:
    """Advances the node's bar tile by tile, in step with the sampler's own per-step updates.

    One lives as long as one sampling run and serves all its conditions, run together or one after another. It counts
    evaluations rather than look at the current sigma, which would make the device wait.
    """

    def __init__(self, tiles: int, steps: int, step: int = 0):
        self.tiles, self.steps = tiles, max(steps, 1)
        self.step = step
        """Steps that the sampler has reported."""
        self.evaluations = 0
        """Since then."""
        self.expected = 1
        """Evaluations between two reports, as far as is known: samplers of higher order make several."""
        self.done = 0
        self.fraction = step / self.steps
        """Of the run; never falls."""
        self.bar = comfy.utils.ProgressBar(self.tiles * self.steps)
        self.sigma: Tensor | None = None

    def start_evaluation(self, sigma: Tensor | None) -> None:
        """Conditions of one evaluation are run with one and the same sigma tensor."""
        if sigma is None or sigma is not self.sigma:
            self.evaluations += 1
        self.sigma = sigma
        self.done = 0

    def advance(self, tiles: int) -> None:
        self.done += tiles
        self.reach_tile(self.done)
        self.show()

    @contextmanager
    def on_the_way(self, tiles: int) -> Iterator[None]:
        """Whatever moves a bar of its own within moves this one towards where so many more tiles bring it."""
        outer = comfy.utils.PROGRESS_BAR_HOOK

        def move(value: float, total: float, *_: Any, **__: Any) -> None:
            self.reach_tile(self.done + tiles * value / max(total, 1))
            self.bar.update_absolute(self.fraction * self.tiles * self.steps)

        if outer is not None:
            comfy.utils.set_progress_bar_global_hook(move)
        try:
            yield
        finally:
            comfy.utils.set_progress_bar_global_hook(outer)

    def finish_step(self, steps: int) -> bool:
        """The sampler reports that so many steps are done. Returns whether the bar has to be moved for it."""
        before = self.fraction
        self.step, self.expected, self.evaluations = steps, max(self.evaluations, 1), 0
        self.reach(steps / self.steps)
        return self.fraction > before

    def reach_tile(self, done: float) -> None:
        part = (self.evaluations - 1 + done / self.tiles) / max(self.expected, self.evaluations, 1)
        self.reach((self.step + part) / self.steps)

    def reach(self, fraction: float) -> None:
        self.fraction = max(self.fraction, min(fraction, 1.0))

    def show(self, preview: Preview | None = None) -> None:
        total = self.tiles * self.steps
        value = round(self.fraction * total)
        # Not below what was shown when the node began, which is next to nothing.
        self.bar.update_absolute(value if value * FINE >= total * BEGUN else total * BEGUN / FINE, total, preview)


def show_on_node(text: str) -> None:
    """Show a text under the node that executes now; for a node of an expansion, under the one the artist placed.

    Does nothing outside of a run and without a server.
    """
    from server import PromptServer

    context, server = get_executing_context(), getattr(PromptServer, "instance", None)
    if context is None or server is None:
        return
    shown_at = get_progress_state().dynprompt.get_display_node_id(context.node_id)
    server.send_progress_text(text, shown_at, server.client_id)
