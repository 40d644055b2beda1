"""What whole-method nodes of a workflow will take, before anything is loaded.

From the same functions as the nodes themselves; the models are their files' description (host/described.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.model_detection
import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import torch

from ..host.described import described, described_tensors
from ..host.dreamsr import estimate as dreamsr_estimate
from ..host.dreamsr.control.loader import load_mm_control
from ..host.dreamsr.restore import tiles_over
from ..host.estimate import RunEstimate, judge
from ..host.memory import available_memory
from ..host.model_catalogue import chosen_file
from ..host.precision import WEIGHT_DTYPES
from ..host.pure import estimate as pure_estimate
from ..host.pure.files import find_restorer, find_vqgan
from ..host.pure.loader import AUTO, FP8, WEIGHT_CHOICES, chosen_dtypes, read_config
from ..host.pure.restore import PURERestoreOptions
from ..host.pure.tokenizer import TextTokenizer
from ..host.vosr import estimate as vosr_estimate
from ..host.vosr.conditioning import EncodeOptions
from ..host.vosr.files import find_model
from ..host.vosr.loader import load_vosr_model
from ..host.vosr.restore import VOSRRestoreOptions, check_parts
from ..host.vosr.vae import find_decoder, find_vae, load_vosr_vae
from ..host.vosr.vision import VisionSize
from ..models.presets import CUSTOM, DREAMSR, PURE, VOSR, applied
from ..models.pure.logits import TokenSampling
from ..models.pure.options import GenerationOptions
from ..models.pure.prompt import INSTRUCTION
from ..models.pure.vqgan import check_released
from ..models.vosr.sampling import RestorationGuidance
from . import pure as pure_node
from . import vosr as vosr_node
from .dreamsr import NO_LORA
from .graph import Node, Unknown, picture_size, tile_layout
from .inputs import checked_wrap, resize_input, size_asked


@dataclass(frozen=True)
class Described:
    """A run, and what else is worth saying of it."""

    run: RunEstimate | None
    """None where the models are not known."""
    needs: list[str] = field(default_factory=list)
    """Files that are used beside the model, by names that people know."""
    unused: list[str] = field(default_factory=list)
    """Widgets without effect as things stand."""


def answer(graph: Any, node_id: Any, last_size: Any = None) -> dict[str, Any]:
    """What the panel under a node shows, as JSON. last_size: (width, height) of its last input, if any.

    Raises ValueError for a node of another kind.
    """
    try:
        node = Node.of(graph, node_id)
    except Unknown as error:
        raise ValueError(f"there is no {error} in the graph") from error
    describe = NODES.get(node.kind)
    if describe is None:
        raise ValueError(f"there is no estimate for {node.kind:.60}")
    shown: dict[str, Any] = {"level": "unknown", "reason": "", "needs": [], "unused": []}
    try:
        size = input_size(node, last_size)
        shown["from"] = list(size)
        to = size_asked(*size, node.choice(resize_input().id))
        shown["to"] = list(to)
        found = describe(node, to)
    except Unknown as error:
        return shown | {"unknown": str(error)}
    # What the run would say, said before it.
    except (ValueError, FileNotFoundError) as error:
        return shown | {"level": "impossible", "reason": str(error)}
    shown |= {"needs": found.needs, "unused": found.unused}
    if found.run is None:
        return shown
    verdict, device = judge(found.run), comfy.model_management.get_torch_device()
    return shown | {
        "level": verdict.level,
        "reason": verdict.reason,
        "tiles": found.run.tiles,
        "forwards": found.run.forwards,
        "memory": found.run.peak or found.run.memory,
        "asked": found.run.memory,
        "seconds": found.run.seconds,
        "free": available_memory(device),
        "stages": [[stage.name, stage.weights, stage.work] for stage in found.run.stages],
    }


def input_size(node: Node, last_size: Any) -> tuple[int, int]:
    """Followed through the graph; where it cannot be, that of the last run."""
    try:
        return picture_size(node.source("image"))
    except Unknown:
        if isinstance(last_size, list) and len(last_size) == 2 and all(type(side) is int for side in last_size):
            return max(1, last_size[0]), max(1, last_size[1])
        raise Unknown("size") from None


def file_of(folder: str, name: Any) -> Path:
    """The file of a loader's choice. Raises FileNotFoundError saying what to fetch."""
    if not isinstance(name, str):
        raise Unknown("model")
    return chosen_file(folder, name)


# --- VOSR ------------------------------------------------------------------------------------------------------------


