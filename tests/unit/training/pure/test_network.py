"""The backbone in training: dropout where the paper has it, recomputation, low-rank updates, padding."""

from __future__ import annotations

import pytest
import torch

from harness.pure_tiny import PROMPT, TINY, initialise
from realisr.training.pure.config import LoRASettings
from realisr.training.pure.losses import counted_positions
from realisr.training.pure.network import PURENetwork


def network(**options) -> PURENetwork:
    made = PURENetwork(TINY, **{"dropout": 0.0, **options})
    initialise(made.transformer, 0.3, torch.Generator().manual_seed(0))
    return made


def batch(rows: list[list[int]], learnt: int = 4) -> dict[str, torch.Tensor]:
    """Ids filled up with 0; all but the first `learnt` tokens of each row are targets."""
    longest = max(map(len, rows))
    ids, labels = torch.zeros(len(rows), longest, dtype=torch.long), torch.full((len(rows), longest), -100)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        labels[index, learnt : len(row)] = torch.tensor(row[learnt:])
    return {"ids": ids, **dict(zip(("rows", "following", "own"), counted_positions(labels, True), strict=True))}


@torch.no_grad()
def test_it_is_the_packs_transformer():
    made, ids = network(dropout=0.5).eval(), torch.tensor([PROMPT])
    plain = made.transformer.logits(made.transformer(ids, mask=torch.ones((), dtype=torch.bool)))
    from realisr.models.pure.transformer import Chameleon

    same = Chameleon(TINY)
    same.load_state_dict(made.transformer.state_dict(), strict=True)
    torch.testing.assert_close(plain, same.logits(same(ids)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_dropout_is_on_both_residual_branches():
    """With everything dropped only the embedding is left; with a part, the mean over draws is what it is without."""
    made, ids = network(dropout=1.0).train(), torch.tensor([PROMPT])
    embedded = made.transformer.model.norm(made.transformer.model.embed_tokens(ids))
    assert torch.equal(made.transformer(ids), embedded)
    for branch in ("self_attn.o_proj", "mlp.down_proj"):
        alone = network(dropout=1.0).train()
        for layer in alone.transformer.model.layers:
            layer.get_submodule(branch).weight.zero_()  # then the other branch is what dropout acts on
        assert torch.equal(alone.transformer(ids), embedded)
        half = network(dropout=0.5)
        half.load_state_dict(alone.state_dict())
        x = torch.randn(1, 6, 16)
        from realisr.models.pure.transformer import Context, scaled_dot_product

        context = Context(TINY, torch.arange(6)[None], (), None, x.dtype, scaled_dot_product)
        layer = half.transformer.model.layers[0]
        torch.manual_seed(0)
        mean = torch.stack([layer.train()(x, 0, context) - x for _ in range(400)]).mean(0)
        expected = layer.eval()(x, 0, context) - x
        torch.testing.assert_close(mean, expected, rtol=0, atol=0.3 * expected.abs().max().item())


def test_recomputed_activations_give_the_same_gradients():
    gradients = []
    for recompute in (False, True):
        made = network(dropout=0.3, recompute=recompute, z_loss=0.01).train()
        torch.manual_seed(5)
        made("train", batch([PROMPT, PROMPT[:9]]))["loss"].backward()
        gradients.append({name: value.grad for name, value in made.named_parameters()})
    for name, value in gradients[0].items():
        torch.testing.assert_close(
            gradients[1][name], value, rtol=1e-5, atol=1e-7, msg=lambda text, n=name: f"{n}: {text}"
        )


@torch.no_grad()
def test_padding_changes_nothing():
    made = network().eval()
    long, short = PROMPT, [*PROMPT[:5], 77, 8710]
    together = made("train", batch([long, short]))["loss"]
    parts = [made("train", batch([row]))["loss"] * (len(row) - 4) for row in (long, short)]
    torch.testing.assert_close(together, sum(parts) / (len(long) + len(short) - 8), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_z_loss_is_added_with_its_weight():
    rows = batch([PROMPT])
    plain, weighted = network().eval()("train", rows), network(z_loss=0.25).eval()("train", rows)
    torch.testing.assert_close(weighted["loss"], plain["loss"] + 0.25 * weighted["z_loss"])
    assert "z_loss" not in plain and weighted["z_loss"] > 1


def test_low_rank_updates_start_at_nothing_and_alone_are_trained():
    made = network().eval()
    with torch.no_grad():
        before = made("train", batch([PROMPT]))["loss"]
    made.add_lora(LoRASettings(rank=2, alpha=2))
    trained = {name for name, value in made.named_parameters() if value.requires_grad}
    assert len(trained) == 2 * 4 * TINY.num_layers and all(".lora_" in name for name in trained)
    loss = made("train", batch([PROMPT]))["loss"]
    torch.testing.assert_close(loss, before)
    loss.backward()
    assert all((value.grad is not None) == value.requires_grad for value in made.parameters())


def test_embeddings_are_trained_beside_updates_where_asked():
    made = network()
    made.add_lora(LoRASettings(rank=1, alpha=1, parts=("qkv_proj",), embeddings=True))
    trained = {name for name, value in made.named_parameters() if value.requires_grad and ".lora_" not in name}
    assert trained == {
        "transformer.model.embed_tokens.weight",
        "transformer.lm_head.other.weight",
        "transformer.lm_head.image.weight",
    }


@torch.no_grad()
@pytest.mark.parametrize("length", [6, len(PROMPT)])
def test_autocast_computes_in_half_precision(length):
    made, rows = network().eval(), batch([PROMPT[:length]])
    whole = made("train", rows)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        half = made("train", rows)["loss"]
        hidden = made.transformer(rows["ids"], dtype=torch.bfloat16)
    assert hidden.dtype == torch.bfloat16 and half.dtype == torch.float32
    assert half != whole and abs(half - whole) < 0.05 * whole
