"""PURE's decoding with tiny random models: grids, caches, seeds, limits, hostile logits, choices of text."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from harness.pure_tiny import PROMPT, TINY, answering_network, prefer, random_network
from oracles.pure_slots import Slot, next_slot, slot_of
from realisr.models.pure import cache, decode, graphs, jacobi
from realisr.models.pure.decode import generate
from realisr.models.pure.grid import Grid
from realisr.models.pure.logits import TokenSampling
from realisr.models.pure.options import GenerationOptions, cache_bytes
from realisr.models.pure.session import GenerationError, Observer, SeededDraws, Session
from realisr.models.pure.text import split_text
from realisr.models.pure.transformer import Chameleon
from realisr.models.pure.vocabulary import BOI, BOS, EOI, EOT, SIZE_BASE, Vocabulary, id_to_index

VOCABULARY = Vocabulary.formula()
DECODINGS = ("sequential", "jacobi")


def answer(network, prompts=(PROMPT,), seeds=None, observer=None, tokenizer=None, descriptions=None, **options):
    chosen = GenerationOptions(**{"parts": "none", "size": (1, 2), "window": 5, **options})
    seeds = list(range(len(prompts))) if seeds is None else seeds
    return generate(network, list(prompts), seeds, chosen, VOCABULARY, tokenizer, descriptions, observer)


def assert_valid(result, height: int, width: int) -> None:
    grid = Grid(height, width)
    begin = result.ids.index(BOI)
    assert result.ids[begin + 1 : begin + 3] == [SIZE_BASE + height, SIZE_BASE + width]
    for position in range(begin + 3, len(result.ids) - 1):
        slot, _, _ = next_slot([BOS, *result.ids[:position]])
        token = result.ids[position]
        assert token == slot.forced if slot.forced is not None else id_to_index(torch.tensor(token)) >= 0
    assert result.ids[-2:] == [EOI, EOT] and len(result.ids) == begin + 3 + grid.length + 1
    for table in (result.codes, result.entropy, result.k):
        assert table.shape == (grid.rows, grid.columns)
    assert result.codes.min() >= 0 and result.codes.max() < 16384


HOSTILE = {
    "random": {},
    "tiny temperature": {"sampling": TokenSampling(temperature=1e-30)},
    "huge temperature": {"sampling": TokenSampling(temperature=1e30)},
    "one token": {"sampling": TokenSampling(top_k=1)},
    "all tokens": {"sampling": TokenSampling(top_k=100_000)},
    "strong guidance": {"guidance_scale": 50.0},
    "no guidance": {"guidance_scale": 1.0},
}


@pytest.mark.parametrize("decoding", DECODINGS)
@pytest.mark.parametrize("name", HOSTILE)
def test_grid_is_always_complete(name, decoding):
    network = random_network(1, image_scale=30.0)
    for result in answer(network, [PROMPT] * 2, decoding=decoding, **HOSTILE[name]):
        assert_valid(result, 1, 2)


@pytest.mark.parametrize("decoding", DECODINGS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_named(decoding, value):
    """The second image's logits break down while its second row is drawn."""
    network = random_network(2)
    calls = 0
    image_logits = network.image_logits

    def broken(hidden):
        nonlocal calls
        calls += 1
        out = image_logits(hidden)
        if calls > (10 if decoding == "sequential" else 3):
            out[1] = value
        return out

    network.image_logits = broken
    with pytest.raises(GenerationError, match=r"image 2: the model's logits are not finite at image token \d+ of 32"):
        answer(network, [PROMPT] * 2, decoding=decoding)
    if decoding == "sequential":
        calls = 0
        with pytest.raises(GenerationError, match=r"token 11 of 32 \(row 2, column 3\)"):
            answer(network, [PROMPT] * 2)


