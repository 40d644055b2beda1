"""PURE's decoding against transformers' `generate`, Jacobi decoding, and the share of memory bandwidth on a GPU.

    python benchmarks/pure.py speed   [--hidden 256 --layers 4 --patches 3]
    python benchmarks/pure.py jacobi  [--hidden 128 --layers 2 --patches 2]
    python benchmarks/pure.py cuda    [--layers 32 --tokens 100]

speed: in one process, alternating and on the same random weights, our decoding of one image and transformers' own
`generate` on its ChameleonForConditionalGeneration with its UnbatchedClassifierFreeGuidanceLogitsProcessor, a grid mask
and entropy-based top-k. Both greedy, float32, from the same prompt; the tokens must be equal. Target: ratio 3.

jacobi: forwards and time of speculative Jacobi decoding and of one token a forward, for models whose next token depends
less and less on exactly which code stands before it (a trained model's does little).

cuda: at full size with random bfloat16 weights, time per image token, as CUDA graphs and eagerly, and its share of the
bound: bytes of the weights and cached keys and values a token needs, over the measured copy bandwidth. Target: 60 %,
and from it a tenth of the published 256.87 s for a 512 px image on an A100, scaled to its bandwidth. Skipped without a
GPU.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent

from _pack import load_pack  # noqa: E402

load_pack()

from harness.pure_tiny import initialise  # noqa: E402
from oracles.pure_released import unfuse  # noqa: E402
from oracles.pure_slots import mask_slot, slot_of  # noqa: E402
from realisr.models.pure.cache import SPAN_STEP, KVCache  # noqa: E402
from realisr.models.pure.config import ChameleonConfig  # noqa: E402
from realisr.models.pure.decode import Sequential, generate  # noqa: E402
from realisr.models.pure.grid import Grid  # noqa: E402
from realisr.models.pure.logits import TokenSampling, distribution  # noqa: E402
from realisr.models.pure.options import GenerationOptions  # noqa: E402
from realisr.models.pure.prompt import image_block  # noqa: E402
from realisr.models.pure.session import SeededDraws, Session  # noqa: E402
from realisr.models.pure.transformer import Chameleon  # noqa: E402
from realisr.models.pure.vocabulary import BOS, EOT, Vocabulary, image_ids, index_to_id  # noqa: E402

GUIDANCE_SCALE = 0.8
WARM = 4
PUBLISHED_SECONDS = 256.87
A100_BANDWIDTH = 1555e9
"""Of the 40 GB A100, the slower of the two: the paper does not say which it used."""


def small_config(args: argparse.Namespace) -> ChameleonConfig:
    return ChameleonConfig(
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 11 // 4,
        num_layers=args.layers,
        num_heads=args.hidden // 64,
        num_kv_heads=args.hidden // 64,
    )


def random_network(config: ChameleonConfig, varied: float = 1.0) -> Chameleon:
    """Random weights; `varied` below 1 makes image tokens alike as inputs."""
    generator = torch.Generator().manual_seed(0)
    network = initialise(Chameleon(config), config.hidden_size**-0.5, generator).eval()
    with torch.no_grad():
        table, ids = network.model.embed_tokens.weight, image_ids()
        table[ids] = table[5] + varied * (table[ids] - table[5])
    return network


def prompt_of(grid: Grid) -> list[int]:
    """A prompt of the real layout: a few words, an image of random tokens, the end of the turn."""
    index = torch.randint(0, 16384, (grid.rows, grid.columns), generator=torch.Generator().manual_seed(1))
    return [BOS, *range(16400, 16420), *image_block(index_to_id(index)), EOT]


def clock(call):
    began = time.perf_counter()
    out = call()
    return time.perf_counter() - began, out


def ours(network: Chameleon, prompt: list[int], grid: Grid, sampling: TokenSampling, decoding: str = "sequential"):
    options = GenerationOptions(
        sampling=sampling,
        guidance_scale=GUIDANCE_SCALE,
        parts="none",
        size=(grid.height, grid.width),
        decoding=decoding,
    )
    return generate(network, [prompt], [0], options, Vocabulary.formula())[0]


def transformers_model(network: Chameleon):
    """transformers' own class with the same weights, without its image encoder."""
    from transformers import ChameleonConfig as TheirConfig
    from transformers import ChameleonForConditionalGeneration

    config = network.config
    theirs = TheirConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        max_position_embeddings=11776,
        rms_norm_eps=config.rms_norm_eps,
        vocabulary_map={},
        vq_config={"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1},
        tie_word_embeddings=False,
    )
    model = ChameleonForConditionalGeneration(theirs).eval()
    tensors = unfuse(network.state_dict(), config)
    for key in tensors:
        if "self_attn" in key and "norm" in key:
            tensors[key] = tensors[key].expand(config.num_heads, -1).clone()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and all(key.startswith("model.vqmodel.") for key in missing), (missing, unexpected)
    return model


