"""Restoration-oriented guidance as a ComfyUI GUIDER (arXiv 2604.03225)."""

from __future__ import annotations

import comfy.samplers

from ...models.vosr.sampling import Guidance, guidance_branches


class RestorationGuider(comfy.samplers.CFGGuider):
    """v = v_weak + s * (v_full - v_weak), with the branches a scale does not need left out of the forward.

    The host's guidance formula on clean predictions is the same combination, so its hooks (pre-CFG, post-CFG,
    custom CFG functions) keep working.
    """

    def __init__(self, model_patcher, full, weak, guidance: Guidance):
        super().__init__(model_patcher)
        self.guidance = guidance
        self.set_conds(full, weak)
        self.set_cfg(guidance.scale)

    def scale_at(self, timestep) -> float:
        if self.guidance.start <= 0.0 and self.guidance.end >= 1.0:
            return self.guidance.scale
        # The only host-device wait of the loop, and only when an interval was asked for.
        return self.guidance.scale_at(float(timestep[0]))

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        scale = self.scale_at(timestep)
        need_full, need_weak = guidance_branches(scale)
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
