"""What a long test wants to know about the server, and a model that fails at a chosen forward."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io

from .basic import CATEGORY

KEPT: list[Any] = []


class FailAtForward(io.ComfyNode):
    """A model that raises in the middle of a run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealISRTest_FailAtForward",
            display_name="Fail at Forward",
            category=CATEGORY,
            not_idempotent=True,
            inputs=[
                io.Model.Input("model"),
                io.Int.Input("forward", default=1, min=1),
                io.Int.Input("run", default=0, tooltip="Another one counts anew: the host keeps what a node made."),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model: Any, forward: int, run: int) -> io.NodeOutput:
        left = forward

        def fail(executor: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise RuntimeError(f"failed on purpose at forward {forward}")
            return executor(*args, **kwargs)

        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "fail", fail)
        # As the host keeps what a node made: it finds its way from the copies in a run back to what is loaded.
        KEPT[:] = [clone]
        return io.NodeOutput(clone)


def patchers(made: Any) -> Iterator[ModelPatcher]:
    """Of whatever a loader makes: itself, or among its attributes."""
    if isinstance(made, ModelPatcher):
        yield made
    else:
        yield from (value for _, value in sorted(vars(made).items()) if isinstance(value, ModelPatcher))


class WeightsDigest(io.ComfyNode):
    """SHA-256 of all weights of what a loader made, and the names of the threads that run in Python."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealISRTest_WeightsDigest",
            display_name="Weights Digest",
            category=CATEGORY,
            is_output_node=True,
            not_idempotent=True,
            inputs=[io.AnyType.Input("of")],
            outputs=[],
        )

    @classmethod
    def execute(cls, of: Any) -> io.NodeOutput:
        digest, count = hashlib.sha256(), 0
        for patcher in patchers(of):
            for name, value in sorted(patcher.model.state_dict().items()):
                plain = value.detach().cpu().contiguous().flatten().view(torch.uint8)
                digest.update(name.encode() + plain.numpy().tobytes())
                count += 1
        threads = sorted(thread.name for thread in threading.enumerate())
        return io.NodeOutput(ui={"digest": [digest.hexdigest()], "tensors": [count], "threads": threads})


class GiveBack(io.ComfyNode):
    """Collects garbage and has the allocator give back what it holds in reserve; says how large live tensors are."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealISRTest_GiveBack",
            display_name="Give Back",
            category=CATEGORY,
            is_output_node=True,
            inputs=[],
            outputs=[],
        )

    @classmethod
    def fingerprint_inputs(cls) -> float:
        return float("nan")  # never the same, so that it runs every time

    @classmethod
    def execute(cls) -> io.NodeOutput:
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)
        stores = {}
        for each in gc.get_objects():
            if isinstance(each, torch.Tensor) and each.device.type == "cpu":
                store = each.untyped_storage()
                stores[store.data_ptr()] = store.nbytes()
        return io.NodeOutput(
            ui={"bytes": [sum(stores.values())], "allocated": [allocated()], "objects": [sys.getallocatedblocks()]}
        )


class MallInfo(ctypes.Structure):
    """glibc's `mallinfo2`."""

    NAMES = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES]


def allocated() -> int:
    """Bytes that were asked of the allocator and not given back, whatever it keeps beside them. glibc 2.33 or later."""
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return 0
    mallinfo.restype = MallInfo
    found = mallinfo()
    return found.uordblks + found.hblkhd


NODES = [FailAtForward, WeightsDigest, GiveBack]
