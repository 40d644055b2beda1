"""Protocols: what papers that evaluate super-resolution disagree about, each with its source.

The same images score 1.3 dB apart when luma is full range instead of studio range, and MANIQA 0.1 apart when it was
trained on KonIQ instead of PIPAL. So a figure is comparable within one protocol only.
"""

from __future__ import annotations

from dataclasses import dataclass

from realisr.models.fidelity import Channel

OSEDIFF_METRICS = ("psnr", "ssim", "lpips", "dists", "fid", "niqe", "musiq", "maniqa-pipal", "clipiqa")


@dataclass(frozen=True)
class Protocol:
    """How images are compared. Metrics go by pyiqa's names, which say which network and training set."""

    name: str
    metrics: tuple[str, ...]
    channel: Channel
    """What PSNR and SSIM look at: luma of studio range (`y`), or RGB."""
    source: str
    """Where this is stated, or seen to be so."""
    crop_border: int = 0
    """Pixels left out at each border for PSNR, SSIM and NIQE."""
    center_crop: int = 0
    """Larger images are cut to a centred square of this side before anything else; 0: none is."""
    fid_patch: int = 0
    """FID compares squares of this side that tile each image, what is left over left out; 0: whole images."""
    assumed: str = ""
    """What the source leaves open and is chosen here."""


OSEDIFF = Protocol(
    name="osediff",
    metrics=OSEDIFF_METRICS,
    channel="y",
    source=(
        "test_metrics.py of github.com/cswry/OSEDiff (commit 851cb88): pyiqa with test_y_channel and color_space "
        "ycbcr, no border cropped, maniqa-pipal, FID of whole images. The log beside its results on RealSR has PSNR "
        "25.1511 and SSIM 0.7341."
    ),
)

SEESR = Protocol(
    name="seesr",
    metrics=OSEDIFF_METRICS,
    channel="y",
    crop_border=4,
    source=(
        "SeeSR's authors in github.com/cswry/SeeSR, issue 30 (MANIQA_PIPAL-ae6d356b.pth, crop border 4) and issue 45 "
        "(FID by pyiqa)."
    ),
    assumed=(
        "Studio range: in issue 60 a reader gets 26.8475 dB in full range where the paper has 28.17, and "
        "20 log10(255 / 219) is 1.32. The border is cropped for PSNR, SSIM and NIQE, which "
        "can crop one in pyiqa."
    ),
)

VICR = Protocol(
    name="vicr",
    metrics=("psnr", "ssim", "lpips", "fid", "liqe", "musiq", "maniqa", "clipiqa"),
    channel="y",
    source="VICR, arXiv 2606.00704: LIQE, MUSIQ, MANIQA and CLIPIQA by pyiqa's default names, FID and LPIPS on RealSR.",
    assumed="PSNR and SSIM as OSEDiff's; LPIPS with AlexNet; FID of whole images.",
)

DREAMSR = Protocol(
    name="dreamsr",
    metrics=("psnr", "ssim", "lpips", "dists", "fid", "niqe", "liqe", "musiq", "maniqa-pipal", "clipiqa+", "topiq_nr"),
    channel="y",
    fid_patch=512,
    source="DreamSR, arXiv 2605.15682, on images of 2K and more, in patches of 512 pixels.",
    assumed=(
        "The whole list of metrics and their variants, and FID on patches of the training size, are chosen here: the "
        "authors published no code for evaluation. Compare with the paper's table at your own risk."
    ),
)

PURE = Protocol(
    name="pure",
    metrics=OSEDIFF_METRICS,
    channel="y",
    center_crop=512,
    source="PURE, arXiv 2503.11073: test images are cropped at the centre; its outputs have 512 x 512 pixels.",
    assumed="Metrics and the rest as OSEDiff's, which comes from the same group.",
)

PLAIN = Protocol(
    name="plain",
    metrics=(
        *("psnr", "ssim", "lpips", "lpips-vgg", "dists", "fid", "niqe", "liqe", "musiq", "maniqa", "clipiqa"),
        *("clipiqa+", "topiq_nr"),
    ),
    channel="rgb",
    source="No paper's: whole images, PSNR and SSIM on RGB, every metric as pyiqa's plain name has it.",
)

PROTOCOLS = {each.name: each for each in (OSEDIFF, SEESR, VICR, DREAMSR, PURE, PLAIN)}
