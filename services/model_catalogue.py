"""Which model files each method needs, where they are published, how large they are, and where they belong.

The one home of these facts: the loaders' messages and checklists and the README's table say what is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

HUB = "https://huggingface.co/"
VOSR, PURE, LLAMAGEN = f"{HUB}CSWRY/VOSR", f"{HUB}nonwhy/PURE", f"{HUB}FoundationVision/LlamaGen"
FLUX_DEV, FLUX_FILL = f"{HUB}black-forest-labs/FLUX.1-dev", f"{HUB}black-forest-labs/FLUX.1-Fill-dev"
FLUX_SCHNELL, FLUX_TEXT = f"{HUB}black-forest-labs/FLUX.1-schnell", f"{HUB}comfyanonymous/flux_text_encoders"
CLIP_L, LLAVA = f"{HUB}openai/clip-vit-large-patch14", f"{HUB}llava-hf/llava-1.5-7b-hf"

ON_THE_PAGE = "see that page"
ACCEPT = "accept it on that page first"


@dataclass(frozen=True)
class Part:
    """Something to fetch: a file, or a folder of files."""

    name: str
    """Of the file, or of the folder, below the host's model folder, as the shipped workflows name it."""
    folder: str
    """The host's name for the model folder."""
    page: str = ""
    """Where it is published; "" for what its authors have not released."""
    size: int = 0
    """Bytes of all its files, about: from the published tensors' shapes. 0: not known."""
    files: tuple[str, ...] = ()
    """What a folder holds; empty for a file. Some folders list further files in an index."""
    link: str = ""
    """Of the file itself, where that is known."""
    licence: str = ON_THE_PAGE
    note: str = ""
    """What else one has to know to fetch it."""

    @property
    def is_folder(self) -> bool:
        return bool(self.files)

    @property
    def where(self) -> str:
        """The address to copy."""
        return self.link or self.page


VOSR_WEIGHT_FOLDERS = ("clean_weights", "checkpoints", ".")
VOSR_WEIGHT_NAMES = ("ema_model.safetensors", "model.safetensors")
"""In a published folder, in the order of choice: a fixed one, so that a second file never changes what is loaded."""


def vosr_model(name: str, size: int) -> Part:
    return Part(name, "diffusion_models", VOSR, size, ("args.json", "checkpoints/ema_model.safetensors"))


def file_of(page: str, folder: str, name: str, size: int = 0, licence: str = ON_THE_PAGE) -> Part:
    """A file that lies at the top of a repository under the name it is used by."""
    return Part(name, folder, page, size, link=f"{page}/resolve/main/{name}", licence=licence)


def unreleased(name: str, folder: str, note: str, size: int = 0) -> Part:
    return Part(name, folder, size=size, note=note, licence="")


SD21_VAE = Part("stable-diffusion-2-1-base/vae/diffusion_pytorch_model.safetensors", "vae", VOSR, 334_615_452)
LIGHT_DECODER = Part("sd21_lwdecoder.pth", "vae", VOSR, 52_035_084)
QWEN_VAE = Part("Qwen-Image-vae-2d/diffusion_pytorch_model.safetensors", "vae", VOSR, 178_418_860)
DINO_B = Part(
    "dinov2_vitb14_pretrain.pth", "clip_vision", VOSR, 346_321_920, note="It lies in torch_cache/checkpoints there."
)
DINO_L = Part(
    "dinov2_vitl14_pretrain.pth", "clip_vision", VOSR, 1_217_474_560, note="It lies in torch_cache/checkpoints there."
)
VQ_FILE = Part(
    "vq_ds8_c2i.pt",
    "vae",
    LLAMAGEN,
    280_701_484,
    link=f"{LLAMAGEN}/resolve/main/vq_ds8_c2i.pt",
)
PURE_FOLDER = Part(
    "PURE",
    "LLM",
    PURE,
    14_160_535_552,
    ("config.json", "tokenizer.json", "model.safetensors.index.json"),
    note="And every .safetensors file that the index lists.",
)
LLAVA_FOLDER = Part(
    "llava-1.5-7b-hf",
    "LLM",
    LLAVA,
    14_000_000_000,
    ("config.json", "tokenizer.json", "preprocessor_config.json", "model.safetensors.index.json"),
    note="And every .safetensors file that the index lists.",
)
FLUX_PARTS = (
    file_of(FLUX_TEXT, "text_encoders", "clip_l.safetensors"),
    file_of(FLUX_TEXT, "text_encoders", "t5xxl_fp16.safetensors"),
    file_of(FLUX_SCHNELL, "vae", "ae.safetensors"),
)
BRIDGE = unreleased(
    "vicr_bridge.safetensors", "model_patches", "Its authors have not released one: train it, or choose 'none'."
)
CONTROL = unreleased(
    "dreamsr_mm_controlnet.safetensors",
    "controlnet",
    "Its authors have not released one: train it, starting from Initialise MM-ControlNet.",
    8_000_000_000,
)


