"""LSTM cells and nets with parameterized weights."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from wnrepro.parameterization.layer import Linear, layers
from wnrepro.parameterization.norm import Param, Time, elsewhere, name_of, parameterization


class LSTMCell(nn.Module):
    """LSTM cell (§5.3) with one g per gate row: x (B, inputs), state (h, c) each (B, units) → new state.

    Only the input-to-hidden product has the batch statistics of `param`, if there are any. The recurrent product has
    the parameterization `elsewhere(param)`. The gates are in torch's order i, f, g, o. Without a state, h and c are 0.
    h has the products' precision. x may be a list of tensors, whose concatenation is the input. Without batch
    statistics, the two products are one.
    """

    def __init__(
        self,
        inputs: int,
        units: int,
        param: Param,
        *,
        time_steps: int | None = None,
        v: tuple[Tensor | None, Tensor | None] = (None, None),
        **options: Any,
    ) -> None:
        super().__init__()
        self.input = Linear(inputs, 4 * units, param, time_steps=time_steps, v=v[0], **options)
        self.recurrent = Linear(units, 4 * units, elsewhere(param), v=v[1], **options)
        self.one_product = self.input.norm.linear and self.recurrent.norm.linear

    def unrolled(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor | None]:
        """Compute the weights once, for `forward` at many time steps. dtype: the products' precision; default: v's.

        They are both layers' weights or, if the two products are one, its weight (4·units, inputs + units) and bias.
        """
        w_input, w_recurrent = (layer.w().to(dtype or layer.v.dtype) for layer in (self.input, self.recurrent))
        if not self.one_product:
            return w_input, w_recurrent
        first, second = self.input.b, self.recurrent.b
        b = first if second is None else second if first is None else first + second
        return torch.cat([w_input, w_recurrent], 1), b

    def forward(
        self,
        x: Float[Tensor, "B I"] | list[Tensor],
        state: tuple[Float[Tensor, "B U"], Float[Tensor, "B U"]] | None = None,
        weights: tuple[Tensor, Tensor | None] | None = None,
        time: Time = ...,
    ) -> tuple[Float[Tensor, "B U"], Float[Tensor, "B U"]]:
        parts = x if isinstance(x, list) else [x]
        h, c = state or (parts[0].new_zeros(len(parts[0]), self.recurrent.v.shape[1]),) * 2
        w, other = weights or self.unrolled()
        parts = [part.to(w.dtype) for part in parts]
        if self.one_product:
            gates = self.input.weighted_sum(torch.cat([*parts, h], 1), w, other)
        else:
            seen = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
            gates = self.input(seen, w, time) + self.recurrent(h, other)
        i, f, g, o = gates.chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return (torch.sigmoid(o) * torch.tanh(c)).to(w.dtype), c

    def folded(self) -> list[nn.Parameter]:
        """Compute the plain cell's parameters: both weights and, if one product has a bias, both biases."""
        plain: list[Any] = [self.input.fold(), self.recurrent.fold()]
        values = [layer.weight for layer in plain]
        if any(layer.bias is not None for layer in plain):
            zero = nn.Parameter(values[0].new_zeros(len(values[0])))
            values += [zero if layer.bias is None else layer.bias for layer in plain]
        return values

    def fold(self) -> nn.Module:
        """Return the torch.nn.LSTMCell that is the same function in evaluation or, if there is none, a copy."""
        if not (self.input.norm.affine and self.recurrent.norm.affine):
            return copy.deepcopy(self).eval()
        values = self.folded()
        plain = nn.LSTMCell(self.input.v.shape[1], self.recurrent.v.shape[1], len(values) > 2, device="meta")
        return _with_parameters(plain, values).train(self.training)


def _with_parameters(plain: nn.Module, values: list[nn.Parameter]) -> nn.Module:
    for (name, _), value in zip(list(plain.named_parameters()), values, strict=True):
        setattr(plain, name, value)
    return plain


