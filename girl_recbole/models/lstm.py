"""A bidirectional LSTM over sequences of different lengths, quick on a CPU in training.

    i, f, o = sigmoid(W x_t + U h_(t-1) + b)     g = tanh(...)     c_t = f c_(t-1) + i g     h_t = o tanh(c_t)

:func:`read` computes what ``torch.nn.LSTM`` computes on a ``PackedSequence``, with that module's weights; on a GPU it
is that module. On a CPU the module's backward pass writes zeros of the size of all sequences at each step of time; here
the gradients of all steps lie in one buffer, and those of the weights are one product at the end.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

__all__ = ["read", "read_padded", "rows_at"]


def read(
    lstm: nn.LSTM,
    inputs: torch.Tensor,
    lengths: torch.Tensor,
    embed: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """States of n padded sequences (n, T, E): rows (N + 1, H), one for each of their N places and zeros at the end; and
    which row each place has, (n, T) int64, N behind the end of a sequence.

    ``lstm`` has one layer and two directions. With ``embed`` the inputs are word ids (n, T), of which it makes vectors
    (N, E).
    """
    count, longest = inputs.shape[:2]
    steps = torch.arange(longest, device=inputs.device)
    real = steps < lengths.unsqueeze(1)
    sizes = real.sum(dim=0)  # sequences that have a word at each step
    rank = torch.empty_like(lengths)
    rank[torch.argsort(lengths, descending=True, stable=True)] = torch.arange(count, device=inputs.device)
    total = int(sizes.sum())
    place = torch.where(real, (sizes.cumsum(0) - sizes) + rank.unsqueeze(1), total)
    if not total:
        return lstm.weight_hh_l0.new_zeros(1, 2 * lstm.hidden_size), place
    source = place.new_empty(total)
    source[place[real]] = real.flatten().nonzero().squeeze(1)
    rows = inputs.flatten(0, 1).index_select(0, source)
    rows = rows if embed is None else embed(rows)
    states = (_torchs if rows.is_cuda else _ours)(lstm, rows, sizes[sizes > 0])
    return functional.pad(states, (0, 0, 0, 1)), place


def read_padded(lstm: nn.LSTM, inputs: torch.Tensor, lengths: torch.Tensor, embed=None) -> torch.Tensor:
    """(n, T, H) states, zeros behind the end of each sequence."""
    rows, place = read(lstm, inputs, lengths, embed)
    return rows_at(rows, place)


def rows_at(rows: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """``rows[place]``, with a quicker gradient."""
    return rows.index_select(0, place.flatten()).view(*place.shape, *rows.shape[1:])


def _torchs(lstm: nn.LSTM, rows: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    return lstm(PackedSequence(rows, sizes.cpu()))[0].data


def _ours(lstm: nn.LSTM, rows: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    return torch.cat([_direction(lstm, rows, sizes.tolist(), back) for back in (False, True)], dim=1)


def _direction(lstm: nn.LSTM, inputs: torch.Tensor, sizes: list[int], back: bool) -> torch.Tensor:
    end = "_reverse" if back else ""
    w, u, b1, b2 = (getattr(lstm, f"{name}_l0{end}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    return _Direction.apply(torch.addmm(b1 + b2, inputs, w.T), u, sizes, back)


def _steps(sizes: list[int], back: bool) -> list[tuple[slice, slice, int]]:
    """(rows of a step, those of them that have a step before, that one's rows, how many these are) in reading order.

    Rows are sorted by step, in a step by the length of their sequences, the longest first.
    """
    starts, at = [], 0
    for size in sizes:
        starts.append(at)
        at += size
    order = range(len(sizes) - 1, -1, -1) if back else range(len(sizes))
    steps, before = [], None
    for t in order:
        known = 0 if before is None else min(sizes[t], sizes[before])
        past = starts[before] if before is not None else 0
        steps.append((slice(starts[t], starts[t] + sizes[t]), slice(past, past + known), known))
        before = t
    return steps


class _Direction(torch.autograd.Function):
    """(N, H) states of packed rows, from W x + b (N, 4 H) and U (4 H, H)."""

    @staticmethod
    def forward(ctx, gates, u, sizes, back):
        width, steps = u.shape[1], _steps(sizes, back)
        gates, states, cells = gates.clone(), gates.new_empty(len(gates), width), gates.new_empty(len(gates), width)
        for here, past, known in steps:
            gate, cell = gates[here], cells[here]
            if known:
                gate[:known].addmm_(states[past], u.T)
            gate[:, : 2 * width].sigmoid_()
            gate[:, 2 * width : 3 * width].tanh_()
            gate[:, 3 * width :].sigmoid_()
            i, f, g, o = gate.chunk(4, dim=1)
            torch.mul(i, g, out=cell)
            if known:
                cell[:known].addcmul_(f[:known], cells[past])
            torch.mul(o, torch.tanh(cell), out=states[here])
        ctx.save_for_backward(gates, states, cells, u)
        ctx.steps = steps
        return states

    @staticmethod
    def backward(ctx, grad):
        gates, states, cells, u = ctx.saved_tensors
        into, before = torch.empty_like(gates), torch.zeros_like(states)  # gradients of the sums; states a step before
        d_state, d_cell = grad.clone(), torch.zeros_like(cells)
        for here, past, known in reversed(ctx.steps):
            i, f, g, o = gates[here].chunk(4, dim=1)
            d_i, d_f, d_g, d_o = into[here].chunk(4, dim=1)
            d_h, d_c, tanh = d_state[here], d_cell[here], torch.tanh(cells[here])
            torch.mul(d_h * tanh, o * (1 - o), out=d_o)
            d_c.addcmul_(d_h * o, 1 - tanh * tanh)
            torch.mul(d_c * g, i * (1 - i), out=d_i)
            torch.mul(d_c * i, 1 - g * g, out=d_g)
            d_f.zero_()
            if known:
                torch.mul(d_c[:known] * cells[past], f[:known] * (1 - f[:known]), out=d_f[:known])
                d_cell[past].addcmul_(d_c[:known], f[:known])
                d_state[past].addmm_(into[here][:known], u)
                before[here][:known] = states[past]
        return into, into.T @ before, None, None
