"""Tiny VOSR runs: a network as a MODEL of the host and as plain torch, conditions for it, and what a run did.

Nothing here imports the host before it is called: tests take the `host` fixture first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoints import StateDict, save_vosr_folder, vosr, vosr_config
from .host import InProcessHost


@dataclass(frozen=True)
class TinyVOSR:
    """A seeded network in the host's model folder. name: what the loader's widget would hold."""

    name: str
    config: Any
    weights: StateDict
    folder: Path

    @classmethod
    def create(cls, host: InProcessHost, name: str, seed: int = 0, **sizes: Any) -> TinyVOSR:
        config = vosr_config(**sizes)
        folder = save_vosr_folder(host.models / "diffusion_models" / name, config, seed)
        return cls(name, config, vosr(config, seed), folder)

    @property
    def weight_file(self) -> Path:
        return self.folder / "checkpoints" / "ema_model.safetensors"

    def load(self, weight_dtype: str = "default", variant: str = "auto", disable_dynamic: bool = False) -> Any:
        """A fresh MODEL through the pack's own loader."""
        from realisr.host.vosr.loader import load_vosr_model

        return load_vosr_model(self.name, weight_dtype, variant, disable_dynamic)

    def network(self, weights: StateDict | None = None) -> Any:
        """The network in plain torch, with these weights or its own."""
        from realisr.models.vosr.dit import VOSRDiT

        network = VOSRDiT(self.config)
        network.load_state_dict(weights or self.weights)
        return network.eval()


@dataclass(frozen=True)
class Scene:
    """What a run starts from, as it travels on the wires.

    latent: LQ latent as a VAE encodes it, `[B, C, H, W]`. features: `[B, M, E]`, `[B, tiles * M, E]` with a grid.
    """

    latent: Tensor
    features: Tensor
    noise: Tensor
    grid: Any = None
    weak_strength: float = 0.15
    seed: int = 0

    @classmethod
    def random(
        cls,
        config: Any,
        size: tuple[int, int] = (16, 16),
        batch: int = 1,
        grid: Any = None,
        tokens: int = 16,
        seed: int = 7,
    ) -> Scene:
        generator = torch.Generator().manual_seed(seed)
        shape = (batch, config.latent_channels, *size)
        count = tokens * (len(grid) if grid else 1) if config.context_width else 1
        latent = torch.randn(shape, generator=generator)
        features = torch.randn(batch, count, config.context_width, generator=generator)
        # The host's own noise for this seed, so that its sampler nodes start from the same.
        noise = torch.randn(shape, generator=torch.manual_seed(seed))
        return cls(latent, features, noise, grid, seed=seed)

    @property
    def empty(self) -> dict[str, Tensor]:
        """The LATENT to sample."""
        return {"samples": torch.zeros_like(self.latent)}

    def wire(self, strength: float | None = 1.0, features: Tensor | None = None, **options: Any) -> list[Any]:
        """A CONDITIONING with the LQ latent at a strength."""
        from realisr.host.vosr.conditioning import wire

        given = self.features if features is None else features
        # Of a tiled run every tile has its share, unless a single token stands for all.
        shared = self.grid is None or given.shape[1] == 1
        tiles = None if shared else given.chunk(len(self.grid), dim=1)
        ((tokens, made),) = wire(self.latent, strength, given if shared else given[:, :1], self.grid, tiles)
        return [[tokens, {**made, **options}]]

    @property
    def full(self) -> list[Any]:
        return self.wire()

    @property
    def weak(self) -> list[Any]:
        blank = self.features.new_zeros(self.features.shape[0], 1, self.features.shape[2])
        return self.wire(self.weak_strength, blank)


def set_options(conditioning: list[Any], **options: Any) -> list[Any]:
    """A copy with more options, as the host's conditioning nodes make them."""
    return [[features, {**old, **options}] for features, old in conditioning]


def run_guider(
    model: Any, scene: Scene, scale: float = 0.5, steps: int = 4, sampler: str = "euler", **run: Any
) -> Tensor:
    """Raw latent restored by the pack's guider under a sampler of the host.

    run: guidance (a RestorationGuidance, instead of scale), times, full and weak (other conditionings).
    """
    import comfy.samplers

    from realisr.host.vosr.guider import RestorationGuider
    from realisr.models.vosr.sampling import RestorationGuidance, euler_times

    guidance = run.get("guidance") or RestorationGuidance(scale)
    guider = RestorationGuider(model, run.get("full", scene.full), run.get("weak", scene.weak), guidance)
    times = run["times"] if "times" in run else euler_times(steps)
    with torch.inference_mode():
        return guider.sample(
            scene.noise.clone(),
            torch.zeros_like(scene.noise),
            comfy.samplers.sampler_object(sampler),
            times,
            disable_pbar=True,
            seed=scene.seed,
        )


def plain_run(tiny: TinyVOSR, scene: Scene, scale: float = 0.5, steps: int = 4, **run: Any) -> Tensor:
    """The same restoration by the method's own loop in plain torch, in the latents the VAE knows.

    run: guidance (a RestorationGuidance, instead of scale), weights (other than the network's own).
    """
    from oracles.vosr import Condition, Velocity, sample
    from realisr.host.vosr.latent import latent_format_for
    from realisr.models.vosr.sampling import RestorationGuidance, euler_times

    space = latent_format_for(tiny.config.latent_channels, {})
    velocity = Velocity(tiny.network(run.get("weights")), run.get("guidance") or RestorationGuidance(scale))
    features = scene.features.chunk(len(scene.grid), dim=1) if scene.grid else scene.features
    condition = Condition(
        space.process_in(scene.latent), features if tiny.config.context_width else None, scene.weak_strength
    )
    return space.process_out(sample(velocity, scene.noise, condition, euler_times(steps), scene.grid))


@dataclass
class Forward:
    """One call of the network: its input's batch and size, its times and end times `[B]`."""

    batch: int
    size: tuple[int, int]
    time: Tensor
    end_time: Tensor | None
    branches: list[int]


@dataclass
class Recorder:
    """Records every forward of the models it watches, and can break one off."""

    forwards: list[Forward] = field(default_factory=list)
    raise_at: int | None = None

    def watch(self, model: Any) -> Any:
        """A clone of the MODEL that is recorded."""
        from comfy.patcher_extension import WrappersMP

        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "recorder", self._wrap)
        return clone

    def _wrap(self, executor: Any, x: Tensor, timestep: Tensor, context: Any, end_time: Tensor | None, options: dict):
        if len(self.forwards) == self.raise_at:
            import comfy.model_management

            comfy.model_management.interrupt_current_processing()
        end = None if end_time is None else end_time.clone()
        self.forwards.append(
            Forward(x.shape[0], tuple(x.shape[-2:]), timestep.clone(), end, list(options["cond_or_uncond"]))
        )
        return executor(x, timestep, context, end_time, options)

    @property
    def batches(self) -> list[int]:
        return [forward.batch for forward in self.forwards]


class CountedCalls:
    """Counts calls of an object's method while it is entered, calling it all the same."""

    def __init__(self, owner: Any, name: str):
        self.owner, self.name, self.count = owner, name, 0

    def __enter__(self) -> CountedCalls:
        original = getattr(self.owner, self.name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return original(*args, **kwargs)

        setattr(self.owner, self.name, counted)
        return self

    def __exit__(self, *exc: object) -> None:
        delattr(self.owner, self.name)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference in units of the reference's own."""
    difference = actual.double() - expected.double()
    return (difference.pow(2).mean() / expected.double().pow(2).mean()).sqrt().item()


def correlation(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1].item()
