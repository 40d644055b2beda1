"""VICR's objective: flow matching on the diptych's latent, loss on the right panel alone (arXiv 2606.00704, eq. 7).

The whole diptych goes to noise, as FLUX Fill's sampler starts from, but the LQ half is given and is not to be learned.
"""

from __future__ import annotations

from torch import Tensor

from ...models.vicr.diptych import Layout, split

LAYOUT: Layout = "side by side"
"""The paper's; the only one that is trained."""


def right_panel_loss(velocity: Tensor, clean: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the velocity against noise - clean over the right halves of `[B, C, h, 2 w]`. Float32."""
    error = velocity.float() - (noise - clean)
    return split(error, LAYOUT)[1].square().mean()
