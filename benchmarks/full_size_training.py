"""Training at FLUX's real size, without its weights: what it takes by estimate, and ten steps of it on a GPU.

    python3 dev/host_env.py run -- benchmarks/full_size_training.py estimate        (any machine: a table of memory)
    python3 dev/host_env.py run -- benchmarks/full_size_training.py steps           (one GPU: ten steps of each method)
    python3 dev/host_env.py run -- benchmarks/full_size_training.py steps --smoke   (the same code on tiny networks)

The model files are made here with FLUX's tensor names and shapes and no content (sparse files), so that the methods
are built as users build them. `steps` fills the networks with random numbers on the device and trains on such batches:
seconds per step, peak memory, and the share of the chip's bfloat16 rate that the operations of a step come to
(--tflops: what the chip's maker states; operations by torch.utils.flop_counter). Tokenizers are those of ComfyUI, which
`host_env.py run` names in COMFYUI_PATH.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from _pack import load_pack  # noqa: E402

load_pack()
from realisr.training.dreamsr.method import DreamSRMethod  # noqa: E402
from realisr.training.engine.draws import Draws  # noqa: E402
from realisr.training.engine.estimate import GIB, estimate  # noqa: E402
from realisr.training.engine.method import Batch, Method  # noqa: E402
from realisr.training.engine.optimizers import TurnOptimizer  # noqa: E402
from realisr.training.vicr.method import VICRMethod  # noqa: E402

WARM_UP = 2
"""Steps that are not timed."""
NAMES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.int64: "I64"}


@dataclass(frozen=True)
class Sizes:
    """Of every network that the methods read."""

    flux: Mapping[str, Any]
    t5: Mapping[str, Any]
    clip: Mapping[str, Any]
    vision: Mapping[str, Any]
    vae: Mapping[str, Any]
    crop: int
    control: int
    """Blocks of DreamSR's MM-ControlNet."""


REAL = Sizes(
    flux={
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": True,
    },
    t5={
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "vocab_size": 32128,
    },
    clip={"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    vision={
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "projection_dim": 768,
    },
    vae={"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
    crop=512,
    control=9,
)
TINY = Sizes(
    flux={
        "num_layers": 2,
        "num_single_layers": 1,
        "attention_head_dim": 128,
        "num_attention_heads": 1,
        "joint_attention_dim": 64,
        "pooled_projection_dim": 64,
        "guidance_embeds": True,
    },
    t5={"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 1, "num_heads": 4, "vocab_size": 32128},
    clip={"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 1},
    vision={
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 56,
        "patch_size": 14,
        "projection_dim": 64,
    },
    vae={"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1},
    crop=64,
    control=1,
)


def networks(sizes: Sizes) -> dict[str, nn.Module]:
    """On the meta device, in diffusers' and transformers' own classes."""
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
        T5Config,
        T5EncoderModel,
    )

    with torch.device("meta"):
        return {
            "fill": FluxTransformer2DModel(in_channels=384, out_channels=64, **sizes.flux),
            "dev": FluxTransformer2DModel(in_channels=64, **sizes.flux),
            "t5": T5EncoderModel(T5Config(**sizes.t5, feed_forward_proj="gated-gelu")),
            "clip": CLIPTextModel(CLIPTextConfig(**sizes.clip, vocab_size=49408)),
            "vision": CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes.vision)),
            "vae": AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                latent_channels=16,
                use_quant_conv=False,
                use_post_quant_conv=False,
                **sizes.vae,
            ),
        }


