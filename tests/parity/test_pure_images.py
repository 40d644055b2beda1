"""PURE's image side against the reference: VQ autoencoder, crops, token sequences, prompts, colour fix."""

from __future__ import annotations

import pytest
import torch

from oracles import pure_crop
from parity import golden, pure_golden
from parity.pure_tokenizer import ByteTokenizer
from realisr.models import color
from realisr.models.image import from_bytes, to_bytes, truncate_to_bytes
from realisr.models.pure import prompt
from realisr.models.pure.vocabulary import EOT, Vocabulary, id_to_index
from realisr.models.pure.vqgan import VQGAN, VQConfig, to_image, to_pixels

MID_TOLERANCE, DECODED_TOLERANCE, COLOR_TOLERANCE = 2e-5, 3e-5, 2e-6


@pytest.fixture(scope="module")
def autoencoder() -> VQGAN:
    _, tensors = pure_golden.weights("vq_encoder", "vq_decoder")
    tensors.pop("quantize.codebook_used", None)
    network = VQGAN(VQConfig.from_shapes({key: value.shape for key, value in tensors.items()}))
    network.load_state_dict(tensors, strict=True)
    return network.eval()


@torch.no_grad()
@pytest.mark.parametrize("case", pure_golden.cases("vq"))
def test_autoencoder(case, autoencoder):
    pixels = to_pixels(case["in.image_u8"][None])
    golden.assert_within(pixels, case["mid.pixels"], 0, "pixels")
    encoded = autoencoder.encoder(pixels)
    golden.assert_within(encoded, case["mid.encoder_out"], MID_TOLERANCE, "encoder")
    latent = autoencoder.quant_conv(encoded)
    golden.assert_within(latent, case["mid.quant_conv_out"], MID_TOLERANCE, "quant_conv")
    codes = autoencoder.encode(pixels)
    assert torch.equal(codes.flatten(), case["out.indices"])
    vectors = autoencoder.quantize.look_up(codes, pixels)
    golden.assert_within(vectors, case["out.quantized"], MID_TOLERANCE, "quantized")
    golden.assert_within(vectors, case["mid.codebook_entry"], MID_TOLERANCE, "codebook entries")
    decoded = autoencoder.decode(codes)
    golden.assert_within(decoded, case["out.decoded"], DECODED_TOLERANCE, "decoded")
    golden.assert_levels(to_bytes(to_image(decoded))[0], case["out.decoded_u8"], 1, 0.99)


@torch.no_grad()
@pytest.mark.parametrize("case", pure_golden.cases("lq_tokens"))
def test_image_to_tokens(case, autoencoder):
    entry = case.parameters
    image, target = case["in.image_u8"], entry["target_size"]
    assert [list(size) for size in pure_crop.crop_sizes(target)] == entry["crop_size_list"]
    size = pure_crop.choose_crop(image.shape[1], image.shape[0], target)
    assert list(size) == entry["chosen_crop_wh"]
    calls = iter(entry["randint_calls"])

    def recorded(low: int, high: int) -> int:
        expected_low, expected_high, value = next(calls)
        assert (low, high) == (expected_low, expected_high)
        return value

    cropped = pure_crop.to_rgb(pure_crop.crop(image, size, recorded))
    golden.assert_levels(cropped, case["mid.cropped_u8"], 1, 0.99, "crop")

    codes = autoencoder.encode(to_pixels(case["mid.cropped_u8"][None]))[0]
    assert torch.equal(codes.flatten(), case["mid.codes"])
    vocabulary = Vocabulary.formula()
    block = prompt.image_block(vocabulary.encode(codes))
    assert block == case["out.tokens"].tolist()
    if "out.prompt_tokens" not in case:
        return
    ids = prompt.prompt_ids(ByteTokenizer(), case.metadata["prompt"], block)
    assert ids == case["out.prompt_tokens"].tolist()
    assert ids == prompt.prompt_ids(ByteTokenizer(), prompt.INSTRUCTION, block)
    answer = [*ByteTokenizer().encode("Medium blur, small noise. A test. "), *block, EOT]
    assert ids + answer == case["out.train_tokens"].tolist()
    assert [-100] * len(ids) + answer == case["out.train_labels"].tolist()
    decoded = autoencoder.decode(vocabulary.code_of_index()[id_to_index(vocabulary.encode(codes))][None])
    golden.assert_levels(to_bytes(to_image(decoded))[0], case["out.decoded_u8"], 1, 0.99)


@pytest.mark.parametrize("case", pure_golden.cases("wavelet"))
def test_color_fix(case):
    restored, reference = (from_bytes(case[f"in.{name}_u8"])[None] for name in ("restored", "reference"))
    planes = restored.movedim(-1, 1)
    for radius in (int(key.rpartition("_")[2]) for key in case.keys("mid.blur_radius_*")):
        blurred = color.dilated_blur(planes, radius)
        golden.assert_within(blurred, case[f"mid.blur_radius_{radius}"], COLOR_TOLERANCE, f"blur {radius}")
    low = color.lowest_band(reference.movedim(-1, 1))
    high = planes - color.lowest_band(planes)
    for key, band in (("mid.reference_low", low), ("mid.restored_high", high)):
        if key in case:
            golden.assert_within(band, case[key], COLOR_TOLERANCE, key)
    golden.assert_within(high + low, case["out.reconstruction"], COLOR_TOLERANCE, "sum")
    fixed = color.swap_lowest_band(restored, reference)
    golden.assert_levels(truncate_to_bytes(fixed)[0], case["out.fixed_u8"], 1, 0.99)
