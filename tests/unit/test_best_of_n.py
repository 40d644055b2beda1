"""The rank-sum rule against a statement of it in plain Python, on tables full of ties."""

from __future__ import annotations

import math
import random

import pytest
import torch

from realisr.models.best_of_n import best_of_n

Table = list[list[float]]
NAN = math.nan


def usable(value: float) -> bool:
    return value == value and abs(value) != math.inf


def beats(one: float, other: float, higher: bool) -> bool:
    if not (usable(one) and usable(other)):
        return usable(one) and not usable(other)
    return one > other if higher else one < other


def stated_rule(table: Table, higher: list[bool]) -> tuple[Table, int]:
    """The rule in words, one pair of candidates at a time: ranks, and the chosen candidate."""
    count = len(table)
    ranks = [
        [1 + sum(beats(other[m], row[m], higher[m]) for other in table) for m in range(len(higher))] for row in table
    ]

    def mean(row: list[float]) -> float:
        total = 0.0
        for m, value in enumerate(row):
            column = [other[m] for other in table if usable(other[m])]
            if usable(value) and max(column) > min(column):
                share = (value - min(column)) / (max(column) - min(column))
                total += share if higher[m] else 1 - share
        return total / len(higher)

    chosen = 0
    for candidate in range(1, count):
        fewer = sum(ranks[candidate]) - sum(ranks[chosen])
        if fewer < 0:
            chosen = candidate
    tied = [row for row in range(count) if sum(ranks[row]) == sum(ranks[chosen])]
    top = max(mean(table[row]) for row in tied)
    return ranks, next(row for row in tied if mean(table[row]) >= top - 1e-9)


def random_table(draw: random.Random) -> tuple[Table, list[bool]]:
    """Few distinct values, so that ranks, sums and means tie often; some scores are no numbers."""
    count, metrics, levels = draw.randint(1, 8), draw.randint(1, 5), draw.choice([1, 2, 3, 5, 1000])
    broken = draw.choice([0, 0, 0.2, 0.9])
    odd = [NAN, math.inf, -math.inf]

    def score() -> float:
        return draw.choice(odd) if draw.random() < broken else draw.randint(1, levels) * draw.choice([1.0, 0.1])

    return [[score() for _ in range(metrics)] for _ in range(count)], [draw.random() < 0.6 for _ in range(metrics)]


def choose(table: Table, higher: list[bool]) -> int:
    return best_of_n(torch.tensor(table, dtype=torch.float64), higher).best


@pytest.mark.parametrize("seed", range(20))
def test_random_tables_follow_the_stated_rule(seed: int):
    draw = random.Random(seed)
    for _ in range(60):
        table, higher = random_table(draw)
        ranks, chosen = stated_rule(table, higher)
        ranking = best_of_n(torch.tensor(table, dtype=torch.float64), higher)
        assert ranking.ranks.tolist() == ranks, (table, higher)
        assert ranking.rank_sum.tolist() == [sum(row) for row in ranks]
        assert ranking.best == chosen, (table, higher)


@pytest.mark.parametrize("seed", range(5))
def test_order_matters_only_between_candidates_that_tie_in_everything(seed: int):
    draw = random.Random(1000 + seed)
    for _ in range(40):
        table, higher = random_table(draw)
        ranking = best_of_n(torch.tensor(table, dtype=torch.float64), higher)
        order = list(range(len(table)))
        draw.shuffle(order)
        shuffled = best_of_n(torch.tensor([table[i] for i in order], dtype=torch.float64), higher)
        assert shuffled.rank_sum.tolist() == [int(ranking.rank_sum[i]) for i in order]
        new = order[shuffled.best]
        assert ranking.rank_sum[new] == ranking.rank_sum[ranking.best]
        assert abs(ranking.mean_normalized[new] - ranking.mean_normalized[ranking.best]) <= 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_increasing_maps_keep_ranks_and_flipping_a_metric_is_its_negative(seed: int):
    draw = random.Random(2000 + seed)
    table = [[draw.random() for _ in range(4)] for _ in range(6)]
    higher = [True, False, True, False]
    ranking = best_of_n(torch.tensor(table), higher)
    stretched = [[value**3 * 10 - 5 for value in row] for row in table]
    assert torch.equal(best_of_n(torch.tensor(stretched), higher).ranks, ranking.ranks)
    negative = [[-value for value in row] for row in table]
    flipped = best_of_n(torch.tensor(negative), [not way for way in higher])
    assert torch.equal(flipped.ranks, ranking.ranks)
    assert torch.equal(flipped.mean_normalized, ranking.mean_normalized)
    assert flipped.best == ranking.best


