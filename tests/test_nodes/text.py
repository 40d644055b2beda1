"""A stand-in for text encoders: every text has a conditioning of its own."""

from __future__ import annotations

import hashlib

import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder


class TextConditioning(io.ComfyNode):
    """Random conditioning, seeded by the text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealISRTest_TextConditioning",
            display_name="Text Conditioning",
            category="RealISR tests",
            inputs=[
                io.String.Input("text", multiline=True),
                io.Int.Input("tokens", default=8, min=1),
                io.Int.Input("width", default=64, min=1),
                io.Int.Input("pooled_width", default=768, min=1),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, text: str, tokens: int, width: int, pooled_width: int) -> io.NodeOutput:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)
        generator = torch.Generator().manual_seed(seed)
        tokens_of_text = torch.randn(1, tokens, width, generator=generator)
        pooled = torch.randn(1, pooled_width, generator=generator)
        return io.NodeOutput([[tokens_of_text, {"pooled_output": pooled}]])


class TintByText(io.ComfyNode):
    """Mixes a colour that the text chooses into an image: a restorer that takes no time."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealISRTest_TintByText",
            display_name="Tint by Text",
            category="RealISR tests",
            inputs=[io.Image.Input("image"), io.String.Input("text", multiline=True)],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, text: str) -> io.NodeOutput:
        red_green_blue = torch.tensor([*hashlib.sha256(text.encode()).digest()[:3]]) / 255
        return io.NodeOutput((image + red_green_blue) / 2)


class FailOnText(io.ComfyNode):
    """Hands an image on, and fails when a text holds a certain word."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealISRTest_FailOnText",
            display_name="Fail on Text",
            category="RealISR tests",
            inputs=[io.Image.Input("image"), io.String.Input("text"), io.String.Input("word")],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, text: str, word: str) -> io.NodeOutput:
        if word in text:
            raise ValueError(f"the text holds {word!r}")
        return io.NodeOutput(image)


class ExpandToTint(io.ComfyNode):
    """Tint by Text by way of node expansion, as packs with loops and subgraph nodes do it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealISRTest_ExpandToTint",
            display_name="Expand to Tint",
            category="RealISR tests",
            enable_expand=True,
            inputs=[io.Image.Input("image"), io.String.Input("text", multiline=True)],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, text: str) -> io.NodeOutput:
        graph = GraphBuilder()
        tint = graph.node("RealISRTest_TintByText", image=image, text=text)
        return io.NodeOutput(tint.out(0), expand=graph.finalize())


class LastOfList(io.ComfyNode):
    """One image out of a list."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RealISRTest_LastOfList",
            display_name="Last of List",
            category="RealISR tests",
            is_input_list=True,
            inputs=[io.Image.Input("images")],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, images: list[torch.Tensor]) -> io.NodeOutput:
        return io.NodeOutput(images[-1])


NODES = [TextConditioning, TintByText, FailOnText, ExpandToTint, LastOfList]
