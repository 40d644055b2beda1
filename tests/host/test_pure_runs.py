"""A run of AR Token Restorer as the host manages it: progress, previews, text, cancel, memory."""

from __future__ import annotations

import gc
import weakref
from itertools import pairwise

import pytest
import torch

from harness import pure
from harness.pure import CAPTION, SENTENCE, picture, run_restorer

TOKENS = 64


@pytest.fixture(scope="module")
def model(host):
    from realisr.host.pure.loader import load_ar_restorer

    pure.save_released_files(host.models)
    return load_ar_restorer("PURE")


@pytest.fixture
def shown(host, monkeypatch):
    """Everything shown during a run, in order: ("bar", value, total), ("preview", image), ("text", text)."""
    import comfy.utils

    from realisr.host.pure import progress

    seen = []

    def hook(value, total, preview, **_):
        seen.append(("bar", value, total))
        if preview is not None:
            seen.append(("preview", preview[1]))

    monkeypatch.setattr(progress, "PREVIEW_SECONDS", 0.0)
    monkeypatch.setattr(progress, "PREVIEW_SHARE", 1e6)
    monkeypatch.setattr(progress, "TEXT_SECONDS", 0.0)
    monkeypatch.setattr(progress, "show_on_node", lambda text: seen.append(("text", text)))
    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0.0)
    comfy.utils.set_progress_bar_global_hook(hook)
    yield seen
    comfy.utils.set_progress_bar_global_hook(None)


def of_kind(seen, kind):
    return [item[1:] for item in seen if item[0] == kind]


@pytest.mark.parametrize("decoding", [{"decoding": "sequential"}, {"decoding": "speculative Jacobi", "window": 6}])
def test_the_bar_counts_tokens(model, shown, decoding):
    run_restorer(model, picture(), decoding=decoding)
    begun, *moves = of_kind(shown, "bar")
    values, totals = zip(*moves, strict=True)
    assert 0 < begun[0] / begun[1] <= values[0] / totals[0]
    assert set(totals) == {128 + TOKENS} and values[-1] == totals[-1]
    assert all(before <= after for before, after in pairwise(values))
    if decoding["decoding"] == "sequential":
        assert {128 + token for token in range(1, TOKENS + 1)} <= set(values)


def test_the_bar_runs_through_all_tiles(model, shown):
    run_restorer(model, picture(width=80), batch_size=1, preview=False)
    begun, *moves = of_kind(shown, "bar")
    values, totals = zip(*moves, strict=True)
    assert 0 < begun[0] / begun[1] <= values[0] / totals[0]
    # A shared description, then two tiles one after the other.
    assert set(totals) == {128 + 2 * (128 + TOKENS)} and values[-1] == totals[-1]
    assert all(before <= after for before, after in pairwise(values))


def test_the_text_is_shown_before_the_image_begins(model, shown):
    run_restorer(model, picture(batch=2))
    texts = [text for (text,) in of_kind(shown, "text")]
    line = f"{SENTENCE} {CAPTION}"
    assert texts[-1] == f"1. {line}\n2. {line}"
    first_row = next(place for place, item in enumerate(shown) if item[0] == "preview")
    assert max(place for place, item in enumerate(shown) if item[0] == "text") < first_row


def test_the_text_grows(model, shown):
    run_restorer(model, picture())
    texts = [text for (text,) in of_kind(shown, "text")]
    assert len(texts) > 1 and all(after.startswith(before) for before, after in pairwise(texts))
    assert texts[0] != texts[-1] == f"{SENTENCE} {CAPTION}"


def test_previews_grow_row_by_row(model, shown):
    import numpy as np

    result = run_restorer(model, picture(), color_fix=False)
    pictures = [np.asarray(image).astype(int) for (image,) in of_kind(shown, "preview")]
    start = np.asarray((picture()[0] * 255).round(), dtype=int)
    assert len(pictures) == 9, "after each of the 8 rows of tokens, and when all is decoded"
    for row, seen in enumerate(pictures[:8], start=1):
        assert seen.shape == (64, 64, 3)
        changed = (np.abs(seen - start) > 2).any(axis=(1, 2))
        assert changed[: row * 8].mean() > 0.9 and not changed[row * 8 :].any()
    final = np.asarray((result[0][0] * 255).round(), dtype=int)
    assert np.abs(pictures[7] - final).max() <= 1 and np.abs(pictures[8] - final).max() <= 1


def test_previews_show_the_tiles_that_are_done(model, shown):
    import numpy as np

    run_restorer(model, picture(width=112), batch_size=1, tile_description="per tile")
    pictures = [np.asarray(image).astype(int) for (image,) in of_kind(shown, "preview")]
    assert len(pictures) == 18 and pictures[0].shape == (64, 112, 3)
    start = np.asarray((picture(width=112)[0] * 255).round(), dtype=int)
    left_after_first = np.abs(pictures[9][:, :48] - start[:, :48])
    assert (left_after_first > 2).any(axis=(1, 2)).mean() > 0.9


