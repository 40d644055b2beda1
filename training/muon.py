"""Muon: momentum whose update is orthogonalised, for the weight matrices of a network, in float32."""

from __future__ import annotations

import torch
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the Newton-Schulz iteration that pushes every singular value to about 1."""


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum with decoupled weight decay.

    The update is scaled to the size AdamW's has (0.2 sqrt(max(rows, columns)) times an orthogonal matrix), so both
    take the same learning rate. torch.optim.Muon iterates in bfloat16, which CPUs without it emulate slowly.
    """

    def __init__(
        self, params, lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.01, iterations: int = 5
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "iterations": iterations,
            },
        )

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, group)

    def update(self, parameter: Tensor, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
        direction = parameter.grad.lerp(state["momentum"], group["momentum"])
        direction = orthogonalise(direction, group["iterations"])
        scale = 0.2 * max(parameter.shape) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"] * scale)


def orthogonalise(matrix: Tensor, iterations: int) -> Tensor:
    """The matrix with its singular values moved close to 1, by a quintic Newton-Schulz iteration."""
    a, b, c = QUINTIC
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.T