@dataclass(frozen=True)
class Method:
    """What one method, at one size, needs besides this pack."""

    name: str
    parts: tuple[Part, ...] = ()


NANO = "VOSR nano"
"""Comes with the pack."""

METHODS: Mapping[str, Method] = {
    "vosr_nano": Method(NANO),
    "vosr_0.5b_os": Method(
        "VOSR 0.5B one-step", (vosr_model("VOSR_0.5B_os", 1_948_337_520), SD21_VAE, LIGHT_DECODER, DINO_B)
    ),
    "vosr_0.5b_ms": Method(
        "VOSR 0.5B multi-step", (vosr_model("VOSR_0.5B_ms", 1_943_086_064), SD21_VAE, LIGHT_DECODER, DINO_B)
    ),
    "vosr_1.4b_os": Method("VOSR 1.4B one-step", (vosr_model("VOSR_1.4B_os", 5_587_408_152), QWEN_VAE, DINO_L)),
    "vosr_1.4b_ms": Method("VOSR 1.4B multi-step", (vosr_model("VOSR_1.4B_ms", 5_576_385_424), QWEN_VAE, DINO_L)),
    "vosr2": Method("VOSR 2.0", (vosr_model("VOSR2", 5_576_385_424), QWEN_VAE, DINO_L)),
    "vicr": Method(
        "VICR",
        (
            file_of(FLUX_FILL, "diffusion_models", "flux1-fill-dev.safetensors", licence=ACCEPT),
            *FLUX_PARTS,
            Part(
                "clip_vision_l.safetensors",
                "clip_vision",
                CLIP_L,
                note="It is called model.safetensors there: rename it.",
            ),
            BRIDGE,
            unreleased("vicr_lora.safetensors", "loras", "Its authors have not released one: train it."),
        ),
    ),
    "dreamsr": Method(
        "DreamSR",
        (
            file_of(FLUX_DEV, "diffusion_models", "flux1-dev.safetensors", licence=ACCEPT),
            *FLUX_PARTS,
            CONTROL,
            unreleased(
                "dreamsr_acceleration_lora.safetensors", "loras", "Its authors have not released one: train it."
            ),
        ),
    ),
    "pure": Method("PURE", (PURE_FOLDER, VQ_FILE)),
    "llava": Method("LLaVA 1.5 7B", (LLAVA_FOLDER,)),
}
"""By a key that no one sees."""

LOADERS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("RealISR_LoadVOSRModel", "RealISR_LoadVOSRVAE", "RealISR_LoadVOSRVisionEncoder"),
        tuple(key for key in METHODS if key.startswith("vosr")),
    ),
    "RealISR_LoadVisionContextBridge": ("vicr",),
    "RealISR_LoadMMControlNet": ("dreamsr",),
    "RealISR_LoadARRestorer": ("pure",),
    "RealISR_LoadLocalVLM": ("llava",),
}
"""Loader node -> the methods whose files its checklist shows."""


def known(folder: str, name: str) -> Part | None:
    """The part that a loader's choice means: by its place in the folder, or by the file's or folder's own name.

    A folder's weight file means the folder. None for what the catalogue does not know.
    """
    parts = [part for method in METHODS.values() for part in method.parts if part.folder == folder]
    for part in parts:
        if (
            name == part.name
            or name.endswith(f"/{part.name}")
            or name in (f"{part.name}/{file}" for file in part.files)
        ):
            return part
    last = name.rpartition("/")[2]
    return next((part for part in parts if not part.is_folder and "/" not in part.name and last == part.name), None)


def size_text(size: int) -> str:
    """ "about 1.9 GB" of bytes; "" for 0."""
    if not size:
        return ""
    return f"about {size / 1e9:.1f} GB" if size >= 1e9 else f"about {max(1, round(size / 1e6))} MB"
