"""FLUX, its MM-ControlNet, LoRAs and the Vision-Context Bridge written out from state dicts alone, in float64 but for
the sinusoid of time and guidance.

Nothing of the pack, the host or diffusers: products, softmax and sums, as the papers print them. What the sinusoid is
made of can be given, to see how much of a result hangs on its last place (`one_last_place`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checkpoints import flux_diffusers

HEAD_DIM = 128
AXES = (16, 56, 56)

Weights = Mapping[str, Tensor]


def doubled(w: Weights) -> dict[str, Tensor]:
    """The weights in float64, once for many calls."""
    return {name: tensor.double() for name, tensor in w.items()}


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].double().T + w[f"{name}.bias"].double()


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def normal(x: Tensor, eps: float = 1e-6) -> Tensor:
    """LayerNorm without weights."""
    return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + eps)


def rms(w: Weights, name: str, x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * w[name].double()


def heads(x: Tensor) -> Tensor:
    b, n, _ = x.shape
    return x.view(b, n, -1, HEAD_DIM).permute(0, 2, 1, 3)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    b, h, n, d = q.shape
    out = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(d), dim=-1) @ v
    return out.permute(0, 2, 1, 3).reshape(b, n, h * d)


def angles(positions: Tensor) -> Tensor:
    """Pair i of an axis of width d turns by position * 10000 ** (-2 i / d). `[n, HEAD_DIM / 2]`."""
    exponents = [torch.arange(width // 2, dtype=torch.float64) * -2 / width for width in AXES]
    turns = [positions[:, axis, None] * 10000.0**exponent for axis, exponent in enumerate(exponents)]
    return torch.cat(turns, dim=1)


def turn(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary positions: neighbouring channels are a pair."""
    angle = angles(positions)
    one, two = x[..., 0::2], x[..., 1::2]
    turned = (one * angle.cos() - two * angle.sin(), one * angle.sin() + two * angle.cos())
    return torch.stack(turned, dim=-1).flatten(-2)


