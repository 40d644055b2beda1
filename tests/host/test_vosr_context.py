"""What depends on the image alone is computed once a run, and only when that is right."""

from __future__ import annotations

import pytest
import torch

from harness.vosr import CountedCalls, Scene, relative_error, run_guider, set_options

STEPS = 5


@pytest.fixture
def grid():
    from realisr.models.tiles.grid import TileGrid

    return TileGrid(16, 28, 16, 16, 4)


def encodings(model, scene, **run) -> tuple[torch.Tensor, int]:
    """A run's result and how often it encoded a context."""
    with CountedCalls(model.model.diffusion_model, "encode_context") as calls:
        result = run_guider(model, scene, steps=STEPS, **run)
    return result, calls.count


def without_memo(model, monkeypatch) -> None:
    monkeypatch.setattr(model.model, "context_budget", lambda: 0)


def test_context_is_encoded_once_a_branch(multi_step, monkeypatch):
    model, scene = multi_step.load(), Scene.random(multi_step.config)
    kept, count = encodings(model, scene)
    assert count == 2
    assert encodings(model, scene, scale=1.0)[1] == 1
    again, count = encodings(model, scene)
    assert count == 2 and torch.equal(kept, again), "a run must start afresh"
    without_memo(model, monkeypatch)
    anew, count = encodings(model, scene)
    assert count == 2 * STEPS and torch.equal(kept, anew)


def test_tiles_are_encoded_once_each_and_the_weak_context_once_for_all(multi_step, grid, monkeypatch):
    model, scene = multi_step.load(), Scene.random(multi_step.config, (16, 28), grid=grid)
    kept, count = encodings(model, scene)
    assert len(grid) == 2 and count == len(grid) + 1
    without_memo(model, monkeypatch)
    assert torch.equal(kept, encodings(model, scene)[0])


def test_memory_of_the_memo_is_bounded(multi_step, grid, monkeypatch):
    """With room for one tile's context, the other tile's is computed at every step, to the same result."""
    model, scene = multi_step.load(), Scene.random(multi_step.config, (16, 28), grid=grid)
    kept, _ = encodings(model, scene, scale=1.0)
    with torch.inference_mode():
        one_tile = model.model.diffusion_model.encode_context(scene.features[:, :16]).nbytes
    monkeypatch.setattr(model.model, "context_budget", lambda: one_tile * 3 // 2)
    bounded, count = encodings(model, scene, scale=1.0)
    assert count == 1 + STEPS and torch.equal(kept, bounded)


def test_budget_follows_weights_and_free_memory(multi_step, monkeypatch):
    import comfy.model_management

    model = multi_step.load().model
    weights = comfy.model_management.module_size(model.diffusion_model)
    assert model.context_budget() == weights // 2
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda device: weights)
    assert model.context_budget() == weights // 4


def test_one_blank_token_stands_for_1024(multi_step):
    model, scene = multi_step.load(), Scene.random(multi_step.config)
    blanks = scene.wire(scene.weak_strength, torch.zeros(1, 1024, 24))
    assert relative_error(run_guider(model, scene), run_guider(model, scene, weak=blanks)) < 1e-5


def cross_attention_lora(config, seed: int = 5) -> dict[str, torch.Tensor]:
    """A LoRA of what makes the context: the key and value layers of each block."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for block in range(config.depth):
        for layer in ("k_linear", "v_linear"):
            name = f"diffusion_model.blocks.{block}.cross_attn.{layer}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(4, config.hidden_size, generator=generator) / 8
            tensors[f"{name}.lora_B.weight"] = torch.randn(config.hidden_size, 4, generator=generator) / 2
    return tensors


def test_weights_that_hooks_change_are_not_remembered(multi_step):
    """A LoRA hook on the conditions that sets in half-way: keys and values of the first half are stale by then."""
    import comfy.hooks

    model, scene = multi_step.load(), Scene.random(multi_step.config)
    lora = cross_attention_lora(multi_step.config)

    def hooks(*strengths: tuple[float, float]):
        group = comfy.hooks.create_hook_lora(lora, strength_model=1.0, strength_clip=0.0)
        frames = comfy.hooks.HookKeyframeGroup()
        for start, strength in strengths:
            frames.add(comfy.hooks.HookKeyframe(strength, start_percent=start))
        group.set_keyframes_on_hooks(frames)
        return group

    def run(group):
        return encodings(
            model, scene, full=set_options(scene.full, hooks=group), weak=set_options(scene.weak, hooks=group)
        )

    base, _ = encodings(model, scene)
    constant, count = run(hooks((0.0, 1.0)))
    assert count == 2 * STEPS
    assert relative_error(constant, base) > 1e-3, "the LoRA should show"
    late, _ = run(hooks((0.0, 0.0), (0.5, 1.0)))
    assert relative_error(late, constant) > 1e-3 and relative_error(late, base) > 1e-3
    patched = model.clone()
    import comfy.lora

    keys = comfy.lora.model_lora_keys_unet(patched.model, {})
    patched.add_patches(comfy.lora.load_lora(lora, keys), 1.0)
    assert relative_error(constant, encodings(patched, scene)[0]) < 1e-5
    assert torch.equal(base, encodings(model, scene)[0]), "the hooks must leave the base weights"
