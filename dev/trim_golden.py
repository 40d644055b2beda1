"""Make the trimmed copy of a method's golden files that lives in the repository.

    python dev/trim_golden.py FULL_FOLDER tests/golden/vosr

Keeps the format, so the parity tests read either folder. What is left out: models that another of the same kind
stands for, cases that repeat a code path, large intermediates. Some long tables are thinned by a further stride,
which their metadata states. Recipes of weights (JSON) are copied.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

LIMIT_BYTES = 8_000_000


@dataclass(frozen=True)
class Thin:
    """Keep every `step`-th index along `axis`; `name` replaces the last part of the tensor's name."""

    axis: int
    step: int
    name: str | None = None

    def apply(self, key: str, tensor: Tensor) -> tuple[str, Tensor]:
        index = [slice(None)] * tensor.ndim
        index[self.axis] = slice(None, None, self.step)
        renamed = key if self.name is None else f"{key.rpartition('/')[0]}/{self.name}"
        return renamed, tensor[tuple(index)].contiguous()


@dataclass(frozen=True)
class Keep:
    """What stays of one file: tensors by shell pattern, then without `drop`; `cases` by name; metadata updates.

    rows: of a tensor, the only indices of its first axis that tests use. They are stored as `<name>@rows`, with the
    indices and the full length as `<name>@index`.
    """

    tensors: tuple[str, ...] = ("*",)
    drop: tuple[str, ...] = ()
    cases: tuple[str, ...] | None = None
    thin: dict[str, tuple[Thin, ...]] = field(default_factory=dict)
    rows: dict[str, Sequence[int] | Callable[[Path], list[int]]] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    case_metadata: dict[str, Any] = field(default_factory=dict)

    def wants(self, key: str) -> bool:
        if self.cases is not None and key.partition("/")[0] not in self.cases:
            return False
        return matches(key, self.tensors) and not matches(key, self.drop)


VOSR = {
    # One network per latent space: 4 channels multi-step, 16 channels with an end time.
    "dit_c4_ms.weights": Keep(),
    "dit_c16_os.weights": Keep(),
    "dino_b.weights": Keep(),
    "dino_l.weights": Keep(),
    "sd_vae.weights": Keep(),
    "lwdecoder.weights": Keep(),
    "qwen_vae.weights": Keep(),
    "dit_forward_c4_ms": Keep(cases=("case2",), drop=("*/mid/rope_*", "*/mid/b*_out")),
    "dit_nonsquare_ext_c4_ms": Keep(cases=("case0",), drop=("*/mid/*",)),
    "guidance_c4_ms": Keep(
        tensors=("in/*", "*/mid/v_cond", "*w0.15/*"),
        metadata={"ws": [0.15]},
    ),
    "sample_multistep_c4_ms": Keep(cases=("case0", "case3", "case4"), drop=("case[03]/mid/x_path",)),
    "sample_onestep_c16_os": Keep(cases=("case3",)),
    "tiled": Keep(cases=("case0", "case2")),
    "tile_helpers": Keep(drop=("mask_64x64/*",), metadata={"masks": [[16, 16], [12, 12], [20, 20]]}),
    "rope_tables": Keep(
        drop=("grid20/*",),
        thin={"grid48/*": (Thin(0, 2),), "grid32/*": (Thin(0, 10),)},
        metadata={"grids": [32, 48], "row_stride": {"32": 50, "48": 74}},
    ),
    "dino_preprocess": Keep(
        cases=("c",),
        thin={"c/out/pixels": (Thin(2, 4), Thin(3, 4))},
        case_metadata={"stride": 4},
    ),
    "dino_features": Keep(cases=("dino_b",), thin={"*/out/feat": (Thin(1, 8, "feat_every8"),)}),
    "sd_vae_encode": Keep(),
    "lwdecoder": Keep(drop=("mid/raw", "mid/up*")),
    "qwen_vae": Keep(drop=("dec/mid/raw", "dec/mid/up*", "enc/mid/down?")),
    "image_io": Keep(cases=("x2", "x1", "toimg")),
    "color_align": Keep(cases=("diff", "tiny"), drop=("diff/mid/*",)),
    "e2e_c16_os": Keep(drop=("out/sr", "mid/sr_u8"), thin={"out/final_u8": (Thin(0, 4, "final_u8_every4"),)}),
    "e2e_c4_ms": Keep(drop=("out/sr", "mid/sr_u8"), thin={"out/final_u8": (Thin(0, 4, "final_u8_every4"),)}),
    "e2e_c4_ms_tiled": Keep(drop=("out/sr", "mid/sr_u8"), thin={"out/final_u8": (Thin(0, 4, "final_u8_every4"),)}),
    # The distillation losses need dit_c4_os as student, which is left out.
    "train_losses": Keep(tensors=("in/*", "draw/*", "fm/*")),
}
# Small enough to keep whole.
FLUX = {
    name: Keep()
    for name in (
        "flux_forward",
        "vicr_canvas",
        "vicr_sigmas",
        "vicr_sample",
        "vicr_lora",
        "vicr_lora.weights",
        "vicr_bridge",
        "vicr_bridge_hidden.weights",
        "vicr_bridge_pooled.weights",
        "vicr_tiled",
        "vicr_best_of_n",
        "dreamsr_control",
        "dreamsr_ra_lora.weights",
        "dreamsr_removal",
        "dreamsr_loop",
        "multidiffusion",
    )
}


