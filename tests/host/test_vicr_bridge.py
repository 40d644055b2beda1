"""The Vision-Context Bridge under everything the host does to a MODEL and its CONDITIONING.

What it should give is known without it: a vector added to the modulation is the same as one added to the bias of the
pooled text's last layer, so a FLUX with that bias in its file is the reference.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from harness import checkpoints
from harness.vicr import Scene, bridged, load_bridge, load_fill, load_lora, sample
from harness.vosr import CountedCalls, relative_error

TOLERANCE = 1e-5
BIAS = "vector_in.out_layer.bias"
SCENE = Scene.random()
EMBEDS = torch.randn(1, 768, generator=torch.Generator().manual_seed(11))
ONE = 1
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def weights() -> checkpoints.StateDict:
    return checkpoints.flux(fill_model=True, double_blocks=1, single_blocks=1, context_width=32, pooled_width=768)


@pytest.fixture(scope="module")
def plain(host, weights):
    return load_fill(host, "bridge_fill", weights)


@pytest.fixture(scope="module")
def bridge(host):
    return load_bridge(host, "hidden", checkpoints.vision_context_bridge(1))


@pytest.fixture(scope="module")
def pooled_bridge(host):
    return load_bridge(host, "pooled", checkpoints.vision_context_bridge(2, width=768, prefix="vcb."))


@torch.no_grad()
def vector(seed: int = 1, embeds: Tensor = EMBEDS, width: int = 256) -> Tensor:
    from realisr.models.vicr.bridge import BridgeConfig, VisionContextBridge

    network = VisionContextBridge(BridgeConfig(768, 96, width))
    network.load_state_dict(checkpoints.vision_context_bridge(seed, width=width))
    return network(embeds)


def baked(host, weights, added: Tensor):
    """FLUX with the vector in its bias."""
    return load_fill(host, f"baked_{next(NUMBERS)}", weights | {BIAS: weights[BIAS] + added.flatten()})


def ksampler(model, positive, negative, cfg: float, steps: int = 3) -> Tensor:
    import nodes

    from harness.host import InProcessHost

    return InProcessHost.run(
        nodes.KSampler,
        model=model,
        seed=4,
        steps=steps,
        cfg=cfg,
        sampler_name="euler",
        scheduler="simple",
        positive=positive,
        negative=negative,
        latent_image=SCENE.empty,
        denoise=1.0,
    )[0]["samples"]


def unload() -> None:
    import comfy.model_management

    comfy.model_management.unload_all_models()


@pytest.mark.parametrize("strength", [1.0, 0.4, -2.0])
def test_vector_joins_the_modulation(host, weights, plain, bridge, strength):
    model, wire = bridged(plain, SCENE.wire, bridge, EMBEDS, strength)
    expected = sample(baked(host, weights, strength * vector()), SCENE)
    assert relative_error(sample(model, SCENE, wire=wire), expected) < TOLERANCE
    assert relative_error(sample(plain, SCENE), expected) > 1e-3, "the vector shows"


def test_ksampler_with_cfg(host, weights, plain, bridge):
    """One Euler step ends on the guided prediction, so the two branches can be had apart."""
    other = SCENE.with_text(1)
    model, wire = bridged(plain, SCENE.wire, bridge, EMBEDS)
    guided = ksampler(model, wire, other.wire, cfg=3.0, steps=ONE)
    full = ksampler(baked(host, weights, vector()), SCENE.wire, other.wire, cfg=1.0, steps=ONE)
    blank = ksampler(plain, other.wire, other.wire, cfg=1.0, steps=ONE)
    assert relative_error(guided, blank + 3 * (full - blank)) < TOLERANCE
    both = ksampler(model, wire, bridged(plain, other.wire, bridge, EMBEDS)[1], cfg=3.0)
    expected = ksampler(baked(host, weights, vector()), SCENE.wire, other.wire, cfg=3.0)
    assert relative_error(both, expected) < TOLERANCE


def count_forwards(model) -> list[int]:
    """Batch sizes of the forwards of this MODEL, as they come."""
    from comfy.patcher_extension import WrappersMP

    batches: list[int] = []

    def note(executor, x, *args, **kwargs):
        batches.append(len(x))
        return executor(x, *args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", note)
    return batches


def test_conditions_with_and_without_vector_share_a_forward(plain, bridge):
    model, wire = bridged(plain, SCENE.wire, bridge, EMBEDS)
    batches = count_forwards(model)
    sample(model, SCENE, ONE, wire=wire, negative=SCENE.with_text(1).wire)
    assert batches == [2]


def test_strength_zero_is_flux_itself(plain, bridge, pooled_bridge):
    expected = sample(plain, SCENE)
    for each in (bridge, pooled_bridge):
        model, wire = bridged(plain, SCENE.wire, each, EMBEDS, 0.0)
        assert torch.equal(sample(model, SCENE, wire=wire), expected)


def test_the_parts_alone_change_nothing(plain, bridge):
    """A model without the patch passes the vector over; a patched model leaves other conditionings alone."""
    model, wire = bridged(plain, SCENE.wire, bridge, EMBEDS)
    expected = sample(plain, SCENE)
    assert torch.equal(sample(plain, SCENE, wire=wire), expected)
    assert torch.equal(sample(model, SCENE), expected)


def test_no_pooled_output_counts_as_zeros(host, weights, plain, bridge, pooled_bridge):
    text, options = SCENE.wire[0]
    bare = [[text, {name: value for name, value in options.items() if name != "pooled_output"}]]
    zeros = replace(SCENE, pooled=torch.zeros(1, 768))
    model, wire = bridged(plain, bare, bridge, EMBEDS)
    expected = sample(baked(host, weights, vector()), zeros)
    assert relative_error(sample(model, SCENE, wire=wire), expected) < TOLERANCE
    assert relative_error(sample(model, SCENE, wire=bare), sample(plain, zeros)) < TOLERANCE
    model, wire = bridged(plain, bare, pooled_bridge, EMBEDS)
    expected = sample(plain, replace(SCENE, pooled=vector(2, width=768)))
    assert relative_error(sample(model, SCENE, wire=wire), expected) < TOLERANCE


def test_bridge_of_the_pooled_width_needs_no_patch(plain, pooled_bridge):
    model, wire = bridged(plain, SCENE.wire, pooled_bridge, EMBEDS, 0.5)
    assert model is plain
    expected = sample(plain, replace(SCENE, pooled=SCENE.pooled + 0.5 * vector(2, width=768)))
    assert relative_error(sample(plain, SCENE, wire=wire), expected) < TOLERANCE


def test_bridges_one_after_another_add_up(host, weights, plain, bridge, pooled_bridge):
    second = load_bridge(host, "second", checkpoints.vision_context_bridge(6, scale_shape=(1,)))
    model, wire = bridged(plain, SCENE.wire, bridge, EMBEDS)
    model, wire = bridged(model, wire, pooled_bridge, EMBEDS)
    model, wire = bridged(model, wire, second, EMBEDS, 0.5)
    changed = replace(SCENE, pooled=SCENE.pooled + vector(2, width=768))
    expected = sample(baked(host, weights, vector() + 0.5 * vector(6)), changed)
    assert relative_error(sample(model, SCENE, wire=wire), expected) < TOLERANCE


def test_every_image_of_a_batch_has_its_own_vector(host, weights, plain, bridge):
    embeds = torch.randn(2, 768)
    pair = Scene.random(batch=2)
    model, wire = bridged(plain, pair.wire, bridge, embeds)
    together = sample(model, pair, wire=wire)
    for index in range(2):
        alone = replace(pair, masked=pair.masked[index : index + 1], noise=pair.noise[index : index + 1])
        expected = sample(baked(host, weights, vector(embeds=embeds[index : index + 1])), alone)
        assert relative_error(together[index : index + 1], expected) < TOLERANCE


def test_pooled_text_wider_than_the_model_reads(host):
    """FLUX takes the first columns; what follows them is no vector."""
    narrow = checkpoints.flux(fill_model=True, double_blocks=1, single_blocks=1, context_width=32, pooled_width=32)
    plain = load_fill(host, "narrow_fill", narrow)
    bridge = load_bridge(host, "hidden", checkpoints.vision_context_bridge(1))
    model, wire = bridged(plain, SCENE.wire, bridge, EMBEDS)
    negative = SCENE.with_text(1).wire
    guided = sample(model, SCENE, ONE, wire=wire, negative=negative, cfg=3.0)
    full, blank = sample(baked(host, narrow, vector()), SCENE, ONE), sample(plain, SCENE, ONE, wire=negative)
    assert relative_error(guided, blank + 3 * (full - blank)) < TOLERANCE


def test_a_bridge_of_the_texts_width_gives_tokens_beside_the_text(host, plain):
    """The paper's ablation with vision tokens: the same network on each of CLIP's tokens."""
    from realisr.models.vicr.bridge import BridgeConfig, VisionContextBridge

    seen = torch.randn(2, 7, 48, generator=torch.Generator().manual_seed(12))
    file = checkpoints.vision_context_bridge(9, embedding=48, width=32)
    network = VisionContextBridge(BridgeConfig(48, 96, 32))
    network.load_state_dict(file)
    with torch.no_grad():
        tokens = torch.stack([torch.stack([network(token) for token in image]) for image in seen])
    bridge = load_bridge(host, "tokens", file)
    model, wire = bridged(plain, SCENE.wire, bridge, EMBEDS, 0.5, tokens=seen[:1])
    assert model is plain
    torch.testing.assert_close(wire[0][0], torch.cat([SCENE.text, 0.5 * tokens[:1]], dim=1))
    expected = sample(plain, replace(SCENE, text=torch.cat([SCENE.text, 0.5 * tokens[:1]], dim=1)))
    assert relative_error(sample(plain, SCENE, wire=wire), expected) < TOLERANCE
    assert relative_error(sample(plain, SCENE), expected) > 1e-3, "the tokens show"
    _, several = bridged(plain, SCENE.wire, bridge, EMBEDS, tokens=seen)
    torch.testing.assert_close(several[0][0][:, -7:], tokens)
    assert torch.equal(several[0][0][:, :-7], SCENE.text.expand(2, -1, -1))
    assert torch.equal(bridged(plain, SCENE.wire, bridge, EMBEDS, 0.0, tokens=seen)[1][0][0], SCENE.text)


def test_no_bridge_adds_clips_vector_as_it_is(host, plain):
    """The paper's ablation without a bridge."""
    from realisr.host.vicr.loader import NO_BRIDGE, bridge_choices
    from realisr.nodes.vicr_loaders import LoadVisionContextBridge

    assert bridge_choices()[-1] == NO_BRIDGE
    (nothing,) = host.run(LoadVisionContextBridge, bridge_name=NO_BRIDGE)
    model, wire = bridged(plain, SCENE.wire, nothing, EMBEDS, 0.5)
    assert model is plain
    expected = sample(plain, replace(SCENE, pooled=SCENE.pooled + 0.5 * EMBEDS))
    assert relative_error(sample(plain, SCENE, wire=wire), expected) < TOLERANCE
    assert relative_error(sample(plain, SCENE), expected) > 1e-3, "the vector shows"
    with pytest.raises(ValueError, match="reads image embeddings 768 wide, the CLIP_VISION_OUTPUT's are 1024"):
        bridged(plain, SCENE.wire, nothing, torch.zeros(1, 1024))


