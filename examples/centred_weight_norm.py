"""Centred weight normalization (Huang et al., 2017): a unit's weights have mean 0 and length g.

    wnrepro cifar --param examples/centred_weight_norm.py:CentredWeightNorm

w = g·(v − mean(v))/‖v − mean(v)‖, where mean and norm are over the weights of one unit.
"""

from torch import Tensor

from wnrepro.parameterization import Parameterization, Parameterized


class CentredWeightNorm(Parameterization):
    label = "centred weight norm."

    def applies(self, layer: Parameterized) -> bool:
        return bool((layer.fan_in() > 2).all())  # two centred weights always have the same direction

    def direction(self, layer: Parameterized, v: Tensor) -> Tensor:
        centred = layer.masked(v - layer.input_mean(v))
        return centred / centred.square().sum(layer.input_dims(), keepdim=True).sqrt()