def test_no_previews_when_they_are_off(model, shown):
    run_restorer(model, picture(), preview=False)
    assert of_kind(shown, "preview") == []


def test_previews_leave_time_for_the_work(model, shown, monkeypatch):
    from realisr.host.pure import progress

    monkeypatch.setattr(progress, "PREVIEW_SECONDS", 30.0)
    run_restorer(model, picture())
    assert len(of_kind(shown, "preview")) == 1, "the finished image"


# --- cancel ----------------------------------------------------------------------------------------------------------


class Forwards:
    """Counts forwards of the network, and presses cancel in one of them."""

    def __init__(self, network, cancel_in: int | None = None):
        self.count, self.cancel_in = 0, cancel_in
        self.handle = network.register_forward_hook(self)

    def __call__(self, *_):
        import comfy.model_management

        self.count += 1
        if self.count == self.cancel_in:
            comfy.model_management.interrupt_current_processing()


@pytest.fixture
def caches(monkeypatch):
    """Weak references to the key-value caches made, and their bytes."""
    from realisr.models.pure.cache import KVCache

    made, original = [], KVCache.allocate

    def watched(*args, **kwargs):
        cache = original(*args, **kwargs)
        made.append((weakref.ref(cache.keys), cache.nbytes))
        return cache

    monkeypatch.setattr(KVCache, "allocate", watched)
    return made


@pytest.mark.parametrize("moment", [1, 5, 15, 40])
@pytest.mark.parametrize("decoding", [{"decoding": "sequential"}, {"decoding": "speculative Jacobi", "window": 6}])
def test_cancel_ends_within_a_token_and_leaves_nothing(model, shown, caches, moment, decoding):
    import comfy.model_management

    forwards = Forwards(model.network, cancel_in=moment)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            run_restorer(model, picture(), decoding=decoding)
    finally:
        forwards.handle.remove()
        comfy.model_management.interrupt_current_processing(False)
    assert forwards.count == moment
    gc.collect()
    assert caches and all(reference() is None for reference, _ in caches)


def test_nothing_is_kept_after_a_run(model, caches):
    run_restorer(model, picture())
    gc.collect()
    assert caches and all(reference() is None for reference, _ in caches)


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.8, 1.0])
@pytest.mark.parametrize("together", [1, 2])
def test_memory_asked_for_is_what_the_caches_take(model, caches, monkeypatch, scale, together):
    import comfy.model_management

    asked = []
    original = comfy.model_management.load_models_gpu

    def load(models, memory_required=0, **kwargs):
        if model.backbone in models:
            asked.append(memory_required)
        return original(models, memory_required=memory_required, **kwargs)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", load)
    run_restorer(model, picture(batch=2), guidance_scale=scale, batch_size=together, preview=False)
    made = sum(size for _, size in caches) / (2 / together)
    assert asked and made <= max(asked) < 1.6 * made
    run_restorer(model, picture(), guidance_scale=scale, batch_size=1)
    assert asked[-1] > asked[0] / together + model.vq_memory(64, 64) - 1, "previews need room too"


def test_every_batch_finds_the_transformer_loaded(model, monkeypatch):
    """Decoding one batch's pixels may push it out of a small GPU."""
    import comfy.model_management

    from realisr.host.pure import restore as module

    events = []
    load, generate = comfy.model_management.load_models_gpu, module.generate

    def loading(models, **kwargs):
        events.append("transformer" if model.backbone in models else "other")
        return load(models, **kwargs)

    def generating(*inputs, **named):
        events.append("tokens")
        return generate(*inputs, **named)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", loading)
    monkeypatch.setattr(module, "generate", generating)
    run_restorer(model, picture(width=32, height=32, batch=3), **pure.QUICK, batch_size=1, preview=False)
    before = [events[place - 1] for place, event in enumerate(events) if event == "tokens"]
    assert before == ["transformer"] * 3 and events.count("other") >= 3


def test_as_many_together_as_memory_allows(model, monkeypatch):
    import comfy.model_management

    from realisr.host.pure import restore as module

    batches = []
    original = module.generate

    def generate(network, prompts, *inputs, **named):
        batches.append(len(prompts))
        return original(network, prompts, *inputs, **named)

    monkeypatch.setattr(module, "generate", generate)
    monkeypatch.setattr(comfy.model_management, "minimum_inference_memory", lambda: 0)
    images, options = picture(width=32, height=32, batch=5), {**pure.QUICK, "preview": False}
    run = module.Restoration(model, images, module.PURERestoreOptions(32, 32, tiles=module.Tiles(32, 0), preview=False))
    needed = module.memory_needed(model, run.jobs(), run.options, 1)
    unloaded = max(0, model.backbone.model_size() - model.backbone.loaded_size())
    expected = {}
    for free, sizes in ((100 * needed, [5]), (2.5 * needed, [2, 2, 1]), (0, [1] * 5)):
        monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_, free=free: free + unloaded)
        batches.clear()
        result = run_restorer(
            model,
            images,
            **{
                **options,
                "max_text_tokens": run.options.generation.max_text_tokens,
                "instruction": run.options.instruction,
            },
        )
        assert batches == sizes
        expected.setdefault("codes", result[4].codes)
        assert torch.equal(expected["codes"], result[4].codes)


