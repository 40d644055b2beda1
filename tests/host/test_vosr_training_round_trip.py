"""Train tiny VOSR networks of each kind, load the written files through the nodes, and get the trainer's prediction."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from harness import checkpoints
from harness.autoencoders import qwen_vae, sd21_vae
from harness.training import save_photos
from harness.vosr import Scene, relative_error, run_guider

TOLERANCE = 1e-5
STEPS, CROP = 20, 64
TINY = {"dim": 64, "depth": 2, "num_heads": 2, "resolution": CROP}
MODELS: dict[str, dict[str, Any]] = {
    "sd2": {"preset": "0.5B", **TINY, "enc_dim": 64, "encdim_ratio": 1},
    "qwen": {"preset": "1.4B", **TINY, "enc_dim": 64, "encdim_ratio": 1},
    "pixels": {"preset": "nano", **TINY, "dim": 160, "num_heads": 5, "patch_size": 4},
}


@pytest.fixture(scope="module")
def files(host) -> dict[str, dict[str, str]]:
    """Frozen parts by kind, in the host's model folders."""
    sizes = {"sd2": 12, "qwen": 24}
    vaes = {"sd2": sd21_vae(), "qwen": qwen_vae()}
    return {
        kind: {
            "vae": host.save_model("vae", f"trip_{kind}/diffusion_pytorch_model.safetensors", vaes[kind]),
            "vision": host.save_model(
                "clip_vision", f"trip_{kind}.safetensors", checkpoints.dinov2(width=64, depth=depth)
            ),
        }
        for kind, depth in sizes.items()
    } | {"pixels": {}}


def train(host: Any, folder: Path, files: dict[str, str], photos: Path, **settings: Any) -> Any:
    """The engine after a run of STEPS into a folder of `diffusion_models`."""
    from realisr.training.engine.engine import Engine
    from realisr.training.vosr.method import VOSRMethod

    places = {"vae": host.models / "vae", "vision": host.models / "clip_vision"}
    config = VOSRMethod.config_type.model_validate(
        {
            "out": folder,
            "steps": STEPS,
            "batch": 2,
            "precision": "fp32",
            "workers": 0,
            "ema": 0.8,
            "optimizer": {"learning_rate": 0.01},
            "data": {"sources": [{"folder": photos}], "crop": CROP},
            "sampling": {"steps": 2},
            "validation": {"images": [photos], "every": STEPS, "count": 2},
            "log": {"every": 5, "trackers": []},
            "export": {"file": "whole.safetensors", "dtype": "fp32"},
            **{part: places[part] / name for part, name in files.items()},
            **settings,
        }
    )
    engine = Engine(VOSRMethod(config))
    engine.run()
    return engine


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return save_photos(tmp_path_factory.mktemp("photos"), side=96)


@pytest.fixture(scope="module", params=list(MODELS))
def trained(request, host, files, photos) -> Any:
    kind = request.param
    folder = host.models / "diffusion_models" / f"trip_{kind}"
    return train(host, folder, files[kind], photos, model=MODELS[kind]), files[kind], folder.name


def in_the_graph(host: Any, name: str, files: dict[str, str], scene: Scene, image: Any, scale: float) -> torch.Tensor:
    """Two guided Euler steps of the loaded model, by the pack's nodes and the host's sampler."""
    from realisr.nodes.vosr import VOSRConditioning
    from realisr.nodes.vosr_loaders import LoadVOSRModel, LoadVOSRVAE, LoadVOSRVisionEncoder

    (model,) = host.run(LoadVOSRModel, model_name=name, weight_dtype="fp32", variant="auto")
    vae_name = files.get("vae", "pixel unshuffle x2 (no file)")
    (vae,) = host.run(LoadVOSRVAE, vae_name=vae_name, decoder_name="none (the VAE's own)")
    vision = None
    if "vision" in files:
        (vision,) = host.run(LoadVOSRVisionEncoder, vision_name=files["vision"])
    full, weak, *_ = host.run(
        VOSRConditioning,
        image=image,
        vae=vae,
        vision_encoder=vision,
        weak_strength=0.15,
        tile_size=512,
        tile_overlap=64,
        posterior="mean",
        seed=0,
        vae_tile_size=0,
    )
    return run_guider(model, scene, scale, 2, full=full, weak=weak)