def lora_of_everything(weights, seed: int = 3) -> tuple[dict[str, Tensor], checkpoints.StateDict]:
    """A LoRA file of every matrix, pooled text's layers included, and the weights it means."""
    generator = torch.Generator().manual_seed(seed)
    tensors, merged = {}, dict(weights)
    for name, weight in weights.items():
        if weight.ndim != 2:
            continue
        down = 0.05 * torch.randn(4, weight.shape[1], generator=generator)
        up = 0.05 * torch.randn(weight.shape[0], 4, generator=generator)
        stem = f"diffusion_model.{name.removesuffix('.weight')}"
        tensors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
        merged[name] = weight + up @ down
    return tensors, merged


@pytest.mark.parametrize("order", ["lora first", "bridge first", "bridge first, and run"])
def test_lora_on_the_layer_the_vector_joins(host, weights, plain, bridge, order):
    tensors, merged = lora_of_everything(weights)
    expected = sample(baked(host, merged, vector()), SCENE)
    if order == "lora first":
        model, wire = bridged(load_lora(host, plain, "everything", tensors), SCENE.wire, bridge, EMBEDS)
    else:
        model, wire = bridged(plain, SCENE.wire, bridge, EMBEDS)
        if order.endswith("run"):
            sample(model, SCENE, ONE, wire=wire)
        model = load_lora(host, model, "everything", tensors)
    assert relative_error(sample(model, SCENE, wire=wire), expected) < TOLERANCE
    assert relative_error(sample(plain, SCENE), expected) > 1e-3


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
def test_partly_loaded(host, weights, plain, bridge, keep, with_lora):
    tensors, merged = lora_of_everything(weights)
    model, wire = bridged(plain, SCENE.wire, bridge, EMBEDS)
    if with_lora:
        model = load_lora(host, model, "everything", tensors)
    expected = sample(baked(host, merged if with_lora else weights, vector()), SCENE)
    unload()
    partly = offload_when_prepared(model, keep)
    result = sample(partly, SCENE, wire=wire)
    assert partly.model.model_lowvram
    assert relative_error(result, expected) < TOLERANCE
    unload()