@pytest.mark.parametrize("where", ["tokens", "pixels"])
def test_a_batch_that_does_not_fit_after_all_is_drawn_in_halves(model, monkeypatch, where):
    """What memory lacks may show while tokens are drawn, or after: no image is lost, doubled or changed by it."""
    import comfy.model_management

    from realisr.host.pure import restore as module

    images, batches, decoded = picture(width=32, height=32, batch=3), [], []
    expected = run_restorer(model, images, **pure.QUICK, batch_size=1)
    generate, decode = module.generate, type(model).decode

    def generating(network, prompts, *inputs, **named):
        batches.append(len(prompts))
        if where == "tokens" and len(prompts) > 2:
            raise comfy.model_management.OOM_EXCEPTION("pretended")
        return generate(network, prompts, *inputs, **named)

    def decoding(self, codes):
        decoded.append(len(codes))
        if where == "pixels" and len(decoded) == 2:
            raise comfy.model_management.OOM_EXCEPTION("pretended")
        return decode(self, codes)

    monkeypatch.setattr(module, "generate", generating)
    monkeypatch.setattr(type(model), "decode", decoding)
    result = run_restorer(model, images, **pure.QUICK, batch_size=3, preview=False)
    assert batches == [3, 1, 1, 1]
    assert torch.equal(result[4].codes, expected[4].codes) and torch.equal(result[0], expected[0])


def test_a_batch_that_did_not_fit_is_not_tried_again(model, monkeypatch):
    import comfy.model_management

    from realisr.host.pure import restore as module

    batches, generate = [], module.generate

    def generating(network, prompts, *inputs, **named):
        batches.append(len(prompts))
        if len(prompts) > 1:
            raise comfy.model_management.OOM_EXCEPTION("pretended")
        return generate(network, prompts, *inputs, **named)

    monkeypatch.setattr(module, "generate", generating)
    run_restorer(model, picture(width=32, height=32, batch=4), **pure.QUICK, batch_size=2, preview=False)
    assert batches == [2, 1, 1, 1, 1]


@pytest.mark.parametrize("weight_dtype", ["fp32", "bf16", "fp8_e4m3fn"])
@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_partly_offloaded_gives_the_same_tokens(host, model, monkeypatch, keep, weight_dtype):
    import comfy.model_management

    from realisr.host.pure import restore as module
    from realisr.host.pure.loader import load_ar_restorer

    with torch.inference_mode():
        restorer = load_ar_restorer("PURE", weight_dtype=weight_dtype)
    whole = run_restorer(restorer, picture(width=32, height=32), **pure.QUICK)
    # Tensors made in inference mode, as the executor makes them, can be moved in it only.
    with torch.inference_mode():
        comfy.model_management.unload_all_models()
    load = module.load

    def partly(restorer, *args):
        load(restorer, *args)
        patcher = restorer.backbone
        patcher.partially_unload(torch.device("cpu"), int(patcher.model_size() * (1 - keep)))

    monkeypatch.setattr(module, "load", partly)
    result = run_restorer(restorer, picture(width=32, height=32), **pure.QUICK)
    assert restorer.backbone.model.model_lowvram
    assert torch.equal(result[4].codes, whole[4].codes)
    with torch.inference_mode():
        comfy.model_management.unload_all_models()


def test_the_host_can_take_the_memory_back(model):
    import comfy.model_management

    run_restorer(model, picture(width=32, height=32), **pure.QUICK)
    loaded = [entry.model for entry in comfy.model_management.current_loaded_models]
    assert model.backbone in loaded and model.vqgan in loaded
    comfy.model_management.unload_all_models()
    assert comfy.model_management.current_loaded_models == []
    assert run_restorer(model, picture(width=32, height=32), **pure.QUICK)[1] == SENTENCE


def test_steps_are_replayed_only_over_weights_that_stay(host, model, monkeypatch):
    """On a GPU that holds the whole model in the precision it computes in; looked at after loading."""
    import comfy.model_management

    from realisr.host.pure.loader import CACHES, fits_whole, load_ar_restorer

    run_restorer(model, picture(width=32, height=32), **pure.QUICK)
    device = torch.device("cpu")
    assert not model.weights_stay and not fits_whole(device, 0)
    monkeypatch.setattr(comfy.model_management, "is_device_cuda", lambda _: True)
    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda _: 2 * CACHES)
    assert fits_whole(device, CACHES // 2) and not fits_whole(device, CACHES)
    assert model.weights_stay
    assert not load_ar_restorer("PURE", weight_dtype="bf16").weights_stay, "cast as they are used"
    model.backbone.partially_unload(device, model.backbone.model_size())
    assert not model.weights_stay
    comfy.model_management.unload_all_models()
