"""What the host does to a MODEL's weights: LoRA, merging, saving, compiling, partial loading, cloning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.vosr import Recorder, Scene, TinyVOSR, plain_run, relative_error, run_guider

RANK = 4


def lora_for(weights: dict[str, Tensor], seed: int = 3) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A LoRA file of every matrix, as trainers write it, and the differences it means."""
    generator = torch.Generator().manual_seed(seed)
    tensors, differences = {}, {}
    for name, weight in weights.items():
        if not name.endswith(".weight") or weight.ndim != 2:
            continue
        down = torch.randn(RANK, weight.shape[1], generator=generator)
        up = torch.randn(weight.shape[0], RANK, generator=generator) * 0.3 / weight.shape[1] ** 0.5
        layer = name.removesuffix(".weight")
        tensors[f"diffusion_model.{layer}.lora_A.weight"] = down
        tensors[f"diffusion_model.{layer}.lora_B.weight"] = up
        tensors[f"diffusion_model.{layer}.alpha"] = torch.tensor(RANK / 2)
        differences[name] = up @ down * 0.5
    return tensors, differences


@pytest.fixture(scope="module")
def lora(host, multi_step):
    tensors, differences = lora_for(multi_step.weights)
    return host.save_model("loras", "every_matrix.safetensors", tensors), differences


def merged(weights: dict[str, Tensor], differences: dict[str, Tensor], strength: float) -> dict[str, Tensor]:
    return {name: value + strength * differences.get(name, 0.0) for name, value in weights.items()}


def state(model) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.model.diffusion_model.state_dict().items()}


def load_lora(host, model, name: str, strength: float):
    import nodes

    (patched,) = host.run(nodes.LoraLoaderModelOnly, model=model, lora_name=name, strength_model=strength)
    return patched


def unload() -> None:
    import comfy.model_management

    comfy.model_management.unload_all_models()


@pytest.mark.parametrize("strength", [1.0, -0.6])
def test_lora_loader_equals_merged_weights(host, multi_step, lora, strength):
    name, differences = lora
    scene = Scene.random(multi_step.config)
    result = run_guider(load_lora(host, multi_step.load(), name, strength), scene)
    weights = merged(multi_step.weights, differences, strength)
    assert relative_error(result, plain_run(multi_step, scene, weights=weights)) < 1e-4
    assert relative_error(result, plain_run(multi_step, scene)) > 0.05


def test_lora_leaves_the_base_model_as_it_was(host, multi_step, lora):
    model, scene = multi_step.load(), Scene.random(multi_step.config)
    before, base = state(model), run_guider(model, scene)
    patched = load_lora(host, model, lora[0], 1.0)
    assert relative_error(run_guider(patched, scene), base) > 0.05
    assert torch.equal(run_guider(model, scene), base), "the base model shares the module and must be unpatched"
    assert torch.equal(run_guider(load_lora(host, model, lora[0], 0.0), scene), base)
    run_guider(patched, scene)
    unload()
    after = state(model)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_every_tensor_can_be_merged(host, multi_step):
    """ModelMergeSimple at 0.5 is the network of the averaged weights; the blocks' bare tables take part too."""
    from comfy_extras.nodes_model_merging import ModelMergeSimple

    other, scene = TinyVOSR.create(host, "tiny_ms_other", seed=11), Scene.random(multi_step.config)
    first = multi_step.load()
    before = state(first)
    (model,) = host.run(ModelMergeSimple, model1=first, model2=other.load(), ratio=0.5)
    average = {name: (value + other.weights[name]) / 2 for name, value in multi_step.weights.items()}
    result = run_guider(model, scene)
    assert relative_error(result, plain_run(multi_step, scene, weights=average)) < 1e-4
    assert relative_error(result, plain_run(multi_step, scene)) > 0.05
    # Memory comes and goes: the host loads what it had offloaded, without taking all patches off first.
    for again in (model, offload_when_prepared(model, 0.5), model):
        assert relative_error(run_guider(again, scene), result) < 1e-5, "loading again must not patch twice"
    run_guider(first, scene)
    after = state(first)
    assert all(torch.equal(after[name], before[name]) for name in before)


def saved_again(host, model, name: str) -> str:
    """ModelSave's file, moved to where Load VOSR Model looks."""
    from comfy_extras.nodes_model_merging import ModelSave

    host.run(ModelSave, model=model, filename_prefix=f"saved/{name}")
    (written,) = (host.base / "output" / "saved").glob(f"{name}*.safetensors")
    target = host.models / "diffusion_models" / f"{name}.safetensors"
    written.rename(target)
    return target.name


@pytest.mark.parametrize("patched", [False, True])
def test_saved_model_loads_again(host, multi_step, lora, patched):
    from realisr.host.vosr.loader import load_vosr_model

    scene, model = Scene.random(multi_step.config), multi_step.load()
    if patched:
        model = load_lora(host, model, lora[0], 1.0)
    name = saved_again(host, model, f"again_{patched}")
    again = load_vosr_model(name)
    assert again.model.info.config == multi_step.config
    assert relative_error(run_guider(again, scene), run_guider(model, scene)) < 1e-5


