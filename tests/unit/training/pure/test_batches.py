"""The order of samples: each once an epoch, near in length, a function of the seed and the number."""

from __future__ import annotations

import numpy as np
import pytest

from realisr.training.pure.batches import LengthBatches

LENGTHS = np.random.default_rng(0).integers(100, 200, 1003).tolist()


def order(**changes):
    return LengthBatches(**{"lengths": LENGTHS, "ratios": [1.0] * len(LENGTHS), "batch": 4, "seed": 3, **changes})


def test_samples_depend_on_seed_and_number_alone():
    one, other = order(), order()
    numbers = [5, 2000, 0, 1003, 999, 3]
    assert [one[number] for number in numbers] == [other[number] for number in reversed(numbers)][::-1]
    assert [one[number] for number in range(50)] != [order(seed=4)[number] for number in range(50)]


def test_an_epoch_has_every_item_once_in_another_order():
    samples = order()
    assert len(samples) == 1000
    epochs = [[samples[number] for number in range(start, start + 1000)] for start in (0, 1000)]
    assert all(len(set(epoch)) == 1000 for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_items_of_a_micro_batch_have_similar_lengths():
    samples = order()
    batches = np.array([LENGTHS[samples[number]] for number in range(1000)]).reshape(-1, 4)
    assert np.ptp(batches, axis=1).mean() < 3  # 60 where items are drawn at random
    assert np.corrcoef(np.arange(250), batches.mean(axis=1))[0, 1] < 0.2  # and long ones do not come last


def test_ratios_repeat_and_leave_out():
    samples = LengthBatches([10] * 100 + [10] * 50, [0.25] * 100 + [2.5] * 50, 1, 0)
    assert len(samples) == 25 + 125
    counts = np.bincount([samples[number] for number in range(150)], minlength=150)
    assert set(counts[:100]) == {0, 1} and set(counts[100:]) == {2, 3}
    again = np.bincount([samples[number] for number in range(150, 300)], minlength=150)
    assert (counts != again).any()


def test_too_few_items_are_an_error():
    with pytest.raises(ValueError, match="3 samples an epoch, fewer than a batch of 4"):
        order(lengths=[1, 2, 3], ratios=[1.0] * 3)
