"""VICR from picture to picture, for gpu.py: the nodes that an artist wires, called one after another."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import comfy.samplers
import nodes
import torch
from _gpu_networks import Networks
from comfy_extras.nodes_custom_sampler import BasicGuider, RandomNoise, SamplerCustomAdvanced

from harness.host import InProcessHost
from realisr.nodes.vicr import CLIPVisionContextBridge, DiptychBuilder, DiptychCrop, FLUXFillSigmas

run = InProcessHost.run


@dataclass(frozen=True)
class VICRRun:
    networks: Networks
    model: Any
    vae: Any

    def restore(self, panel: int, steps: int) -> torch.Tensor:
        """A picture of a quarter of the panel's side, restored to `[1, panel, panel, 3]`. CLIP's answer is random."""
        lq = torch.rand(1, panel // 4, panel // 4, 3)
        resize = {"resize": "scale factor", "scale": 4.0}
        canvas, mask, _, diptych, *_ = run(DiptychBuilder, image=lq, resize=resize, layout="side by side")
        prompt = self.networks.prompt()
        seen = SimpleNamespace(image_embeds=torch.randn(1, 768), last_hidden_state=None)
        model, wire = run(
            CLIPVisionContextBridge, model=self.model, conditioning=prompt, bridge=self.networks.bridge(),
            strength=1.0, clip_vision_output=seen,
        )  # fmt: skip
        positive, _, latent = run(
            nodes.InpaintModelConditioning, positive=wire, negative=wire, vae=self.vae, pixels=canvas, mask=mask,
            noise_mask=False,
        )  # fmt: skip
        sigmas = run(FLUXFillSigmas, latent=latent, steps=steps, denoise=1.0, base_shift=0.5, max_shift=1.15)[0]
        out, _ = run(
            SamplerCustomAdvanced,
            noise=run(RandomNoise, noise_seed=0)[0],
            guider=run(BasicGuider, model=model, conditioning=positive)[0],
            sampler=comfy.samplers.sampler_object("euler"),
            sigmas=sigmas,
            latent_image=latent,
        )
        decoded = run(nodes.VAEDecode, vae=self.vae, samples=out)[0]
        return run(DiptychCrop, image=decoded, diptych=diptych)[0]