def test_saved_model_keeps_what_its_args_said(host, multi_step):
    """A VOSR 2.0 student and VOSR nano are known by their args alone: saving must keep those."""
    from harness.checkpoints import vosr_args
    from realisr.host.vosr.loader import load_vosr_model

    student = TinyVOSR.create(host, "tiny_vosr2")
    args = vosr_args(student.config) | {"distill_type": "onestep", "auxiliary_time_cond": False}
    (student.folder / "args.json").write_text(json.dumps(args))
    assert student.load().model.info.one_step
    again = load_vosr_model(saved_again(host, student.load(), "vosr2_again"))
    assert again.model.info.one_step and again.model.info.args == args


def test_torch_compile_equals_eager(host, monkeypatch):
    """The whole network in one graph; the backend that runs graphs as they are shows that tracing is right."""
    import comfy.ldm.modules.attention as attention
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    # What the host uses on a GPU. Its CPU default asks for the free memory in Python, which cannot be traced.
    monkeypatch.setattr(attention, "optimized_attention", attention.attention_pytorch)
    shallow = TinyVOSR.create(host, "tiny_shallow", depth=1)
    model, scene = shallow.load(), Scene.random(shallow.config, (4, 4))
    (compiled,) = host.run(TorchCompileModel, model=model, backend="eager")
    torch._dynamo.utils.counters.clear()
    assert relative_error(run_guider(compiled, scene, steps=3), run_guider(model, scene, steps=3)) < 1e-5
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1, "compiled once for all steps"
    assert not counters["graph_break"]


def offload_when_prepared(model, keep: float):
    """A clone that gives back all but a share of its weights after the host has loaded it, as --lowvram leaves it."""
    from comfy.patcher_extension import WrappersMP

    def prepare(executor, patcher, *args, **kwargs):
        out = executor(patcher, *args, **kwargs)
        patcher.partially_unload(torch.device("cpu"), int(patcher.model_size() * (1 - keep)))
        return out

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, "offload", prepare)
    return clone


@pytest.mark.parametrize("with_lora", [False, True])
@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_partly_loaded_model_gives_the_same(host, multi_step, lora, keep, with_lora):
    model, scene = multi_step.load(), Scene.random(multi_step.config)
    if with_lora:
        model = load_lora(host, model, lora[0], 1.0)
    whole = run_guider(model, scene)
    unload()
    partly = offload_when_prepared(model, keep)
    result = run_guider(partly, scene)
    assert partly.model.model_lowvram
    casting = [module.comfy_cast_weights for module in partly.model.modules() if hasattr(module, "comfy_cast_weights")]
    assert (all if keep == 0.0 else any)(casting)
    assert relative_error(result, whole) < 1e-5
    unload()


@pytest.mark.parametrize("dtype", ["default", "fp16"])
def test_copies_the_host_makes_by_loading_again(multi_step, dtype):
    """clone(disable_dynamic=True) of a dynamic model and multi-GPU clones call the loader again."""
    model, scene = multi_step.load(dtype), Scene.random(multi_step.config)
    expected = run_guider(model, scene)
    for copy in (model.clone(force_deepcopy=True), model.deepclone_multigpu(torch.device("cpu"))):
        assert copy.model is not model.model and copy.model_dtype() == model.model_dtype()
        assert torch.equal(run_guider(copy, scene), expected)


def test_weights_assigned_without_copying(multi_step):
    """Dynamic VRAM hands the file's tensors to the module instead of copying them into it."""
    from harness.checkpoints import vosr
    from realisr.host.vosr.latent import latent_format_for
    from realisr.host.vosr.model import VOSRInfo, VOSRModelConfig

    config = VOSRModelConfig(VOSRInfo("x", multi_step.config, False), latent_format_for(4, {}))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({})
    weights = vosr(multi_step.config)
    model.load_model_weights(dict(weights), "", assign=True)
    assert model.diffusion_model.blocks[0].attn.qkv.weight.data_ptr() == weights["blocks.0.attn.qkv.weight"].data_ptr()


def test_block_replacement_patches(multi_step):
    """Patches that replace a block see its tokens, and can run the original."""
    recorder, scene, seen = Recorder(), Scene.random(multi_step.config), []
    model = recorder.watch(multi_step.load())
    expected = run_guider(model, scene)

    def unchanged(args, extra):
        seen.append(args["img"].shape)
        return extra["original_block"](args)

    same, skipped = model.clone(), model.clone()
    same.set_model_patch_replace(unchanged, "dit", "double_block", 1)
    assert torch.equal(run_guider(same, scene), expected)
    assert seen == [(2, 64, multi_step.config.hidden_size)] * 4
    skipped.set_model_patch_replace(lambda args, extra: {"img": args["img"]}, "dit", "double_block", 1)
    assert relative_error(run_guider(skipped, scene), expected) > 0.01


def test_file_can_lack_the_derived_tables(host, multi_step):
    from realisr.host.vosr.loader import load_vosr_model

    weights = {k: v for k, v in multi_step.weights.items() if not k.startswith("feat_rope.")}
    name = host.save_model("diffusion_models", "no_tables.safetensors", weights)
    model = load_vosr_model(name)
    assert model.model.info.config.train_grid == 32
    assert Path(name).suffix == ".safetensors"
