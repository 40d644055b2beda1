"""An initialisation of VOSR for small training budgets: the untrained network is already the best linear estimator."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.vosr.dit import SelfAttention, VOSRDiT

SIGNAL = 0.5
"""Size of the copied values in the residual stream."""
ANCHOR = 50.0
"""A constant channel, large enough that the RMS norms scale every token alike."""
NOISE_GAIN = 0.1
"""How strongly blocks see the noisy latent at first; near t = 1 it tells nothing."""
GATE = 0.2
"""Initial gate of every sublayer."""
NEIGHBOURS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1))
"""Token offsets (rows, columns) the heads start out attending to, head after head and on through the blocks."""
SHARPNESS = 1.5
"""Initial gain of the query and key norms: how much more the nearest token counts than its neighbours."""
TIME_STD = (1.0, 0.05)
"""Standard deviations of the time MLP's weights; the paper's 0.02 gives features that hardly change with t."""
TIME_RIDGE = 0.3
"""How much smallness of the fitted time modulation counts against its exactness."""


def linear_velocity(t: Tensor, variance: float) -> tuple[Tensor, Tensor]:
    """(a, b) of the best linear velocity a x_t - b c_lq when the clean latent is c_lq plus white noise of `variance`.

    At t = 1 both are 1: one Euler step gives c_lq. Towards t = 0 the noise shows in x_t and a grows as 1 / t until
    the variance limits it.
    """
    spread = (1 - t) * variance
    a = (t - spread) / (t**2 + (1 - t) * spread)
    return a, 1 + (1 - t) * a


@torch.no_grad()
def start_from_condition(
    model: VOSRDiT, lq: Tensor, generator: torch.Generator, variance: float = 0.03, one_step: bool = False
) -> VOSRDiT:
    """Set an initialised network so that its velocity is `linear_velocity`; training adds what is not linear.

    The embedding gives every input value a residual channel of its own, the final modulation scales those channels
    with t, and the sublayers start at zero output. The time features and that modulation are frozen. Further channels
    hold the whitened patches of the LQ latent, because detail and noise are faint beside a patch's mean.

    lq: LQ latents of the training data, `[N, C, H, W]`, enough of them to estimate a covariance. variance: of the LQ
    latent's error. one_step: the network only ever sees t = 1, where the noise tells nothing: blocks start blind to the
    noisy latent, and to time for good. Raises ValueError when the width cannot hold all channels.
    """
    config = model.config
    inputs = 2 * config.latent_channels * config.patch_size**2
    if config.hidden_size <= inputs + inputs // 2:
        raise ValueError(
            f"hidden size {config.hidden_size} cannot hold {inputs} input values, {inputs // 2} whitened ones and a "
            f"constant: use more than {inputs + inputs // 2}"
        )
    copy_inputs(model, inputs, 0.0 if one_step else NOISE_GAIN)
    whiten_condition(model, inputs, lq)
    for index, block in enumerate(model.blocks):
        attend_to_neighbours(block.attn, config.head_dim, first=index * config.num_heads)
        block.attn.proj.weight.zero_()
        block.mlp.w3.weight.zero_()
        block.scale_shift_table[[2, 5]] = GATE
    if one_step:
        leave_out_time(model)
    else:
        draw_time_features(model, generator)
        fit_time_scale(model, inputs, variance)
    # The fit is a sum of large terms that cancel: ordinary steps would destroy it.
    model.t_embedder.requires_grad_(False)
    model.final_layer.adaLN_modulation.requires_grad_(False)
    return model


def copy_inputs(model: VOSRDiT, inputs: int, noise_gain: float) -> None:
    """Carry the input from the embedding to the output, where it is x_t - c_lq."""
    width = model.config.hidden_size
    embed = model.x_embedder.proj
    weight = embed.weight.view(width, inputs)
    weight[inputs:] = 0
    weight[:inputs] = SIGNAL * torch.eye(inputs, device=weight.device)
    embed.bias[inputs] = ANCHOR
    token_rms = math.sqrt((ANCHOR**2 + width * SIGNAL**2) / width)
    norms = [model.final_layer.norm_final, *(norm for block in model.blocks for norm in (block.norm1, block.norm2))]
    for norm in norms:
        norm.weight.fill_(token_rms / SIGNAL)
        norm.weight[inputs] = 0
    for norm in norms[1:]:
        norm.weight[inputs // 2 : inputs].mul_(noise_gain)
    # Embedding rows are ordered (channel, row, column), outputs (row, column, channel).
    area, channels = model.config.patch_size**2, model.config.latent_channels
    copied = torch.eye(channels * area).view(channels, area, -1).transpose(0, 1).flatten(0, 1)
    model.final_layer.linear.weight[:, :inputs] = torch.cat([-copied, copied], dim=1)


def whiten_condition(model: VOSRDiT, inputs: int, lq: Tensor) -> None:
    """Fill the channels after the constant with decorrelated, unit-variance patches of the LQ latent."""
    half, size = inputs // 2, model.config.patch_size
    patches = F.unfold(lq, size, stride=size).transpose(1, 2).flatten(0, 1).double()
    mean = patches.mean(dim=0)
    variances, directions = torch.linalg.eigh(torch.cov(patches.T))
    whitening = (directions / (variances + 1e-3).sqrt()).T.float()
    weight = model.x_embedder.proj.weight.view(model.config.hidden_size, inputs)
    channels = slice(inputs + 1, inputs + 1 + half)
    weight[channels] = 0
    weight[channels, :half] = SIGNAL * whitening
    model.x_embedder.proj.bias[channels] = -SIGNAL * whitening @ mean.float()


def attend_to_neighbours(attention: SelfAttention, head_dim: int, first: int) -> None:
    """Give each head a fixed relative position to look at, so that the network starts out like a convolution.

    first: number of the neighbour of the first head. Constant queries and keys, in the fastest rotary frequencies,
    agree best where the rotations differ by the offset; what depends on the tokens starts small beside them.
    """
    heads = attention.heads
    quarter = head_dim // 4
    frequencies = 10000.0 ** (-torch.arange(quarter) / quarter)
    used = frequencies > 0.2
    bias = attention.qkv.bias.view(3, heads, 2, quarter, 2)
    for head in range(heads):
        offset = NEIGHBOURS[(first + head) % len(NEIGHBOURS)]
        for axis in range(2):
            angle = offset[axis] * frequencies
            bias[0, head, axis, :, 0] = used.float()
            bias[1, head, axis, :, 0] = torch.cos(angle) * used
            bias[1, head, axis, :, 1] = -torch.sin(angle) * used
    attention.qkv.weight.view(3, heads * head_dim, -1)[:2].mul_(0.1)
    for norm in (attention.q_norm, attention.k_norm):
        norm.weight.fill_(SHARPNESS)


def leave_out_time(model: VOSRDiT) -> None:
    """Make the time's embedding zero; the final modulation, which initialisation leaves at 1, is that of t = 1."""
    last = model.t_embedder.mlp[2]
    last.weight.zero_()
    last.bias.zero_()


