"""PSNR and SSIM of a restored photo against its original, as scikit-image computes them on 8-bit RGB."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity


@dataclass(frozen=True)
class Score:
    psnr: float
    """In dB."""
    ssim: float

    @classmethod
    def of(cls, image: np.ndarray, reference: np.ndarray) -> Score:
        """Of two uint8 images `[H, W, 3]`."""
        return cls(
            float(peak_signal_noise_ratio(reference, image, data_range=255)),
            float(structural_similarity(reference, image, data_range=255, channel_axis=2)),
        )
