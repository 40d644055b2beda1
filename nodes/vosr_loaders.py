"""Loaders of VOSR's three parts: diffusion model, autoencoder, vision encoder."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.precision import WEIGHT_DTYPES
from ..host.vosr.files import BUNDLED, find_model, model_choices
from ..host.vosr.loader import VARIANTS, load_vosr_model
from ..host.vosr.vae import (
    NO_DECODER,
    PIXEL_UNSHUFFLE,
    decoder_choices,
    find_decoder,
    find_vae,
    load_vosr_vae,
    vae_choices,
)
from ..host.vosr.vision import find_vision_encoder, load_vision_encoder, vision_choices
from .inputs import checked_choice, per_input

CATEGORY = "RealISR/VOSR"


class LoadVOSRModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_LoadVOSRModel",
            display_name="Load VOSR Model",
            category=CATEGORY,
            description=(
                "Loads a VOSR diffusion model: an official folder (args.json and checkpoints/ema_model.safetensors) "
                "or a single .safetensors file in models/diffusion_models. VOSR 0.5B and 1.4B, multi-step and "
                "one-step, and VOSR 2.0 work as released. VOSR nano comes with the pack."
            ),
            search_aliases=["vosr", "load diffusion model", "checkpoint", "restoration model"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=model_choices(),
                    default=BUNDLED,
                    tooltip="An official VOSR folder or a single file in models/diffusion_models, or the small "
                    "demonstration model bundled with the pack.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    advanced=True,
                    tooltip=(
                        "Precision of the weights in memory. default: what ComfyUI picks for this device. fp16 is "
                        "close to fp32 for these models, bf16 noticeably less so; fp8 halves the memory again."
                    ),
                ),
                io.Combo.Input(
                    "variant",
                    options=list(VARIANTS),
                    default="auto",
                    advanced=True,
                    tooltip=(
                        "auto: read from the weights and args.json. Choose one-step for a VOSR 2.0 file without its "
                        "args.json, which looks exactly like a multi-step model."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="An ordinary MODEL: samplers, LoRA loaders, TorchCompile and merges accept it.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, model_name: str | None = None) -> bool | str:
        return checked_choice(model_name, find_model)

    @classmethod
    def execute(cls, model_name: str, weight_dtype: str, variant: str) -> io.NodeOutput:
        return io.NodeOutput(load_vosr_model(model_name, weight_dtype, variant))


class LoadVOSRVAE(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_LoadVOSRVAE",
            display_name="Load VOSR VAE",
            category=CATEGORY,
            description=(
                "Loads the autoencoder a VOSR model works in. 0.5B models: the SD 2.1 VAE with the light decoder "
                "sd21_lwdecoder.pth. 1.4B models and VOSR 2.0: the Qwen-Image 2D VAE. VOSR nano: pixel unshuffle, "
                "no file."
            ),
            search_aliases=["vosr", "vae", "light decoder", "lwdecoder", "qwen image vae", "autoencoder"],
            inputs=[
                io.Combo.Input(
                    "vae_name",
                    options=vae_choices(),
                    default=PIXEL_UNSHUFFLE,
                    tooltip="Encoder (or whole autoencoder) in models/vae. Pixel unshuffle is exact and needs no file.",
                ),
                io.Combo.Input(
                    "decoder_name",
                    options=decoder_choices(),
                    default=NO_DECODER,
                    tooltip=(
                        "sd21_lwdecoder.pth in models/vae, for the 0.5B models. Otherwise leave it: the autoencoder "
                        "decodes with its own decoder."
                    ),
                ),
            ],
            outputs=[
                io.Vae.Output(
                    display_name="vae",
                    tooltip="An ordinary VAE: the core encode and decode nodes accept it, tiled too.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, vae_name: str | None = None, decoder_name: str | None = None) -> bool | str:
        return per_input(
            vae_name=checked_choice(vae_name, find_vae), decoder_name=checked_choice(decoder_name, find_decoder)
        )

    @classmethod
    def execute(cls, vae_name: str, decoder_name: str) -> io.NodeOutput:
        return io.NodeOutput(load_vosr_vae(vae_name, decoder_name))


class LoadVOSRVisionEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RealISR_LoadVOSRVisionEncoder",
            display_name="Load VOSR Vision Encoder",
            category=CATEGORY,
            description=(
                "Loads DINOv2 from models/clip_vision, in hub naming (dinov2_vitb14_pretrain.pth) or transformers "
                "naming. ViT-B/14 goes with the 0.5B models, ViT-L/14 with the 1.4B models and VOSR 2.0. VOSR nano "
                "needs none."
            ),
            search_aliases=["vosr", "dino", "dinov2", "clip vision", "vision encoder", "semantic features"],
            inputs=[
                io.Combo.Input(
                    "vision_name",
                    options=vision_choices(),
                    tooltip=(
                        "DINOv2 without registers: dinov2_vitb14_pretrain.pth or dinov2_vitl14_pretrain.pth, or the "
                        "same in safetensors."
                    ),
                )
            ],
            outputs=[
                io.ClipVision.Output(
                    display_name="vision_encoder", tooltip="A CLIP_VISION holding DINOv2, for VOSR Conditioning."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, vision_name: str | None = None) -> bool | str:
        return checked_choice(vision_name, find_vision_encoder)

    @classmethod
    def execute(cls, vision_name: str) -> io.NodeOutput:
        return io.NodeOutput(load_vision_encoder(vision_name))


NODES = [LoadVOSRModel, LoadVOSRVAE, LoadVOSRVisionEncoder]
