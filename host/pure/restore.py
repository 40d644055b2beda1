"""PURE from image to image (arXiv 2503.11073): tiles to tokens, tokens drawn in batches, tokens to one image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import comfy.model_management
import torch
from torch import Tensor

from ...models.color import swap_lowest_band
from ...models.image import resize, to_bytes, upscale
from ...models.pure.decode import Generated, generate, write_texts
from ...models.pure.options import GenerationOptions, cache_bytes
from ...models.pure.prompt import INSTRUCTION, image_block, prompt_ids
from ...models.pure.text import split_text
from ...models.pure.vocabulary import PATCH_PIXELS
from ...models.pure.vqgan import to_image, to_pixels
from ...models.tile_check.check import TileCheck, check_tiles
from ...models.tiles.grid import Box, TileGrid
from ...models.tiles.layout import CELL, require_tile
from ...models.tiles.merge import merge_tiles
from ..images import checked_image
from ..memory import MostTogether, within_memory
from ..progress import begin
from ..tile_repair import TileRepair, scale_of, tell
from .model import ARRestorer
from .progress import TEXT_ALLOWANCE, Canvas, RunObserver, TokenProgress

TRAINED_SIDE = 512
"""Pixels of the squares PURE was trained on, and the largest it writes."""

TOKEN_PIXELS = 8
MAX_TOGETHER = 16
"""Sequences decoded at once when the number is left to the pack: beyond it a step is no longer bound by memory."""

SEED_STRIDE = 0x9E3779B97F4A7C15
"""Between the seeds of one image's tiles: odd and large, so that they meet no other image's."""

NODE = "AR Token Restorer"

LESS_CREATIVE = 0.8
"""What a round leaves of the temperature, where bad tiles are drawn less creatively."""

TEXTS_BETWEEN_TILES = " | "


@dataclass(frozen=True)
class Tiles:
    """The squares the model restores. Raises ValueError for squares it cannot write."""

    side: int = TRAINED_SIDE
    """Pixels, a multiple of 32 up to 512."""
    overlap: int = 64
    """Pixels neighbours share."""
    whole: bool = False
    """Squeeze the image into one square instead, as the authors' script does."""

    def __post_init__(self) -> None:
        if self.side % PATCH_PIXELS or not PATCH_PIXELS <= self.side <= TRAINED_SIDE:
            raise ValueError(
                f"A tile of {self.side} px: PURE writes squares of {PATCH_PIXELS} to {TRAINED_SIDE} px, in steps of "
                f"{PATCH_PIXELS}. It was trained at {TRAINED_SIDE}."
            )
        require_tile(self.side, self.overlap, PATCH_PIXELS // CELL)

    def grid(self, width: int, height: int) -> TileGrid:
        """Tiles over a canvas for a result of that size: a side shorter than a tile is stretched to one."""
        if self.whole:
            width = height = self.side
        width, height = max(width, self.side), max(height, self.side)
        return TileGrid(height, width, self.side, self.side, self.overlap)


@dataclass(frozen=True)
class PURERestoreOptions:
    """One restoration, all but the images."""

    width: int
    height: int
    """Of the result, in pixels, as the width."""
    seed: int = 0
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    """How tokens are drawn; its size is set from the tiles."""
    tiles: Tiles = field(default_factory=Tiles)
    instruction: str = INSTRUCTION
    description: str = ""
    """The user's own; empty to let the model write one."""
    shared_description: bool = True
    """One for all tiles of an image, written from the whole image."""
    color_fix: bool = True
    """Take the lowest frequencies from the low-quality image."""
    preview: bool = True
    together: int = 0
    """Sequences decoded at once, 0 for as many as fit."""
    repair: TileRepair | None = None
    """What happens to bad tiles; None to look for none."""


@dataclass(frozen=True)
class TokenGrids:
    """The image codes the model drew."""

    codes: Tensor
    """`[B, tiles, h, w]` long."""
    boxes: list[Box]
    """Where each tile lies in the canvas."""
    height: int
    width: int
    """Of the canvas, in pixels, as the height."""

    def __str__(self) -> str:
        """What the host's text previews show: a line of codes for each row of tokens."""
        lines = []
        for image, tiles in enumerate(self.codes.tolist(), start=1):
            for box, rows in zip(self.boxes, tiles, strict=True):
                lines.append(f"image {image}, tile at x {box.left}, y {box.top}:")
                lines += [" ".join(map(str, row)) for row in rows]
        return "\n".join(lines)


@dataclass(frozen=True)
class Restored:
    """What comes out, at the result's size."""

    image: Tensor
    """`[B, H, W, 3 or 4]` in 0..1."""
    entropy: Tensor
    """`[B, H, W]` in nats."""
    degradation: str
    """What the model says is wrong, a line for each image."""
    description: str
    """What the image shows, a line for each image."""
    tokens: TokenGrids


@dataclass(frozen=True)
class Job:
    """One tile: which image, where, its prompt and its seed."""

    image: int
    tile: int
    box: Box
    prompt: list[int]
    seed: int


@dataclass(frozen=True)
class DrawnTile:
    """What became of a job."""

    picture: Tensor
    """`[1, side, side, 3]` in 0..1."""
    codes: Tensor
    """`[side / 8, side / 8]` long."""
    entropy: Tensor
    """Nats, `[side / 8, side / 8]`."""
    degradation: str
    description: str


def tile_seed(seed: int, image: int, tile: int) -> int:
    """Item i of a batch is what it would be alone with seed + i; further tiles of an image have seeds of their own."""
    return (seed + image + tile * SEED_STRIDE) % 2**64


def prompt_tokens(restorer: ARRestorer, squares: Tensor, instruction: str) -> list[list[int]]:
    """The prompt of each square `[N, side, side, 3]` in 0..1."""
    ids = restorer.vocabulary.encode(restorer.encode(to_pixels(to_bytes(squares).cpu())))
    return [prompt_ids(restorer.tokenizer, instruction, image_block(grid)) for grid in ids]


def sized(options: PURERestoreOptions) -> GenerationOptions:
    """How tokens are drawn, for squares of the tiles' size."""
    patches = options.tiles.side // PATCH_PIXELS
    return replace(options.generation, size=(patches, patches))


def memory_needed(restorer: ARRestorer, jobs: Sequence[Job], options: PURERestoreOptions, sequences: int) -> int:
    """Bytes for decoding that many sequences: the caches of both branches, and previews."""
    longest = max(len(job.prompt) for job in jobs)
    needed = cache_bytes(restorer.config, sized(options), sequences, longest, restorer.dtype)
    return needed + (restorer.vq_memory(options.tiles.side, options.tiles.side) if options.preview else 0)


def load(restorer: ARRestorer, jobs: Sequence[Job], options: PURERestoreOptions, sequences: int) -> None:
    """Load what decoding needs, with room for that many sequences."""
    patchers = [restorer.backbone, restorer.vqgan] if options.preview else [restorer.backbone]
    needed = memory_needed(restorer, jobs, options, sequences)
    comfy.model_management.load_models_gpu(patchers, memory_required=needed)


def load_for(restorer: ARRestorer, jobs: Sequence[Job], options: PURERestoreOptions) -> int:
    """Load the models and make room; returns how many sequences are decoded together."""
    management, backbone = comfy.model_management, restorer.backbone
    if options.together:
        together = min(options.together, len(jobs))
        load(restorer, jobs, options, together)
        return together
    load(restorer, jobs, options, 1)
    # What is not on the device yet comes there while running, if the model is one of dynamic memory.
    free = management.get_free_memory(backbone.load_device) - management.minimum_inference_memory()
    free -= max(0, backbone.model_size() - backbone.loaded_size())
    together = max(1, min(MAX_TOGETHER, len(jobs), int(free / memory_needed(restorer, jobs, options, 1))))
    if together > 1:
        load(restorer, jobs, options, together)
    return together


def chunks(jobs: Sequence[Job], size: int) -> Iterator[Sequence[Job]]:
    for first in range(0, len(jobs), size):
        yield jobs[first : first + size]


class Restoration:
    """One run of the node over a batch."""

    def __init__(self, restorer: ARRestorer, images: Tensor, options: PURERestoreOptions):
        images = checked_image(images)
        self.restorer, self.images = restorer, images
        self.grid = options.tiles.grid(options.width, options.height)
        self.options = replace(options, generation=sized(options))
        # The result's size and the canvas's may differ on a side shorter than a tile.
        self.canvases = upscale(images[..., :3], self.grid.width, self.grid.height).float().cpu()
        self.drawn: list[dict[int, DrawnTile]] = [{} for _ in images]

    # --- tokens ------------------------------------------------------------------------------------------------------

    def jobs(self) -> list[Job]:
        jobs = []
        for index, canvas in enumerate(self.canvases):
            boxes = self.grid.boxes
            squares = torch.stack([box.crop(canvas.movedim(-1, 0)).movedim(0, -1) for box in boxes])
            prompts = prompt_tokens(self.restorer, squares, self.options.instruction)
            jobs += [
                Job(index, tile, box, prompt, tile_seed(self.options.seed, index, tile))
                for tile, (box, prompt) in enumerate(zip(boxes, prompts, strict=True))
            ]
        return jobs

    @property
    def writes_shared_description(self) -> bool:
        options = self.options
        return (
            len(self.grid) > 1
            and options.shared_description
            and not options.description
            and options.generation.parts in ("full", "understanding")
        )

    def overview_jobs(self) -> list[Job]:
        """Each whole image squeezed into one square, to be described."""
        side = self.options.tiles.side
        squares = resize(self.images[..., :3], side, side).float().cpu()
        prompts = prompt_tokens(self.restorer, squares, self.options.instruction)
        whole = Box(0, 0, self.grid.height, self.grid.width)
        return [Job(i, 0, whole, prompt, tile_seed(self.options.seed, i, 0)) for i, prompt in enumerate(prompts)]

    def run(self) -> Restored:
        begin()
        jobs = self.jobs()
        overview = self.overview_jobs() if self.writes_shared_description else []
        together = load_for(self.restorer, jobs, self.options)
        most = MostTogether(together)
        runs, text_runs = list(chunks(jobs, together)), list(chunks(overview, together))
        image_tokens = (self.options.tiles.side // TOKEN_PIXELS) ** 2
        progress = TokenProgress([TEXT_ALLOWANCE] * len(text_runs) + [TEXT_ALLOWANCE + image_tokens] * len(runs))
        descriptions: list[str | None] = [self.options.description or None] * len(self.canvases)
        for run in text_runs:
            written = within_memory(partial(self.describe, progress=progress), run, most)
            for job, description in zip(run, written, strict=True):
                descriptions[job.image] = description
            progress.next()
        for run in runs:
            within_memory(partial(self.draw, descriptions=descriptions, progress=progress), run, most)
            progress.next()
        if self.options.repair is not None:
            self.redraw_bad(jobs, descriptions, most, self.options.repair)
        return self.assemble()

    def check(self, index: int, repair: TileRepair) -> TileCheck:
        """The tiles of an image as they look in it."""
        scale = scale_of(self.images, self.grid.width, self.grid.height)
        return check_tiles(self.canvas_picture(index)[0], self.canvases[index], self.grid, scale, repair.thresholds)

    def redraw_bad(
        self, jobs: Sequence[Job], descriptions: Sequence[str | None], most: MostTogether, repair: TileRepair
    ) -> None:
        """Draw bad tiles again in place of what they were, until all are good or the rounds are used up."""
        first = checks = [self.check(index, repair) for index in range(len(self.canvases))]
        done = 0
        image_tokens = (self.options.tiles.side // TOKEN_PIXELS) ** 2
        while done < repair.rounds and any(check.bad for check in checks):
            done += 1
            bad = [self.again(job, done) for job in jobs if job.tile in checks[job.image].bad]
            runs = list(chunks(bad, most.items))
            progress = TokenProgress([TEXT_ALLOWANCE + image_tokens] * len(runs))
            generation = self.closer(done, repair)
            draw = partial(self.draw, descriptions=descriptions, progress=progress, generation=generation)
            for run in runs:
                within_memory(draw, run, most)
                progress.next()
            checks = [self.check(index, repair) for index in range(len(self.canvases))]
        for before, after in zip(first, checks, strict=True):
            tell(NODE, before, after, done)

    def again(self, job: Job, round_number: int) -> Job:
        """The same tile with a seed that no other has."""
        return replace(job, seed=tile_seed(self.options.seed, job.image, job.tile + round_number * len(self.grid)))

    def closer(self, round_number: int, repair: TileRepair) -> GenerationOptions:
        """How tokens are drawn in a round: colder each time, where bad tiles are restored less creatively."""
        generation = self.options.generation
        if not repair.less_creative:
            return generation
        temperature = generation.sampling.temperature * LESS_CREATIVE**round_number
        return replace(generation, sampling=replace(generation.sampling, temperature=temperature))

    def describe(self, jobs: Sequence[Job], progress: TokenProgress) -> list[str]:
        """What the model writes about each image."""
        restorer = self.restorer
        written = write_texts(
            restorer.network,
            [job.prompt for job in jobs],
            [job.seed for job in jobs],
            self.options.generation,
            RunObserver(progress, restorer.tokenizer.decode),
            restorer.backbone.load_device,
            restorer.dtype,
        )
        return [split_text(ids, restorer.tokenizer)[1] for ids in written]

    def texts(self, result: Generated) -> tuple[str, str]:
        """Degradation sentence and description that the model wrote; the latter only where it was let finish."""
        sentence, description = split_text(result.written_ids, self.restorer.tokenizer)
        return sentence, "" if self.options.generation.parts == "perception" else description

    def draw(
        self,
        jobs: Sequence[Job],
        descriptions: Sequence[str | None],
        progress: TokenProgress,
        generation: GenerationOptions | None = None,
    ) -> list[DrawnTile]:
        """Decode one batch of tiles to tokens and these to pixels.

        descriptions: of each image, None for the model's own. generation: None for the run's.
        """
        given = [descriptions[job.image] for job in jobs]
        restorer, shown = self.restorer, jobs[0].image
        # Decoding the batch before may have pushed the transformer out.
        load(restorer, jobs, self.options, len(jobs))
        canvas = self.canvas_of(shown) if self.options.preview else None
        boxes = [job.box if job.image == shown else None for job in jobs]
        observer = RunObserver(progress, restorer.tokenizer.decode, canvas, boxes)
        results = generate(
            restorer.network,
            [job.prompt for job in jobs],
            [job.seed for job in jobs],
            replace(generation or self.options.generation, cuda_graphs=restorer.weights_stay),
            restorer.vocabulary,
            tokenizer=restorer.tokenizer,
            descriptions=given,
            observer=observer,
            device=restorer.backbone.load_device,
            dtype=restorer.dtype,
        )
        restorer.load_vqgan(self.options.tiles.side, self.options.tiles.side)
        tiles = []
        for job, words, result in zip(jobs, given, results, strict=True):
            comfy.model_management.throw_exception_if_processing_interrupted()
            picture = to_image(restorer.decode(result.codes[None]))
            sentence, written = self.texts(result)
            tiles.append(
                DrawnTile(picture, result.codes, result.entropy, sentence, written if words is None else words)
            )
            if canvas is not None and job.image == shown:
                canvas.paste(job.box, picture[0])
        if canvas is not None:
            progress.show(observer.tokens, canvas.picture())
        # Only now: where memory does not suffice on the way, the same jobs are drawn again in halves.
        for job, tile in zip(jobs, tiles, strict=True):
            self.drawn[job.image][job.tile] = tile
        return tiles

    def canvas_of(self, index: int) -> Canvas:
        """What a preview starts from: the image with the tiles that are done."""
        canvas = Canvas(self.restorer, self.canvases[index])
        for box, tile in zip(self.grid.boxes, self.drawn[index].values(), strict=False):
            canvas.paste(box, tile.picture[0])
        return canvas

    # --- pixels ------------------------------------------------------------------------------------------------------

    def merged(self, tiles: Sequence[Tensor]) -> Tensor:
        """One field `[1, C, H, W]` of tiles `[1, C, side, side]`; a lone tile is returned as it is."""
        if len(tiles) == 1:
            return tiles[0]
        field_shape = torch.empty((1, tiles[0].shape[1], self.grid.height, self.grid.width))
        return merge_tiles(self.grid, field_shape, lambda first, boxes: tiles[first : first + len(boxes)])

    def canvas_picture(self, index: int) -> Tensor:
        """The restored image at the canvas's size `[1, H, W, 3]`."""
        merged = self.merged([tile.picture.movedim(-1, 1) for tile in self.drawn[index].values()]).movedim(1, -1)
        if self.options.color_fix:
            merged = swap_lowest_band(merged, self.canvases[index][None])
        return merged

    def picture(self, index: int) -> Tensor:
        """The restored image `[1, height, width, 3]`."""
        return resize(self.canvas_picture(index), self.options.width, self.options.height)

    def entropy(self, index: int) -> Tensor:
        """Nats `[1, height, width]`: each token's over its 8 x 8 pixels."""
        maps = [tile.entropy[None, None].float() for tile in self.drawn[index].values()]
        spread = [values.repeat_interleave(TOKEN_PIXELS, -1).repeat_interleave(TOKEN_PIXELS, -2) for values in maps]
        merged = self.merged(spread)
        size = (self.options.height, self.options.width)
        if merged.shape[-2:] != size:
            merged = torch.nn.functional.interpolate(merged, size, mode="bilinear", antialias=True)
        return merged[:, 0]

    def line(self, index: int, name: str) -> str:
        """What the tiles of an image say, each text once."""
        texts = [" ".join(getattr(tile, name).split()) for tile in self.drawn[index].values()]
        return TEXTS_BETWEEN_TILES.join(dict.fromkeys(filter(None, texts)))

    def assemble(self) -> Restored:
        options, count = self.options, range(len(self.canvases))
        image = torch.cat([self.picture(index) for index in count])
        if self.images.shape[-1] > 3:
            alpha = upscale(self.images[..., 3:], options.width, options.height)
            image = torch.cat([image, alpha.to(image)], dim=-1)
        output = comfy.model_management.intermediate_device()
        return Restored(
            image=image.to(output),
            entropy=torch.cat([self.entropy(index) for index in count]).to(output),
            degradation="\n".join(self.line(index, "degradation") for index in count),
            description="\n".join(self.line(index, "description") for index in count),
            tokens=TokenGrids(
                torch.stack([torch.stack([tile.codes for tile in tiles.values()]) for tiles in self.drawn]),
                self.grid.boxes,
                self.grid.height,
                self.grid.width,
            ),
        )


def restore(restorer: ARRestorer, images: Tensor, options: PURERestoreOptions) -> Restored:
    """Restore images `[B, h, w, 3 or 4]` in 0..1.

    Item i is what it would be alone with seed + i, however many are decoded together. Raises ValueError for images or
    options that do not fit and GenerationError for a model that writes no image; an interrupt ends within a token.
    """
    return Restoration(restorer, images, options).run()
