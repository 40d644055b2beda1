"""Whole plain generations against the reference: same draws, same tokens, same entropies and k."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from oracles.pure_slots import Slot, mask_slot, next_slot
from parity import golden, pure_golden
from parity.pure_tokenizer import ByteTokenizer
from realisr.models.image import to_bytes
from realisr.models.pure import logits as stages
from realisr.models.pure import prompt
from realisr.models.pure.config import ChameleonConfig
from realisr.models.pure.decode import generate
from realisr.models.pure.options import GenerationOptions
from realisr.models.pure.released import fuse
from realisr.models.pure.transformer import Chameleon
from realisr.models.pure.vocabulary import BOI, BOS, EOT, NL, Vocabulary
from realisr.models.pure.vqgan import VQGAN, VQConfig, to_image, to_pixels

ENTROPY_TOLERANCE, PROBABILITY_TOLERANCE = 2e-5, 2e-6
LOGITS_ABSOLUTE, LOGITS_RELATIVE = 5e-5, 1e-5
CASES = pure_golden.cases("generation")


@cache
def network() -> Chameleon:
    data, tensors = pure_golden.weights("generation_layers", "generation_embed", "generation_head")
    config = ChameleonConfig.from_json(data["config"])
    model = Chameleon(config)
    model.load_state_dict(fuse(tensors, config), strict=True)
    return model.eval()


@cache
def autoencoder() -> VQGAN:
    _, tensors = pure_golden.weights("vq_encoder", "vq_decoder")
    tensors.pop("quantize.codebook_used", None)
    model = VQGAN(VQConfig.from_shapes({key: value.shape for key, value in tensors.items()}))
    model.load_state_dict(tensors, strict=True)
    return model.eval()


class RecordedDraws:
    """The reference draws once per token, forced ones included; ours once per decision."""

    def __init__(self, uniforms: torch.Tensor, prompt_ids: list[int], generated: list[int]):
        self.streams: dict[str, list[float]] = {"text": [], "size": [], "image": []}
        for step, u in enumerate(uniforms.tolist()):
            slot, _, _ = next_slot([*prompt_ids, *generated[:step]])
            if slot.forced is None:
                self.streams[slot.value].append(u)

    def take(self, stream: str, count: int) -> torch.Tensor:
        values = self.streams[stream][:count]
        self.streams[stream] = self.streams[stream][count:]
        return torch.tensor([values + [0.5] * (count - len(values))], dtype=torch.float64)


def run(case):
    prompt_ids, generated = case["in.prompt_ids"].tolist(), case["out.generated_ids"].tolist()
    params = case.metadata["info"]["params"]
    chosen = GenerationOptions(
        sampling=stages.TokenSampling(temperature=params["temp"]),
        guidance_scale=params["cfg"],
        size=(params["hg"], params["wg"]),
    )
    draws = RecordedDraws(case["in.uniforms"], prompt_ids, generated)
    (result,) = generate(network(), [prompt_ids], draws, chosen, Vocabulary.formula())
    return result


@pytest.mark.parametrize("case", CASES)
def test_same_draws_same_tokens(case):
    result = run(case)
    assert result.ids == case["out.generated_ids"].tolist()
    slots = [next_slot([BOS, *result.ids[:step]])[0] for step in range(len(result.ids))]
    image = torch.tensor([slot is Slot.IMAGE for slot in slots])
    golden.assert_within(result.entropy.flatten(), case["mid.entropy"][image].float(), ENTROPY_TOLERANCE, "entropy")
    assert torch.equal(result.k.flatten().int(), case["mid.k"][image])


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_every_step(case):
    """Both branches' logits, and the distribution of each token through the stages over the whole vocabulary."""
    prompt_ids, generated = case["in.prompt_ids"].tolist(), case["out.generated_ids"].tolist()
    params, probe = case.metadata["info"]["params"], case["in.probe_ids"].long()
    ids = torch.tensor([prompt_ids + generated])
    conditional = network().logits(network()(ids))[0, len(prompt_ids) - 1 : -1]
    expected = case["mid.cond_logits_probe"]
    pure_golden.assert_close(conditional[:, probe], expected, LOGITS_ABSOLUTE, LOGITS_RELATIVE, "conditional")

    begin = generated.index(BOI)
    alone = network().logits(network()(torch.tensor([generated[begin:]])))[0]
    used = case["mid.guidance_used"]
    assert case["mid.guidance_forward_len"][used].tolist() == [3] + [1] * (int(used.sum()) - 1)
    sampling = stages.TokenSampling(temperature=params["temp"])
    for step in range(len(generated)):
        slot, _, _ = next_slot([*prompt_ids, *generated[:step]])
        logits = conditional[step]
        if used[step]:
            u = alone[step - 1 - begin]
            pure_golden.assert_close(
                u[probe], case["mid.uncond_logits_probe"][step], LOGITS_ABSOLUTE, LOGITS_RELATIVE, "unconditional"
            )
            logits = stages.guide(logits, u, params["cfg"])
        logits = mask_slot(logits, slot)
        if slot is Slot.TEXT:
            p, k = stages.text_distribution(logits, 1, params["temp"]), torch.tensor(1)
        else:
            p, entropy, k = stages.distribution(logits, sampling)
            golden.assert_within(entropy, case["mid.entropy"][step].float(), ENTROPY_TOLERANCE, f"entropy {step}")
        assert int(k) == case["mid.k"][step]
        begin_p, end_p = case["mid.prob_ptr"][step : step + 2].tolist()
        ids_p, values = case["mid.prob_ids"][begin_p:end_p].long(), case["mid.prob_values"][begin_p:end_p]
        assert torch.equal(p.nonzero()[:, 0], ids_p)
        golden.assert_within(p[ids_p], values, PROBABILITY_TOLERANCE, f"probabilities {step}")
        assert int(stages.draw(p, case["in.uniforms"][step])) == generated[step]


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_prompt_and_picture(case):
    """The prompt comes from the low-quality image, the picture from the tokens."""
    codes = autoencoder().encode(to_pixels(case["in.lq_image_u8"][None]))[0]
    block = prompt.image_block(Vocabulary.formula().encode(codes))
    assert prompt.prompt_ids(ByteTokenizer(), prompt.INSTRUCTION, block) == case["in.prompt_ids"].tolist()
    result = run(case)
    assert result.ids[-1] == EOT and result.ids.count(NL) == result.codes.shape[0]
    decoded = to_image(autoencoder().decode(result.codes[None]))
    golden.assert_levels(to_bytes(decoded)[0], case["out.restored_u8"], 1, 0.99)