@pytest.mark.parametrize("decoding", DECODINGS)
def test_tokens_depend_on_the_seed_and_the_image_alone(decoding):
    """The same image and seed alone, elsewhere in a batch, beside other prompts, and while being watched."""
    network = random_network(3, image_scale=6.0)
    other = [*PROMPT[:2], 17000, *PROMPT[1:]]
    (alone,) = answer(network, [PROMPT], [7], decoding=decoding)
    third = answer(network, [other, PROMPT, PROMPT], [1, 2, 7], decoding=decoding)[2]
    watcher = Watcher()
    (watched,) = answer(network, [PROMPT], [7], watcher, decoding=decoding)
    assert alone.ids == third.ids == watched.ids
    assert torch.allclose(alone.entropy, third.entropy, atol=1e-4) and torch.equal(alone.k, watched.k)
    assert answer(network, [PROMPT], [8], decoding=decoding)[0].ids != alone.ids
    assert torch.equal(torch.cat(watcher.previews[-1:])[0], alone.codes)


class Watcher(Observer):
    def __init__(self, stop_after: int | None = None):
        self.steps: list[tuple[str, int, int]] = []
        self.previews: list[torch.Tensor] = []
        self.texts: list[tuple[list[list[int]], bool]] = []
        self.stop_after = stop_after

    def step(self, phase, done, total):
        self.steps.append((phase, done, total))
        if self.stop_after == len(self.steps):
            raise InterruptedError

    def text(self, ids, final):
        self.texts.append(([list(row) for row in ids], final))

    def rows(self, done, codes):
        assert codes().shape[1] == done
        self.previews.append(codes())


def test_progress_text_and_previews():
    watcher = Watcher()
    network = answering_network(4)
    (result,) = answer(network, observer=watcher, parts="full", size=(1, 1))
    assert_valid(result, 1, 1)
    image = [(done, total) for phase, done, total in watcher.steps if phase == "image"]
    assert image == [(done, 16) for done in range(1, 17)]
    assert watcher.texts[-1] == ([[20000]], True) and result.text_ids == [20000]
    assert [preview.shape[1] for preview in watcher.previews] == [1, 2, 3, 4]
    for preview in watcher.previews:
        assert torch.equal(preview[0], result.codes[: preview.shape[1]])


@pytest.mark.parametrize("stop_after", [1, 3, 12])
def test_stops_at_the_very_step(stop_after):
    watcher = Watcher(stop_after)
    with pytest.raises(InterruptedError):
        answer(answering_network(4), observer=watcher, parts="full")
    assert len(watcher.steps) == stop_after


def test_as_many_forwards_as_image_tokens():
    (result,) = answer(random_network(5))
    assert result.forwards == 1 + 32


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (2, 1)])
def test_cached_steps_see_what_a_whole_forward_sees(size):
    """Greedy decoding over the caches, against full forwards over the finished sequence for both branches."""
    network = random_network(6, image_scale=4.0)
    (result,) = answer(network, size=size, sampling=TokenSampling(top_k=1))
    begin = result.ids.index(BOI)
    full = network.image_logits(network(torch.tensor([PROMPT + result.ids])))[0, len(PROMPT) + begin :]
    alone = network.image_logits(network(torch.tensor([result.ids[begin:]])))[0]
    guided = 0.8 * (full - alone) + alone
    image = [id_to_index(torch.tensor(token)) >= 0 for token in result.ids[begin + 1 :]]
    chosen = id_to_index(torch.tensor(result.ids[begin + 1 :]))
    agree = guided[:-1].argmax(dim=-1) == chosen
    assert agree[torch.tensor(image)].all() and sum(image) == 16 * size[0] * size[1]


