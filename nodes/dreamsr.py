"""DreamSR: the whole method in one node, and its degradation removal (arXiv 2605.15682)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..host.dreamsr.control.conditioning import ApplyOptions
from ..host.dreamsr.estimate import estimate
from ..host.dreamsr.lora import AccelerationLoRA, with_forward_lora
from ..host.dreamsr.removal import remove_degradation
from ..host.dreamsr.restore import DreamSR, restore_images, tiles_over
from ..host.estimate import require_possible
from ..host.images import checked_image, with_transparency
from ..host.model_folders import model_files
from ..models.color import METHODS
from ..models.dreamsr.schedule import REMOVAL_TIME, TEXTURE_START, TEXTURE_STEPS, texture_sigmas
from ..models.presets import DREAMSR, applied
from ..models.tiles.layout import require_tile
from .inputs import (
    MAX_SEED,
    TILE_CHECK_OFF,
    checked_wrap,
    chosen_repair,
    error_of,
    mask_input,
    only,
    preview_input,
    resize_input,
    size_shown,
    target_size,
    tile_check_inputs,
    tile_weights_input,
    tiles_per_batch_input,
    vae_tile_input,
    wrap_input,
)
from .presets import preset_input
from .sockets import MMControlNetSocket, TileGridSocket

CATEGORY = "RealISR/DreamSR"
NAME = "DreamSR Restore"
NO_LORA = "none"


class DreamSRRestore(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_DreamSRRestore",
            display_name=f"{NAME} (Two-Stage Tiled FLUX)",
            category=CATEGORY,
            description=(
                "DreamSR in one node: enlarges, removes the degradation in one forward with the acceleration LoRA, "
                "then adds texture in 16 steps, both in tiles merged at every step. Any size; memory depends on the "
                "tile, not on the image. Alpha is enlarged by itself and kept. Item i of a batch is what it would be "
                "alone with seed + i."
            ),
            search_aliases=[
                "dreamsr",
                "flux upscale",
                "tiled super resolution",
                "4k",
                "8k",
                "restore old photo",
                "deblur and denoise photo",
            ],
            is_input_list=True,
            inputs=[
                io.Model.Input("model", tooltip="FLUX.1-dev (Load Diffusion Model)."),
                io.Vae.Input("vae", tooltip="FLUX's VAE (ae.safetensors)."),
                io.Image.Input("image", tooltip="Low-quality image or batch to restore."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="The global prompt, with FluxGuidance. 3.5 is our choice: the paper states none.",
                ),
                MMControlNetSocket.Input(
                    "mm_controlnet",
                    optional=True,
                    tooltip="From Load MM-ControlNet. Unconnected: plain FLUX in tiles, which the input steers less.",
                ),
                io.Conditioning.Input(
                    "patch_prompts",
                    optional=True,
                    tooltip=(
                        "A list with one conditioning for each tile (Encode Patch Prompts): read by the "
                        "MM-ControlNet, or by FLUX itself without one. Unconnected: the global prompt everywhere."
                    ),
                ),
                TileGridSocket.Input(
                    "tile_grid",
                    optional=True,
                    tooltip=(
                        "The grid the patch prompts were made for. Takes the place of tile_size and overlap. Both "
                        "sides of the result must then be multiples of 16."
                    ),
                ),
                io.Combo.Input(
                    "lora_name",
                    options=[NO_LORA, *model_files("loras")],
                    default=NO_LORA,
                    tooltip=(
                        "The restoration acceleration LoRA: on for the degradation removal only. none: no removal, the "
                        "texture stage starts from the enlarged image."
                    ),
                ),
                resize_input(),
                io.Int.Input(
                    "tile_size",
                    default=512,
                    min=64,
                    max=4096,
                    step=16,
                    tooltip="Side of a tile in pixels. DreamSR was trained with 512.",
                ),
                io.Int.Input(
                    "overlap",
                    default=128,
                    min=0,
                    max=2048,
                    step=16,
                    tooltip="Pixels shared by neighbouring tiles, at least. A quarter to a half of a tile hides seams.",
                ),
                tile_weights_input("uniform"),
                io.Float.Input(
                    "texture_start",
                    default=TEXTURE_START,
                    min=0.05,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Noise the texture stage starts from (t). Higher invents more detail, lower stays closer.",
                ),
                io.Int.Input(
                    "texture_steps",
                    default=TEXTURE_STEPS,
                    min=1,
                    max=200,
                    tooltip="Steps of that stage, evenly spaced (our choice: the paper states no spacing).",
                ),
                io.Int.Input(
                    "seed",
                    default=42,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip="Seed of the noise. Item i of a batch uses seed + i.",
                ),
                io.Combo.Input(
                    "color_alignment",
                    options=list(METHODS),
                    default="none",
                    tooltip=(
                        "Takes colours from the input. none: as the paper. wavelet: the input's blurred colours, "
                        "against colour shifts. adain: mean and spread of each channel."
                    ),
                ),
                io.Float.Input(
                    "control_strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    round=0.001,
                    advanced=True,
                    tooltip="Strength of the MM-ControlNet in both stages.",
                ),
                io.Float.Input(
                    "lora_strength",
                    default=1.0,
                    min=-4.0,
                    max=4.0,
                    step=0.05,
                    round=0.001,
                    advanced=True,
                    tooltip="Strength of the acceleration LoRA.",
                ),
                tiles_per_batch_input(advanced=True),
                vae_tile_input(),
                *tile_check_inputs("texture_start a fifth lower each time"),
                preview_input(),
                mask_input(),
                preset_input(DREAMSR),
                wrap_input(),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The restored image at the target size.")],
        )

    @classmethod
    def validate_inputs(
        cls,
        tile_size=None,
        overlap=None,
        tile_grid=None,
        *,
        # The host passes every dynamic input, asked for or not.
        resize=None,
    ):
        # As lists, of None for what comes over a wire; a connected grid takes the place of the two numbers.
        tile, shared = ((values or [None])[0] for values in (tile_size, overlap))
        if tile is None or shared is None or tile_grid is not None:
            return True
        return error_of(lambda: require_tile(tile, shared)) or True

    @classmethod
    def execute(
        cls,
        model,
        vae,
        image,
        positive,
        lora_name,
        resize,
        tile_size,
        overlap,
        weights,
        texture_start,
        texture_steps,
        seed,
        color_alignment,
        control_strength,
        lora_strength,
        tiles_per_batch,
        vae_tile_size,
        mm_controlnet=None,
        patch_prompts=None,
        tile_grid=None,
        tile_check=None,
        check_rounds=None,
        preview=None,
        mask=None,
        preset=None,
        wrap=None,
    ) -> io.NodeOutput:
        def one(name: str, values: list[Any] | None) -> Any:
            return only(NAME, name, values)

        images = checked_image(one("image", image), f"{NAME}: ")
        images = with_transparency(images, one("mask", mask), f"{NAME}: ")
        lora = one("lora_name", lora_name)
        knobs = applied(DREAMSR, one("preset", preset), {"texture_start": one("texture_start", texture_start)})
        # Missing from a prompt it is None or a list like any other; target_size says so.
        given = resize if isinstance(resize, Mapping) else {}
        size = target_size(images, {name: one(f"resize.{name}", values) for name, values in given.items()})
        method = DreamSR(
            model=one("model", model),
            positive=one("positive", positive),
            control=one("mm_controlnet", mm_controlnet),
            control_options=ApplyOptions(strength=one("control_strength", control_strength)),
            lora=None if lora == NO_LORA else AccelerationLoRA.load(lora, one("lora_strength", lora_strength)),
            patch_prompts=patch_prompts,
            texture_start=knobs["texture_start"],
            texture_steps=one("texture_steps", texture_steps),
            weights=one("weights", weights),
            tiles_per_batch=one("tiles_per_batch", tiles_per_batch),
        )
        grid = tiles_over(
            *size,
            one("tile_size", tile_size),
            one("overlap", overlap),
            one("tile_grid", tile_grid),
            checked_wrap(one("wrap", wrap)),
        )
        require_possible(estimate(method, one("vae", vae), size, grid, one("vae_tile_size", vae_tile_size)))
        return io.NodeOutput(
            restore_images(
                method,
                one("vae", vae),
                images,
                size,
                grid,
                one("seed", seed),
                one("vae_tile_size", vae_tile_size),
                one("color_alignment", color_alignment),
                chosen_repair(one("tile_check", tile_check) or TILE_CHECK_OFF, one("check_rounds", check_rounds) or 2),
                one("preview", preview) is not False,
            ),
            ui=size_shown(images),
        )


class AccelerationLoRAStep(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_AccelerationLoRAStep",
            display_name="Acceleration-LoRA Step",
            category=CATEGORY,
            description=(
                "DreamSR's degradation removal: one forward of the model on the LQ latent itself, with the "
                "acceleration LoRA on for that forward only. Gives a clean latent and the SIGMAS of the texture "
                "stage, both for SamplerCustomAdvanced. Any clean latent (VOSR, an upscaler and VAE Encode) can "
                "stand in for this step."
            ),
            search_aliases=["dreamsr", "degradation removal", "restoration acceleration", "ra-lora", "one step"],
            inputs=[
                io.Guider.Input(
                    "guider",
                    tooltip="Model, ControlNets, prompts and tiling of the forward (CFGGuider, BasicGuider, or tiled).",
                ),
                io.Latent.Input("latent", tooltip="The enlarged LQ image, encoded by the model's VAE (z_lq)."),
                io.Combo.Input(
                    "lora_name",
                    options=model_files("loras"),
                    tooltip="The restoration acceleration LoRA, from the loras folder. Off again after the forward.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-4.0,
                    max=4.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Strength of the LoRA. 1 is what it was trained at.",
                ),
                io.Float.Input(
                    "texture_start",
                    default=TEXTURE_START,
                    min=0.05,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip=(
                        "Noise the texture stage starts from (t). Higher invents more detail, lower stays closer to "
                        "the clean latent."
                    ),
                ),
                io.Int.Input(
                    "texture_steps", default=TEXTURE_STEPS, min=1, max=200, tooltip="Steps of the texture stage."
                ),
                io.Float.Input(
                    "shift",
                    default=1.0,
                    min=0.1,
                    max=20.0,
                    step=0.05,
                    round=0.001,
                    advanced=True,
                    tooltip=(
                        "1: uniform steps, our choice: the paper states no spacing. Above: more steps at high noise "
                        "(FLUX: 1.65 to 3.16)."
                    ),
                ),
                io.Float.Input(
                    "removal_time",
                    default=REMOVAL_TIME,
                    min=0.05,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    advanced=True,
                    tooltip=(
                        "Time the networks are told in the forward (t_s), and how far it goes: z - t_s v(z, t_s). "
                        "The paper does not say which: 1 is our choice."
                    ),
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The clean latent z_dr: starts the texture stage."),
                io.Sigmas.Output(display_name="sigmas", tooltip="Schedule of the texture stage: texture_start to 0."),
            ],
        )

    @classmethod
    def execute(
        cls, guider, latent, lora_name, strength, texture_start, texture_steps, shift, removal_time
    ) -> io.NodeOutput:
        sigmas = texture_sigmas(texture_steps, texture_start, shift)
        model = with_forward_lora(guider.model_patcher, AccelerationLoRA.load(lora_name, strength))
        samples = remove_degradation(guider, model, latent["samples"], removal_time)
        return io.NodeOutput({**latent, "samples": samples}, sigmas)


NODES = [DreamSRRestore, AccelerationLoRAStep]
