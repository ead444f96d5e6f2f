"""The flow whose time runs the other way (SiT, the DiffMoE reference: t = 1 is data, velocity x_0 - noise),
as weights of ours.

Ours at t is theirs at 1 - t with the other sign. Sines and cosines of 1 - t are a reflection of those of t, a
2 x 2 matrix for each frequency: it goes into the first layer of the timestep's network. The sign goes into
the last layer.
"""

import math

import torch
from torch import Tensor

NUM_FREQUENCIES = 256


def reflect_time(weight_DF: Tensor) -> Tensor:
    """The weight W' [D, 256] for which W' e(t) = W e(1 - t), e(t) = [cos(t f), sin(t f)]. Its own inverse."""
    half = NUM_FREQUENCIES // 2
    frequencies = torch.exp(-math.log(10000.0) / half * torch.arange(half, dtype=torch.float32))
    cosine, sine = frequencies.double().cos(), frequencies.double().sin()
    of_cosine, of_sine = weight_DF.double().split(half, dim=1)
    # cos(f - tf) = cos f cos tf + sin f sin tf; sin(f - tf) = sin f cos tf - cos f sin tf
    reflected = torch.cat([of_cosine * cosine + of_sine * sine, of_cosine * sine - of_sine * cosine], dim=1)
    return reflected.to(weight_DF.dtype)


def keep_velocity(rows: Tensor, *, outputs: int, channels: int) -> Tensor:
    """Rows (or biases) of the last layer, ordered (patch row, patch column, output): the first `channels` of
    the outputs of each place, with the other sign. The others, sigma, are unused by a flow."""
    return -rows.unflatten(0, (-1, outputs))[:, :channels].flatten(0, 1)


def restore_velocity(rows: Tensor, *, outputs: int, channels: int) -> Tensor:
    """The way back: what is unused is 0."""
    places = rows.unflatten(0, (-1, channels))
    unused = places.new_zeros(places.shape[0], outputs - channels, *places.shape[2:])
    return torch.cat([-places, unused], dim=1).flatten(0, 1)
