"""Speculative Jacobi decoding draws from the same distribution as one token a forward, in fewer forwards."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chi2, chi2_contingency, chisquare

from harness.pure_tiny import PROMPT, TINY, random_network
from realisr.models.pure import jacobi
from realisr.models.pure import logits as stages
from realisr.models.pure.decode import Generated, Jacobi, generate
from realisr.models.pure.logits import TokenSampling
from realisr.models.pure.options import GenerationOptions
from realisr.models.pure.transformer import Chameleon
from realisr.models.pure.vocabulary import Vocabulary

SEEDS = 96
SIGNIFICANCE = 1e-3
TOKENS = 6


def few_token_network() -> Chameleon:
    """A model that chooses among a few tokens, with probabilities that vary much with what stands before."""
    network = random_network(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        table, head = network.model.embed_tokens.weight, network.lm_head.image.weight
        # Everything the model says has a common part, which the unwanted tokens' logits go down with.
        table.mul_(0.6).add_(torch.ones(TINY.hidden_size))
        for layer in network.model.layers:
            layer.self_attn.o_proj.weight.mul_(0.5)
            layer.mlp.down_proj.weight.mul_(0.5)
        base = torch.ones(TINY.hidden_size)
        head.copy_(-2 * base.expand_as(head))
        wanted = 1.3 * torch.randn(TOKENS, TINY.hidden_size, generator=generator)
        head[:: len(head) // TOKENS + 1] = wanted - wanted.mean(dim=1, keepdim=True)
    return network


def codes_of(decoding: str, seeds: range, **options) -> tuple[torch.Tensor, Generated]:
    """Codes `[seeds, 16]` of one image per seed."""
    chosen = GenerationOptions(
        parts="none", size=(1, 1), decoding=decoding, window=4, sampling=TokenSampling(top_k=TOKENS), **options
    )
    prompts, network = [PROMPT] * len(seeds), few_token_network()
    results = generate(network, prompts, list(seeds), chosen, Vocabulary.formula())
    return torch.stack([result.codes.flatten() for result in results]), results[0]


@pytest.fixture(scope="module")
def both() -> tuple[torch.Tensor, torch.Tensor, Generated]:
    sequential, _ = codes_of("sequential", range(SEEDS))
    speculative, result = codes_of("jacobi", range(SEEDS, 2 * SEEDS))
    return sequential, speculative, result


def contingency(first: torch.Tensor, second: torch.Tensor) -> tuple[float, int]:
    """Chi-square statistic and degrees of freedom of two samples of outcomes `[n]`; rare ones are counted together."""
    outcomes, place = torch.cat([first, second]).unique(return_inverse=True)
    counts = torch.stack([part.bincount(minlength=len(outcomes)) for part in place.split([len(first), len(second)])])
    rare = counts.sum(dim=0) < 10
    table = torch.cat([counts[:, ~rare], counts[:, rare].sum(dim=1, keepdim=True)], dim=1)
    table = table[:, table.sum(dim=0) > 0]
    if table.shape[1] < 2:
        return 0.0, 0
    tested = chi2_contingency(table.numpy())
    return float(tested.statistic), int(tested.dof)


def p_value(first: torch.Tensor, second: torch.Tensor) -> float:
    """That two samples of outcomes `[seeds, slots]` have one distribution: chi-square, summed over the slots."""
    tests = [contingency(first[:, slot], second[:, slot]) for slot in range(first.shape[1])]
    return float(chi2.sf(sum(statistic for statistic, _ in tests), sum(degrees for _, degrees in tests)))


def neighbours(codes: torch.Tensor) -> torch.Tensor:
    """Each pair of consecutive codes as one outcome, `[seeds, 15]`."""
    return codes[:, :-1] * 16384 + codes[:, 1:]


def test_same_distribution_of_every_token(both):
    sequential, speculative, _ = both
    assert p_value(sequential, speculative) > SIGNIFICANCE
    assert sum(len(sequential[:, slot].unique()) >= TOKENS - 3 for slot in range(16)) > 12, "it should not be certain"


def test_same_joint_distribution_of_neighbours(both):
    sequential, speculative, _ = both
    assert p_value(neighbours(sequential), neighbours(speculative)) > SIGNIFICANCE


def test_the_test_finds_drafts_that_claim_another_distribution(both, monkeypatch):
    """The same comparison tells when the bookkeeping is wrong: drafts with their neighbour's distribution."""
    sequential, _, _ = both
    draft = Jacobi.draft

    def shifted(drawing, *args):
        draft(drawing, *args)
        drawing.draft_p.copy_(drawing.draft_p.roll(1, 1))

    monkeypatch.setattr(Jacobi, "draft", shifted)
    wrong, _ = codes_of("jacobi", range(SEEDS, 2 * SEEDS))
    assert p_value(neighbours(sequential), neighbours(wrong)) < 1e-6