def describe_vosr(node: Node, to: tuple[int, int]) -> Described:
    options = vosr_options(node, to)
    loader, vae = node.along("model", "RealISR_LoadVOSRModel"), node.along("vae", "RealISR_LoadVOSRVAE")
    if loader is None or vae is None:
        return Described(None)
    model = vosr_model(loader.value("model_name"), loader.value("weight_dtype"), loader.value("variant"))
    info, width = model.model.info, model.model.info.config.context_width
    encoder = node.along("vision_encoder", "RealISR_LoadVOSRVisionEncoder")
    vision = None if encoder is None else dinov2(encoder.value("vision_name"))
    autoencoder = vosr_vae(vae.value("vae_name"), vae.value("decoder_name"))
    if encoder is not None or not node.connected("vision_encoder"):
        check_parts(info, autoencoder, vision)
    run = vosr_estimate.estimate_run(model, autoencoder, vision, options)
    needs = {0: [], 768: ["DINOv2 ViT-B/14"]}.get(width, ["DINOv2 ViT-L/14"])
    unused = []
    if info.one_step:
        unused += ["preset", "restoration_scale", "weak_strength", "guidance_start", "guidance_end"]
    elif options.guidance.scale == 1:
        unused += ["weak_strength"]
    if not width and node.connected("vision_encoder"):
        unused += ["vision_encoder"]
    if node.connected("tile_grid"):
        unused += ["tiling"]
    return Described(run, needs, unused)


def vosr_options(node: Node, to: tuple[int, int]) -> VOSRRestoreOptions:
    strength = vosr_node.chosen_strength(node.number("weak_strength", vosr_node.OWN_STRENGTH))
    scale = applied(VOSR, node.value("preset", CUSTOM), {"restoration_scale": node.number("restoration_scale")})
    return VOSRRestoreOptions(
        *to,
        steps=int(node.number("steps", 0)),
        guidance=RestorationGuidance(
            scale["restoration_scale"], node.number("guidance_start", 0), node.number("guidance_end", 1)
        ),
        encode=EncodeOptions(
            strength,
            vae_tile=int(node.number("vae_tile_size", 0)),
            wrap=checked_wrap(node.value("wrap", "none")),
        ),
        tiles=tile_layout(node) or vosr_node.chosen_tiles(node.choice("tiling")),
    )


def vosr_model(name: Any, weight_dtype: Any, variant: Any) -> Any:
    if not isinstance(name, str):
        raise Unknown("model")
    chosen = find_model(name)
    return described(
        lambda: load_vosr_model(name, weight_dtype, variant, disable_dynamic=True, read=described_tensors),
        "vosr",
        name,
        weight_dtype,
        variant,
        files=(chosen.path, chosen.path.parent.parent / "args.json"),
    )


def vosr_vae(name: Any, decoder: Any) -> Any:
    if not isinstance(name, str) or not isinstance(decoder, str):
        raise Unknown("vae")
    files = tuple(file for file in (find_vae(name), find_decoder(decoder)) if file is not None)
    return described(lambda: load_vosr_vae(name, decoder, described_tensors), "vosr vae", name, decoder, files=files)


def dinov2(name: Any) -> VisionSize:
    path = file_of("clip_vision", name)
    return described(lambda: VisionSize.of_file(path, described_tensors), "dinov2", name, files=(path,))


# --- DreamSR ---------------------------------------------------------------------------------------------------------


def describe_dreamsr(node: Node, to: tuple[int, int]) -> Described:
    layout = tile_layout(node)
    grid = tiles_over(
        *to,
        int(node.number("tile_size")),
        int(node.number("overlap")),
        layout,
        checked_wrap(node.value("wrap", "none")),
    )
    removal = node.value("lora_name", NO_LORA) != NO_LORA
    unused = ([] if layout is None else ["tile_size", "overlap"]) + ([] if removal else ["lora_strength"])
    control = node.along("mm_controlnet", "RealISR_LoadMMControlNet")
    if not node.connected("mm_controlnet"):
        unused.append("control_strength")
    loader = node.along("model", "UNETLoader")
    if loader is None or (control is None and node.connected("mm_controlnet")):
        return Described(None, unused=unused)
    model = flux(loader.value("unet_name"), loader.value("weight_dtype", "default"))
    vae = node.along("vae", "VAELoader")
    run = dreamsr_estimate.estimate_run(
        model,
        None if control is None or not node.number("control_strength", 1) else mm_control(control),
        None if vae is None else flux_vae(vae.value("vae_name")),
        to,
        grid,
        int(node.number("texture_steps")),
        removal,
        int(node.number("tiles_per_batch", 0)),
        int(node.number("vae_tile_size", 0)),
    )
    return Described(run, unused=unused)


