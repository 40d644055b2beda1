"""VICR's training objective written out in float64, number by number: path, tokens, mask, eq. 7 and its gradient."""

from __future__ import annotations

import numpy as np

CELL = 8


def path(clean: np.ndarray, noise: np.ndarray, time: np.ndarray) -> np.ndarray:
    """x_t of each sample."""
    return np.stack([(1 - t) * a + t * b for a, b, t in zip(clean, noise, time, strict=True)])


def token(x: np.ndarray, masked: np.ndarray, row: int, column: int, width: int) -> np.ndarray:
    """The 384 features of the token at (row, column) of one diptych: noisy latent, masked latent, mask; each by
    channel, then by the four cells row by row."""
    cells = [(2 * row + r, 2 * column + c) for r in range(2) for c in range(2)]
    features = [x[channel, r, c] for channel in range(len(x)) for r, c in cells]
    features += [masked[channel, r, c] for channel in range(len(masked)) for r, c in cells]
    for pixel_row in range(CELL):
        for pixel_column in range(CELL):
            for _, c in cells:
                # The mask of a pixel says whether it lies in the right half of the canvas.
                features.append(1.0 if CELL * c + pixel_column >= CELL * width // 2 else 0.0)
            assert 0 <= pixel_row < CELL
    return np.array(features, dtype=np.float64)


def loss_and_gradient(
    matrix: np.ndarray, clean: np.ndarray, masked: np.ndarray, noise: np.ndarray, time: np.ndarray
) -> tuple[float, np.ndarray]:
    """For a network that maps every token alike, velocity = matrix @ features: the loss and its gradient.

    Mean over the right half of |v - (noise - clean)|^2.
    """
    samples, channels, height, width = clean.shape
    x = path(clean, noise, time)
    count = samples * channels * height * width / 2
    total, gradient = 0.0, np.zeros_like(matrix)
    for s in range(samples):
        for row in range(height // 2):
            for column in range(width // 4, width // 2):
                features = token(x[s], masked[s], row, column, width)
                velocity = matrix @ features
                for place in range(4 * channels):
                    channel, r, c = place // 4, 2 * row + place % 4 // 2, 2 * column + place % 2
                    error = velocity[place] - (noise[s, channel, r, c] - clean[s, channel, r, c])
                    total += error**2 / count
                    gradient[place] += 2 * error * features / count
    return total, gradient
