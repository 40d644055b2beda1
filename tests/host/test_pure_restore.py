"""AR Token Restorer from image to image, on a small model of the real architecture."""

from __future__ import annotations

import math

import pytest
import torch

from harness import pure
from harness.pure import CAPTION, QUICK, SENTENCE, picture, run_restorer


@pytest.fixture(scope="module")
def model(host):
    from realisr.nodes.pure_loaders import LoadARRestorer

    pure.save_released_files(host.models)
    return host.run(LoadARRestorer, model_name="PURE", vq_name="auto (vq_ds8_c2i)", weight_dtype="auto")[0]


def codes(result) -> torch.Tensor:
    return result[4].codes


def test_everything_comes_out(model):
    image, degradation, description, entropy, tokens = run_restorer(model, picture())
    assert image.shape == (1, 64, 64, 3) and image.min() >= 0 and image.max() <= 1 and image.std() > 0.02
    assert (degradation, description) == (SENTENCE, CAPTION)
    assert entropy.shape == (1, 64, 64) and entropy.min() > 0 and entropy.max() < 1 and entropy.std() > 0.005
    blocks = entropy.unflatten(1, (8, 8)).unflatten(3, (8, 8))
    assert torch.equal(blocks.amin(dim=(2, 4)), blocks.amax(dim=(2, 4))), "one value for the 8 x 8 pixels of a token"
    assert tokens.codes.shape == (1, 1, 8, 8) and tokens.codes.max() > 8191, "both halves of the codebook are drawn"
    shown = str(tokens).splitlines()
    assert shown[0] == "image 1, tile at x 0, y 0:" and shown[1:] == [
        " ".join(map(str, row)) for row in tokens.codes[0, 0].tolist()
    ]


def test_the_image_is_the_tokens_decoded(model):
    image, _, _, _, tokens = run_restorer(model, picture(), color_fix=False)
    decoded = model.decode(tokens.codes[0])[0].clamp(-1, 1).movedim(0, -1)
    torch.testing.assert_close(image[0], ((decoded + 1) / 2 * 255).to(torch.uint8).float() / 255)
    fixed = run_restorer(model, picture())[0]

    # The colours are the input's when they are asked for.
    def apart(result):
        return (result - picture()).mean(dim=(1, 2)).abs().max()

    assert apart(fixed) < 0.02 < apart(image)


def test_the_same_as_the_plain_network(model, host):
    """Through the host's layers, loader and memory manager, against the released tensors in plain torch."""
    from realisr.models.pure.config import ChameleonConfig
    from realisr.models.pure.decode import generate
    from realisr.models.pure.options import GenerationOptions
    from realisr.models.pure.prompt import image_block, prompt_ids
    from realisr.models.pure.released import fuse
    from realisr.models.pure.transformer import Chameleon
    from realisr.models.pure.vocabulary import Vocabulary
    from realisr.models.pure.vqgan import to_pixels

    sizes = pure.Sizes()
    config = ChameleonConfig.from_json(sizes.config())
    network = Chameleon(config)
    released = {name: value.float() for name, value in pure.backbone(0, sizes).items()}
    network.load_state_dict(fuse(released, config))
    vocabulary = Vocabulary.formula()
    levels = (picture() * 255).round().to(torch.uint8)
    grid = vocabulary.encode(model.vq.encode(to_pixels(levels)))[0]
    prompt = prompt_ids(model.tokenizer, "Restore the image.", image_block(grid))
    (expected,) = generate(network, [prompt], [7], GenerationOptions(size=(2, 2)), vocabulary, model.tokenizer)
    assert torch.equal(codes(run_restorer(model, picture()))[0, 0], expected.codes)