def flux(name: Any, weight_dtype: Any) -> Any:
    path = file_of("diffusion_models", name)
    if not isinstance(weight_dtype, str) or weight_dtype not in WEIGHT_DTYPES:
        raise Unknown("weight_dtype")

    def build() -> Any:
        tensors, metadata = described_tensors(path)
        options = dict(WEIGHT_DTYPES[weight_dtype])
        return comfy.sd.load_diffusion_model_state_dict(tensors, options, metadata, disable_dynamic=True)

    found = described(build, "flux", name, weight_dtype, files=(path,))
    if found is None:
        raise Unknown("model")
    return found


def mm_control(loader: Node) -> Any:
    name, weight_dtype = loader.value("control_name"), loader.value("weight_dtype", "default")
    path, nowhere = file_of("controlnet", name), torch.device("meta")
    return described(
        lambda: load_mm_control(name, weight_dtype, True, described_tensors, nowhere),
        "control",
        name,
        weight_dtype,
        files=(path,),
    )


def flux_vae(name: Any) -> Any:
    """None for the small approximations, which the host puts together from several files."""
    path = folder_paths.get_full_path("vae", name) if isinstance(name, str) else None
    if path is None:
        return None

    def build() -> Any:
        tensors, metadata = described_tensors(path)
        return comfy.sd.VAE(sd=tensors, metadata=metadata)

    return described(build, "flux vae", name, files=(Path(path),))


# --- PURE ------------------------------------------------------------------------------------------------------------


def describe_pure(node: Node, to: tuple[int, int]) -> Described:
    guidance = node.value("guidance", "full")
    if error := pure_node.text_error(
        str(node.value("description", "")), guidance, str(node.value("instruction", INSTRUCTION))
    ):
        raise ValueError(error)
    options = PURERestoreOptions(
        *to,
        generation=GenerationOptions(
            guidance_scale=node.number("guidance_scale"),
            sampling=TokenSampling(),
            max_text_tokens=int(node.number("max_text_tokens")),
            parts=pure_node.ANSWERS[guidance],
            **pure_node.chosen_decoding(node.choice("decoding")),
        ),
        tiles=pure_node.chosen_tiles(node.choice("tiling")),
        instruction=str(node.value("instruction", INSTRUCTION)),
        preview=bool(node.value("preview", True)),
        together=int(node.number("batch_size", 0)),
    )
    unused = ["tile_description"] if len(options.tiles.grid(*to)) == 1 or node.value("description") else []
    loader = node.along("model", "RealISR_LoadARRestorer")
    if loader is None:
        return Described(None, unused=unused)
    parts = pure_parts(loader.value("model_name"), loader.value("vq_name"), loader.value("weight_dtype", AUTO))
    return Described(pure_estimate.estimate_run(parts, options), unused=unused)


def pure_parts(name: Any, vq_name: Any, weight_dtype: Any) -> pure_estimate.Parts:
    if not isinstance(name, str) or not isinstance(vq_name, str) or weight_dtype not in WEIGHT_CHOICES:
        raise Unknown("model")
    files = find_restorer(name)
    vq_file = find_vqgan(vq_name, files.folder)

    def build() -> pure_estimate.Parts:
        sizes = [
            (key, value)
            for shard in files.shards
            for key, value in described_tensors(shard)[0].items()
            if files.index.get(key, shard.name) == shard.name
        ]
        count = sum(value.numel() for _, value in sizes)
        kept, computed = chosen_dtypes(weight_dtype, comfy.model_management.get_torch_device(), count)
        weights = sum(value.numel() * stored(key, kept, computed).itemsize for key, value in sizes)
        config, tensors = check_released(vq_file.name, described_tensors(vq_file)[0])
        vqgan = 4 * sum(value.numel() for value in tensors.values())
        return pure_estimate.Parts(
            read_config(files), computed, TextTokenizer(files.tokenizer), weights, vqgan, config.base, config
        )

    watched = (*files.shards, vq_file, files.tokenizer, files.folder / "config.json")
    return described(build, "pure", name, vq_name, weight_dtype, files=watched)


def stored(name: str, kept: torch.dtype, computed: torch.dtype) -> torch.dtype:
    """What a tensor is kept in: fp8 is for the layers' matrices."""
    return computed if kept == FP8 and not name.endswith("_proj.weight") else kept


NODES: dict[str, Callable[[Node, tuple[int, int]], Described]] = {
    VOSR: describe_vosr,
    DREAMSR: describe_dreamsr,
    PURE: describe_pure,
}