def test_a_single_candidate_is_chosen_whatever_its_scores():
    assert choose([[1.0, 2.0]], [True, False]) == 0
    assert choose([[NAN, NAN]], [True, False]) == 0


def test_equal_scores_share_a_rank_and_the_next_is_skipped():
    ranking = best_of_n(torch.tensor([[3.0], [2.0], [2.0], [1.0]]), [True])
    assert ranking.ranks.flatten().tolist() == [1, 2, 2, 4]
    ranking = best_of_n(torch.tensor([[NAN], [2.0], [NAN], [1.0]]), [True])
    assert ranking.ranks.flatten().tolist() == [3, 1, 3, 2]


def test_a_tie_in_ranks_goes_to_the_larger_mean():
    # Rank sums 4, 4, 4: the third is close to the best in both metrics.
    table = [[1.0, 0.0], [0.0, 1.0], [0.9, 0.9]]
    assert best_of_n(torch.tensor(table), [True, True]).rank_sum.tolist() == [4, 4, 4]
    assert choose(table, [True, True]) == 2


def test_a_tie_in_ranks_and_mean_goes_to_the_earliest():
    assert choose([[0.0, 1.0], [1.0, 0.0]], [True, True]) == 0


def test_a_constant_metric_decides_nothing():
    assert choose([[5.0, 0.1], [5.0, 0.3], [5.0, 0.2]], [True, True]) == 1
    ranking = best_of_n(torch.full((3, 2), 0.7), [True, True])
    assert ranking.mean_normalized.tolist() == [0, 0, 0] and ranking.best == 0


def test_a_missing_score_ranks_last_and_adds_nothing():
    ranking = best_of_n(torch.tensor([[NAN, 9.0], [1.0, 1.0], [2.0, 5.0]], dtype=torch.float64), [True, True])
    assert ranking.ranks.tolist() == [[3, 1], [2, 3], [1, 2]]
    assert ranking.mean_normalized.tolist() == [0.5, 0.0, 0.75]


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (4,)])
def test_refuses_an_empty_table(shape):
    with pytest.raises(ValueError, match="candidates x metrics"):
        best_of_n(torch.zeros(shape), [True] * shape[-1])


def test_refuses_a_direction_too_few():
    with pytest.raises(ValueError, match="4 metrics need as many directions"):
        best_of_n(torch.zeros(3, 4), [True, False])


def test_a_vetoed_candidate_is_never_the_best():
    """The others rank among themselves, as if it were not there."""
    scores = torch.tensor([[9.0, 9.0], [1.0, 5.0], [2.0, 3.0]], dtype=torch.float64)
    ranking = best_of_n(scores, [True, True], [True, False, False])
    alone = best_of_n(scores[1:], [True, True])
    assert ranking.best == 1 + alone.best
    assert torch.equal(ranking.ranks[1:], alone.ranks) and ranking.ranks[0].tolist() == [3, 3]
    assert torch.equal(ranking.mean_normalized[1:], alone.mean_normalized)
    assert best_of_n(scores, [True, True], [False] * 3).best == best_of_n(scores, [True, True]).best == 0
    nothing = torch.full((2, 1), NAN, dtype=torch.float64)
    assert best_of_n(nothing, [True], [True, False]).best == 1


@pytest.mark.parametrize("vetoed", [[True, True], [False]])
def test_not_all_can_be_vetoed(vetoed):
    with pytest.raises(ValueError, match="2 candidates need a veto or none each"):
        best_of_n(torch.zeros(2, 1), [True], vetoed)