def token_ids(source: Path) -> list[int]:
    """Every token the generation network is fed: the rows of its embedding that matter."""
    used: set[int] = set()
    for name in ("generation", "jacobi_run"):
        with safe_open(source / f"{name}.safetensors", "pt") as file:
            for key in file.keys():
                if key.endswith(("prompt_ids", "generated_ids", "input_ids")):
                    used.update(file.get_tensor(key).flatten().tolist())
    return sorted(used)


# PURE's decoder is there as transformer_b (every option of the class) and as the generation network (its own wiring).
PURE = {
    "generation_embed.weights": Keep(rows={"model.embed_tokens.weight": token_ids}),
    "generation_head.weights": Keep(),
    "generation_layers.weights": Keep(),
    "generation": Keep(),
    "transformer_b.weights": Keep(),
    "transformer_b": Keep(drop=("mid.hidden_states.[01]",)),
    "vq_encoder.weights": Keep(drop=("quantize.codebook_used",)),
    "vq_decoder.weights": Keep(),
    "vq": Keep(drop=("square.*",)),
    "lq_tokens": Keep(drop=("big_landscape.*", "crop_wide.*", "square_96.*")),
    "logits_stages": Keep(
        tensors=("in.*", "ktable.*", "text_tie.*", "size_h_slot.*", "image_fourth*", "newline_slot.*", "end_slot.*"),
        drop=("newline_slot.after_guidance*", "end_slot.after_guidance*"),
        rows={"in.cond_logits": (0, 1, 5), "in.uncond_logits": (3,)},
    ),
    "jacobi_accept": Keep(drop=("*.in.accept_uniforms_full",)),
    "jacobi_run": Keep(),
    "wavelet": Keep(drop=("0.*", "1.mid.*")),
}
METHODS = {"flux": FLUX, "pure": PURE, "vosr": VOSR}


def matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def trim(tensors: dict[str, Tensor], golden: dict[str, Any], keep: Keep) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The kept tensors of one file and its metadata, brought in line with them."""
    kept: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if not keep.wants(key):
            continue
        name = key
        for pattern, steps in keep.thin.items():
            if fnmatch.fnmatchcase(key, pattern):
                for step in steps:
                    name, tensor = step.apply(name, tensor)
        kept[name] = tensor
    golden = {**golden, **keep.metadata}
    if "cases" in golden:
        golden["cases"] = [
            {**case, **keep.case_metadata}
            for case in golden["cases"]
            if keep.cases is None or case["name"] in keep.cases
        ]
    return kept, golden


def trim_rows(tensors: dict[str, Tensor], keep: Keep, source: Path) -> dict[str, Tensor]:
    """Replace the tensors of `keep.rows` by their rows that are used."""
    out = dict(tensors)
    for key, chosen in keep.rows.items():
        tensor = out.pop(key)
        rows = chosen(source) if callable(chosen) else list(chosen)
        out[f"{key}@rows"] = tensor[rows].contiguous()
        out[f"{key}@index"] = torch.tensor([*rows, len(tensor)])
    return out


def trim_strings(strings: dict[str, str], kept: dict[str, Tensor]) -> dict[str, str]:
    """Metadata of a PURE file, several JSON strings, without cases that have no tensor left."""
    if "cases" not in strings:
        return strings
    names = {key.partition(".")[0] for key in kept}
    cases = [case for case in json.loads(strings["cases"]) if case["case"] in names]
    return {**strings, "cases": json.dumps(cases)}


def trim_folder(source: Path, target: Path, keeps: dict[str, Keep]) -> int:
    """Write the trimmed copy of `source` into `target`; returns its size in bytes."""
    target.mkdir(parents=True, exist_ok=True)
    total = 0
    for name, keep in keeps.items():
        with safe_open(source / f"{name}.safetensors", "pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        kept, golden = trim(tensors, json.loads(metadata.get("golden", "{}")), keep)
        strings = {"golden": json.dumps(golden)} if "golden" in metadata else trim_strings(metadata, kept)
        path = target / f"{name}.safetensors"
        save_file(trim_rows(kept, keep, source), path, metadata=strings)
        size = path.stat().st_size
        total += size
        print(f"{size:>9,}  {name}")
    for recipe in sorted(source.glob("*.weights.json")):
        total += shutil.copyfile(recipe, target / recipe.name).stat().st_size
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with the full golden files")
    parser.add_argument("target", type=Path, help="folder to write")
    parser.add_argument("--method", choices=sorted(METHODS), default="vosr")
    args = parser.parse_args()
    total = trim_folder(args.source, args.target, METHODS[args.method])
    print(f"{total:>9,}  in all, limit {LIMIT_BYTES:,}")
    if total > LIMIT_BYTES:
        raise SystemExit("the copy is over its limit: keep less")


if __name__ == "__main__":
    main()
