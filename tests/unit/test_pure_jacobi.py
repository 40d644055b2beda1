"""Speculative Jacobi decoding draws from the same distribution as one token a forward, in fewer forwards."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chi2, chi2_contingency

from _pack import load_pack
from harness.pure_tiny import PROMPT, TINY, random_network

load_pack()

from realisr.models.pure import jacobi  # noqa: E402
from realisr.models.pure import logits as stages  # noqa: E402
from realisr.models.pure.generation import Generated, GenerationOptions, generate  # noqa: E402
from realisr.models.pure.logits import Sampling  # noqa: E402
from realisr.models.pure.transformer import Chameleon  # noqa: E402
from realisr.models.pure.vocabulary import Vocabulary  # noqa: E402

SEEDS = 256
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
        head[:: len(head) // TOKENS + 1] = torch.randn(TOKENS, len(base), generator=generator)
    return network


def codes_of(decoding: str, seeds: range, **options) -> tuple[torch.Tensor, Generated]:
    """Codes `[seeds, 16]` of one image per seed."""
    chosen = GenerationOptions(
        guidance="none", size=(1, 1), decoding=decoding, window=4, sampling=Sampling(top_k=TOKENS), **options
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
    assert sum(len(sequential[:, slot].unique()) >= TOKENS - 2 for slot in range(16)) > 12, "it should not be certain"


def test_same_joint_distribution_of_neighbours(both):
    sequential, speculative, _ = both
    assert p_value(neighbours(sequential), neighbours(speculative)) > SIGNIFICANCE


def test_the_test_can_tell_distributions_apart(both):
    """The same comparison finds a slight change of the distribution."""
    sequential, _, _ = both
    other, _ = codes_of("sequential", range(SEEDS, 2 * SEEDS), guidance_scale=0.5)
    assert p_value(neighbours(sequential), neighbours(other)) < SIGNIFICANCE


def test_drafts_are_tested_and_some_stand(both):
    *_, result = both
    assert 0.05 < result.accepted / result.proposed < 0.95


def test_peaked_model_needs_fewer_forwards_than_tokens():
    network = random_network(0, image_scale=1.5, varied=0.05)
    options = GenerationOptions(guidance="none", size=(1, 2), decoding="jacobi", sampling=Sampling(top_k=2))
    (result,) = generate(network, [PROMPT], [0], options, Vocabulary.formula())
    assert result.forwards < 32 / 2, result.forwards
    assert result.accepted / result.proposed > 0.5


def test_certain_model_gives_the_sequential_tokens():
    """With one token to choose from, both ways are the same greedy decoding."""
    network = random_network(1, image_scale=2.0)
    tokens = []
    for decoding in ("sequential", "jacobi"):
        options = GenerationOptions(
            guidance="none", size=(1, 2), decoding=decoding, window=4, sampling=Sampling(top_k=1)
        )
        (result,) = generate(network, [PROMPT], [0], options, Vocabulary.formula())
        tokens.append(result.ids)
    assert tokens[0] == tokens[1]


def test_one_draft_follows_the_target_exactly():
    """Accept or take from the residual: the outcome's law is q for any p, by enumeration over a fine grid."""
    generator = torch.Generator().manual_seed(0)
    q, p = torch.rand(2, 12, generator=generator).pow(3)
    q[3] = p[5] = 0
    q, p = q / q.sum(), p / p.sum()
    accept = (q / p.clamp(min=1e-12)).clamp(max=1) * p
    left = jacobi.residual(q, p)
    law = accept + (1 - accept.sum()) * left / left.sum()
    assert torch.allclose(law, q, atol=1e-6)
    assert torch.equal(jacobi.residual(q, q), q)


def test_leading_counts_before_the_first_rejection():
    accepted = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1]], dtype=torch.bool)
    assert jacobi.leading(accepted).tolist() == [2, 0, 4]


def test_probability_of_picks_each_draft():
    p = stages.probabilities(torch.randn(2, 3, 5), 1.0)
    index = torch.tensor([[0, 4, 2], [1, 1, 3]])
    expected = [[float(p[b, n, index[b, n]]) for n in range(3)] for b in range(2)]
    assert torch.allclose(jacobi.probability_of(p, index), torch.tensor(expected))
