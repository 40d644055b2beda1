"""Where vision-language models in transformers' format lie: whole folders in the host's `LLM` folders."""

from __future__ import annotations

from pathlib import Path

from .llm_folders import INDEX_NAME, SINGLE_NAME, llm_folders, llm_places, read_json
from .loading import first_few

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def vlm_folders() -> dict[str, Path]:
    """Folders of models with a vision part in the host's `LLM` folders, by relative names."""
    return llm_folders(lambda config: "vision_config" in config)


def vlm_choices() -> list[str]:
    return list(vlm_folders())


def find_vlm(name: str) -> Path:
    """The folder behind a loader choice. Raises ValueError naming what is missing in it."""
    folder = vlm_folders().get(name)
    if folder is None:
        raise ValueError(
            f"There is no folder {name} of a vision-language model in {llm_places()}. Put a whole transformers folder "
            "there, for example that of huggingface.co/llava-hf/llava-1.5-7b-hf, and refresh the node list (R)."
        )
    missing = missing_files(folder)
    if missing:
        raise ValueError(
            f"{name} is incomplete: it lacks {first_few(missing, 5)}. Download the whole folder again, from where it "
            "was published."
        )
    read_json(folder / "config.json")
    return folder


def missing_files(folder: Path) -> list[str]:
    """What a model's folder lacks, in words; weights are safetensors, in one file or as an index lists them."""
    missing = [
        " or ".join(names)
        for names in (TOKENIZER_FILES, PROCESSOR_FILES)
        if not any((folder / name).is_file() for name in names)
    ]
    if (folder / SINGLE_NAME).is_file():
        return missing
    index = folder / INDEX_NAME
    if not index.is_file():
        return [*missing, f"{SINGLE_NAME} or {INDEX_NAME} with its files"]
    shards = sorted(set(read_json(index).get("weight_map", {}).values()))
    return missing + [name for name in shards if not (folder / name).is_file()]