def test_clones_and_the_model_they_come_from(host, weights, plain, bridge):
    """One network in memory, with and without the patch in turns."""
    before = sample(plain, SCENE)
    model, wire = bridged(plain, SCENE.wire, bridge, EMBEDS)
    expected = sample(model, SCENE, wire=wire)
    patched_names = list(model.model.state_dict())
    assert torch.equal(sample(plain, SCENE, wire=wire), before)
    assert torch.equal(sample(model.clone(), SCENE, wire=wire), expected)
    unload()
    assert list(plain.model.state_dict()) == patched_names
    assert plain.model.diffusion_model.params.vec_in_dim == 768
    assert type(plain.model.diffusion_model.vector_in).__name__ == "MLPEmbedder"
    assert torch.equal(sample(plain, SCENE), before)


def test_copies_the_host_makes_by_loading_again(plain, bridge):
    """clone(disable_dynamic=True) of a dynamic model and multi-GPU clones have a network of their own."""
    model, wire = bridged(plain, SCENE.wire, bridge, EMBEDS)
    expected = sample(model, SCENE, wire=wire)
    for copy in (model.clone(force_deepcopy=True), model.deepclone_multigpu(torch.device("cpu"))):
        assert copy.model is not model.model
        assert torch.equal(sample(copy, SCENE, wire=wire), expected)