def places(tokens: int, height: int, width: int) -> Tensor:
    """(0, 0, 0) for text tokens, then (0, row, column) for image tokens."""
    rows = [(0.0, float(r), float(c)) for r in range(height // 2) for c in range(width // 2)]
    return torch.tensor([(0.0, 0.0, 0.0)] * tokens + rows, dtype=torch.float64)


def pack(z: Tensor) -> Tensor:
    b, c, h, w = z.shape
    return z.double().view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpack(x: Tensor, height: int, width: int) -> Tensor:
    b = x.shape[0]
    return x.view(b, height // 2, width // 2, -1, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, -1, height, width)


def frequencies() -> Tensor:
    """Of the sinusoid of time and guidance, `[128]`, in float32 as FLUX has them: 1000 * guidance * frequency reaches
    30,000 radians, where one last place of a frequency, which the maths library's `exp` decides, is 2e-3 radians."""
    return torch.exp(-math.log(10000.0) * torch.arange(128, dtype=torch.float32) / 128)


def one_last_place(numbers: Tensor, seed: int) -> Tensor:
    """Each number as it is, or moved to its upper or lower neighbour in its own precision, by chance."""
    chance = torch.randint(3, numbers.shape, generator=torch.Generator().manual_seed(seed))
    upper = torch.nextafter(numbers, torch.full_like(numbers, torch.inf))
    lower = torch.nextafter(numbers, torch.full_like(numbers, -torch.inf))
    return torch.where(chance == 0, numbers, torch.where(chance == 1, upper, lower))


def waves(value: Tensor | float, batch: int, table: Tensor | None = None) -> Tensor:
    """`[batch, 256]` of one number or one per item, with angles in float32 as FLUX has them."""
    numbers = torch.as_tensor(value, dtype=torch.float32).reshape(-1, 1)
    turns = (1000.0 * numbers) * (frequencies() if table is None else table)
    return torch.cat([turns.cos(), turns.sin()], dim=1).double().expand(batch, -1)


def two_layers(w: Weights, name: str, x: Tensor, first: str, second: str) -> Tensor:
    return linear(w, f"{name}.{second}", silu(linear(w, f"{name}.{first}", x)))


def six(w: Weights, name: str, vec: Tensor) -> tuple[Tensor, ...]:
    return linear(w, name, silu(vec))[:, None].chunk(6, dim=-1)


def dit_names(index: int) -> dict[str, Any]:
    """Where FLUX's own files keep the parts of a two-stream block."""
    at = f"double_blocks.{index}"
    return {
        "mod": (f"{at}.img_mod.lin", f"{at}.txt_mod.lin"),
        "qkv": ([f"{at}.img_attn.qkv"], [f"{at}.txt_attn.qkv"]),
        "norm": [f"{at}.{s}_attn.norm.{n}_norm.scale" for s in ("img", "txt") for n in ("query", "key")],
        "proj": (f"{at}.img_attn.proj", f"{at}.txt_attn.proj"),
        "mlp": ((f"{at}.img_mlp.0", f"{at}.img_mlp.2"), (f"{at}.txt_mlp.0", f"{at}.txt_mlp.2")),
    }


def control_names(index: int) -> dict[str, Any]:
    """Where diffusers' naming keeps them."""
    at = f"transformer_blocks.{index}"
    return {
        "mod": (f"{at}.norm1.linear", f"{at}.norm1_context.linear"),
        "qkv": ([f"{at}.attn.to_{n}" for n in "qkv"], [f"{at}.attn.add_{n}_proj" for n in "qkv"]),
        "norm": [f"{at}.attn.norm_{n}.weight" for n in ("q", "k", "added_q", "added_k")],
        "proj": (f"{at}.attn.to_out.0", f"{at}.attn.to_add_out"),
        "mlp": ((f"{at}.ff.net.0.proj", f"{at}.ff.net.2"), (f"{at}.ff_context.net.0.proj", f"{at}.ff_context.net.2")),
    }


def block(w: Weights, names: dict[str, Any], img: Tensor, txt: Tensor, vec: Tensor, pos: Tensor):
    """A two-stream block of FLUX."""
    mods = [six(w, name, vec) for name in names["mod"]]
    q, k, v = [], [], []
    for stream in (1, 0):
        x, (shift, scale, *_) = (img, txt)[stream], mods[stream]
        x = normal(x) * (1 + scale) + shift
        projected = torch.cat([linear(w, name, x) for name in names["qkv"][stream]], dim=-1)
        a, b, c = (heads(part) for part in projected.chunk(3, dim=-1))
        q.append(rms(w, names["norm"][2 * stream], a))
        k.append(rms(w, names["norm"][2 * stream + 1], b))
        v.append(c)
    joint = attend(turn(torch.cat(q, 2), pos), turn(torch.cat(k, 2), pos), torch.cat(v, 2))
    parts = (joint[:, txt.shape[1] :], joint[:, : txt.shape[1]])
    out = []
    for stream, x in enumerate((img, txt)):
        _, _, gate, shift, scale, gate_mlp = mods[stream]
        x = x + gate * linear(w, names["proj"][stream], parts[stream])
        first, second = names["mlp"][stream]
        out.append(x + gate_mlp * linear(w, second, gelu(linear(w, first, normal(x) * (1 + scale) + shift))))
    return out[0], out[1]


def single(w: Weights, index: int, x: Tensor, vec: Tensor, pos: Tensor) -> Tensor:
    at = f"single_blocks.{index}"
    shift, scale, gate = linear(w, f"{at}.modulation.lin", silu(vec))[:, None].chunk(3, dim=-1)
    size = x.shape[-1]
    q, k, v, mlp = linear(w, f"{at}.linear1", normal(x) * (1 + scale) + shift).split([size] * 3 + [4 * size], dim=-1)
    q, k = rms(w, f"{at}.norm.query_norm.scale", heads(q)), rms(w, f"{at}.norm.key_norm.scale", heads(k))
    joined = torch.cat([attend(turn(q, pos), turn(k, pos), heads(v)), gelu(mlp)], dim=-1)
    return x + gate * linear(w, f"{at}.linear2", joined)


def depth(w: Weights, group: str) -> int:
    return 1 + max(int(key.split(".")[1]) for key in w if key.startswith(f"{group}."))


@dataclass(frozen=True)
class Prompt:
    text: Tensor
    pooled: Tensor
    guidance: Tensor | float
    vector: Tensor | None = None
    """`[B, hidden]`: what joins the modulation vector besides, zero in the rows that have nothing."""


@dataclass(frozen=True)
class Control:
    weights: Weights
    image: Tensor
    """`[B, C, H, W]`, model space."""

    prompt: Prompt
    dit_blocks: tuple[int, ...]
    residual: bool = True
    strength: float = 1.0
    text_branch: bool = True

    def streams(self, t: Tensor | float, table: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
        """Image and text stream after each control block."""
        w, (batch, _, height, width) = self.weights, self.image.shape
        text = self.prompt.text.double().expand(batch, -1, -1)
        img, txt = linear(w, "x_embedder", pack(self.image)), linear(w, "context_embedder", text)
        at = "time_text_embed"
        vec = two_layers(w, f"{at}.timestep_embedder", waves(t, batch, table), "linear_1", "linear_2")
        guidance = waves(self.prompt.guidance, batch, table)
        vec = vec + two_layers(w, f"{at}.guidance_embedder", guidance, "linear_1", "linear_2")
        vec = vec + two_layers(w, f"{at}.text_embedder", self.prompt.pooled.double(), "linear_1", "linear_2")
        pos, streams = places(txt.shape[1], height, width), []
        for index in range(depth(w, "controlnet_blocks")):
            img, txt = block(w, control_names(index), img, txt, vec, pos)
            streams.append((img, txt))
        return streams

    def image_residual(self, layer: int, image: Tensor) -> Tensor:
        return linear(self.weights, f"controlnet_blocks.{layer}", image)

    def inject(self, layer: int, img: Tensor, txt: Tensor, streams: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Eq. 1: f_img + M_img(f_c,img). Eq. 2: CrossAttention(P_Q f_txt, P_K f_c,txt, P_V f_c,txt) through M_txt."""
        w, (image, text) = self.weights, streams
        img = img + self.strength * self.image_residual(layer, image)
        if not self.text_branch:
            return img, txt
        at = f"context_attn.{layer}"
        q, k, v = linear(w, f"{at}.to_q", txt), linear(w, f"{at}.to_k", text), linear(w, f"{at}.to_v", text)
        crossed = linear(w, f"{at}.to_out", attend(heads(q), heads(k), heads(v)))
        mlp = f"context_mlp.{layer}"
        new = linear(w, f"{mlp}.net.2", gelu(linear(w, f"{mlp}.net.0.proj", crossed)))
        return img, (txt if self.residual else (1 - self.strength) * txt) + self.strength * new


def velocity(
    w: Weights,
    x: Tensor,
    t: Tensor | float,
    prompt: Prompt,
    control: Control | None = None,
    table: Tensor | None = None,
    seen: dict[str, Tensor] | None = None,
) -> Tensor:
    """v(x, t) `[B, 16, H, W]` of a FLUX under its own tensor names; `x` has Fill's further channels appended.

    table: `frequencies` other than the machine's. seen: filled with the streams after every part.
    """
    batch, _, height, width = x.shape
    img, txt = linear(w, "img_in", pack(x)), linear(w, "txt_in", prompt.text.double().expand(batch, -1, -1))
    vec = two_layers(w, "time_in", waves(t, batch, table), "in_layer", "out_layer")
    vec = vec + two_layers(w, "guidance_in", waves(prompt.guidance, batch, table), "in_layer", "out_layer")
    vec = vec + two_layers(w, "vector_in", prompt.pooled.double(), "in_layer", "out_layer")
    seen = {} if seen is None else seen
    seen |= {"img_in": img, "txt_in": txt, "vec": vec}
    if prompt.vector is not None:
        vec = vec + prompt.vector
    pos = places(txt.shape[1], height, width)
    streams = control.streams(t, table) if control else []
    for index in range(depth(w, "double_blocks")):
        img, txt = block(w, dit_names(index), img, txt, vec, pos)
        if control and index in control.dit_blocks:
            layer = control.dit_blocks.index(index)
            img, txt = control.inject(layer, img, txt, streams[layer])
        seen |= {f"double{index}_img": img, f"double{index}_txt": txt}
    tokens = txt.shape[1]
    joint = torch.cat([txt, img], dim=1)
    for index in range(depth(w, "single_blocks")):
        joint = single(w, index, joint, vec, pos)
        seen[f"single{index}_img"] = joint[:, tokens:]
    shift, scale = linear(w, "final_layer.adaLN_modulation.1", silu(vec))[:, None].chunk(2, dim=-1)
    out = linear(w, "final_layer.linear", normal(joint[:, tokens:]) * (1 + scale) + shift)
    return unpack(out, height, width)


def with_lora(w: Weights, lora: Weights, strength: float = 1.0) -> dict[str, Tensor]:
    """W + strength * alpha / rank * B A in float64, for a LoRA in PEFT's form under diffusers' names."""
    merged = {name: tensor.double().clone() for name, tensor in w.items()}
    home: dict[str, tuple[str, Tensor]] = {}
    for name, tensor in w.items():
        rows_of = flux_diffusers({name: torch.arange(len(tensor))})
        home |= {theirs: (name, rows) for theirs, rows in rows_of.items()}
    for key, down in lora.items():
        if not key.endswith(".lora_A.weight"):
            continue
        layer = key.removesuffix(".lora_A.weight")
        up, rank = lora[f"{layer}.lora_B.weight"].double(), len(down)
        scale = strength * float(lora.get(f"{layer}.alpha", rank)) / rank
        name, rows = home[layer.removeprefix("transformer.") + ".weight"]
        merged[name][rows] += scale * up @ down.double()
    return merged


def context_vector(bridge: Weights, embeds: Tensor) -> Tensor:
    """c_g = a (W2 gelu(W1 LayerNorm(v) + b1) + b2) with GELU's exact form."""
    w = {".".join(name.split(".")[-2:]) if "." in name else name: tensor for name, tensor in doubled(bridge).items()}
    scale = next(tensor for name, tensor in w.items() if name.endswith("scale"))
    x = normal(embeds.double(), 1e-5) * w["norm.weight"] + w["norm.bias"]
    x = linear(w, "proj_in", x)
    return scale * linear(w, "proj_out", 0.5 * x * (1 + torch.erf(x / math.sqrt(2))))


def bridged(prompt: Prompt, vector: Tensor) -> Prompt:
    """A vector as wide as the pooled text is added to that, another joins the modulation vector."""
    if vector.shape[-1] == prompt.pooled.shape[-1]:
        return Prompt(prompt.text, prompt.pooled.double() + vector, prompt.guidance)
    return Prompt(prompt.text, prompt.pooled, prompt.guidance, vector)


def control_streams(w: Weights, scene: Any) -> list[tuple[Tensor, Tensor]]:
    """Image and text stream after each control block, of a harness Scene."""
    return scene_control(w, scene, ()).streams(scene.t)


def scene_control(w: Weights, scene: Any, dit_blocks: tuple[int, ...], **options: Any) -> Control:
    return Control(
        w, scene.z_lq, Prompt(scene.local_text, scene.local_pooled, scene.guidance), tuple(dit_blocks), **options
    )


def flux_velocity(
    w: Weights,
    scene: Any,
    control: Weights | None = None,
    dit_blocks: tuple[int, ...] = (),
    residual: bool = True,
    strength: float = 1.0,
) -> Tensor:
    """v(z_t, t) of a harness Scene, controlled where `control` is given."""
    acting = scene_control(control, scene, dit_blocks, residual=residual, strength=strength) if control else None
    return velocity(w, scene.z_t, scene.t, Prompt(scene.text, scene.pooled, scene.guidance), acting)