def write_empty(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    """A .safetensors file of these names and shapes in bfloat16, whose content takes no place on the disk."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        dtype = torch.bfloat16 if tensor.is_floating_point() else tensor.dtype
        size = tensor.numel() * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def settings(folder: Path, files: Mapping[str, Path], method: str, sizes: Sizes, **changes: Any) -> dict[str, Any]:
    """Of a run with the paper's numbers and one image in a micro-batch. Its photo folder is not read."""
    models = {"flux": files["fill" if method == "vicr" else "dev"]}
    models |= {name: files[name] for name in ("t5", "clip", "vae")}
    common = {
        "out": folder / "run",
        "steps": 10,
        "precision": "bf16",
        "gradient_checkpointing": True,
        "data": {"sources": [{"folder": folder}], "crop": sizes.crop},
        "models": {**models, "tokenizers": Path(os.environ["COMFYUI_PATH"])},
        "log": {"trackers": []},
    }
    if method == "vicr":
        common["models"]["clip_vision"] = files["vision"]
        return {**common, **changes}
    weights = {"backbone": folder / "vgg16.pth", "head": folder / "lpips.pth"}
    control = {"layers": sizes.control}
    return {**common, "control": control, "lpips": weights, **changes}


METHODS: dict[str, type[Method[Any]]] = {"vicr": VICRMethod, "dreamsr": DreamSRMethod}


def made(folder: Path, files: Mapping[str, Path], name: str, sizes: Sizes, changes: Mapping[str, Any]) -> Method[Any]:
    """A method on the meta device."""
    kind = METHODS[name]
    method = kind(kind.config_type.model_validate(settings(folder, files, name, sizes, **changes)))
    method.build(torch.device("meta"))
    return method


def print_estimates(folder: Path, files: Mapping[str, Path], sizes: Sizes) -> None:
    rows: list[tuple[str, str, dict[str, Any]]] = [
        ("VICR, panel 512", "vicr", {}),
        ("VICR, panel 512, activations kept", "vicr", {"gradient_checkpointing": False}),
        ("VICR, panel 512, int8 base", "vicr", {"base": "int8"}),
        ("VICR, panel 512, NF4 base", "vicr", {"base": "nf4"}),
        ("DreamSR stage 1", "dreamsr", {}),
        ("DreamSR stage 1, NF4 base", "dreamsr", {"base": "nf4"}),
        ("DreamSR stage 1, 8-bit AdamW, NF4 base", "dreamsr", {"base": "nf4", "optimizer": {"name": "adamw8bit"}}),
        ("DreamSR alternating", "dreamsr", {"lora": {}}),
    ]
    columns = ("weights", "gradients", "optimizer", "activations", "total")
    print("| run | trained | " + " | ".join(columns) + " |")
    print("| --- | --- |" + " --- |" * len(columns))
    for label, name, changes in rows:
        try:
            found = estimate(made(folder, files, name, sizes, changes))
        except ModuleNotFoundError as error:
            print(f"| {label} | {error} |" + " |" * len(columns))
            continue
        cells = [f"{getattr(found, column) / GIB:.1f}" for column in columns]
        print(f"| {label} | {found.trained / 1e6:.1f} M | " + " | ".join(cells) + " |")


def fill(network: nn.Module, device: torch.device) -> None:
    """Move a meta network to the device with random weights small enough for finite activations."""
    network.to_empty(device=device)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.02)
            else:
                parameter.fill_(1.0 if parameter.requires_grad else 0.0)
        for buffer in network.buffers():
            buffer.normal_(0, 0.02)


def random_batch(method: Method[Any], device: torch.device) -> Batch:
    generator = torch.Generator(device).manual_seed(0)
    batch: Batch = {}
    for name, value in method.example_batch().items():
        moved = value.to(device)
        batch[name] = moved.normal_(generator=generator) if moved.is_floating_point() else moved
    if "time" in batch:
        batch["time"] = torch.full_like(batch["time"], 0.5)
    return batch


@dataclass(frozen=True)
class Measured:
    seconds: float
    """Of a step."""
    peak: int
    """Bytes; 0 where the device does not say."""
    operations: float
    """Floating-point operations of a step."""
    loss: float


def take_steps(method: Method[Any], device: torch.device, steps: int) -> Measured:
    """Steps of the method's first turn on one random batch."""
    fill(method.network, device)
    config = method.config
    (turn, *_) = method.turns(0)
    optimizer = TurnOptimizer(config.optimizer, config.schedule, method.parameter_groups(turn))
    batch = random_batch(method, device)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()

    def step(number: int) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            loss = method.network(turn, batch, Draws(0, number, device))["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(optimizer.parameters, 1.0)
        optimizer.step(number, WARM_UP + steps)
        return loss.detach()

    counter = FlopCounterMode(display=False)
    with counter:
        step(0)
    for number in range(1, WARM_UP):
        step(number)
    if on_gpu:
        torch.cuda.synchronize()
    started = time.perf_counter()
    for number in range(WARM_UP, WARM_UP + steps):
        loss = step(number)
    value = float(loss)
    seconds = (time.perf_counter() - started) / steps
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    return Measured(seconds, peak, float(counter.get_total_flops()), value)


def print_steps(
    folder: Path, files: Mapping[str, Path], sizes: Sizes, steps: int, tflops: float, device: torch.device
) -> None:
    rate = f" | share of {tflops:g} TFLOP/s" if tflops else ""
    print(f"| run | s/step | images/s | peak GiB | TFLOP/step{rate} | estimate GiB |")
    print("| --- |" + " --- |" * (6 if tflops else 5))
    for name in METHODS:
        method = made(folder, files, name, sizes, {"gradient_checkpointing": True})
        expected = estimate(method).total / GIB
        found = take_steps(method, device, steps)
        share = f" | {found.operations / found.seconds / tflops / 1e12:.0%}" if tflops else ""
        print(
            f"| {name} | {found.seconds:.3f} | {1 / found.seconds:.3g} | {found.peak / GIB:.1f} "
            f"| {found.operations / 1e12:.3g}{share} | {expected:.1f} |"
        )
        if not torch.isfinite(torch.tensor(found.loss)):
            raise SystemExit(f"{name}: the loss is {found.loss}")
        del method
        if device.type == "cuda":
            torch.cuda.empty_cache()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("estimate", "steps"))
    parser.add_argument("--smoke", action="store_true", help="tiny networks")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--tflops", type=float, default=0.0, help="the chip's dense bfloat16 rate; 0: no share")
    options = parser.parse_args(argv)
    sizes = TINY if options.smoke else REAL
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {
            part: write_empty(folder / part / f"{part}.safetensors", network.state_dict())
            for part, network in networks(sizes).items()
        }
        if options.command == "estimate":
            print_estimates(folder, files, sizes)
        else:
            print_steps(folder, files, sizes, options.steps, options.tflops, device)


if __name__ == "__main__":
    main()
