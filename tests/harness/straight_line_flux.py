"""FLUX with an MM-ControlNet written out from state dicts alone, in float64 but for the timestep sinusoid.

Nothing of the pack, the host or diffusers: products, softmax and sums, as the papers print them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

HEAD_DIM = 128
AXES = (16, 56, 56)

Weights = dict[str, Tensor]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].double().T + w[f"{name}.bias"].double()


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def normal(x: Tensor) -> Tensor:
    """LayerNorm without weights."""
    return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-6)


def rms(w: Weights, name: str, x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * w[name].double()


def heads(x: Tensor) -> Tensor:
    b, n, _ = x.shape
    return x.view(b, n, -1, HEAD_DIM).permute(0, 2, 1, 3)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    b, h, n, d = q.shape
    out = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(d), dim=-1) @ v
    return out.permute(0, 2, 1, 3).reshape(b, n, h * d)


def turn(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary positions: pair i of an axis of width d turns by position * 10000 ** (-2 i / d)."""
    out, start = x.clone(), 0
    for axis, width in enumerate(AXES):
        for pair in range(width // 2):
            angle = positions[:, axis] * 10000.0 ** (-2 * pair / width)
            one, two = start + 2 * pair, start + 2 * pair + 1
            out[..., one] = x[..., one] * angle.cos() - x[..., two] * angle.sin()
            out[..., two] = x[..., one] * angle.sin() + x[..., two] * angle.cos()
        start += width
    return out


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


def waves(value: float, batch: int) -> Tensor:
    """In float32, as FLUX has it: angles of up to 1000 radians differ from the exact ones by 1e-5 and more."""
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(128, dtype=torch.float32) / 128)
    angles = 1000.0 * torch.tensor(value) * frequencies
    return torch.cat([angles.cos(), angles.sin()]).double().expand(batch, 256)


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


def control_streams(w: Weights, scene: Any) -> list[tuple[Tensor, Tensor]]:
    """Image and text stream after each control block."""
    batch, _, height, width = scene.z_lq.shape
    text, pooled = scene.local_text.double().expand(batch, -1, -1), scene.local_pooled.double().expand(batch, -1)
    img, txt = linear(w, "x_embedder", pack(scene.z_lq)), linear(w, "context_embedder", text)
    at = "time_text_embed"
    vec = two_layers(w, f"{at}.timestep_embedder", waves(scene.t, batch), "linear_1", "linear_2")
    vec = vec + two_layers(w, f"{at}.guidance_embedder", waves(scene.guidance, batch), "linear_1", "linear_2")
    vec = vec + two_layers(w, f"{at}.text_embedder", pooled, "linear_1", "linear_2")
    pos, streams = places(txt.shape[1], height, width), []
    for index in range(sum(key.startswith("controlnet_blocks.") for key in w) // 2):
        img, txt = block(w, control_names(index), img, txt, vec, pos)
        streams.append((img, txt))
    return streams


def inject(
    w: Weights, layer: int, img: Tensor, txt: Tensor, control: tuple[Tensor, Tensor], residual: bool, strength: float
) -> tuple[Tensor, Tensor]:
    """Eq. 1: f_img + M_img(f_c,img). Eq. 2: CrossAttention(P_Q f_txt, P_K f_c,txt, P_V f_c,txt) through M_txt."""
    image, text = control
    img = img + strength * linear(w, f"controlnet_blocks.{layer}", image)
    at = f"context_attn.{layer}"
    q, k, v = linear(w, f"{at}.to_q", txt), linear(w, f"{at}.to_k", text), linear(w, f"{at}.to_v", text)
    crossed = linear(w, f"{at}.to_out", attend(heads(q), heads(k), heads(v)))
    mlp = f"context_mlp.{layer}"
    new = linear(w, f"{mlp}.net.2", gelu(linear(w, f"{mlp}.net.0.proj", crossed)))
    return img, (txt if residual else (1 - strength) * txt) + strength * new


def single(w: Weights, index: int, x: Tensor, vec: Tensor, pos: Tensor) -> Tensor:
    at = f"single_blocks.{index}"
    shift, scale, gate = linear(w, f"{at}.modulation.lin", silu(vec))[:, None].chunk(3, dim=-1)
    size = x.shape[-1]
    q, k, v, mlp = linear(w, f"{at}.linear1", normal(x) * (1 + scale) + shift).split([size] * 3 + [4 * size], dim=-1)
    q, k = rms(w, f"{at}.norm.query_norm.scale", heads(q)), rms(w, f"{at}.norm.key_norm.scale", heads(k))
    joined = torch.cat([attend(turn(q, pos), turn(k, pos), heads(v)), gelu(mlp)], dim=-1)
    return x + gate * linear(w, f"{at}.linear2", joined)


def flux_velocity(
    w: Weights,
    scene: Any,
    control: Weights | None = None,
    dit_blocks: tuple[int, ...] = (),
    residual: bool = True,
    strength: float = 1.0,
) -> Tensor:
    """v(z_t, t) `[B, C, H, W]` of a FLUX under its own tensor names, controlled where `control` is given."""
    batch, _, height, width = scene.z_t.shape
    text, pooled = scene.text.double().expand(batch, -1, -1), scene.pooled.double().expand(batch, -1)
    img, txt = linear(w, "img_in", pack(scene.z_t)), linear(w, "txt_in", text)
    vec = two_layers(w, "time_in", waves(scene.t, batch), "in_layer", "out_layer")
    vec = vec + two_layers(w, "guidance_in", waves(scene.guidance, batch), "in_layer", "out_layer")
    vec = vec + two_layers(w, "vector_in", pooled, "in_layer", "out_layer")
    pos = places(txt.shape[1], height, width)
    streams = control_streams(control, scene) if control else []
    for index in range(1 + max(int(key.split(".")[1]) for key in w if key.startswith("double_blocks."))):
        img, txt = block(w, dit_names(index), img, txt, vec, pos)
        if control and index in dit_blocks:
            layer = dit_blocks.index(index)
            img, txt = inject(control, layer, img, txt, streams[layer], residual, strength)
    x = torch.cat([txt, img], dim=1)
    for index in range(1 + max(int(key.split(".")[1]) for key in w if key.startswith("single_blocks."))):
        x = single(w, index, x, vec, pos)
    shift, scale = linear(w, "final_layer.adaLN_modulation.1", silu(vec))[:, None].chunk(2, dim=-1)
    out = linear(w, "final_layer.linear", normal(x[:, txt.shape[1] :]) * (1 + scale) + shift)
    return unpack(out, height, width)