@pytest.mark.slow
def test_torch_compile(host, plain, bridge, monkeypatch):
    """A compiled model is traced anew once the network has the patch, and gives plain results after."""
    import comfy.ldm.modules.attention as attention
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    # What the host uses on a GPU. Its CPU default asks for the free memory in Python, which cannot be traced.
    monkeypatch.setattr(attention, "optimized_attention", attention.attention_pytorch)
    (compiled,) = host.run(TorchCompileModel, model=plain, backend="eager")
    expected = sample(compiled, SCENE)
    model, wire = bridged(compiled, SCENE.wire, bridge, EMBEDS)
    with_vector = sample(model, SCENE, wire=wire)
    assert relative_error(with_vector, expected) > 1e-3
    assert relative_error(with_vector, sample(bridged(plain, SCENE.wire, bridge, EMBEDS)[0], SCENE, wire=wire)) < 1e-5
    assert relative_error(sample(compiled, SCENE), expected) < TOLERANCE


def test_the_bridge_runs_once_not_every_step(plain, bridge):
    with CountedCalls(bridge.model, "forward") as calls:
        model, wire = bridged(plain, SCENE.wire, bridge, EMBEDS)
        sample(model, SCENE, wire=wire)
    assert calls.count == 1


def test_half_precision_weights(host, weights, bridge):
    """As most FLUX files come; the vector keeps its share."""
    half = {name: value.half() for name, value in weights.items()}
    model, wire = bridged(load_fill(host, "half_fill", half), SCENE.wire, bridge, EMBEDS)
    expected = sample(baked(host, weights, vector()), SCENE)
    assert relative_error(sample(model, SCENE, wire=wire), expected) < 0.02


