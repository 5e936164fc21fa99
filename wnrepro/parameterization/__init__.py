"""Weights split into direction and length, and layers with such weights (§2, §3, §4, §6 of the paper)."""

from wnrepro.parameterization.convert import convert, from_torch_weight_norm, init_torch_weight_norm
from wnrepro.parameterization.layer import (
    ConstantFeatureError,
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    Linear,
    MaskedConv2d,
    Parameterized,
    layers,
)
from wnrepro.parameterization.lstm import LSTM, LSTMCell
from wnrepro.parameterization.models import bound_v_norm, data_dependent_init, fold, refold, updated
from wnrepro.parameterization.norm import (
    BatchNorm,
    MeanOnly,
    Normal,
    Parameterization,
    WeightNorm,
    elsewhere,
    parameterization,
    weight_norm,
)

__all__ = [
    "LSTM",
    "BatchNorm",
    "ConstantFeatureError",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "LSTMCell",
    "Linear",
    "MaskedConv2d",
    "MeanOnly",
    "Normal",
    "Parameterization",
    "Parameterized",
    "WeightNorm",
    "bound_v_norm",
    "convert",
    "data_dependent_init",
    "elsewhere",
    "fold",
    "from_torch_weight_norm",
    "init_torch_weight_norm",
    "layers",
    "parameterization",
    "refold",
    "updated",
    "weight_norm",
]