class LSTM(nn.Module):
    """torch.nn.LSTM, with its options, shapes and kernel, and parameterized weights, computed once per call.

    The kernel takes only weights and biases. If `param` is not `linear`, the cells therefore have `elsewhere(param)`:
    `normal` for `bn`, and `wn` for `wn+mobn`. Raises ValueError if that is not `linear` either. v: both initial weights
    of each cell.
    """

    def __init__(
        self,
        inputs: int,
        units: int,
        param: Param,
        *,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        v: Sequence[tuple[Tensor, Tensor]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        norm = parameterization(param)
        norm = norm if norm.linear else elsewhere(norm)
        if not (norm.linear and elsewhere(norm).linear):
            raise ValueError(
                f"LSTM: {name_of(param)} is more than a weight and a bias; set `elsewhere` to a linear parameterization"
            )
        self.inputs, self.units, self.num_layers, self.bias = inputs, units, num_layers, bias
        self.batch_first, self.dropout, self.bidirectional = batch_first, dropout, bidirectional
        directions = 2 if bidirectional else 1
        self.cells = nn.ModuleList()  # in torch's order: forward and backward cells of layer 1, of layer 2, …
        for k in range(num_layers * directions):
            width = inputs if k < directions else units * directions
            self.cells.append(LSTMCell(width, units, norm, bias=bias, v=v[k] if v else (None, None), **options))

    def flat_weights(self) -> list[Tensor]:
        """Return the weights and biases in the order of `torch.lstm`."""
        flat: list[Tensor] = []
        for cell in self.cells:
            parts: list[Any] = list(cell.children())
            flat += [part.w() for part in parts] + [part.b for part in parts if self.bias]
        return flat

    def forward(self, x: Any, state: Any = None) -> tuple[Any, tuple[Tensor, Tensor]]:
        """Compute the outputs and the final h and c from x and `state` (the initial h and c), all with torch's shapes.

        x is (T, B, inputs), (B, T, inputs) if `batch_first`, (T, inputs), or packed.
        """
        packed, batch_dim = isinstance(x, PackedSequence), 0 if self.batch_first else 1
        data, sizes, order, back = x if packed else (x, None, None, None)
        unbatched = data.ndim == 2 and not packed
        if unbatched:
            data, state = data.unsqueeze(batch_dim), state and [part.unsqueeze(1) for part in state]
        if state is None:
            batch = data.shape[batch_dim] if sizes is None else int(sizes[0])
            state = [data.new_zeros(len(self.cells), batch, self.units)] * 2
        elif order is not None:
            state = [part.index_select(1, order) for part in state]
        options = self.bias, self.num_layers, self.dropout, self.training, self.bidirectional
        if sizes is None:
            y, *state = torch.lstm(data, state, self.flat_weights(), *options, self.batch_first)
        else:
            y, *state = torch.lstm(data, sizes, state, self.flat_weights(), *options)
        if back is not None:
            state = [part.index_select(1, back) for part in state]
        if unbatched:
            return y.squeeze(batch_dim), (state[0].squeeze(1), state[1].squeeze(1))
        return PackedSequence(y, sizes, order, back) if packed else y, (state[0], state[1])

    def fold(self) -> nn.Module:
        """Return the torch.nn.LSTM that is the same function or, if there is none, a copy."""
        if not all(layer.norm.affine for _, layer in layers(self)):
            return copy.deepcopy(self).eval()
        options: dict[str, Any] = {"batch_first": self.batch_first, "dropout": self.dropout, "device": "meta"}
        options["bidirectional"] = self.bidirectional
        plain = nn.LSTM(self.inputs, self.units, self.num_layers, self.bias, **options)
        cells: list[Any] = list(self.cells)
        return _with_parameters(plain, [value for cell in cells for value in cell.folded()]).train(self.training)

    def extra_repr(self) -> str:
        both = ", bidirectional" if self.bidirectional else ""
        return f"{self.inputs}, {self.units}, num_layers={self.num_layers}{both}"
