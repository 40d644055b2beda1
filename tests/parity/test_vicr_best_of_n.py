"""The choice among N restorations against the reference tables."""

from __future__ import annotations

import pytest
import torch

from parity import golden
from realisr.models.best_of_n import best_of_n

NAN = -1e30
"""What the tables hold in place of NaN."""
MEAN_TOLERANCE = 1e-12


@pytest.mark.parametrize("case", golden.cases("vicr_best_of_n", method="flux"))
def test_best_of_n(case):
    scores = case["in/scores"]
    scores = scores.masked_fill(scores == NAN, torch.nan)
    ranking = best_of_n(scores, case["in/higher_is_better"].bool())
    assert torch.equal(ranking.ranks, case["mid/ranks"])
    assert torch.equal(ranking.rank_sum, case["mid/rank_sum"])
    golden.assert_within(ranking.mean_normalized, case["mid/mean_norm"], MEAN_TOLERANCE, "mean")
    assert ranking.best == case["out/index"].item()
