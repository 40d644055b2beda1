"""PURE on a tiny Chameleon: real photos as tokens, degraded and described, answers learnt from nothing.

Network: the pack's backbone with training's losses, 3 layers 96 wide, from random weights. Pictures of 32 x 32 pixels.
In place of LlamaGen's VQGAN, of which no weights are at hand: 256 codes, the means of clusters of 8 x 8 patches of the
training photos; what they lose is printed. Pictures are blurred and noised, each by a drawn strength, and the answer's
sentence names both in the paper's three levels; there is no caption. The vocabulary has the text that occurs and no
further codes, so that the head is small.

Measured on crops of six photos that training never saw: cross entropy and the share of right tokens, of the sentence's
two levels and of the picture, before and after; after with every low-quality picture exchanged for another crop's; and
what two rules without a network get: the most frequent token of each kind, and the low-quality picture's own tokens.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from training_photos import fixed_crops, held_out_photos, random_crops, training_photos

CODES, CELL, SIDE, SHORT_SIDE = 256, 8, 32, 160
LEVELS = ("small", "medium", "large")
WORDS = ("Restore the picture.", *LEVELS, " blur, ", " noise.")
FIRST_WORD = 8900
VOCABULARY = FIRST_WORD + 64
BLUR, NOISE = (0.3, 2.4), (0.0, 0.15)
"""Ranges of the deviation of the blur in pixels and of the noise."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--crops", type=int, default=6, help="of each held-out photo")


class Words:
    """A tokenizer of the few words that occur."""

    def encode(self, text: str) -> list[int]:
        ids = []
        while text:
            word = next(word for word in sorted(WORDS, key=len, reverse=True) if text.startswith(word))
            ids.append(FIRST_WORD + WORDS.index(word))
            text = text[len(word) :]
        return ids

    def decode(self, ids: object) -> str:
        raise NotImplementedError


class PatchCodes:
    """Pictures to codes and back by the nearest of CODES patches."""

    def __init__(self, photos: list[Tensor], rng: np.random.Generator):
        from sklearn.cluster import MiniBatchKMeans

        patches = cut(random_crops(photos, 1500, SIDE, rng)).numpy()
        means = MiniBatchKMeans(CODES, batch_size=4096, n_init=1, max_iter=20, random_state=0).fit(patches)
        self.patches = torch.from_numpy(means.cluster_centers_).float()

    def encode(self, images: Tensor) -> Tensor:
        """`[B, 3, H, W]` in [0, 1] -> `[B, H / 8, W / 8]`."""
        codes = torch.cdist(cut(images), self.patches).argmin(dim=1)
        return rearrange(codes, "(b h w) -> b h w", b=len(images), h=images.shape[2] // CELL)

    def decode(self, codes: Tensor) -> Tensor:
        return rearrange(self.patches[codes], "b h w (c p q) -> b c (h p) (w q)", p=CELL, q=CELL)


def cut(images: Tensor) -> Tensor:
    return rearrange(images, "b c (h p) (w q) -> (b h w) (c p q)", p=CELL, q=CELL)


def degrade(images: Tensor, rng: np.random.Generator) -> tuple[Tensor, list[str]]:
    """Each picture blurred, then noised, and the sentence that says how much of both."""
    out, sentences = [], []
    for image in images:
        blur, noise = (rng.uniform(*limits) for limits in (BLUR, NOISE))
        reach = torch.arange(-8, 9)
        kernel = torch.exp(-(reach**2) / (2 * blur**2))
        kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
        padded = F.pad(image[None], (8, 8, 8, 8), mode="reflect")
        blurred = F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)[0]
        grain = torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32))
        out.append((blurred + noise * grain).clamp(0, 1))
        words = [level(value, limits) for value, limits in ((blur, BLUR), (noise, NOISE))]
        sentences.append(f"{words[0]} blur, {words[1]} noise.")
    return torch.stack(out), sentences


def level(value: float, limits: tuple[float, float]) -> str:
    """Which third of its range a strength is in."""
    return LEVELS[min(2, int(3 * (value - limits[0]) / (limits[1] - limits[0])))]


@dataclass(frozen=True)
class Conversations:
    """Ids and labels `[N, T]`; all are equally long."""

    ids: Tensor
    labels: Tensor

    @property
    def levels(self) -> Tensor:
        """Which labels are a degradation's level."""
        first = FIRST_WORD + WORDS.index(LEVELS[0])
        return (self.labels >= first) & (self.labels < first + len(LEVELS))

    @property
    def codes(self) -> Tensor:
        """Which labels are a picture's codes."""
        return (self.labels >= 4) & (self.labels < 4 + CODES)


