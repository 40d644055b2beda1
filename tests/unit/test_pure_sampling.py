"""Properties of PURE's entropy-based top-k, draws and prompts that hold for any logits."""

from __future__ import annotations

import math

import pytest
import torch

from oracles import pure_crop
from oracles.pure_slots import Slot, mask_slot, next_slot
from realisr.models.pure import logits as stages
from realisr.models.pure import prompt
from realisr.models.pure.logits import ObservedEntropy, TokenSampling
from realisr.models.pure.session import SeededDraws
from realisr.models.pure.text import split_text
from realisr.models.pure.vocabulary import BOI, EOI, EOT, NL, VOCABULARY, image_ids

ENTROPIES = torch.linspace(-1, 13, 500)


@pytest.mark.parametrize("bounds", [(1, 2000), (5, 5), (10, 300)])
@pytest.mark.parametrize("mu", [0.0, 5.0, 9.0])
def test_k_grows_with_entropy_between_its_bounds(bounds, mu):
    sampling = TokenSampling(k_min=bounds[0], k_max=bounds[1], mu=mu)
    k = sampling.k(ENTROPIES)
    assert k.min() >= bounds[0] and k.max() <= bounds[1] and (k.diff() >= 0).all()
    halfway = sampling.k(torch.tensor(mu))
    assert abs(int(halfway) - sum(bounds) / 2) <= 1
    assert torch.equal(k[ENTROPIES <= 0], sampling.k(torch.zeros(int((ENTROPIES <= 0).sum()))))


def test_paper_bounds_of_k():
    """Entropy is clamped to 0..10 first, so k_min 1 and k_max 2000 are never reached; images end at ln 16384."""
    k = TokenSampling().k(torch.tensor([0.0, 10.0, math.log(16384)]))
    assert k.tolist() == [14, 1987, 1982]


def test_observed_mu_is_the_deviation_of_what_came_before():
    """In windows of any length, against the definition in float64; what is not counted is left out."""
    generator = torch.Generator().manual_seed(0)
    entropies = 9.7 * torch.rand(2, 40, generator=generator)
    counted = torch.rand(2, 40, generator=generator) > 0.2
    expected = torch.empty(2, 40, dtype=torch.float64)
    for image in range(2):
        for place in range(40):
            before = [float(h) for h, c in zip(entropies[image, :place], counted[image, :place], strict=True) if c]
            if len(before) < 2:
                expected[image, place] = 5.0
                continue
            mean = sum(before) / len(before)
            expected[image, place] = math.sqrt(sum((h - mean) ** 2 for h in before) / len(before))
    for width in (1, 7, 40):
        observed, found = ObservedEntropy(2, torch.device("cpu")), []
        for start in range(0, 40, width):
            window = slice(start, start + width)
            found.append(observed.deviation(entropies[:, window], counted[:, window], 5.0))
            observed.add(entropies[:, window], counted[:, window])
        torch.testing.assert_close(torch.cat(found, dim=1).double(), expected, rtol=1e-6, atol=1e-6)


def test_observed_mu_takes_the_constants_place_in_the_rule():
    logits = torch.randn(1, 6, 16384) * torch.tensor([0.1, 3.0, 1.0, 4.0, 2.0, 0.5])[:, None]
    observed, sampling = ObservedEntropy(1, torch.device("cpu")), TokenSampling(observed_mu=True)
    _, h, k = stages.distribution(logits, sampling, observed)
    entropies = h[0].double().tolist()
    for place, entropy in enumerate(entropies):
        before = torch.tensor(entropies[:place], dtype=torch.float64)
        mu = float(before.std(correction=0)) if place > 1 else 5.0
        assert int(k[0, place]) == round(1 + 1999 / (1 + math.exp(mu - entropy))), place
    assert not torch.equal(k, stages.distribution(logits, TokenSampling())[2])


def test_fixed_top_k_ignores_entropy():
    assert TokenSampling(top_k=7).k(ENTROPIES).unique().tolist() == [7]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"k_min": 0}, "k_min 0"),
        ({"k_min": 9, "k_max": 8}, "k_min 9 and k_max 8"),
        ({"top_k": 0}, "top_k is 0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
    ],
)
def test_unusable_sampling_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        TokenSampling(**values)


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_entropy_of_uniform_and_certain_logits(scale):
    assert float(stages.entropy(torch.full((16384,), scale))) == pytest.approx(math.log(16384), abs=1e-4)
    certain = torch.full((100,), -torch.inf)
    certain[3] = scale
    assert float(stages.entropy(certain)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 50])
def test_ties_at_the_cut_survive(k):
    logits = torch.tensor([[3.0, 1.0, 3.0, 2.0, 2.0, 0.0]])
    kept = stages.keep_top_k(logits, torch.tensor([k]), 50)
    cut = logits[0].sort(descending=True).values[min(k, 6) - 1]
    assert torch.equal(kept > -torch.inf, logits >= cut)


