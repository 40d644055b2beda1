"""What a network's forward costs, found by running it on torch's meta device: no weights, no arithmetic, real shapes.

Operations and bytes are those of the very code that runs, so they cannot fall behind it. From them come the seconds
that a graphics card needs at least, by its data sheet, and the memory that is in use at the peak.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HALF = 2
"""Bytes of a number in half precision."""


class Operation(NamedTuple):
    """What one operation does."""

    flop: float
    bytes: float
    """Read and written."""
    wide: bool
    """In float32."""


@dataclass(frozen=True)
class Card:
    """A class of graphics card, by its maker's data sheet."""

    name: str
    tflops: float
    """10^12 operations a second of dense bfloat16 matrices, summed in float32."""
    bandwidth: float
    """10^9 bytes a second of its memory."""
    gigabytes: int

    def seconds(self, operation: Operation) -> float:
        """At least. TF32, which convolutions in float32 use, has half the rate of bfloat16 on all of these."""
        rate = self.tflops * 1e12 / (2 if operation.wide else 1)
        return max(operation.flop / rate, operation.bytes / (self.bandwidth * 1e9))


CARDS = (
    Card("RTX 4060 Ti", 44.1, 288, 16),
    Card("RTX 3090", 71.0, 936, 24),
    Card("RTX 4090", 165.2, 1008, 24),
    Card("RTX 5090", 209.5, 1792, 32),
    Card("A100", 312.0, 2039, 80),
    Card("H20", 148.0, 4000, 96),
    Card("H100", 989.4, 3350, 80),
    Card("H200", 989.4, 4800, 141),
)
"""NVIDIA's data sheets and architecture whitepapers; A100, H100, H200 in their SXM form, A100 with 80 GB."""

SHOWN_CARDS = ("RTX 4060 Ti", "RTX 3090", "RTX 4090", "RTX 5090", "H100")


@dataclass(frozen=True)
class Cost:
    """Of one or many forwards."""

    work: Mapping[Operation, float] = field(default_factory=dict)
    """How often each operation is done."""
    peak: int = 0
    """Bytes in use at once, beside the weights and the inputs."""

    @property
    def flop(self) -> float:
        return sum(operation.flop * count for operation, count in self.work.items())

    @property
    def bytes(self) -> float:
        """Read and written by all operations, each by itself."""
        return sum(operation.bytes * count for operation, count in self.work.items())

    def __add__(self, other: Cost) -> Cost:
        """One after the other."""
        work = dict(self.work)
        for operation, count in other.work.items():
            work[operation] = work.get(operation, 0) + count
        return Cost(work, max(self.peak, other.peak))

    def times(self, count: float) -> Cost:
        return Cost({operation: each * count for operation, each in self.work.items()}, self.peak)

    def halved(self) -> Cost:
        """The same in half precision, for what was counted in float32."""
        work: dict[Operation, float] = {}
        for operation, count in self.work.items():
            half = Operation(operation.flop, operation.bytes / HALF, False)
            work[half] = work.get(half, 0) + count
        return Cost(work, self.peak // HALF)

    def seconds(self, card: Card) -> float:
        """At least, on a card: each operation by its arithmetic or its traffic, whichever takes longer."""
        return sum(card.seconds(operation) * count for operation, count in self.work.items())


class Meter(TorchDispatchMode):
    """Counts the operations of a block, and the bytes of what they make that are alive at once.

    device: whose tensors count. On the meta device softmax attention takes what fused kernels take, its inputs and its
    output; elsewhere everything is counted as it happens, but for what kernels use within themselves.
    """

    def __init__(self, device: str = "meta"):
        from torch.utils.flop_counter import flop_registry  # takes a while, and nothing else imports it

        super().__init__()
        self.device = device
        self.flop_counts = flop_registry
        self.work: Counter[Operation] = Counter()
        self.live = 0
        self.peak = 0
        self.storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def reset(self) -> None:
        """Take what is alive now as the new peak."""
        self.peak = self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.scaled_dot_product_attention.default and args[0].is_meta:
            return self.attention(*args[:3])
        if func._can_decompose():
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        self.note(func, args, kwargs, out)
        return out

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty((*q.shape[:-1], v.shape[-1]))
        flop = 2 * q.numel() * k.shape[-2] + 2 * out.numel() * k.shape[-2]
        self.work[Operation(flop, sum(each.nbytes for each in (q, k, v, out)), is_wide(out))] += 1
        self.hold(out)
        return out

    def note(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        known = {leaf.untyped_storage()._cdata for leaf in given}
        fresh = [leaf for leaf in made if leaf.untyped_storage()._cdata not in known]
        for leaf in fresh:
            self.hold(leaf)
        written = fresh or (made if func._schema.is_mutable else [])
        if not written or func._overloadpacket in ALLOCATIONS:
            return
        count = self.flop_counts.get(func._overloadpacket)
        flop = 0 if count is None else count(*args, **kwargs, out_val=out)
        moved = moved_bytes(func._overloadpacket, given, written)
        self.work[Operation(float(flop), float(moved), is_wide(written[0]))] += 1

    def hold(self, tensor: Tensor) -> None:
        if tensor.device.type != self.device:
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.storages:
            return

        def let_go(_: Any) -> None:
            if self.storages.pop(key, None) is not None:
                self.live -= size

        self.storages[key] = weakref.ref(storage, let_go)
        self.live += size
        self.peak = max(self.peak, self.live)


def packets(*names: str) -> frozenset[Any]:
    return frozenset(getattr(torch.ops.aten, name) for name in names)


ALLOCATIONS = packets("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
LOOK_UPS = packets("embedding", "index", "index_select", "gather")
"""They read as much of their table as they give."""
PLACEMENTS = packets("index_copy_", "index_put_", "scatter_", "copy_")
"""They write as much of their target as they are given."""


def moved_bytes(operation: Any, given: Sequence[Tensor], written: Sequence[Tensor]) -> int:
    """What an operation reads of the tensors it is given, and writes."""
    if operation in LOOK_UPS:
        return 2 * sum(leaf.nbytes for leaf in written)
    if operation in PLACEMENTS:
        return 2 * sum(leaf.nbytes for leaf in given[1:])
    return sum(leaf.nbytes for leaf in (*given, *written))


def is_wide(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32


def cost_of(run: Callable[[], Any]) -> Cost:
    """Of what `run()` does with tensors on the meta device, which is where it makes new ones."""
    with torch.inference_mode(), torch.device("meta"), Meter() as meter:
        run()
    return Cost(meter.work, meter.peak)


def is_described(network: nn.Module) -> bool:
    """Whether a network has shapes and no weights, so that `cost_of` can run it."""
    first = next(network.parameters(), None)
    return first is not None and first.is_meta


def fused_attention(func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
    """In place of the host's attention (`optimized_attention_override`): torch's own, whatever the machine would use.

    q, k, v: `[B, N, heads * d]`, or `[B, heads, N, d]` with skip_reshape; so is the result with skip_output_reshape.
    """
    mask = args[0] if args else kwargs.get("mask")
    if not kwargs.get("skip_reshape"):
        q, k, v = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, k, v))
    out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out if kwargs.get("skip_output_reshape") else out.transpose(1, 2).flatten(2)


FUSED = {"optimized_attention_override": fused_attention}
"""Of transformer_options."""
