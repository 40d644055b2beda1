"""How a list of image batches splits into images and the candidates of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

AUTO, ENTRIES, ITEMS = "auto", "list entries", "batch items"
ARRANGEMENTS = (AUTO, ENTRIES, ITEMS)


@dataclass(frozen=True)
class Group:
    """Images whose choices make one batch."""

    subjects: Sequence[Sequence[Tensor]]
    """For each image its N candidates `[H, W, C]`."""
    prompts: Sequence[str]
    """Those of the N candidates, or empty."""

    def joined(self, best: Sequence[int]) -> Tensor:
        """The chosen candidate of every image as a batch `[B, H, W, C]`."""
        return torch.stack([subject[index] for subject, index in zip(self.subjects, best, strict=True)])


def group_candidates(
    entries: Sequence[Tensor], prompts: Sequence[str] | None, arrangement: str, image_count: int
) -> list[Group]:
    """Groups of a list of batches `[B, H, W, C]`.

    `list entries`: entry r * image_count + i is candidate r of image (or batch) i. `batch items`: the items of entry i
    are the candidates of image i. `auto`: list entries when there are several, else batch items.

    Raises ValueError when the list does not divide, candidates differ in how many images they hold, candidates of
    several images differ in size, or there are not as many prompts as candidates.
    """
    if arrangement == AUTO:
        arrangement = ENTRIES if len(entries) > 1 else ITEMS
    if arrangement == ITEMS:
        require_prompts(prompts, sum(len(entry) for entry in entries))
        starts = [sum(len(entry) for entry in entries[:index]) for index in range(len(entries))]
        return [
            Group([list(entry)], list(prompts[start : start + len(entry)]) if prompts else [])
            for entry, start in zip(entries, starts, strict=True)
        ]
    require_prompts(prompts, len(entries))
    if len(entries) % image_count:
        raise ValueError(
            f"The list has {len(entries)} entries, which is no multiple of image_count {image_count}: every image "
            "needs the same number of candidates."
        )
    groups = []
    for first in range(image_count):
        batches = list(entries[first::image_count])
        counts = sorted({len(batch) for batch in batches})
        if len(counts) > 1:
            raise ValueError(
                f"Candidates must hold the same images, these hold {' and '.join(map(str, counts))}. For batches whose "
                f"items are the candidates set candidates to '{ITEMS}'."
            )
        require_one_size(batches)
        subjects = [[batch[item] for batch in batches] for item in range(counts[0])]
        groups.append(Group(subjects, list(prompts[first::image_count]) if prompts else []))
    return groups


def require_one_size(batches: Sequence[Tensor]) -> None:
    """Choices from batches make a batch again, so theirs must be of one size; that of a single image may differ."""
    sizes = {tuple(batch.shape[1:]) for batch in batches}
    if len(sizes) > 1 and len(batches[0]) > 1:
        listed = ", ".join(f"{width} x {height} ({channels} channels)" for height, width, channels in sorted(sizes))
        raise ValueError(
            f"Candidates that are batches differ in size ({listed}), so the choices cannot be a batch again. Give all "
            "the same size, or one image at a time."
        )


def require_prompts(prompts: Sequence[str] | None, candidates: int) -> None:
    if prompts is not None and len(prompts) != candidates:
        raise ValueError(
            f"{len(prompts)} prompts came for {candidates} candidates. Connect a list with one prompt per candidate "
            "in the same order, or leave prompts unconnected."
        )


NO_PIN = "-"


def read_pins(text: str) -> list[int | None]:
    """Numbers of the candidates that were chosen by hand, one for each image, from 0; None where the scores choose.

    text: numbers and `-` separated by commas; empty for none at all. Raises ValueError for anything else.
    """
    parts = [part.strip() for part in text.split(",")]
    if parts == [""]:
        return []
    if wrong := [part for part in parts if part != NO_PIN and not (part.isascii() and part.isdigit())]:
        raise ValueError(
            f"pinned is {text!r:.60}, and {wrong[0]!r:.20} is no candidate's number. It takes numbers from 0, one for "
            f"each image, separated by commas; {NO_PIN} or nothing lets the scores choose."
        )
    return [None if part == NO_PIN else int(part) for part in parts]


def matched_pins(pins: Sequence[int | None], counts: Sequence[int]) -> list[int | None]:
    """The pin of every image. counts: how many candidates each has.

    Raises ValueError for pins of another number of images, and for one beyond an image's candidates.
    """
    if not any(pin is not None for pin in pins):
        return [None] * len(counts)
    remedy = "Click Let the scores choose on the node (or empty pinned), run, and pin again."
    if len(pins) != len(counts):
        raise ValueError(f"Candidates are pinned for {len(pins)} image(s), and {len(counts)} came. {remedy}")
    for number, (pin, count) in enumerate(zip(pins, counts, strict=True)):
        if pin is not None and pin >= count:
            whose = f" of image {number}" if len(counts) > 1 else ""
            raise ValueError(f"Candidate {pin}{whose} is pinned, and only {count} came, counted from 0. {remedy}")
    return list(pins)