def test_drafts_are_tested_and_some_stand(both):
    *_, result = both
    assert 0.05 < result.accepted / result.proposed < 0.95


def test_peaked_model_needs_fewer_forwards_than_tokens():
    network = random_network(0, image_scale=1.5, varied=0.05)
    options = GenerationOptions(parts="none", size=(1, 2), decoding="jacobi", sampling=TokenSampling(top_k=2))
    (result,) = generate(network, [PROMPT], [0], options, Vocabulary.formula())
    assert result.forwards < 32 / 2, result.forwards
    assert result.accepted / result.proposed > 0.5


def test_certain_model_gives_the_sequential_tokens():
    """With one token to choose from, both ways are the same greedy decoding."""
    network = random_network(1, image_scale=2.0)
    tokens = []
    for decoding in ("sequential", "jacobi"):
        options = GenerationOptions(
            parts="none", size=(1, 2), decoding=decoding, window=4, sampling=TokenSampling(top_k=1)
        )
        (result,) = generate(network, [PROMPT], [0], options, Vocabulary.formula())
        tokens.append(result.ids)
    assert tokens[0] == tokens[1]


def test_verified_windows_follow_the_target():
    """Goodness of fit of every place of a window, given that the drafts before it stood: many windows, few tokens."""
    windows, tokens, places = 40_000, 8, 3
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(places + 1, tokens, generator=generator).pow(3)
    draft_p = torch.rand(places, tokens, generator=generator).pow(3)
    target[0, 3] = draft_p[0, 5] = draft_p[1, 2] = 0
    target, draft_p = (x / x.sum(dim=-1, keepdim=True) for x in (target, draft_p))
    uniforms = torch.rand(3, windows, places, generator=generator, dtype=torch.float64)
    drafts = stages.draw(draft_p.expand(windows, -1, -1), uniforms[0])
    stood, final = jacobi.verify(
        drafts,
        draft_p.expand(windows, -1, -1),
        target.expand(windows, -1, -1),
        torch.ones_like(drafts, dtype=torch.bool),
        uniforms[1],
        uniforms[2, :, 0],
    )
    chosen = torch.cat([drafts, final[:, None]], dim=1)
    chosen[torch.arange(windows), stood] = final
    for place in range(places + 1):
        reached = stood >= place
        counts = chosen[reached, place].bincount(minlength=tokens)
        expected = target[place] * int(reached.sum())
        assert (counts[expected == 0] == 0).all()
        seen = expected > 0
        scaled = expected[seen] * counts[seen].sum() / expected[seen].sum()
        assert chisquare(counts[seen].double(), scaled.double(), sum_check=False).pvalue > SIGNIFICANCE, place
        assert int(reached.sum()) > 1000


def test_slots_with_one_token_always_stand():
    p = torch.full((1, 2, 4), 0.25)
    target = torch.zeros(1, 3, 4)
    target[..., 1] = 1
    drafts, high = torch.tensor([[0, 1]]), torch.full((1, 2), 0.999)
    stood, final = jacobi.verify(drafts, p, target, torch.tensor([[False, True]]), high, high[:, 0])
    assert stood.tolist() == [2] and final.tolist() == [1]
    stood, final = jacobi.verify(drafts, p, target, torch.tensor([[True, True]]), high, high[:, 0])
    assert stood.tolist() == [0] and final.tolist() == [1]


def test_residual_of_equal_distributions():
    q = torch.tensor([0.25, 0.75])
    assert torch.equal(jacobi.residual(q, q), q)


def test_leading_counts_before_the_first_rejection():
    accepted = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1]], dtype=torch.bool)
    assert jacobi.leading(accepted).tolist() == [2, 0, 4]


def test_probability_of_picks_each_draft():
    p = stages.probabilities(torch.randn(2, 3, 5), 1.0)
    index = torch.tensor([[0, 4, 2], [1, 1, 3]])
    expected = [[float(p[b, n, index[b, n]]) for n in range(3)] for b in range(2)]
    assert torch.allclose(jacobi.probability_of(p, index), torch.tensor(expected))