def transformers_run(model, prompt: list[int], grid: Grid, sampling: TokenSampling) -> list[int]:
    """The image after `prompt` by `generate`; its logits processors do what ours does, over the whole vocabulary."""
    from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
    from transformers.generation import UnbatchedClassifierFreeGuidanceLogitsProcessor

    opening = grid.opening()
    start = len(prompt) + len(opening)

    class GridMask(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return mask_slot(scores, slot_of(grid, input_ids.shape[1] - start + 1))

    class EntropyTopK(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return distribution(scores, sampling)[0].log()

    guidance = UnbatchedClassifierFreeGuidanceLogitsProcessor(
        GUIDANCE_SCALE, model, unconditional_ids=torch.tensor([opening]), use_cache=True
    )
    ids = torch.tensor([[*prompt, *opening]])
    config = GenerationConfig(
        do_sample=False, max_new_tokens=grid.length, min_new_tokens=grid.length, eos_token_id=None, pad_token_id=1,
        use_cache=True,
    )  # fmt: skip
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=config,
        logits_processor=LogitsProcessorList([guidance, GridMask(), EntropyTopK()]),
    )
    return out[0, len(prompt) :].tolist()


@torch.no_grad()
def speed(args: argparse.Namespace) -> None:
    config, grid = small_config(args), Grid(args.patches, args.patches)
    network, prompt, sampling = random_network(config), prompt_of(grid), TokenSampling(top_k=1)
    model = transformers_model(network)
    print(
        f"hidden {config.hidden_size}, {config.num_layers} layers, vocabulary {config.vocab_size}, "
        f"{grid.tokens} image tokens, prompt {len(prompt)}, {torch.get_num_threads()} CPU threads"
    )
    ours(network, prompt_of(Grid(1, 1)), Grid(1, 1), sampling)
    transformers_run(model, prompt_of(Grid(1, 1)), Grid(1, 1), sampling)
    mine = theirs = float("inf")
    for _ in range(args.repeats):
        seconds, expected = clock(lambda: transformers_run(model, prompt, grid, sampling))
        theirs = min(theirs, seconds)
        seconds, result = clock(lambda: ours(network, prompt, grid, sampling))
        mine = min(mine, seconds)
    equal = sum(a == b for a, b in zip(expected, result.ids, strict=False))
    per_token = [1000 * seconds / grid.tokens for seconds in (theirs, mine)]
    print(f"{'':14}{'s':>8}{'ms/token':>10}{'forwards':>10}")
    print(f"{'transformers':14}{theirs:8.2f}{per_token[0]:10.2f}{2 * grid.length:10}")
    print(f"{'ours':14}{mine:8.2f}{per_token[1]:10.2f}{result.forwards:10}")
    print(f"ratio {theirs / mine:.2f}; {equal} of {len(expected)} tokens equal", flush=True)


@torch.no_grad()
def jacobi(args: argparse.Namespace) -> None:
    config, grid = small_config(args), Grid(args.patches, args.patches)
    prompt = prompt_of(grid)
    print(f"hidden {config.hidden_size}, {config.num_layers} layers, {grid.tokens} image tokens, window 16")
    print(f"{'varied':>8}{'entropy':>9}{'forwards':>10}{'tokens/forward':>16}{'stood':>8}{'time ratio':>12}")
    for varied in (1.0, 0.3, 0.1, 0.03):
        network = random_network(config, varied)
        network.lm_head.image.weight.mul_(args.peak)
        plain_s, plain = clock(lambda network=network: ours(network, prompt, grid, TokenSampling()))
        fast_s, fast = clock(lambda network=network: ours(network, prompt, grid, TokenSampling(), "jacobi"))
        forwards = fast.forwards - 1
        print(
            f"{varied:8}{float(plain.entropy.mean()):9.2f}{forwards:10}{grid.tokens / forwards:16.2f}"
            f"{fast.accepted / fast.proposed:8.1%}{plain_s / fast_s:12.2f}",
            flush=True,
        )


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second of a large device copy, read and written bytes counted."""
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(10):
        torch.cuda.synchronize()
        began = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        best = max(best, 2 * source.numel() / (time.perf_counter() - began))
    return best


def bytes_read(network: Chameleon, caches: list[KVCache], lengths: list[int]) -> int:
    """Weights a token of the image phase needs, and the keys and values it looks at."""
    weights = sum(p.nbytes for p in network.parameters())
    weights -= network.model.embed_tokens.weight.nbytes + network.lm_head.other.weight.nbytes
    cached = sum(cache.nbytes * length // cache.capacity for cache, length in zip(caches, lengths, strict=True))
    return weights + cached


@torch.no_grad()
def cuda(args: argparse.Namespace) -> None:
    if not torch.cuda.is_available():
        print("no GPU here: skipped")
        return
    from dataclasses import replace

    device, grid = torch.device("cuda"), Grid(16, 16)
    config = replace(ChameleonConfig(), num_layers=args.layers)
    generator = torch.Generator(device).manual_seed(0)
    network = initialise(Chameleon(config, torch.bfloat16, device), generator=generator).eval()
    bandwidth = copy_bandwidth(device)
    gigabytes = bandwidth / 1e9
    print(f"{torch.cuda.get_device_name()}, copy bandwidth {gigabytes:.0f} GB/s, {config.num_layers} layers, bf16")
    prompt = prompt_of(grid)
    read_s, _ = clock(lambda: measure(network, prompt, grid, 1, False))
    print(f"prompt of {len(prompt)} tokens and first token, cold: {read_s:.2f} s")
    print(f"{'':10}{'ms/token':>10}{'GB/token':>10}{'GB/s':>8}{'bound':>8}{'image s':>9}{'on A100 s':>11}{'faster':>8}")
    for name, graphs in (("eager", False), ("graphs", True)):
        seconds, volume = measure(network, prompt, grid, args.tokens, graphs)
        image = seconds * grid.tokens
        scaled = image * bandwidth / A100_BANDWIDTH
        print(
            f"{name:10}{1e3 * seconds:10.2f}{volume / 1e9:10.2f}{volume / seconds / 1e9:8.0f}"
            f"{volume / seconds / bandwidth:8.1%}{image:9.1f}{scaled:11.1f}{PUBLISHED_SECONDS / scaled:8.1f}",
            flush=True,
        )


def between_spans(start: int, tokens: int, grid: Grid) -> int:
    """A length halfway through an image from where no cache grows for `tokens` tokens, so no graph is captured."""

    def spans(length: int) -> tuple[int, ...]:
        return tuple(-(-value // SPAN_STEP) for value in (length, start + length))

    return next(n for n in range(grid.length // 2, grid.length) if spans(n + 1) == spans(n + tokens))


def measure(network: Chameleon, prompt: list[int], grid: Grid, tokens: int, graphs: bool) -> tuple[float, int]:
    """Seconds and bytes per image token halfway through an image."""
    device = network.model.norm.weight.device
    session = Session(network, 1, len(prompt) + grid.length + 3, SeededDraws([0]), device=device)
    session.read([prompt])
    options = GenerationOptions(guidance_scale=GUIDANCE_SCALE, size=(grid.height, grid.width), cuda_graphs=graphs)
    drawing = Sequential(session, options, Vocabulary.formula())
    # A place within a row, so that no row end rides along.
    length = between_spans(len(prompt), tokens + WARM, grid)
    drawing.length = length
    drawing.position.fill_(length)
    drawing.number.fill_(grid.tokens // 2)

    def run(steps: int) -> None:
        for _ in range(steps):
            drawing.done = 1
            drawing.step()

    run(WARM)
    torch.cuda.synchronize()
    seconds, _ = clock(lambda: (run(tokens), torch.cuda.synchronize()))
    return seconds / tokens, bytes_read(network, drawing.caches, [len(prompt) + length, length])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command")
    for name, hidden, layers, patches in (("speed", 256, 4, 3), ("jacobi", 128, 2, 2)):
        sub = commands.add_parser(name)
        sub.add_argument("--hidden", type=int, default=hidden, help="multiple of 64")
        sub.add_argument("--layers", type=int, default=layers)
        sub.add_argument("--patches", type=int, default=patches, help="side of the image in patches of 32 pixels")
        sub.add_argument("--repeats", type=int, default=2, help="runs of each, of which the fastest counts")
        sub.add_argument("--peak", type=float, default=6.0, help="scale of the image tokens' logits")
    cuda_parser = commands.add_parser("cuda")
    cuda_parser.add_argument("--layers", type=int, default=32)
    cuda_parser.add_argument("--tokens", type=int, default=100)
    args = parser.parse_args()
    runs = {"speed": speed, "jacobi": jacobi, "cuda": cuda}
    if args.command:
        runs[args.command](args)
        return
    for name, run in runs.items():
        run(parser.parse_args([name]))


if __name__ == "__main__":
    main()