LIMITS = {
    "never starts an image": ({EOT: 20000, 20000: 20000}, "wrote 20 text tokens without starting an image"),
    "ends its turn at once": ({EOT: EOT}, "ended its answer with token 8710 after 0 text tokens"),
    "closes what it never opened": ({EOT: 20000, 20000: EOI}, "ended its answer with token 8196 after 1 text"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits_end_with_a_message(name):
    wanted, message = LIMITS[name]
    network = prefer(random_network(9), wanted)
    with pytest.raises(GenerationError, match=f"image 1: .*{message}"):
        answer(network, parts="full", max_text_tokens=20)


def test_text_logits_that_are_no_numbers_are_named():
    network = answering_network(10)
    with torch.no_grad():
        network.model.embed_tokens.weight[20000] = float("nan")
    with pytest.raises(GenerationError, match="image 1: the model's logits are not finite at text token 2"):
        answer(network, parts="full")


class Words:
    """One token a word; 20003 ends in a full stop."""

    names = {20001: "Medium ", 20002: "blur", 20003: ".", 20004: " A lion", 20005: " at night"}

    def decode(self, ids):
        return "".join(self.names[i] for i in ids)

    def encode(self, text):
        assert text in (" A cat", "A cat")
        return [20010, 20011]


def storyteller(seed: int):
    chain = [EOT, 20001, 20002, 20003, 20004, 20005, BOI]
    return prefer(random_network(seed), dict(pairwise(chain)))


GUIDED = [
    ("full", None, [20001, 20002, 20003, 20004, 20005]),
    ("perception", None, [20001, 20002, 20003]),
    ("understanding", None, [20004, 20005]),
    ("none", None, []),
    ("full", "A cat", [20001, 20002, 20003, 20010, 20011]),
    ("understanding", "A cat", [20010, 20011]),
]


@pytest.mark.parametrize(("parts", "description", "expected"), GUIDED)
def test_text_the_image_is_conditioned_on(parts, description, expected):
    """The kept text is what the image sees: drawing goes on as from a prompt that ends in it."""
    network = storyteller(11)
    options = {"parts": parts, "sampling": TokenSampling(top_k=3)}
    (result,) = answer(network, tokenizer=Words(), descriptions=[description], **options)
    assert result.text_ids == expected and result.ids[: len(expected) + 1] == [*expected, BOI]
    (direct,) = answer(network, [PROMPT + expected], [0], sampling=TokenSampling(top_k=3))
    assert result.codes.tolist() == direct.codes.tolist()
    if parts == "full" and description is None:
        assert split_text(result.written_ids, Words()) == ("Medium blur.", "A lion at night")


def test_what_is_shown_ends_where_the_kept_sentence_does():
    watcher = Watcher()
    answer(storyteller(11), observer=watcher, tokenizer=Words(), parts="perception")
    assert watcher.texts == [([[20001, 20002, 20003]], True)]


def test_texts_of_different_length_in_one_batch():
    network = storyteller(12)
    descriptions = ["A cat", None]
    both = answer(network, [PROMPT] * 2, [3, 4], tokenizer=Words(), descriptions=descriptions, parts="full")
    for image, description in enumerate(descriptions):
        (alone,) = answer(network, [PROMPT], [3 + image], tokenizer=Words(), descriptions=[description], parts="full")
        assert alone.ids == both[image].ids


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": "perception", "descriptions": ["A cat"], "tokenizer": Words()}, "leaves descriptions out"),
        ({"parts": "understanding"}, "needs the tokenizer"),
        ({"parts": "everything"}, "unknown text 'everything'"),
        ({"size": (33, 1)}, "33 x 1 patches"),
        ({"size": (32, 32)}, "32 x 32 patches"),
        ({"decoding": "beam"}, "unknown decoding 'beam'"),
        ({"descriptions": ["A cat", "A dog"]}, "2 descriptions for 1 prompts"),
        ({"prompts": []}, "no prompt"),
        ({"max_text_tokens": 0}, "max_text_tokens is 0"),
    ],
)
def test_unusable_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        answer(random_network(13), **options)


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("decoding", DECODINGS)
def test_stated_cache_memory_covers_what_is_allocated(monkeypatch, decoding, guided):
    allocated = []
    allocate = cache.KVCache.allocate.__func__

    def recording(cls, *args, **kwargs):
        cache = allocate(cls, *args, **kwargs)
        allocated.append(cache.nbytes)
        return cache

    monkeypatch.setattr(cache.KVCache, "allocate", classmethod(recording))
    scale = 0.8 if guided else 1.0
    options = GenerationOptions(parts="none", size=(1, 1), decoding=decoding, guidance_scale=scale)
    generate(random_network(14), [PROMPT] * 2, [0, 1], options, VOCABULARY)
    stated = cache_bytes(TINY, options, 2, len(PROMPT), torch.float32)
    assert len(allocated) == 1 + guided and sum(allocated) == stated


