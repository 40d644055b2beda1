"""The reference's accelerated decoding: window distributions, acceptance, and whole runs draw by draw."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch

from oracles import pure_jacobi as jacobi_reference
from parity import golden, pure_golden
from parity.sensitivity import DRAWS, distance, widened
from parity.test_pure_generation import network
from realisr.models.pure import jacobi
from realisr.models.pure import logits as stages

ENTROPY_TOLERANCE, PROBABILITY_TOLERANCE, RATIO_TOLERANCE, LOGITS_RELATIVE = 2e-5, 1e-6, 1e-6, 1e-5
TOLERANCES = {
    "logits_probe": 5e-5,
    "draft_prob_of_draft": 2e-6,
    "target_prob_of_draft": 2e-6,
    "entropy": ENTROPY_TOLERANCE,
}
"""Of whole runs, before what last places of the weights add."""


@pytest.mark.parametrize("case", pure_golden.cases("jacobi_window_logits"))
def test_window_distribution(case):
    entry = case.parameters
    rule = jacobi_reference.ReferenceRule(sampling=stages.TokenSampling(temperature=case.metadata["params"]["temp"]))
    context = case.shared("in.full_sequence")[: entry["context_len"]].tolist()
    logits = case.shared("in.logits_rows").float()[case["row_index"].long()]
    slots = jacobi_reference.window_slots(context, entry["window"])
    assert [-1 if slot.forced is None else slot.forced for slot in slots] == entry["forced_token"]
    p, mean, k, entropies = jacobi_reference.window_distribution(logits, context, rule)
    golden.assert_within(entropies, case["entropy_per_position"], ENTROPY_TOLERANCE, "entropy")
    assert k == entry["k"]
    if mean is not None:
        assert mean == pytest.approx(entry["mean_entropy"], abs=ENTROPY_TOLERANCE)
    pointers = case["prob_ptr"].tolist()
    for position, (begin, end) in enumerate(pairwise(pointers)):
        ids = case["prob_ids"][begin:end].long()
        assert torch.equal(p[position].nonzero()[:, 0], ids)
        golden.assert_within(p[position, ids], case["prob_values"][begin:end], PROBABILITY_TOLERANCE, f"{position}")


@pytest.mark.parametrize("case", pure_golden.cases("jacobi_accept"))
def test_acceptance(case):
    drafts, sampled = case["in.draft_tokens"][0], case["in.sampled_tokens"][0].clone()
    draft_p, target_p = case["in.draft_probs"][0], case["in.target_probs"][0]
    uniforms = case["in.accept_uniforms"]
    stood = jacobi_reference.accepted_drafts(drafts[1:], draft_p[1:], target_p[:-1], uniforms)
    ratio = jacobi.probability_of(target_p[None, :-1], drafts[None, 1:])
    ratio = (ratio / jacobi.probability_of(draft_p[None, 1:], drafts[None, 1:]))[0]
    golden.assert_within(ratio.clamp(max=1), case["mid.accept_ratio"].clamp(max=1), RATIO_TOLERANCE, "ratio")
    count = jacobi_reference.leading_count(stood)
    assert count == int(jacobi.leading(stood[None])[0])
    assert (torch.arange(len(stood)) < count).tolist() == case["out.accepted"].tolist()

    sampled[:count] = drafts[1 : count + 1]
    scores = target_p.clone()
    scores[:count] = draft_p[1 : count + 1]
    if count < len(stood):
        left = torch.softmax(jacobi_reference.residual_logits(target_p[count], draft_p[count + 1]), dim=-1)
        golden.assert_within(left, case["mid.residual_probs"], RATIO_TOLERANCE, "residual")
        ours = jacobi.residual(target_p[count], draft_p[count + 1])
        golden.assert_within(ours / ours.sum(), case["mid.residual_probs"], RATIO_TOLERANCE, "residual")
        sampled[count] = stages.draw(left, case["in.resample_uniform"][0])
    assert count + 1 == int(case["out.n_committed"])
    assert torch.equal(sampled[None], case["out.tokens"])
    golden.assert_within(scores[None], case["out.scores"], RATIO_TOLERANCE, "scores")


class RecordedRun:
    def __init__(self, case):
        self.case = case
        self.draft_values = case["in.draft_init_draws"].tolist()
        self.uniforms = case["in.uniforms"]
        self.step = 0
        self.counts: list[int] = []

    def drafts(self, count: int) -> list[int]:
        self.counts.append(count)
        taken, self.draft_values = self.draft_values[:count], self.draft_values[count:]
        return taken

    def tokens(self, count: int) -> torch.Tensor:
        taken, self.uniforms = self.uniforms[:count], self.uniforms[count:]
        return taken

    def acceptance(self, size: int) -> torch.Tensor:
        return self.case[f"step{self.step:02d}.accept_uniforms"]


def run(case, draws: RecordedRun, seed: int | None = None) -> Iterator[Any]:
    """The accelerated decoding of a recorded run, step by step; with a seed, by weights off by a last place."""
    params = case.metadata["params"]
    rule = jacobi_reference.ReferenceRule(
        sampling=stages.TokenSampling(temperature=params["temp"]),
        guidance_scale=params["guidance_scale"],
        text_top_k=params["text_top_k"],
        window=params["max_num_new_tokens"],
        interval=(case.metadata["interval_left"], case.metadata["interval_right"]),
    )
    prompt = case["in.prompt_ids"].tolist()
    for step in jacobi_reference.run(network(seed), prompt, draws, rule, params["max_new_tokens"]):
        yield step
        draws.step += 1


def results(step, probe: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "logits_probe": step.logits[..., probe],
        "draft_prob_of_draft": chosen(step.draft_p, step.ids),
        "target_prob_of_draft": chosen(step.target_p[:-1], step.ids),
    }


def spreads(case, probe: torch.Tensor) -> dict[str, float]:
    """How far each result moves with last places, over the steps that are fed the same tokens."""
    exact, spread = list(run(case, RecordedRun(case))), dict.fromkeys(TOLERANCES, 0.0)
    for seed in DRAWS:
        for step, other in zip(exact, run(case, RecordedRun(case), seed), strict=False):
            if other.ids != step.ids:
                break
            theirs = results(other, probe)
            for key, value in results(step, probe).items():
                spread[key] = max(spread[key], distance(theirs[key], value))
            if step.entropy_k is not None and step.entropy_k[0] is not None:
                spread["entropy"] = max(spread["entropy"], abs(other.entropy_k[0] - step.entropy_k[0]))
    return spread


@pytest.mark.slow
@pytest.mark.parametrize("case", pure_golden.cases("jacobi_run*"))
def test_run(case):
    draws, probe, expected = RecordedRun(case), case["in.probe_ids"].long(), case.metadata["steps"]
    tolerances = {key: widened(TOLERANCES[key], spread) for key, spread in spreads(case, probe).items()}
    generated: list[int] = []
    for step in run(case, draws):
        name, entry = f"step{draws.step:02d}", expected[draws.step]
        assert len(step.ids) == entry["forward_tokens"] and len(step.committed) == entry["committed"]
        for key, value in (
            ("input_ids", torch.tensor([step.ids[-entry["window"] :]])),
            ("sampled", step.sampled[None]),
            ("committed", torch.tensor([step.committed])),
        ):
            if f"{name}.{key}" in case:
                assert torch.equal(value, case[f"{name}.{key}"]), f"{name}.{key}"
        if f"{name}.positions" in case:
            assert torch.equal(case[f"{name}.positions"][0], step.positions)
        for key, value in results(step, probe).items():
            if f"{name}.{key}" in case:
                reference = case[f"{name}.{key}"]
                if key == "draft_prob_of_draft":
                    reference = reference[1:]
                relative = LOGITS_RELATIVE if key == "logits_probe" else 0
                pure_golden.assert_close(value, reference, tolerances[key], relative, f"{name}.{key}")
        if entry["window_entropy_k"]:
            ((entropy, k),) = entry["window_entropy_k"]
            assert step.entropy_k[1] == k and step.entropy_k[0] == pytest.approx(entropy, abs=tolerances["entropy"])
        generated += step.committed
    assert draws.step == len(expected) and len(draws.uniforms) == 0
    assert draws.counts == case["in.draft_init_counts"].tolist()
    assert generated == case["out.generated_ids"].tolist()


def chosen(p: torch.Tensor, fed: list[int]) -> torch.Tensor:
    """Probability of each draft of a window; its first token is no draft."""
    drafts = torch.tensor(fed[-len(p) :] if len(p) else [], dtype=torch.long)
    return p.gather(1, drafts[:, None])[:, 0]
