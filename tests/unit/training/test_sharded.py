"""FSDP2: two CPU processes with the shipped launch configurations compute what one process does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from _pack import ROOT
from harness import dreamsr_training, pure_training, sharded_run, vicr_training
from harness.training import TrainingServer, write_config

CONFIGS = ROOT / "training" / "configs" / "accelerate"


def plain(value: Any) -> Any:
    """Settings as YAML can write them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


RATE = {"optimizer": {"learning_rate": 1e-3}}


def pure(root: Path, comfyui: Path, **changes: Any) -> dict[str, Any]:
    return pure_training.settings(root, batch=1, **RATE, **changes)


def pure_lora(root: Path, comfyui: Path) -> dict[str, Any]:
    """With a validation image, which shards restore as well."""
    settings = pure(root, comfyui, lora={"rank": 4, "alpha": 4})
    return {**settings, "validation": {"images": [root / "pairs" / "hq" / "0.png"], "every": 2}}


def vicr(root: Path, comfyui: Path) -> dict[str, Any]:
    models = vicr_training.save_models(root / "models", comfyui)
    photos = vicr_training.save_photos(root / "photos")
    changes = {"optimizer": {"name": "adamw", "learning_rate": 1e-3}}
    return vicr_training.vicr_settings(root / "run", models, photos, batch=1, **changes)


def dreamsr(root: Path, comfyui: Path, **changes: Any) -> dict[str, Any]:
    models, photos = dreamsr_training.write_models(root / "models"), dreamsr_training.write_photos(root / "photos")
    # With AdamW's own eps a gradient of almost nothing moves a weight as far as any other, by its sign.
    rate = {"optimizer": {"learning_rate": 1e-3, "eps": 1e-3}}
    return dreamsr_training.settings(models, photos, comfyui, root / "run", batch=1, **rate, **changes)


def dreamsr_lora(root: Path, comfyui: Path) -> dict[str, Any]:
    """The control's turn, then the turns of the acceleration LoRA and of the discriminator."""
    return dreamsr(root, comfyui, lora={"rank": 4, "control_steps": 1, "lora_steps": 1})


RUNS = {
    "pure": ("pure", "fsdp2_pure", pure),
    "pure LoRA": ("pure", "fsdp2_pure", pure_lora),
    "vicr": ("vicr", "fsdp2_flux", vicr),
    "dreamsr": ("dreamsr", "fsdp2_dreamsr", dreamsr),
    "dreamsr LoRA": ("dreamsr", "fsdp2_dreamsr", dreamsr_lora),
}
RESUMED = ("pure LoRA",)


def last_network(out: Path) -> dict[str, torch.Tensor]:
    return load_file(max((out / "checkpoints").glob("step_*")) / "network.safetensors")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_launch_configurations_are_valid(path):
    environment = sharded_run.launch_environment(path)
    sharded = yaml.safe_load(path.read_text())["distributed_type"] == "FSDP"
    assert (environment.get("ACCELERATE_USE_FSDP") == "true") == sharded == path.stem.startswith("fsdp2")
    assert not sharded or environment["FSDP_VERSION"] == "2"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], TrainingServer]]:
    """The process that starts trainings of a method."""
    with ExitStack() as stack:

        @cache
        def started(method: str) -> TrainingServer:
            return stack.enter_context(TrainingServer(tmp_path_factory.mktemp(method), method))

        yield started


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", RUNS)
def test_shards_train_as_a_whole_does(tmp_path, comfyui, server, name):
    """Two processes with FSDP2, some resumed on the way, against one that accumulates both micro-batches."""
    method, launch, make = RUNS[name]
    settings = plain({**make(tmp_path, comfyui.comfyui), "steps": 2, "workers": 0, "precision": "fp32"})
    config = ("--config", write_config(tmp_path / "run.yaml", settings))
    environment = sharded_run.launch_environment(CONFIGS / f"{launch}.yaml")
    for steps in (1, 2) if name in RESUMED else (2,):
        arguments = (*config, f"out={tmp_path / 'sharded'}", f"steps={steps}")
        runs = server(method).run_together(2, *arguments, environment=environment)
    assert ("going on from step 1" in runs[0].text) == (name in RESUMED)
    assert (tmp_path / "sharded" / "samples").is_dir() == ("validation" in settings)
    server(method).run(*config, f"out={tmp_path / 'whole'}", "accumulate=2")
    found, expected = last_network(tmp_path / "sharded"), last_network(tmp_path / "whole")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        # AdamW magnifies the rounding of gradients near 0, so single numbers differ more than their mean does.
        difference = (found[key] - value).square().mean().sqrt()
        assert difference <= 0.01 * 1e-3, f"{key} differs by {difference:.1e}, more than a hundredth of a step"
