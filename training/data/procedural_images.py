"""Procedurally made training images: dead leaves, text, gradients, waves, noise textures and line art.

Images are float32 `[H, W, 3]` in [0, 1]. The same generator state gives the same image.
"""

from __future__ import annotations

import math
import string
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ...models.image import to_bytes

Generator = np.random.Generator
SUPERSAMPLING = 2


def make_image(rng: Generator, size: int = 256) -> np.ndarray:
    """One image of a random kind."""
    kinds = (dead_leaves, text_page, mixed_scene, line_art, wave_texture, cloud_texture)
    kind = kinds[rng.choice(len(kinds), p=(0.4, 0.12, 0.2, 0.1, 0.08, 0.1))]
    return np.clip(kind(rng, size), 0, 1).astype(np.float32)


def random_color(rng: Generator) -> np.ndarray:
    """A colour whose channels go together more often than not, as in photographs."""
    grey = rng.uniform(0.03, 0.97)
    return np.clip(grey + rng.normal(0, rng.choice([0.03, 0.12, 0.3]), 3), 0, 1)


def to_rgb(color: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (round(255 * float(value)) for value in color)
    return red, green, blue


def to_canvas(image: np.ndarray) -> Image.Image:
    """A float image as a picture to draw on."""
    return Image.fromarray(to_bytes(torch.from_numpy(image)).numpy())


def to_array(canvas: Image.Image, size: int) -> np.ndarray:
    """The supersampled canvas as a float image of the size asked for."""
    return np.asarray(canvas.resize((size, size), Image.Resampling.BOX), dtype=np.float32) / 255


def cloud(rng: Generator, size: int, exponent: float) -> np.ndarray:
    """Noise with power spectrum 1 / f^exponent, `[size, size]`, zero mean and unit variance."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = np.inf
    shape = frequency.shape
    spectrum = (rng.normal(size=shape) + 1j * rng.normal(size=shape)) * frequency ** (-exponent / 2)
    field = np.fft.irfft2(spectrum, s=(size, size))
    return field / field.std()


def cloud_texture(rng: Generator, size: int) -> np.ndarray:
    """A coloured 1/f texture: skies, walls, stone."""
    exponent = rng.uniform(1.2, 3.2)
    shared = cloud(rng, size, exponent)[..., None]
    own = np.stack([cloud(rng, size, exponent) for _ in range(3)], axis=-1)
    contrast = rng.uniform(0.05, 0.25)
    return random_color(rng) + contrast * (shared + rng.uniform(0, 0.4) * own)


def wave_texture(rng: Generator, size: int) -> np.ndarray:
    """A sum of oriented sinusoids, some sharpened to stripes, possibly warped: cloth, grilles, water."""
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32)
    warp = rng.uniform(0, 6) * cloud(rng, size, 3.5)
    image = np.broadcast_to(random_color(rng), (size, size, 3)).copy()
    for _ in range(rng.integers(1, 5)):
        angle, period = rng.uniform(0, math.pi), math.exp(rng.uniform(math.log(3), math.log(60)))
        phase = 2 * math.pi * ((columns * math.cos(angle) + rows * math.sin(angle)) + warp) / period
        wave = np.tanh(np.sin(phase + rng.uniform(0, 6)) * rng.uniform(0.5, 6))
        image += wave[..., None] * rng.normal(0, 0.12, 3) + wave[..., None] * rng.uniform(-0.15, 0.15)
    return image


def gradient(rng: Generator, size: int) -> np.ndarray:
    """A linear gradient between two colours with slight curvature."""
    rows, columns = np.mgrid[0:size, 0:size] / size - 0.5
    angle = rng.uniform(0, 2 * math.pi)
    ramp = columns * math.cos(angle) + rows * math.sin(angle) + rng.uniform(-0.6, 0.6) * (rows**2 + columns**2)
    start, end = random_color(rng), random_color(rng)
    return start + np.clip(ramp + 0.5, 0, 1)[..., None] * (end - start)


def leaf_outline(rng: Generator, center: np.ndarray, radius: float) -> list[tuple[float, float]]:
    """Corner points of a random shape: an ellipse, a polygon, a thin bar or a wavy blob."""
    kind = rng.integers(4)
    turn = rng.uniform(0, 2 * math.pi)
    if kind == 0:
        angles, aspect = np.linspace(0, 2 * math.pi, 40, endpoint=False), rng.uniform(0.3, 1)
        points = np.stack([np.cos(angles), aspect * np.sin(angles)], axis=1)
    elif kind == 1:
        angles = np.sort(rng.uniform(0, 2 * math.pi, rng.integers(3, 8)))
        points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    elif kind == 2:
        thin = rng.uniform(0.02, 0.25)
        points = np.array([[-1, -thin], [1, -thin], [1, thin], [-1, thin]])
    else:
        angles = np.linspace(0, 2 * math.pi, 60, endpoint=False)
        reach = 1 + rng.uniform(0.1, 0.4) * np.sin(rng.integers(2, 9) * angles + turn)
        points = np.stack([reach * np.cos(angles), reach * np.sin(angles)], axis=1)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    return [(float(x), float(y)) for x, y in center + radius * points @ rotation.T]


def dead_leaves(rng: Generator, size: int) -> np.ndarray:
    """Occluding textured shapes with radii distributed as 1 / r^3, the classic model of natural image statistics."""
    side = size * SUPERSAMPLING
    image = surface(rng, side)
    smallest, largest = rng.uniform(2, 8) * SUPERSAMPLING, rng.uniform(0.1, 0.35) * side
    count = int(rng.integers(40, 250))
    inverse = rng.uniform(largest**-2.0, smallest**-2.0, count)
    for radius in np.sort(inverse**-0.5)[::-1]:
        paste_leaf(rng, image, float(radius))
    return to_array(to_canvas(image), size)


def paste_leaf(rng: Generator, image: np.ndarray, radius: float) -> None:
    """Draw one shape of the given radius over `image`, in place."""
    side = image.shape[0]
    center = rng.uniform(0, side, 2)
    reach = 1.5 * radius
    left, top = (int(max(value - reach, 0)) for value in center)
    right, bottom = (int(min(value + reach + 1, side)) for value in center)
    if right - left < 2 or bottom - top < 2:
        return
    mask = Image.new("1", (right - left, bottom - top))
    outline = leaf_outline(rng, center - (left, top), radius)
    ImageDraw.Draw(mask).polygon(outline, fill=1)
    inside = np.asarray(mask)
    texture = surface(rng, max(right - left, bottom - top))[: bottom - top, : right - left]
    image[top:bottom, left:right][inside] = texture[inside]


def surface(rng: Generator, size: int) -> np.ndarray:
    """What a leaf is made of: a plain colour, a gradient, a cloud or a wave texture."""
    kind = rng.random()
    if kind < 0.35 or size < 8:
        return np.broadcast_to(random_color(rng), (size, size, 3)).astype(np.float32)
    if kind < 0.65:
        return gradient(rng, size).astype(np.float32)
    if kind < 0.88:
        return cloud_texture(rng, size).astype(np.float32)
    return wave_texture(rng, size).astype(np.float32)


@cache
def font_files() -> tuple[Path, ...]:
    """The DejaVu and STIX fonts that matplotlib ships; none when it is not installed."""
    from importlib.util import find_spec

    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        return ()
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    return tuple(sorted([*folder.glob("DejaVuS*.ttf"), *folder.glob("STIXGeneral*.ttf")]))


def random_font(rng: Generator, points: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    files = [path for path in font_files() if "Display" not in path.name]
    if not files:
        return ImageFont.load_default(points)
    return ImageFont.truetype(str(files[rng.integers(len(files))]), points)


def write_text(rng: Generator, canvas: Image.Image, lines: int) -> None:
    """Draw lines of random characters at random places, sizes and colours, in place."""
    draw = ImageDraw.Draw(canvas)
    alphabet = np.array(list(string.ascii_letters * 2 + string.digits + "    .,:;!?()%&-+/"))
    for _ in range(lines):
        font = random_font(rng, int(math.exp(rng.uniform(math.log(9), math.log(48)))) * SUPERSAMPLING)
        words = "".join(rng.choice(alphabet, rng.integers(3, 40)))
        place = (rng.uniform(-0.1, 0.7) * canvas.width, rng.uniform(-0.05, 0.98) * canvas.height)
        draw.text(place, words, font=font, fill=to_rgb(random_color(rng)))


def text_page(rng: Generator, size: int) -> np.ndarray:
    """Lines of text of several fonts over a plain or smoothly shaded page."""
    side = size * SUPERSAMPLING
    page = np.tile(random_color(rng), (side, side, 1))
    if rng.random() < 0.5:
        page = gradient(rng, side)
    canvas = to_canvas(page)
    write_text(rng, canvas, int(rng.integers(8, 40)))
    return to_array(canvas, size)


def draw_strokes(rng: Generator, canvas: Image.Image, strokes: int) -> None:
    """Draw straight lines, arcs and outlines of random width and colour, in place."""
    draw = ImageDraw.Draw(canvas)
    for _ in range(strokes):
        color = to_rgb(random_color(rng))
        width = int(rng.integers(1, 7 * SUPERSAMPLING))
        x0, x1 = np.sort(rng.uniform(-0.2, 1.2, 2) * canvas.width)
        y0, y1 = np.sort(rng.uniform(-0.2, 1.2, 2) * canvas.height)
        box = (x0, y0, x1 + 2, y1 + 2)
        kind = rng.integers(4)
        if kind == 0:
            draw.line((x0, y0, x1, y1) if rng.random() < 0.5 else (x0, y1, x1, y0), fill=color, width=width)
        elif kind == 1:
            draw.arc(box, rng.uniform(0, 360), rng.uniform(0, 360), fill=color, width=width)
        elif kind == 2:
            draw.rectangle(box, outline=color, width=width)
        else:
            draw.ellipse(box, outline=color, width=width)


def checkerboard(rng: Generator, size: int) -> np.ndarray:
    """Two colours in a tilted grid of rectangles."""
    rows, columns = np.mgrid[0:size, 0:size]
    angle = rng.uniform(0, math.pi / 2)
    across = columns * math.cos(angle) + rows * math.sin(angle)
    down = rows * math.cos(angle) - columns * math.sin(angle)
    wide, high = rng.uniform(3, 40, 2) * SUPERSAMPLING
    odd = (np.floor(across / wide) + np.floor(down / high)) % 2
    first, second = random_color(rng), random_color(rng)
    return first + odd[..., None] * (second - first)


def line_art(rng: Generator, size: int) -> np.ndarray:
    """Strokes and outlines over a plain page or a checkerboard."""
    side = size * SUPERSAMPLING
    page = checkerboard(rng, side) if rng.random() < 0.4 else gradient(rng, side)
    canvas = to_canvas(page)
    draw_strokes(rng, canvas, int(rng.integers(5, 60)))
    return to_array(canvas, size)


def mixed_scene(rng: Generator, size: int) -> np.ndarray:
    """Dead leaves with strokes and text over them."""
    canvas = to_canvas(dead_leaves(rng, size * SUPERSAMPLING))
    draw_strokes(rng, canvas, int(rng.integers(2, 15)))
    write_text(rng, canvas, int(rng.integers(0, 6)))
    return to_array(canvas, size)
