"""Speculative Jacobi decoding draws from the same distribution as one token a forward, in fewer forwards."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chi2_contingency

from _pack import load_pack
from harness.pure_tiny import PROMPT, random_network

load_pack()

from realisr.models.pure import jacobi  # noqa: E402
from realisr.models.pure import logits as stages  # noqa: E402
from realisr.models.pure.generation import GenerationOptions, generate  # noqa: E402
from realisr.models.pure.logits import Sampling  # noqa: E402
from realisr.models.pure.vocabulary import Vocabulary  # noqa: E402

SEEDS = 160
SIGNIFICANCE = 1e-3
VARIED = 0.25


def codes_of(decoding: str, seeds: range, **options) -> tuple[torch.Tensor, list]:
    """Codes `[seeds, 16]` of a model with a handful of likely tokens that depend on those before."""
    network = random_network(0, image_scale=1.5, varied=VARIED)
    chosen = GenerationOptions(
        guidance="none", size=(1, 1), decoding=decoding, window=4, sampling=Sampling(top_k=6), **options
    )
    results = generate(network, [PROMPT] * len(seeds), list(seeds), chosen, Vocabulary.formula())
    return torch.stack([result.codes.flatten() for result in results]), results


@pytest.fixture(scope="module")
def both() -> tuple[torch.Tensor, torch.Tensor, list]:
    sequential, _ = codes_of("sequential", range(SEEDS))
    jacobi_codes, results = codes_of("jacobi", range(SEEDS, 2 * SEEDS))
    return sequential, jacobi_codes, results


def p_value(first: torch.Tensor, second: torch.Tensor) -> float:
    """Chi-square test that two samples of outcomes `[n]` have one distribution; rare outcomes are counted together."""
    outcomes, place = torch.cat([first, second]).unique(return_inverse=True)
    counts = torch.stack([part.bincount(minlength=len(outcomes)) for part in place.split([len(first), len(second)])])
    rare = counts.sum(dim=0) < 10
    table = torch.cat([counts[:, ~rare], counts[:, rare].sum(dim=1, keepdim=True)], dim=1)
    table = table[:, table.sum(dim=0) > 0]
    return 1.0 if table.shape[1] < 2 else float(chi2_contingency(table.numpy()).pvalue)


def test_same_distribution_of_every_token(both):
    sequential, speculative, _ = both
    values = [p_value(sequential[:, slot], speculative[:, slot]) for slot in range(16)]
    assert min(values) > SIGNIFICANCE / 16, values
    assert sum(len(sequential[:, slot].unique()) > 3 for slot in range(16)) > 8, "the model should not be certain"


def test_same_joint_distribution_of_neighbours(both):
    sequential, speculative, _ = both
    pairs = [(codes[:, :-1] % 64) * 64 + codes[:, 1:] % 64 for codes in (sequential, speculative)]
    values = [p_value(pairs[0][:, slot], pairs[1][:, slot]) for slot in range(15)]
    assert min(values) > SIGNIFICANCE / 15, values


def test_the_test_can_tell_distributions_apart(both):
    """The same comparison finds a change of temperature, so it would find a wrong residual of that size."""
    sequential, _, _ = both
    other, _ = codes_of("sequential", range(SEEDS, 2 * SEEDS), guidance_scale=1.5)
    assert min(p_value(sequential[:, slot], other[:, slot]) for slot in range(16)) < 1e-6


def test_drafts_are_tested_and_some_stand(both):
    *_, results = both
    result = results[0]
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
