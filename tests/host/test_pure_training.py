"""What PURE training writes, loaded by the nodes: the restorer computes what the trained network does."""

from __future__ import annotations

import pytest
import torch

from harness import pure
from harness.pure import picture, run_restorer
from harness.pure_training import INSTRUCTION, save_start, settings
from realisr.training.engine.engine import Engine
from realisr.training.pure.config import PUREConfig
from realisr.training.pure.method import PUREMethod

RATE = {"optimizer": {"learning_rate": 2e-3}}
RUNS = {
    "full": RATE,
    "LoRA": {**RATE, "lora": {"rank": 4, "alpha": 8}},
    "LoRA and embeddings": {
        **RATE,
        "steps": 5,
        "lora": {"rank": 2, "alpha": 2, "parts": ["qkv_proj"], "embeddings": True},
    },
}


def trained(root, **changes) -> PUREMethod:
    """A method after its run."""
    method = PUREMethod(PUREConfig.model_validate(settings(root, **changes)))
    Engine(method).run()
    method.network.eval()
    return method


def loaded(host, method: PUREMethod, name: str):
    """The run's folder, put where the host looks for it."""
    from realisr.host.pure.loader import load_ar_restorer

    folder = host.models / "LLM" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    (method.config.out / "PURE").rename(folder)
    pure.save_vqgan(host.models / "vae" / pure.VQ_FILE, pure.vqgan())
    return load_ar_restorer(name, weight_dtype="fp32")


@torch.no_grad()
def logits(network, ids: torch.Tensor) -> torch.Tensor:
    return network.logits(network(ids))


@pytest.mark.parametrize("name", RUNS)
def test_the_restorer_computes_what_was_trained(host, tmp_path, name):
    method = trained(tmp_path, **RUNS[name])
    ids = method.conversations[0]["ids"][None]  # text and pictures
    expected = logits(method.network.transformer, ids)
    untrained = PUREMethod(PUREConfig.model_validate(settings(tmp_path, **RUNS[name])))
    untrained.build(torch.device("cpu"))
    before = logits(untrained.network.eval().transformer, ids)
    assert (expected - before).abs().max() > 1e-2 * expected.abs().max()

    model = loaded(host, method, f"trained {name}")
    found = logits(model.network, ids)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    image, degradation, *_ = run_restorer(model, picture(width=32, height=32), **pure.QUICK, instruction=INSTRUCTION)
    assert image.shape == (1, 32, 32, 3) and degradation == pure.SENTENCE


def test_lumina_mgpts_vocabulary_is_enlarged(host, tmp_path):
    """65536 tokens become PURE's 73728, which the loader demands; the text tokens are what they were."""
    start = save_start(tmp_path / "start", sizes=pure.Sizes(vocabulary=pure.PLAIN_VOCABULARY))
    method = trained(tmp_path, steps=1, zero_image_head=True, optimizer={"learning_rate": 1e-9})
    model = loaded(host, method, "enlarged")
    assert model.config.vocab_size == pure.VOCABULARY
    from safetensors.torch import load_file

    parts = [load_file(file) for file in start.glob("*.safetensors")]
    before = next(part["model.embed_tokens.weight"] for part in parts if "model.embed_tokens.weight" in part).float()
    after = model.network.model.embed_tokens.weight.detach()
    torch.testing.assert_close(after[: pure.PLAIN_VOCABULARY], before, rtol=1e-5, atol=1e-6)
    added, known = after[pure.PLAIN_VOCABULARY :], before[4:8196]
    torch.testing.assert_close(added.mean(0), known.mean(0), rtol=0, atol=0.1)
    torch.testing.assert_close(added.std(0), known.std(0), rtol=0.1, atol=0)
    hidden = torch.randn(3, model.config.hidden_size)
    assert model.network.image_logits(hidden).detach().abs().max() < 1e-6


def test_bf16_is_what_the_release_has(host, tmp_path):
    from safetensors.torch import load_file

    method = trained(tmp_path, steps=1, export_precision="bf16")
    (weights,) = (load_file(file) for file in (tmp_path / "run" / "PURE").glob("*.safetensors"))
    kinds = {value.dtype for name, value in weights.items() if "q_norm" not in name and "k_norm" not in name}
    assert kinds == {torch.bfloat16}
    loaded(host, method, "half")