def test_projected_embedding_of_the_cores_clip(host, weights, plain, bridge):
    """CLIPVisionEncode's output as it comes: the projected image embedding, not normalised."""
    import comfy.clip_vision
    import nodes

    from realisr.nodes.vicr import CLIPVisionContextBridge

    clip = comfy.clip_vision.ClipVisionModel(
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "patch_size": 14,
            "image_size": 56,
            "projection_dim": 768,
            "num_channels": 3,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
            "model_type": "clip_vision_model",
        }
    )
    clip.load_sd(
        checkpoints.fill(
            ((name, tuple(value.shape)) for name, value in clip.get_sd().items() if value.is_floating_point()), 8
        )
    )
    (seen,) = host.run(nodes.CLIPVisionEncode, clip_vision=clip, image=torch.rand(1, 40, 60, 3), crop="none")
    model, wire = host.run(
        CLIPVisionContextBridge,
        model=plain,
        conditioning=SCENE.wire,
        clip_vision_output=seen,
        bridge=bridge,
        strength=1.0,
    )
    assert abs(seen.image_embeds.norm() - 1) > 0.1, "not normalised"
    expected = sample(baked(host, weights, vector(embeds=seen.image_embeds)), SCENE)
    assert relative_error(sample(model, SCENE, wire=wire), expected) < TOLERANCE


ERRORS = {
    "width": (
        {"bridge": {"width": 4096}},
        "bridge gives 4096, this model has hidden 256, pooled 768 and text 32",
    ),
    "clip": ({"embeds": torch.zeros(1, 1024)}, "reads image embeddings 768 wide, the CLIP_VISION_OUTPUT's are 1024"),
    "no embedding": ({"embeds": None}, "the CLIP_VISION_OUTPUT's are none"),
    "images": ({"embeds": torch.zeros(3, 768), "pooled": torch.zeros(2, 768)}, "seen 3 images, .* is for 2"),
    "tokens": ({"bridge": {"width": 32}}, "reads image tokens 768 wide, the CLIP_VISION_OUTPUT's are none"),
    "narrow text": ({"pooled": torch.zeros(1, 512)}, "pooled_output is 512 wide, this model reads 768"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_parts_that_do_not_fit(host, plain, case):
    changed, complaint = ERRORS[case]
    bridge = load_bridge(host, "to_fail", checkpoints.vision_context_bridge(**changed.get("bridge", {})))
    scene = replace(SCENE, pooled=changed.get("pooled", SCENE.pooled))
    with pytest.raises(ValueError, match=complaint):
        bridged(plain, scene.wire, bridge, changed.get("embeds", EMBEDS))


def test_a_model_that_is_no_flux(host, multi_step, bridge):
    with pytest.raises(
        ValueError, match=r"the VOSR model tiny\w+ is connected to model, which has none.* Connect FLUX\.1 Fill"
    ):
        bridged(multi_step.load(), SCENE.wire, bridge, EMBEDS)


def test_another_model_patch(plain):
    other = SimpleNamespace(model=torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="MODEL_PATCH is a Linear, not a Vision-Context Bridge"):
        bridged(plain, SCENE.wire, other, EMBEDS)