def test_a_seed_gives_the_same_and_another_another(model):
    first, again, other = (codes(run_restorer(model, picture(), seed=seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("decoding", [{"decoding": "sequential"}, {"decoding": "speculative Jacobi", "window": 5}])
def test_batch_and_preview_change_nothing(model, monkeypatch, decoding):
    from realisr.host.pure import progress

    monkeypatch.setattr(progress, "PREVIEW_SECONDS", 0.0)
    images = picture(width=32, height=32, batch=3)
    quick = {"decoding": decoding, **QUICK}
    runs = {
        (preview, size): run_restorer(model, images, preview=preview, batch_size=size, **quick)
        for preview, size in [(True, 3), (False, 3), (True, 2), (False, 1)]
    }
    for result in runs.values():
        assert torch.equal(codes(result), codes(runs[True, 3])) and torch.equal(result[0], runs[True, 3][0])
    for index in range(3):
        alone = run_restorer(model, images[index : index + 1], seed=7 + index, **quick)
        assert torch.equal(alone[0][0], runs[True, 3][0][index])
    assert runs[True, 3][1] == "\n".join([SENTENCE] * 3)


@pytest.mark.parametrize(
    ("size", "resize", "expected"),
    [
        ((16, 16), {"resize": "scale factor", "scale": 4.0}, (64, 64)),
        ((32, 32), {"resize": "scale factor", "scale": 2.0}, (64, 64)),
        ((40, 27), {"resize": "scale factor", "scale": 1.0}, (40, 27)),
        ((33, 20), {"resize": "target size", "width": 100, "height": 0}, (100, 61)),
        ((1, 1), {"resize": "scale factor", "scale": 1.0}, (1, 1)),
    ],
)
@pytest.mark.parametrize("channels", [3, 4])
def test_any_size_and_alpha(model, size, resize, expected, channels):
    from realisr.models.image import to_levels, upscale

    image = to_levels(picture(width=size[0], height=size[1], channels=channels))
    result = run_restorer(model, image, resize=resize)
    assert result[0].shape == (1, expected[1], expected[0], channels)
    assert result[3].shape == (1, expected[1], expected[0])
    assert torch.isfinite(result[0]).all()
    if channels == 4:
        torch.testing.assert_close(result[0][..., 3:], upscale(image[..., 3:], *expected))
        masked = run_restorer(model, image[..., :3], resize=resize, mask=1 - image[..., 3])
        assert torch.equal(masked[0], result[0]), "Load Image's mask says the same"


def test_a_preset_takes_the_place_of_the_widget_it_sets(model):
    from realisr.models.presets import PRESETS, PURE, TABLE

    drawn = [codes(run_restorer(model, picture(), preset=preset, temperature=0.3)) for preset in PRESETS]
    for found, temperature in zip(drawn, TABLE[PURE]["temperature"], strict=True):
        assert torch.equal(found, codes(run_restorer(model, picture(), temperature=temperature)))
    assert not torch.equal(drawn[0], drawn[-1])


def test_texts_the_image_is_drawn_from(model):
    ways = {
        "full": {},
        "perception": {"guidance": "perception only"},
        "understanding": {"guidance": "understanding only"},
        "none": {"guidance": "none"},
        "own words": {"description": "A lion with a mane."},
        "own words only": {"description": "A lion with a mane.", "guidance": "understanding only"},
    }
    results = {name: run_restorer(model, picture(), **changes) for name, changes in ways.items()}
    assert {name: result[1:3] for name, result in results.items()} == {
        "full": (SENTENCE, CAPTION),
        "perception": (SENTENCE, ""),
        "understanding": (SENTENCE, CAPTION),
        "none": ("", ""),
        "own words": (SENTENCE, "A lion with a mane."),
        "own words only": ("", "A lion with a mane."),
    }
    drawn = [codes(result).flatten().tolist() for result in results.values()]
    assert all(a != b for i, a in enumerate(drawn) for b in drawn[:i]), "each text leads to another image"


def test_sampling_choices_act(model):
    def drawn(**changes):
        return codes(run_restorer(model, picture(width=32, height=32), **{**QUICK, **changes}))

    base, greedy = drawn(), {"sampling": "fixed top-k", "top_k": 1}
    assert torch.equal(drawn(sampling=greedy, seed=1), drawn(sampling=greedy, seed=2))
    for changes in (
        {"sampling": greedy},
        {"sampling": {"sampling": "entropy top-k", "k_min": 1, "k_max": 3, "mu": 5.0}},
        {"sampling": {"sampling": "entropy top-k", "k_min": 1, "k_max": 2000, "mu": 9.0}},
        {"sampling": {"sampling": "entropy top-k, observed mu", "k_min": 1, "k_max": 2000}},
        {"temperature": 0.4},
        {"guidance_scale": 1.0},
        {"instruction": "Something else."},
    ):
        assert not torch.equal(drawn(**changes), base), changes


# --- tiles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("description", ["shared", "per tile"])
def test_tiles(model, monkeypatch, description):
    from realisr.host.pure import restore as module

    described = []
    monkeypatch.setattr(
        module.Restoration,
        "describe",
        lambda self, jobs, progress: [described.append(len(jobs)) or f"Picture {job.image}." for job in jobs],
    )
    images = picture(width=100, height=70, batch=2)
    result = run_restorer(model, images, tile_description=description)
    assert result[0].shape == (2, 70, 100, 3) and result[3].shape == (2, 70, 100)
    assert codes(result).shape == (2, 4, 8, 8) and (result[4].height, result[4].width) == (70, 100)
    assert codes(result).flatten(2).unique(dim=1).shape[1] == 4, "each tile has draws of its own"
    assert (len(described), result[2]) == (
        (2, "Picture 0.\nPicture 1.") if description == "shared" else (0, f"{CAPTION}\n{CAPTION}")
    )


def test_every_tile_has_a_seed_of_its_own(model):
    from realisr.host.pure.restore import PURERestoreOptions, Restoration, Tiles, tile_seed

    images = picture(width=100, height=70, batch=2)
    jobs = Restoration(model, images, PURERestoreOptions(100, 70, seed=2**64 - 1, tiles=Tiles(64, 16))).jobs()
    assert [job.image for job in jobs] == [0] * 4 + [1] * 4
    seeds = [job.seed for job in jobs]
    assert (seeds[0], seeds[4]) == (2**64 - 1, 0), "the first tile has the image's: seed + i"
    assert len({tile_seed(5, image, tile) for image in range(100) for tile in range(100)}) == 10_000
    assert len(set(seeds)) == 8


def test_one_description_for_all_tiles(model):
    result = run_restorer(model, picture(width=100))
    assert result[1:3] == (SENTENCE, CAPTION)
    # Given back as the user's own, the description leads to the same tokens.
    assert torch.equal(codes(run_restorer(model, picture(width=100), description=CAPTION)), codes(result))


def test_tiling_off_squeezes_the_image_into_one_square(model):
    from realisr.host.pure.restore import PURERestoreOptions, Restoration, Tiles
    from realisr.nodes.pure import chosen_tiles

    assert chosen_tiles({"tiling": "off"}) == Tiles(512, whole=True)
    run = Restoration(model, picture(width=100, height=30), PURERestoreOptions(100, 30, tiles=Tiles(64, 0, whole=True)))
    assert run.canvases.shape == (1, 64, 64, 3) and len(run.jobs()) == 1
    assert run.run().image.shape == (1, 30, 100, 3)


def test_seams_are_blended(model):
    """Two tiles as different as black and white meet in a ramp, not at an edge."""
    from realisr.host.pure.restore import PURERestoreOptions, Restoration, Tiles

    run = Restoration(model, picture(width=96, height=64), PURERestoreOptions(960, 512, tiles=Tiles(512, 64)))
    assert [box.left for box in run.grid.boxes] == [0, 448]
    merged = run.merged([torch.zeros(1, 1, 512, 512), torch.ones(1, 1, 512, 512)])[0, 0]
    steps = merged.diff(dim=1)
    assert merged.shape == (512, 960) and merged[:, :440].max() < 0.05 and merged[:, 520:].min() > 0.95
    assert (steps > -1e-6).all() and steps.max() < 0.05


@pytest.mark.parametrize(
    ("side", "overlap", "message"),
    [
        (64, 64, "The overlap must be .* smaller than the tile size 64 px, got 64 px"),
        (100, 8, "A tile of 100 px: PURE writes squares of 32 to 512 px, in steps of 32"),
        (544, 8, "A tile of 544 px"),
    ],
)
def test_tiles_that_cannot_be(model, side, overlap, message):
    with pytest.raises(ValueError, match=message):
        run_restorer(model, picture(), tiling={"tiling": "custom", "tile_size": side, "tile_overlap": overlap})


# --- what a model may do wrong ---------------------------------------------------------------------------------------


def load(host, name: str, **made):
    from realisr.host.pure.loader import load_ar_restorer

    return load_ar_restorer(pure.save_variant(host.models, name, **made))


def test_a_model_that_never_starts_an_image(host, model):
    ends = load(host, "ends", follows=pure.answer(ends_with=pure.EOT))
    with pytest.raises(RuntimeError, match=r"ended its answer with token 8710 after 9 text tokens without starting"):
        run_restorer(ends, picture())
    # Without text it is told to start.
    assert run_restorer(ends, picture(), guidance="none")[0].shape == (1, 64, 64, 3)


def test_a_model_that_never_stops_its_text(host, model):
    talks = load(host, "talks", follows=pure.endless_text())
    with pytest.raises(RuntimeError, match=r"wrote 64 text tokens without starting an image"):
        run_restorer(talks, picture())


def test_logits_that_are_no_numbers(host, model):
    broken = load(host, "broken")
    with torch.no_grad():
        broken.network.lm_head.image.weight[0] = float("nan")
    with pytest.raises(RuntimeError, match=r"logits are not finite"):
        run_restorer(broken, picture(), guidance="none")


def test_hot_and_random_still_fills_the_grid(host, model):
    wild = load(host, "wild", seed=5, follows=pure.answer())
    with torch.no_grad():
        wild.network.lm_head.image.weight.mul_(50)
    result = run_restorer(
        wild, picture(), temperature=2.0, guidance="none", sampling={"sampling": "fixed top-k", "top_k": 16384}
    )
    assert codes(result).shape == (1, 1, 8, 8) and codes(result).min() >= 0 and codes(result).max() < 16384


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(0, 8, 8, 3), "Expected images"),
        (torch.zeros(1, 8, 8, 1), "Expected images"),
        (torch.full((1, 8, 8, 3), math.nan), "not numbers"),
    ],
)
def test_images_that_are_none(model, bad, message):
    with pytest.raises(ValueError, match=message):
        run_restorer(model, bad)