def test_slots_of_a_grid():
    grid = Grid(1, 2)
    slots = [slot_of(grid, n) for n in range(1, grid.length + 1)]
    assert slots.count(Slot.IMAGE) == grid.tokens and slots.count(Slot.NEWLINE) == grid.rows
    assert slots[-1] is Slot.END and slots[-2] is Slot.NEWLINE
    tables = jacobi.SlotTables(grid, 0, torch.device("cpu"))
    free = (tables.forced[1:] < 0).tolist()
    assert free == [slot is Slot.IMAGE for slot in slots]
    assert tables.token[1:][torch.tensor(free)].tolist() == list(range(grid.tokens))


def drawing_of(kind, network, starts, device="cpu", **options):
    session = Session(network, len(starts), 64, SeededDraws(range(len(starts))), device=torch.device(device))
    session.starts = list(starts)
    return kind(session, GenerationOptions(size=(1, 1), window=4, **options), VOCABULARY)


@torch.no_grad()
@pytest.mark.parametrize("observed", [False, True])
def test_steps_never_look_at_a_value(observed):
    """On the meta device there are no values: whatever made the host wait for one would raise."""
    network, sampling = Chameleon(TINY, device="meta"), TokenSampling(observed_mu=observed)
    sequential = drawing_of(decode.Sequential, network, [9, 12], "meta", sampling=sampling)
    for _ in range(5):
        sequential.step()
    assert sequential.session.forwards == sequential.done == 5
    window = drawing_of(decode.Jacobi, network, [9, 12], "meta", sampling=sampling)
    window.open()
    window.advance()


@torch.no_grad()
@pytest.mark.parametrize("observed", [False, True])
def test_steps_work_in_place(observed):
    """Every tensor a step reads or writes stays where it is, as a captured CUDA graph needs."""
    drawing = drawing_of(decode.Sequential, random_network(15), [9], sampling=TokenSampling(observed_mu=observed))

    def places() -> list[int]:
        held = [value for value in vars(drawing).values() if isinstance(value, torch.Tensor)]
        held += [drawing.observed.sums] if observed else []
        return [tensor.data_ptr() for tensor in (*held, *(cache.keys for cache in drawing.caches))]

    before = places()
    for _ in range(6):
        drawing.step()
    # The opening, five tokens alone, one of them with a row end.
    assert places() == before and int(drawing.number) == 6 and int(drawing.position) == 3 + 5 + 1


@pytest.mark.parametrize("decoding", DECODINGS)
def test_observed_mu_is_of_the_images_own_tokens(decoding):
    """k of every token follows from the entropies before it in the same image, as in a straight loop over them."""
    sampling = TokenSampling(observed_mu=True, k_max=500)
    for result in answer(random_network(17, image_scale=4.0), [PROMPT] * 2, decoding=decoding, sampling=sampling):
        entropies = result.entropy.flatten().double()
        for place, (entropy, k) in enumerate(zip(entropies, result.k.flatten(), strict=True)):
            mu = entropies[:place].std(correction=0) if place > 1 else torch.tensor(5.0)
            assert abs(float(1 + 499 / (1 + torch.exp(mu - entropy))) - int(k)) < 0.51, place


class PretendedGraphs(graphs.GraphedSteps):
    """CUDA's order of things without the device: what is captured does not run, a replay does what was captured."""

    def __init__(self, enabled: bool):
        super().__init__(False)
        self.enabled = True

    def capture(self, step):
        return SimpleNamespace(replay=step)


class FailingGraphs(PretendedGraphs):
    def capture(self, step):
        raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize("kind", [PretendedGraphs, FailingGraphs])
def test_captured_or_not_the_tokens_are_the_same(monkeypatch, caplog, kind):
    """Also across changes of what attention looks at, each of which is a graph of its own."""
    monkeypatch.setattr(cache, "SPAN_STEP", 8)
    network = random_network(16, image_scale=6.0)
    expected = answer(network, [PROMPT] * 2)
    monkeypatch.setattr(decode, "GraphedSteps", kind)
    for result, eager in zip(answer(network, [PROMPT] * 2), expected, strict=True):
        assert result.ids == eager.ids and torch.equal(result.entropy, eager.entropy)
    assert caplog.text.count("without CUDA graphs") == (kind is FailingGraphs)
