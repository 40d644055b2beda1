"""VOSR in training (arXiv 2604.03225): flow matching from the LQ latent and vision features, one-step distillation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...models.vosr.config import POSTERIOR_MEAN
from ...models.vosr.dit import VOSRDiT
from ...models.vosr.sampling import MULTI_STEP, weak_strength_from_args
from ...models.vosr.vae_files import weights_in
from ..data.cache import FeatureCache, content_key
from ..data.degradations import Degradations
from ..data.photos import Photos
from ..data.validation import validation_batch
from ..engine.draws import Draws
from ..engine.method import Batch, Method, Samples
from .config import DistillationSettings, ModelSettings, VOSRRunConfig
from .latents import LatentSpace, Posterior, make_latents
from .losses import Distillation
from .network import VELOCITY, FlowMatching, OneStepDistillation
from .presets import make_network, student_args
from .sampling import restore_latent
from .start import start_from_condition
from .vision import VisionFeatures
from .weights import architecture, load_into, load_weights, write_file, write_folder

DIT = "dit."
"""Before the names of the trained network in `network`."""

EDGES = (f"{DIT}x_embedder.", f"{DIT}final_layer.")

START_BATCHES = 16
"""Training batches the statistics of `start: condition` come from."""
START_DRAWS = 2**41
"""Number of their first draws: no micro-batch has it."""

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


def cut_squares(images: Tensor, places: Tensor, side: int) -> Tensor:
    """Squares of images `[B, 3, H, W]` with upper left corners at places `[B, N, 2]` -> `[B N, 3, side, side]`."""
    return torch.stack(
        [
            image[:, top : top + side, left : left + side]
            for image, corners in zip(images, places.tolist(), strict=True)
            for top, left in corners
        ]
    )


class VOSRMethod(Method[VOSRRunConfig]):
    """A run of `mode` flow or distill."""

    config_type = VOSRRunConfig

    args: dict[str, Any]
    """The args.json of the network in training."""
    latents: LatentSpace
    cache: FeatureCache | None
    vision: VisionFeatures | None
    dit: VOSRDiT
    fixed: dict[str, Tensor]
    """What of the network's state dict is not trained."""

    def build(self, device: torch.device) -> None:
        self.degradations = Degradations(self.config.data.degradation)
        if self.config.distillation is None:
            self.build_flow(device)
        else:
            self.build_student(device, self.config.distillation)
        state = {} if device.type == "meta" else self.dit.state_dict()
        trained = {name.removeprefix(DIT) for name, _ in self.parameters("train")}
        self.fixed = {name: value.detach().cpu().clone() for name, value in state.items() if name not in trained}

    def build_flow(self, device: torch.device) -> None:
        """A new network, or one with the weights of `weights`."""
        config = self.config
        self.args = {**config.model.args(), "weak_cond_strength_aelq_list": list(config.condition.weak_strengths)}
        self.build_encoders(device)
        self.dit = self.new_network(device)
        if config.weights is not None:
            stated, tensors = load_weights(config.weights, "meta" if device.type == "meta" else "cpu")
            architecture(config.weights, {**(stated or {}), **self.args}, tensors)
            load_into(self.dit, config.weights, tensors)
        elif config.start == "condition":
            self.start_from_condition(device)
        self.network = FlowMatching(self.dit, config.condition, config.times, config.balance)

    def build_student(self, device: torch.device, settings: DistillationSettings) -> None:
        """The teacher, and a student with its weights and a newly initialised end time."""
        stated, tensors = load_weights(settings.teacher, "meta" if device.type == "meta" else "cpu")
        if stated is not None and self.config.model != ModelSettings():
            raise ValueError(f"{settings.teacher} says what the model is: leave out `model`")
        teacher_args = stated or self.config.model.args()
        if architecture(settings.teacher, teacher_args, tensors).has_end_time:
            raise ValueError(f"distillation.teacher: {settings.teacher} is a student itself; give a multi-step model")
        self.args = teacher_args
        self.build_encoders(device)
        teacher = self.new_network(device)
        load_into(teacher, settings.teacher, tensors)
        self.args = student_args(teacher_args, settings.method, settings.weak_strength)
        self.dit = self.new_network(device)
        load_into(self.dit, settings.teacher, tensors, missing=("r_embedder.",))
        objective = Distillation(
            settings.method,
            settings.guidance,
            self.args.get("t_start", 0.0),
            self.args.get("t_end", 1.0),
            settings.delta_t,
            settings.n_steps,
            settings.u_weight,
        )
        self.network = OneStepDistillation(self.dit, teacher, self.config.condition, settings.weak_strength, objective)

    def new_network(self, device: torch.device) -> VOSRDiT:
        config = self.config
        return make_network(self.args, self.latents.channels, device, config.gradient_checkpointing, config.seed)

    def build_encoders(self, device: torch.device) -> None:
        """The latent space and the vision encoder. Raises ValueError for settings that do not fit the model."""
        config, width = self.config, self.args["enc_dim"]
        self.latents = make_latents(self.args, config.vae, device)
        cell = self.latents.downscale * self.args["patch_size"]
        if config.side % cell:
            name = "data.crop" if config.cut.side is None else "cut.side"
            raise ValueError(f"{name} is {config.side}: this model needs a multiple of {cell} pixels")
        self.cache = self.latent_cache(device)
        self.vision = None
        if not width:
            if config.vision is not None:
                raise ValueError("the model reads no vision features: leave out `vision`")
            return
        if config.vision is None:
            kind = {768: "dinov2_vitb14_pretrain.pth", 1024: "dinov2_vitl14_pretrain.pth"}.get(width, "its file")
            raise ValueError(f"the model reads DINOv2 features of width {width}: set vision to {kind}")
        layers, size = self.args.get("layer_dinov2b_list") or [None], self.args.get("dinov2_size", 448)
        self.vision = VisionFeatures(config.vision, device, layers[0], size)
        if self.vision.width != width:
            raise ValueError(f"vision is {config.vision}, whose features are {self.vision.width} wide, not {width}")

    def latent_cache(self, device: torch.device) -> FeatureCache | None:
        """Where latents of clean crops are kept. Raises ValueError for a model without a VAE."""
        config = self.config
        if config.cache is None or device.type == "meta":
            return None
        if config.vae is None:
            raise ValueError("cache is for what a VAE makes of crops, and the model has none: leave it out")
        with weights_in(config.vae).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FeatureCache(config.cache, {"vae": digest})

    def start_from_condition(self, device: torch.device) -> None:
        """Set the new network to the best linear estimator for the training data."""
        if device.type == "meta":
            self.dit.t_embedder.requires_grad_(False)
            self.dit.final_layer.adaLN_modulation.requires_grad_(False)
            return
        samples, size, encoded = self.samples(), self.config.batch, []
        for number in range(START_BATCHES):
            items = [dict(samples[number * size + index]) for index in range(size)]
            draws = Draws(self.config.seed, START_DRAWS + number, device)
            lq = self.pictures({"hq": torch.stack([item["hq"] for item in items])}, draws)["lq"]
            posterior = self.latents.posterior(lq * 2 - 1)
            encoded.append(self.latents.latent(posterior, draws.normal(*posterior.mean.shape)).cpu())
        generator = torch.Generator().manual_seed(self.config.seed)
        one_step = self.config.posterior_mean
        start_from_condition(self.dit.cpu(), torch.cat(encoded), generator, one_step=one_step)
        self.dit.to(device)

    def parameter_groups(self, turn: str) -> list[dict[str, Any]]:
        """The embedding and the final layer with a rate of their own."""
        pairs = list(self.parameters(turn))
        edge = [pair for pair in pairs if pair[0].startswith(EDGES)]
        inner = [pair for pair in pairs if not pair[0].startswith(EDGES)]
        return [{"params": edge, "rate": self.config.optimizer.edge_rate}, {"params": inner, "rate": 1.0}]

    def samples(self) -> Samples:
        return Photos(self.config.data, self.config.seed)

    def pictures(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        hq = batch["hq"].to(draws.device)
        pictures = {"hq": hq, "lq": self.degradations(hq, draws)}
        side = self.config.cut.side
        if side is None:
            return pictures
        places = torch.randint(hq.shape[-1] - side + 1, (len(hq), self.config.cut.count, 2), generator=draws.generator)
        return {name: cut_squares(images, places, side) for name, images in pictures.items()}

    def prepare(self, batch: Batch, draws: Draws) -> Batch:
        """Latents `hq` and `lq` `[B, C, h, w]`, samples of the posterior, and features `z` `[B, M, E]` of the LQ."""
        pictures = self.pictures(batch, draws)
        lq, hq = pictures["lq"] * 2 - 1, pictures["hq"] * 2 - 1
        if self.cache is None:  # together, as the reference encodes them
            posterior = self.latents.posterior(torch.cat([lq, hq]))
        else:
            parts = zip(self.latents.posterior(lq), self.kept_posterior(batch["hq"], hq), strict=True)
            posterior = Posterior(*(torch.cat(part) for part in parts))
        latents = self.latents.latent(posterior, draws.normal(*posterior.mean.shape))
        lq_latent, hq_latent = latents.chunk(2)
        return {"hq": hq_latent, "lq": lq_latent, **self.features(lq)}

    def kept_posterior(self, crops: Tensor, hq: Tensor) -> Posterior:
        """The posterior of clean crops, on their device, from the disk where it has been computed before.

        crops: on the CPU in [0, 1], by which they are known. hq: on the device in [-1, 1].
        """
        assert self.cache is not None
        found = self.cache.fetch(
            [content_key(crop) for crop in crops], lambda rows: self.latents.posterior(hq[rows])._asdict()
        )
        return Posterior(found["mean"].to(hq.device), found["logvar"].to(hq.device))

    def features(self, lq: Tensor) -> dict[str, Tensor]:
        """`z` of LQ images in [-1, 1], where the model reads features."""
        if self.vision is None:
            return {}
        with self.autocast(lq.device):
            return {"z": self.vision(lq)}

    def autocast(self, device: torch.device) -> AbstractContextManager:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def example_batch(self) -> Batch:
        side, count = self.config.side // self.latents.downscale, self.config.batch * self.config.cut.count
        latent = torch.zeros(count, self.latents.channels, side, side)
        batch = {"hq": latent, "lq": latent.clone()}
        if self.vision is not None:
            batch["z"] = torch.zeros(count, self.vision.tokens, self.vision.width)
        return batch

    def validation(self) -> Batch | None:
        config = self.config
        return validation_batch(config.data, config.validation, config.data.crop)

    def restore(self, batch: Batch, draws: Draws) -> Tensor:
        """A few images at a time, as training takes them; students without guidance."""
        sampling, size = self.config.sampling, self.config.batch
        single = self.dit.config.has_end_time or self.config.posterior_mean
        guidance, steps = 1.0 if single else sampling.guidance, sampling.steps or (1 if single else MULTI_STEP)
        strength = weak_strength_from_args(self.args)

        def velocity(x: Tensor, t: Tensor, r: Tensor, z: Tensor | None) -> Tensor:
            return self.network(VELOCITY, {"x": x, "t": t, "r": r, "z": z}, draws)["velocity"]

        restored = []
        for images in batch["lq"].to(draws.device).split(size):
            lq = self.latents.latent(self.latents.posterior(images * 2 - 1))
            z = self.features(images * 2 - 1).get("z")
            noise = draws.normal(*lq.shape)
            latent = restore_latent(velocity, lq, z, noise, steps, guidance, strength)
            restored.append(self.latents.decode(latent).add(1).div(2).clamp(0, 1).cpu())
        return torch.cat(restored)

    def export(self, folder: Path, tensors: Mapping[str, Tensor], steps: int) -> list[Path]:
        """args.json and checkpoints/ema_model.safetensors as released, and a single file for diffusion_models."""
        settings = self.config.export
        state = {**self.fixed, **{name.removeprefix(DIT): value for name, value in tensors.items()}}
        args = {**self.args, "distill_type": POSTERIOR_MEAN} if self.config.posterior_mean else self.args
        paths = write_folder(folder, args, state)
        if settings.file is not None:
            paths.append(write_file(folder / settings.file, args, state, DTYPES[settings.dtype]))
        return paths
