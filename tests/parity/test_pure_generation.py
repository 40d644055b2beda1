"""Whole plain generations against the reference: same draws, same tokens, same entropies and k."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor

from harness import straight_line_chameleon
from oracles.pure_slots import Slot, mask_slot, next_slot
from parity import golden, pure_golden
from parity.pure_tokenizer import ByteTokenizer
from parity.sensitivity import DRAWS, distance, judge, moved, widened
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
def weights():
    return pure_golden.weights("generation_layers", "generation_embed", "generation_head")


@cache
def network(seed: int | None = None) -> Chameleon:
    """The reference's network; with a seed, one that is off by a last place in its weights."""
    data, tensors = weights()
    config = ChameleonConfig.from_json(data["config"])
    model = Chameleon(config)
    model.load_state_dict(fuse(moved(tensors, seed), config), strict=True)
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


@dataclass(frozen=True)
class Branches:
    """Logits of every step of a recorded generation, `[T, vocabulary]`."""

    conditional: Tensor
    alone: Tensor
    """Of the guidance branch, which begins at the image's first token; rows of steps before it are of no use."""

    @classmethod
    def of(cls, case, logits: Callable[[Tensor], Tensor]) -> Branches:
        prompt_ids, generated = case["in.prompt_ids"].tolist(), case["out.generated_ids"].tolist()
        conditional = logits(torch.tensor(prompt_ids + generated))[len(prompt_ids) - 1 : -1]
        begin = generated.index(BOI)
        alone = logits(torch.tensor(generated[begin:]))[:-1]
        return cls(conditional, torch.cat([torch.zeros_like(conditional[: begin + 1]), alone]))


def ours(case, seed: int | None = None) -> Branches:
    return Branches.of(case, lambda ids: network(seed).logits(network(seed)(ids[None]))[0])


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_every_logit(case):
    """Both branches, against the straight line on this machine and against the reference."""
    config, tensors = weights()[0]["config"], weights()[1]
    probe, used = case["in.probe_ids"].long(), case["mid.guidance_used"]
    assert case["mid.guidance_forward_len"][used].tolist() == [3] + [1] * (int(used.sum()) - 1)

    def oracle(seed: int | None) -> dict[str, Tensor]:
        probed = moved(tensors, seed)
        probed["lm_head.weight"] = probed["lm_head.weight"][probe]
        found = Branches.of(case, lambda ids: straight_line_chameleon.logits(probed, config, ids))
        return {"conditional": found.conditional, "alone": found.alone[used]}

    judged, found = judge(oracle), ours(case)
    for key, logits, frozen in (
        ("conditional", found.conditional, case["mid.cond_logits_probe"]),
        ("alone", found.alone[used], case["mid.uncond_logits_probe"][used]),
    ):
        tolerance = judged.tolerance(key, LOGITS_ABSOLUTE)
        for expected, of in ((judged.exact[key], "the straight line"), (frozen, "the reference")):
            pure_golden.assert_close(logits[:, probe], expected, tolerance, LOGITS_RELATIVE, f"{key} branch, {of}")


def through_stages(case, branches: Branches) -> Iterator[tuple[Tensor | None, int, Tensor]]:
    """Entropy (None in text), k and the distribution over the whole vocabulary of every step."""
    prompt_ids, generated = case["in.prompt_ids"].tolist(), case["out.generated_ids"].tolist()
    params = case.metadata["info"]["params"]
    sampling = stages.TokenSampling(temperature=params["temp"])
    for step, logits in enumerate(branches.conditional):
        slot, _, _ = next_slot([*prompt_ids, *generated[:step]])
        if case["mid.guidance_used"][step]:
            logits = stages.guide(logits, branches.alone[step], params["cfg"])
        logits = mask_slot(logits, slot)
        if slot is Slot.TEXT:
            yield None, 1, stages.text_distribution(logits, 1, params["temp"])
        else:
            p, entropy, k = stages.distribution(logits, sampling)
            yield entropy, int(k), p


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_every_step(case):
    """The distribution of each token through the stages, and the token."""
    found = list(through_stages(case, ours(case)))
    entropy_spread = probability_spread = 0.0
    for seed in DRAWS:
        for (entropy, _, p), (other_entropy, _, other_p) in zip(
            found, through_stages(case, ours(case, seed)), strict=True
        ):
            probability_spread = max(probability_spread, distance(other_p, p))
            if entropy is not None:
                entropy_spread = max(entropy_spread, distance(other_entropy, entropy))
    generated = case["out.generated_ids"].tolist()
    for step, (entropy, k, p) in enumerate(found):
        if entropy is not None:
            expected, tolerance = case["mid.entropy"][step].float(), widened(ENTROPY_TOLERANCE, entropy_spread)
            golden.assert_within(entropy, expected, tolerance, f"entropy {step}")
        assert k == case["mid.k"][step]
        begin, end = case["mid.prob_ptr"][step : step + 2].tolist()
        ids, values = case["mid.prob_ids"][begin:end].long(), case["mid.prob_values"][begin:end]
        assert torch.equal(p.nonzero()[:, 0], ids)
        tolerance = widened(PROBABILITY_TOLERANCE, probability_spread)
        golden.assert_within(p[ids], values, tolerance, f"probabilities {step}")
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
