"""The FLUX cases computed by the straight line on this machine, and again with one last place of the sinusoid moved.

FLUX embeds 1000 t and 1000 guidance in float32: at guidance 30 one last place of `exp`, in which maths libraries
differ, turns the embedding by 2e-3 radians.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from harness import straight_line_flux as flux
from harness import straight_line_sampling as sampling
from parity import golden
from parity.sensitivity import DRAWS, Judge, judge

LONG = DRAWS[:1]
"""For runs of many forwards: their spread is that of thousands of numbers, and one draw finds it."""

GUIDANCE = 30.0
"""Of cases that name none."""


def weights(name: str) -> flux.Weights:
    return golden.weights(name, "flux")[1]


@lru_cache(maxsize=3)
def network(name: str, lora: str | None = None, strength: float = 1.0) -> flux.Weights:
    return flux.with_lora(weights(name), weights(lora), strength) if lora else flux.doubled(weights(name))


@lru_cache(maxsize=1)
def control_network(name: str) -> flux.Weights:
    return flux.doubled(weights(name))


def inputs(case: golden.Case) -> golden.Case:
    """The case that holds this one's inputs: cases that share them name it, as `<case>/in/*`."""
    return golden.Case(case.path, case.parameters.get("inputs", case.name).split("/")[0], {})


def file_parameters(case: golden.Case) -> dict:
    """The file's, which a case's own may hide."""
    return golden.parameters(case.path)


def table(seed: int | None) -> Tensor:
    exact = flux.frequencies()
    return exact if seed is None else flux.one_last_place(exact, seed)


def guidance(case: golden.Case) -> float:
    return case.parameters.get("guidance", GUIDANCE)


def forward(case: golden.Case) -> Judge:
    """A bare network; results `v` and the streams."""
    x, concat = case["in/x"], case.get("in/concat")
    if concat is not None:
        x = torch.cat([x, concat.expand(len(x), -1, -1, -1)], dim=1)
    prompt = flux.Prompt(case["in/txt"], case["in/pooled"], case["in/guidance"])

    def run(seed: int | None) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}
        net = network(case.parameters["model"])
        out = flux.velocity(net, x, case["in/t"], prompt, None, table(seed), seen)
        return seen | {"v": out}

    return judge(run)


