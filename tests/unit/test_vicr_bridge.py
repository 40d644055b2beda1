"""The Vision-Context Bridge as a network: its formula, its files, its size."""

from __future__ import annotations

import math
import re

import pytest
import torch

from harness.checkpoints import vision_context_bridge
from harness.vicr import LORA_MODULES, LORA_RANK
from realisr.models.vicr.bridge import BridgeConfig, VisionContextBridge, strip_prefixes

SIZES = {"embedding": 48, "hidden": 24, "width": 40}


def shapes(state_dict):
    return {name: tuple(value.shape) for name, value in state_dict.items()}


def network(state_dict) -> VisionContextBridge:
    bridge = VisionContextBridge(BridgeConfig.from_shapes(shapes(state_dict)))
    bridge.load_state_dict(state_dict)
    return bridge


@torch.no_grad()
@pytest.mark.parametrize("scale_shape", [(), (1,)])
def test_formula(scale_shape):
    """Written out in float64, with the error function from the standard library."""
    weights = vision_context_bridge(3, **SIZES, scale_shape=scale_shape)
    # The last row varies so little that the norm's epsilon shows.
    embeds = (torch.randn(5, 48) + 0.3) * torch.tensor([3.0, 3.0, 1.0, 1.0, 0.005]).unsqueeze(1)
    w = {name: value.double() for name, value in weights.items()}
    v = embeds.double()
    spread = ((v - v.mean(1, keepdim=True)) ** 2).mean(1, keepdim=True)
    normed = (v - v.mean(1, keepdim=True)) / (spread + 1e-5) ** 0.5 * w["norm.weight"] + w["norm.bias"]
    inner = normed @ w["proj_in.weight"].T + w["proj_in.bias"]
    active = inner.clone().apply_(lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))))
    expected = w["scale"] * (active @ w["proj_out.weight"].T + w["proj_out.bias"])
    out = network(weights)(embeds)
    assert out.shape == (5, 40)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("prefix", ["", "vcb.", "bridge.", "module.", "module.vcb."])
def test_prefixes_come_off(prefix):
    plain = vision_context_bridge(**SIZES)
    stripped = strip_prefixes({prefix + name: value for name, value in plain.items()})
    assert stripped.keys() == plain.keys()


def test_a_prefix_that_is_not_everywhere_stays():
    mixed = {"vcb.scale": 1, "other": 2}
    assert strip_prefixes(mixed) == mixed
    assert strip_prefixes({}) == {}


def test_sizes_are_read_off_the_file():
    config = BridgeConfig.from_shapes(shapes(vision_context_bridge(**SIZES, scale_shape=(1,))))
    assert config == BridgeConfig(48, 24, 40, (1,))


def test_what_a_bridge_must_have():
    whole = shapes(vision_context_bridge(**SIZES))
    for name in whole:
        with pytest.raises(KeyError, match=re.escape(name)):
            BridgeConfig.from_shapes({key: value for key, value in whole.items() if key != name})
    with pytest.raises(ValueError, match=r"two-dimensional proj_in\.weight"):
        BridgeConfig.from_shapes(whole | {"proj_in.weight": (24,)})
    with pytest.raises(ValueError, match="a single scale"):
        BridgeConfig.from_shapes(whole | {"scale": (40,)})


def test_parameters_at_full_size_are_the_papers():
    """Rank-32 LoRA on FLUX.1 Fill and the bridge: 127,716,865, the paper's 127M."""
    from diffusers import FluxTransformer2DModel
    from peft import LoraConfig, get_peft_model_state_dict

    with torch.device("meta"):
        flux = FluxTransformer2DModel(in_channels=384, out_channels=64, guidance_embeds=True)
        flux.add_adapter(LoraConfig(r=LORA_RANK, target_modules=LORA_MODULES, init_lora_weights=False))
        bridge = VisionContextBridge(BridgeConfig())
    lora = get_peft_model_state_dict(flux)
    assert len(lora) == 2 * (1 + 19 * 6 + 38 * 6)
    counts = sum(value.numel() for value in lora.values()), sum(value.numel() for value in bridge.parameters())
    assert counts == (115_912_704, 11_804_161)
    assert sum(counts) == 127_716_865