def test_texts_that_do_not_go_together(model):
    from realisr.nodes.pure import ARTokenRestorer

    check = ARTokenRestorer.validate_inputs
    assert check(description="", guidance="none") is True
    assert check(description=None, guidance=None) is True, "linked: not known before the run"
    assert "guidance 'none' gives the model none" in check(description="A cat.", guidance="none")
    assert "Unknown guidance 'half'" in check(guidance="half")
    with pytest.raises(ValueError, match="guidance 'perception only' gives the model none"):
        run_restorer(model, picture(), description="A cat.", guidance="perception only")
    with pytest.raises(ValueError, match=r"<\|image\|> 2 times"):
        run_restorer(model, picture(), instruction="<|image|> and <|image|>")


def test_only_bad_tiles_are_drawn_again(model, monkeypatch):
    """The check stands in, so that a random model has exactly one bad tile; what is done about it is the node's own."""
    from realisr.host.pure import restore as method
    from realisr.models.tile_check.check import Fault, TileCheck

    tiled = {"tiling": {"tiling": "custom", "tile_size": 32, "tile_overlap": 8}, "color_fix": False, **QUICK}
    image = picture(width=80, height=32)
    once = run_restorer(model, image, **tiled)
    verdicts = [[1], []]

    def check(restored, lq, grid, scale, thresholds):
        bad = verdicts.pop(0)
        return TileCheck(grid, [[Fault("color", 99.0, 24.0)] if tile in bad else [] for tile in range(len(grid))])

    monkeypatch.setattr(method, "check_tiles", check)
    mended = run_restorer(model, image, tile_check="rerun with another seed", **tiled)
    assert not verdicts and codes(once).shape[1] == 3
    assert [torch.equal(codes(once)[0, tile], codes(mended)[0, tile]) for tile in range(3)] == [True, False, True]
    # Tile 1 of 3 lies at columns 24 to 56.
    for columns in (slice(0, 24), slice(56, None)):
        assert torch.equal(once[0][:, :, columns], mended[0][:, :, columns])
    assert not torch.equal(once[0], mended[0])
    assert torch.equal(once[3][:, :, :24], mended[3][:, :, :24])