def draw_time_features(model: VOSRDiT, generator: torch.Generator) -> None:
    """Random time features that tell times apart, in values half precision holds exactly."""
    for layer, std in zip((model.t_embedder.mlp[0], model.t_embedder.mlp[2]), TIME_STD, strict=True):
        torch.nn.init.normal_(layer.weight, std=std, generator=generator)
        layer.weight.copy_(layer.weight.half())


def fit_time_scale(model: VOSRDiT, inputs: int, variance: float) -> None:
    """Make the final modulation scale copied channels by `linear_velocity`, by least squares on the time features.

    The ridge is in proportion to each feature's power, as rounding errors are, because a fit of large terms that
    cancel would not survive half precision. t = 1 counts most, and the constant makes it exact.
    """
    t = torch.linspace(0, 1, 501)
    features = F.silu(model.t_embedder(t, torch.float32)).double()
    power = torch.cat([features.square().mean(dim=0), torch.zeros(1)])
    features = torch.cat([features, torch.ones(len(t), 1)], dim=1)
    importance = torch.ones(len(t), 1).double()
    importance[-1] = 100
    a, b = linear_velocity(t.double(), variance)
    target = torch.stack([b - 1, a - 1], dim=1)
    normal = features.T @ (importance * features) + TIME_RIDGE * torch.diag(power)
    solution = torch.linalg.solve(normal, features.T @ (importance * target)).half().double()
    solution[-1] += target[-1] - features[-1] @ solution
    per_channel = solution.half().float().T.repeat_interleave(inputs // 2, dim=0)
    scale = slice(model.config.hidden_size, model.config.hidden_size + inputs)
    modulation = model.final_layer.adaLN_modulation[1]
    modulation.weight[scale] = per_channel[:, :-1]
    modulation.bias[scale] = per_channel[:, -1]
