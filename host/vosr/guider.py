"""Restoration-oriented guidance as a ComfyUI GUIDER (arXiv 2604.03225)."""

from __future__ import annotations

from typing import Any

import comfy.samplers

from ...models.vosr.sampling import RestorationGuidance, guidance_branches
from ..types import Conditioning, Model

CFG_HOOKS = ("sampler_cfg_function", "sampler_post_cfg_function", "sampler_pre_cfg_function")


class RestorationGuider(comfy.samplers.CFGGuider):
    """v = v_weak + s * (v_full - v_weak), with the branches a scale does not need left out of the forward.

    The host's guidance formula on clean predictions is the same combination, so its hooks (pre-CFG, post-CFG,
    custom CFG functions) keep working.
    """

    def __init__(self, model_patcher: Model, full: Conditioning, weak: Conditioning, guidance: RestorationGuidance):
        super().__init__(model_patcher)
        self.guidance = guidance
        self.set_conds(full, weak)
        self.set_cfg(guidance.scale)

    def scale_at(self, timestep) -> float:
        if self.guidance.start <= 0.0 and self.guidance.end >= 1.0:
            return self.guidance.scale
        # The only host-device wait of the loop, and only when an interval was asked for.
        return self.guidance.scale_at(float(timestep[0]))

    def sample(self, *args, **kwargs):
        """As the host's; also after a failure or an interrupt, what the run kept (the memo of contexts) is let go."""
        try:
            return super().sample(*args, **kwargs)
        finally:
            self.conds = {}

    @staticmethod
    def branches(scale: float, model_options: dict[str, Any]) -> tuple[bool, bool]:
        """Which of (full, weak) to run: those the scale needs, and those that hooks of the model may look at."""
        need_full, need_weak = guidance_branches(scale)
        # The host always runs the positive condition, and the negative one at scale 1 when a hook asked for it.
        hooked = any(model_options.get(name) for name in CFG_HOOKS)
        return need_full or hooked, need_weak or model_options.get("disable_cfg1_optimization", False)

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        scale = self.scale_at(timestep)
        need_full, need_weak = self.branches(scale, model_options or {})
        return comfy.samplers.sampling_function(
            self.inner_model,
            x,
            timestep,
            self.conds["negative"] if need_weak else None,
            self.conds["positive"] if need_full else None,
            scale,
            model_options=model_options or {},
            seed=seed,
        )