def in_the_trainer(engine: Any, scene: Scene, image: torch.Tensor, scale: float) -> torch.Tensor:
    """The same by the trainer's own network, with the average of its weights, normalised."""
    from realisr.training.vosr.sampling import restore_latent

    method = engine.method
    lq = image.movedim(-1, 1) * 2 - 1
    with torch.no_grad(), engine.average.in_place():
        z = method.features(lq).get("z")
        lq_latent = method.latents.latent(method.latents.posterior(lq))
        return restore_latent(method.dit, lq_latent, z, scene.noise, 2, scale, 0.15)


def compare(host: Any, engine: Any, files: dict[str, str], name: str, scale: float) -> None:
    from realisr.host.vosr.latent import latent_format_for

    method = engine.method
    channels, side = method.latents.channels, CROP // method.latents.downscale
    noise = torch.randn(1, channels, side, side, generator=torch.manual_seed(7))
    unused = torch.zeros_like(noise)
    scene = Scene(unused, torch.zeros(1, 1, 1), noise, seed=7)
    image = torch.rand(1, CROP, CROP, 3, generator=torch.Generator().manual_seed(4))
    expected = in_the_trainer(engine, scene, image, scale)
    space = latent_format_for(channels, method.args)
    found = in_the_graph(host, name, files, scene, image, scale)
    assert relative_error(found, space.process_out(expected)) < TOLERANCE
    assert relative_error(expected, noise) > 0.05, "the network predicts next to nothing: the comparison shows nothing"


@pytest.mark.slow
def test_the_graph_predicts_what_the_trainer_does(host, trained):
    engine, files, name = trained
    folder = host.models / "diffusion_models"
    whole = f"{name}_whole.safetensors"
    shutil.copy(folder / name / "whole.safetensors", folder / whole)
    for choice in (name, whole):
        compare(host, engine, files, choice, 0.5)


@pytest.mark.slow
def test_the_files_are_the_released_ones(host, trained):
    engine, _, name = trained
    folder = host.models / "diffusion_models" / name
    args = json.loads((folder / "args.json").read_text())
    assert args == engine.method.args
    expected = {key: tuple(value.shape) for key, value in engine.method.dit.state_dict().items()}
    for path in (folder / "checkpoints" / "ema_model.safetensors", folder / "whole.safetensors"):
        with safe_open(path, framework="pt") as file:
            assert {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()} == expected
            assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F32"}
            metadata = file.metadata() or {}
        assert "vosr_args" not in metadata or json.loads(metadata["vosr_args"]) == args
    assert "vosr_args" in metadata, "the single file carries its args"
    assert len(list((folder / "samples").glob("*.png"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rcgm", "shortcut"])
@pytest.mark.parametrize("trained", ["sd2"], indirect=True)
def test_a_student_runs_in_the_graph(host, trained, photos, method):
    """One-step distillation of the trained teacher, as a folder; the student runs without guidance."""
    engine, files, name = trained
    teacher = host.models / "diffusion_models" / name
    folder = teacher.with_name(f"{name}_{method}")
    distillation = {"teacher": teacher, "method": method}
    student = train(host, folder, files, photos, mode="distill", distillation=distillation)
    assert student.method.args["distill_type"] == method and student.method.args["auxiliary_time_cond"]
    assert student.method.dit.config.has_end_time
    before = engine.average.values
    moved = [value for key, value in student.average.values.items() if "r_embedder" not in key]
    assert len(moved) == len(before)
    assert any(not torch.equal(value, before[key]) for key, value in student.average.values.items() if key in before)
    compare(host, student, files, folder.name, 1.0)