def test_restricted_logits_give_the_distribution_of_the_whole_vocabulary():
    logits = 3 * torch.randn(4, VOCABULARY)
    p, entropy, k = stages.distribution(mask_slot(logits, Slot.IMAGE), TokenSampling())
    alone = stages.distribution(logits[:, image_ids()], TokenSampling())
    assert torch.allclose(p[:, image_ids()], alone[0], atol=1e-7)
    assert torch.allclose(entropy, alone[1], atol=1e-5) and torch.equal(k, alone[2])
    u = torch.rand(4, dtype=torch.float64)
    assert torch.equal(stages.draw(p, u), image_ids()[stages.draw(alone[0], u)])


def test_draws_follow_the_probabilities():
    p = torch.tensor([0.5, 0.0, 0.3, 0.2, 0.0])
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    assert stages.draw(p.expand(1000, -1), u).bincount(minlength=5).tolist() == [500, 0, 300, 200, 0]
    assert stages.draw(4 * p, torch.tensor(0.0)) == 0
    assert stages.draw(p, torch.tensor(1 - 1e-12, dtype=torch.float64)) == 3
    assert 0 <= int(stages.draw(p * torch.nan, torch.tensor(0.5))) < 5


@pytest.mark.parametrize("temperature", [1e-38, 1e-3, 1.0, 1e3, 1e38])
def test_no_temperature_overflows(temperature):
    logits = torch.tensor([1e4, -1e4, 3.0, -torch.inf])
    p = stages.probabilities(logits, temperature)
    assert p.isfinite().all() and float(p.sum()) == pytest.approx(1) and p[3] == 0


def test_streams_are_independent_of_each_other_and_of_the_batch():
    draws = SeededDraws([3, 4])
    first = draws.take("image", 5)
    draws.take("text", 100)
    continued = torch.cat([first, draws.take("image", 5)], dim=1)
    assert torch.equal(continued[1], SeededDraws([4]).take("image", 10)[0])
    assert not torch.equal(continued[0], continued[1])


def test_slots_follow_the_tokens():
    sizes = [8805, 8805]
    assert next_slot([0, EOT])[0] is Slot.TEXT
    assert next_slot([BOI])[0] is Slot.SIZE and next_slot([BOI, sizes[0]])[0] is Slot.SIZE
    assert next_slot([BOI, *sizes])[0] is Slot.IMAGE
    assert next_slot([BOI, *sizes, *[9] * 4])[0] is Slot.NEWLINE
    body = ([9] * 4 + [NL]) * 4
    assert next_slot([BOI, *sizes, *body])[0] is Slot.END
    assert next_slot([BOI, *sizes, *body, EOI])[0] is Slot.TEXT
    with pytest.raises(ValueError, match="2 images are open"):
        next_slot([BOI, BOI])


class Letters:
    def encode(self, text: str) -> list[int]:
        return [16384 + ord(letter) for letter in text]

    def decode(self, ids) -> str:
        return "".join(chr(token - 16384) for token in ids)


def test_prompt_has_the_image_where_the_instruction_says():
    block = prompt.image_block(torch.full((4, 8), 7))
    assert block[:3] == [BOI, 8805, 8806] and block[-1] == EOI and block.count(NL) == 4 and len(block) == 4 * 9 + 4
    text = Letters().encode("Do it. ")
    assert prompt.prompt_ids(Letters(), "Do it. <|image|>", block) == [0, *text, *block, EOT]
    assert prompt.prompt_ids(Letters(), "Do it.", block) == [0, *text, *block, EOT]
    assert prompt.prompt_ids(Letters(), "<|image|>x", block) == [0, *block, *Letters().encode("x"), EOT]
    assert prompt.prompt_ids(Letters(), "", block) == [0, *block, EOT]
    with pytest.raises(ValueError, match="2 times"):
        prompt.prompt_ids(Letters(), "<|image|><|image|>", block)
    with pytest.raises(ValueError, match="grid of 5 x 8"):
        prompt.image_block(torch.zeros(5, 8))


def test_answers_split_at_the_first_full_stop():
    text = "Medium blur, small noise. The image features a majestic lion. It roars."
    assert split_text(Letters().encode(text), Letters()) == (text[:25], text[26:])
    assert split_text(Letters().encode("No stop"), Letters()) == ("No stop", "")


def test_crop_list_of_the_paper():
    sizes = pure_crop.crop_sizes()
    assert len(sizes) == 49 and sizes[0] == (1024, 256) and sizes[-1] == (256, 1024) and (512, 512) in sizes
    assert pure_crop.choose_crop(300, 300) == (512, 512)
    assert pure_crop.choose_crop(1000, 10) == (1024, 256)


def test_transparent_pixels_become_white():
    image = torch.tensor([[[10, 20, 30, 0], [10, 20, 30, 255], [0, 0, 0, 128]]], dtype=torch.uint8)
    assert pure_crop.to_rgb(image).tolist() == [[[255, 255, 255], [10, 20, 30], [127, 127, 127]]]
    assert pure_crop.to_rgb(image[..., :1]).shape == (1, 3, 3)
