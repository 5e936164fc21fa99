"""Weight standardization (Qiao et al., 2019), with a gain per unit: its weights have mean 0 and variance g².

    wnrepro cifar --param examples/weight_standardization.py:WeightStandardization

w = g·(v − mean(v))/√(variance(v) + ε), where mean and variance are over the weights of one unit.
"""

from torch import Tensor

from wnrepro.parameterization import Parameterization, Parameterized

EPSILON = 1e-10


class WeightStandardization(Parameterization):
    label = "weight standardization"

    def applies(self, layer: Parameterized) -> bool:
        return bool((layer.fan_in() > 2).all())  # two centred weights always have the same direction

    def direction(self, layer: Parameterized, v: Tensor) -> Tensor:
        centred = layer.masked(v - layer.input_mean(v))
        variance = centred.square().sum(layer.input_dims(), keepdim=True) / layer.fan_in()
        return centred / (variance + EPSILON).sqrt()