def conversations(clean: Tensor, codes: PatchCodes, rng: np.random.Generator, shuffled: bool = False) -> Conversations:
    from realisr.models.pure.prompt import image_block
    from realisr.models.pure.vocabulary import Vocabulary
    from realisr.training.pure.conversations import Conversation, Turn, tokens

    degraded, sentences = degrade(clean, rng)
    vocabulary, words = Vocabulary.formula(), Words()
    low, high = (vocabulary.encode(codes.encode(images)) for images in (degraded, clean))
    if shuffled:
        low = low.roll(len(low) // 2, dims=0)
    rows = []
    for before, after, sentence in zip(low, high, sentences, strict=True):
        turns = (Turn(False, "Restore the picture.<|image|>"), Turn(True, f"{sentence}<|image|>"))
        rows.append(tokens(Conversation(turns, (), ""), [image_block(before), image_block(after)], words))
    ids, labels = (torch.tensor(column) for column in zip(*rows, strict=True))
    return Conversations(ids, labels)


@torch.no_grad()
def figures(network, data: Conversations) -> list[float]:
    """Cross entropy and accuracy of all targets, accuracy of the levels, cross entropy and accuracy of the codes."""
    network.eval()
    entropies, right = [], []
    for ids in data.ids.split(8):
        logits = network.transformer.logits(network.transformer(ids))[:, :-1]
        following = ids[:, 1:]
        entropies.append(F.cross_entropy(logits.transpose(1, 2), following, reduction="none"))
        right.append(logits.argmax(dim=-1) == following)
    entropy, correct = torch.cat(entropies), torch.cat(right).float()
    every, levels, codes = ((mask)[:, 1:] for mask in (data.labels != -100, data.levels, data.codes))
    return [
        entropy[every].mean().item(),
        correct[every].mean().item(),
        correct[levels].mean().item(),
        entropy[codes].mean().item(),
        correct[codes].mean().item(),
    ]


def rules(train: Conversations, test: Conversations) -> dict[str, list[float | None]]:
    """What the most frequent tokens get, and the low-quality picture's own."""
    counts = torch.bincount(train.labels[train.codes], minlength=VOCABULARY).float() + 0.5
    rates = counts[4 : 4 + CODES] / counts[4 : 4 + CODES].sum()
    wanted = test.labels[test.codes]
    levels = torch.bincount(train.labels[train.levels]).argmax()
    frequent = [
        None,
        None,
        (test.labels[test.levels] == levels).float().mean().item(),
        -rates[wanted - 4].log().mean().item(),
        (wanted == 4 + rates.argmax()).float().mean().item(),
    ]
    start = int((test.ids[0] == 8197).nonzero()[0])
    length = SIDE // CELL * (SIDE // CELL + 1) + 4
    low = test.ids[:, start : start + length]
    high = test.ids[:, -length - 1 : -1]
    picture = (low >= 4) & (low < 4 + CODES)
    return {
        "most frequent token": frequent,
        "LQ picture's tokens": [None, None, None, None, (low == high)[picture].float().mean().item()],
    }


def run(options: argparse.Namespace) -> None:
    from realisr.models.pure.config import ChameleonConfig
    from realisr.training.engine.config import OptimizerSettings, ScheduleSettings
    from realisr.training.engine.optimizers import TurnOptimizer
    from realisr.training.pure.losses import counted_positions
    from realisr.training.pure.network import PURENetwork

    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    photos = training_photos(SHORT_SIDE)
    codes = PatchCodes(photos, rng)
    crops = torch.cat([fixed_crops(photo, options.crops, SIDE) for photo in held_out_photos(SHORT_SIDE).values()])
    test, other = (conversations(crops, codes, np.random.default_rng(1), shuffled) for shuffled in (False, True))
    error = (codes.decode(codes.encode(crops)) - crops).square().mean(dim=(1, 2, 3))
    print(f"{len(crops)} held-out crops; the codes alone: {(-10 * error.log10()).mean():.2f} dB")
    sizes = {"hidden_size": 96, "intermediate_size": 256, "num_layers": 3, "num_heads": 4, "num_kv_heads": 4}
    network = PURENetwork(ChameleonConfig(vocab_size=VOCABULARY, **sizes), dropout=0.05)
    for name, value in network.named_parameters():
        if value.dim() == 2 and "norm" not in name:
            torch.nn.init.normal_(value, std=0.02)
    rows: dict[str, list[float | None]] = {"before": list(figures(network, test))}
    settings = OptimizerSettings(learning_rate=options.rate, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = ScheduleSettings(warmup=options.steps // 4, cooldown=options.steps - options.steps // 4)
    parameters = list(network.named_parameters())
    optimizer = TurnOptimizer(settings, schedule, [{"params": parameters, "rate": 1.0}])
    started = time.monotonic()
    for step in range(options.steps):
        network.train()
        data = conversations(random_crops(photos, options.batch, SIDE, rng), codes, rng)
        counted = dict(zip(("rows", "following", "own"), counted_positions(data.labels, False), strict=True))
        losses = network("train", {"ids": data.ids, **counted})
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 4.0)
        optimizer.step(step, options.steps)
        if step == 9 or (step + 1) % 100 == 0:
            found = figures(network, test)
            seconds = (time.monotonic() - started) / (step + 1)
            print(
                f"step {step + 1}: loss {losses['loss'].item():.3f}, held out {found[0]:.3f}, {seconds:.2f} s/step",
                flush=True,
            )
    rows["after"] = list(figures(network, test))
    rows["after, LQ exchanged"] = list(figures(network, other))
    rows |= rules(conversations(random_crops(photos, 400, SIDE, rng), codes, rng), test)
    print_table(rows)


def print_table(rows: dict[str, list[float | None]]) -> None:
    heads = ("all: nats", "all: right", "levels: right", "codes: nats", "codes: right")
    print(f"\n| | {' | '.join(heads)} |\n|{' --- |' * (len(heads) + 1)}")
    for name, values in rows.items():
        cells = [
            "" if value is None else f"{value:.3f}" if "nats" in head else f"{100 * value:.1f} %"
            for head, value in zip(heads, values, strict=True)
        ]
        print(f"| {name} | {' | '.join(cells)} |")