def diptych(case: golden.Case, lora: str | None = None, strength: float = 1.0, sigmas: Tensor | None = None) -> Judge:
    """A diptych: velocity `v` at (x, t) where the case has them, and the sampled `latent` where it has steps.

    The bridge acts where the case names one; with a batch in `v`, on its first row alone.
    """
    channels = sampling.fill_channels(case["in/vae_latent_raw"])
    noise, params = case["in/noise"], case.parameters
    plain = prompt = flux.Prompt(case["in/txt"], case["in/pooled"], guidance(case))
    if "bridge" in params:
        prompt = flux.bridged(plain, flux.context_vector(weights(params["bridge"]), case["in/clip_image_embeds"]))
    if "steps" in params and sigmas is None:
        sigmas = sampling.shifted_sigmas(params["steps"], noise.shape[-2] * noise.shape[-1] // 4)

    def run(seed: int | None) -> dict[str, Tensor]:
        net, waves = network(params["model"], lora, strength), table(seed)

        def velocity(x: Tensor, t: Tensor, prompt: flux.Prompt = prompt) -> Tensor:
            return flux.velocity(net, torch.cat([x.double(), channels], dim=1), t, prompt, None, waves)

        out = {}
        if "in/x" in case:
            out["v"] = velocity(case["in/x"], case["in/t"])
            out["v without vector"] = velocity(case["in/x"], case["in/t"], plain) if "bridge" in params else out["v"]
        if sigmas is not None:
            out["latent"] = sampling.euler(velocity, sigmas[0] * noise.double(), sigmas)
            out["latent_raw"] = sampling.raw_space(out["latent"])
            out["right"] = out["latent"].chunk(2, dim=-1)[1]
        return out

    return judge(run, DRAWS if sigmas is None else LONG)


@lru_cache(maxsize=1)
def _tiled_diptychs(path, name: str) -> Judge:
    case = next(case for case in golden.read_cases(path) if case.name == name)
    params, given = case.parameters, inputs(case)
    channels, noise, boxes = sampling.fill_channels(given["in/vae_latent_raw"]), given["in/noise"], given["in/boxes"]
    prompt = flux.Prompt(given["in/txt"], given["in/pooled"], guidance(case))
    prompt = flux.bridged(prompt, flux.context_vector(weights(params["bridge"]), given["in/clip_image_embeds"]))

    def run(seed: int | None) -> dict[str, Tensor]:
        net, waves = network(params["model"]), table(seed)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            tiles = torch.cat([sampling.diptych_crop(x, box) for box in boxes.tolist()])
            moved = flux.velocity(net, torch.cat([tiles, channels], dim=1), t, prompt, None, waves)
            return sampling.merged_diptychs(params["panel_latent_hw"], moved, boxes.tolist(), params["weights"])

        latent = sampling.euler(velocity, given["in/sigmas"][0] * noise.double(), given["in/sigmas"])
        return {"latent": latent, "right": latent.chunk(2, dim=-1)[1]}

    return judge(run, LONG)


def tiled_diptychs(case: golden.Case) -> Judge:
    return _tiled_diptychs(case.path, case.name)


def control_of(case: golden.Case, image: Tensor, prompt: flux.Prompt) -> flux.Control:
    params = case.parameters
    return flux.Control(
        control_network(file_parameters(case)["control"]),
        image,
        prompt,
        tuple(params.get("dit_blocks", ())),
        params.get("text_residual", True),
        params.get("strength", 1.0),
        params.get("text_branch", True),
    )


def local_prompt(case: golden.Case) -> flux.Prompt:
    given = inputs(case)
    return flux.Prompt(given["in/txt_local"], given["in/pooled_local"], given["in/guidance"])


def features(case: golden.Case) -> Judge:
    """The MM-ControlNet's streams `img<l>`, `txt<l>` and residuals `img_out<l>`."""
    given = inputs(case)
    control = control_of(case, given["in/z_lq"], local_prompt(case))

    def run(seed: int | None) -> dict[str, Tensor]:
        out = {}
        for layer, (image, text) in enumerate(control.streams(given["in/t"], table(seed))):
            out |= {f"img{layer}": image, f"txt{layer}": text, f"img_out{layer}": control.image_residual(layer, image)}
        return out

    return judge(run)


def controlled(case: golden.Case) -> Judge:
    """The velocity `v` with the MM-ControlNet injected and the streams, as `double<block>_<stream>`."""
    given = inputs(case)
    control = control_of(case, given["in/z_lq"], local_prompt(case))
    prompt = flux.Prompt(given["in/txt_global"], given["in/pooled_global"], given["in/guidance"])

    def run(seed: int | None) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}
        net = network(file_parameters(case)["model"])
        out = flux.velocity(net, given["in/z_t"], given["in/t"], prompt, control, table(seed), seen)
        return seen | {"v": out}

    return judge(run)


def dreamsr(case: golden.Case) -> Judge:
    """Degradation removal, `z_dr`, and where the case has sigmas the texture stage from it, `latent`."""
    params, given = case.parameters, inputs(case)
    named, image = file_parameters(case), given["in/z_lq"]
    boxes: Sequence[sampling.Box] = params["boxes"]
    if "box" in params:
        top, bottom, left, right = params["box"]
        image, boxes = sampling.crop(image, params["box"]), [[0, bottom - top, 0, right - left]]
    whole = flux.Prompt(given["in/txt_global"], given["in/pooled_global"], params["guidance"])
    count = len(boxes)
    local = flux.Prompt(given["in/txt_tiles"][:count], given["in/pooled_tiles"][:count], params["guidance"])
    time = params.get("t")

    def run(seed: int | None) -> dict[str, Tensor]:
        waves = table(seed)

        def velocity(net: flux.Weights, looked_at: Tensor) -> sampling.Velocity:
            def at(x: Tensor, t: Tensor) -> Tensor:
                tiles, seen = (torch.cat([sampling.crop(z, box) for box in boxes]) for z in (x, looked_at))
                control = control_of(case, seen, local) if params.get("control", True) else None
                moved = flux.velocity(net, tiles, t, whole, control, waves)
                return sampling.merged(x.shape[-2:], moved, boxes, params.get("weights", "uniform"))

            return at

        with_lora = network(named["model"], named["lora"])
        clean = sampling.removed(velocity(with_lora, image), image, params.get("t_s", 1.0))
        if "in/sigmas" not in given:
            return {"z_dr": clean}
        sigmas = given["in/sigmas"]
        start = (1 - time) * clean + time * given["in/noise"].double()
        latent = sampling.euler(velocity(network(named["model"]), clean), start, sigmas)
        return {"z_dr": clean, "latent": latent, "latent_raw": sampling.raw_space(latent)}

    return judge(run, LONG)
