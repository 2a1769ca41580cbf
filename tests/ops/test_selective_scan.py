"""selective_scan against the recurrence, one step after the other."""

from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from ops.check_op import DEVICES, Inputs, check_op, check_registration, turn
from torch import Tensor

from monai_ext.ops import selective_scan

module = import_module("monai_ext.ops.selective_scan")


def inputs(
    *,
    batch: int = 2,
    groups: int = 2,
    ways: int | None = None,
    channels: int = 3,
    states: int = 4,
    length: int = 5,
    extras: bool = True,
) -> Inputs:
    random = torch.Generator().manual_seed(batch + groups + channels + length)
    width, lines = groups * channels, (ways or groups) * channels

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    return {
        "u": normal(batch, lines, length),
        "delta": normal(batch, width, length) if extras else normal(batch, width, length).abs() * 0.1,
        "A": -torch.rand(width, states, generator=random) * 4 - 0.05,
        "B": normal(batch, groups, states, length),
        "C": normal(batch, groups, states, length),
        "D": normal(width) if extras else None,
        "z": normal(batch, lines, length) if extras else None,
        "delta_bias": normal(width) if extras else None,
        "delta_softplus": extras,
    }


def step_by_step(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool,
) -> Tensor:  # fmt: skip
    channels, again = A.shape[0] // B.shape[1], A.shape[0] - u.shape[1]
    if again:  # once more from the end
        lines, both = u.shape[1], torch.cat([u, u[:, :again]], 1)
        split = {"u": (both, lines), "delta": (delta, lines), "B": (B, lines // channels), "C": (C, lines // channels)}
        turned = [torch.cat([x[:, :first], x[:, first:].flip(-1)], 1) for x, first in split.values()]
        y = step_by_step(turned[0], turned[1], A, turned[2], turned[3], D, None, delta_bias, delta_softplus)
        y = torch.cat([y[:, :again] + y[:, lines:].flip(-1), y[:, again:lines]], 1)
        return y if z is None else y * F.silu(z)
    B, C = (mix.repeat_interleave(channels, 1) for mix in (B, C))
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    state = u.new_zeros(*u.shape[:2], A.shape[1])
    outputs = [u.new_zeros(*u.shape[:2], 0)]
    for t in range(u.shape[2]):
        state = torch.exp(delta[..., t, None] * A) * state + (delta * u)[..., t, None] * B[..., t]
        outputs.append((state * C[..., t]).sum(-1, keepdim=True))
    y = torch.cat(outputs, -1)
    if D is not None:
        y = y + D[:, None] * u
    return y if z is None else y * F.silu(z)


CASES = [
    inputs(),
    inputs(extras=False, states=16, length=130),  # more than two chunks, the number of states that kernels know
    inputs(groups=1, channels=37, states=5, length=64),  # registers not filled, a chunk exactly
    inputs(batch=1, groups=4, channels=18, states=16, length=77),
    inputs(batch=1, groups=1, channels=1, states=1, length=1),
    inputs(groups=4, ways=2, channels=18, states=16, length=77),  # two ways, both from either end
    inputs(batch=1, groups=3, ways=2, states=5, length=131),  # the second from its start alone
    inputs(length=0),
    inputs(batch=0),
]


@pytest.mark.parametrize("device", DEVICES)
def test_the_operator_keeps_its_promises(device: str) -> None:
    check_op(selective_scan, step_by_step, CASES, device=device)


@pytest.mark.parametrize("extras", [True, False])
def test_pytorch_accepts_both_registrations(extras: bool) -> None:
    arguments = {k: v for k, v in inputs(extras=extras).items() if k != "z"}
    values = [v.requires_grad_() if isinstance(v, Tensor) else v for v in arguments.values()]
    check_registration(torch.ops.monai_ext.selective_scan, values)
    turned = [turn(v.detach()).requires_grad_() if isinstance(v, Tensor) else v for v in values]
    check_registration(torch.ops.monai_ext.selective_scan, turned)
    values = [v.detach() if isinstance(v, Tensor) else v for v in turned]
    _, saved = torch.ops.monai_ext.selective_scan(*values)
    check_registration(torch.ops.monai_ext.selective_scan_backward, [turn(torch.randn_like(values[0])), *values, saved])


@pytest.mark.parametrize("arguments", CASES[:4], ids=lambda arguments: str(tuple(arguments["B"].shape)))
def test_the_hand_derived_gradients_are_autograds(arguments: Inputs) -> None:
    arguments = {k: v.double() if isinstance(v, Tensor) else v for k, v in arguments.items() if k != "z"}
    tensors = {k: v.requires_grad_() for k, v in arguments.items() if isinstance(v, Tensor)}
    y = step_by_step(**arguments, z=None)
    grad = torch.randn_like(y)
    expected = torch.autograd.grad(y, list(tensors.values()), grad)
    plain = [v.detach() if isinstance(v, Tensor) else v for v in arguments.values()]
    _, saved = module.selective_scan_reference(*plain)
    result = module.selective_scan_backward_reference(grad, *plain, saved)
    given = [value for value, name in zip(result, arguments, strict=False) if name in tensors]
    for one, other in zip(given, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_state_that_hardly_decays_is_still_exact() -> None:
    """Thousands of steps of memory multiply whatever error one step's decay has."""
    arguments = inputs(batch=1, groups=1, channels=16, states=16, length=4096, extras=False)
    arguments["A"] = -torch.logspace(-4, 0, 16).repeat(16, 1)
    truth = step_by_step(**{k: v.double() if isinstance(v, Tensor) else v for k, v in arguments.items()})
    error = (selective_scan(**arguments).double() - truth).abs().max() / truth.abs().max()
    assert error < 1e-5


def test_a_decay_to_nothing_leaves_the_last_input() -> None:
    arguments = inputs(extras=False, length=9)
    arguments["A"] = torch.full_like(arguments["A"], -1e6)
    arguments["delta"] = torch.ones_like(arguments["delta"])
    per_channel = (arguments["B"] * arguments["C"]).sum(2).repeat_interleave(3, 1)
    torch.testing.assert_close(selective_scan(**arguments), arguments["u"] * per_channel)


def test_groups_are_scans_of_their_own() -> None:
    arguments = inputs(groups=3, length=70)
    whole = selective_scan(**arguments)
    for g in range(3):
        part = slice(3 * g, 3 * g + 3)
        one = {k: v[:, part] for k, v in arguments.items() if k in ("u", "delta", "z")}
        one |= {k: arguments[k][part] for k in ("A", "D", "delta_bias")}
        one |= {k: arguments[k][:, g] for k in ("B", "C")}  # (batch, N, L) is one group
        torch.testing.assert_close(selective_scan(**one, delta_softplus=True), whole[:, part])


def test_not_a_number_of_any_kind_in_A_stays_one() -> None:
    arguments = inputs(extras=False, length=20)
    arguments["A"][1, 2] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    assert selective_scan(**arguments)[:, 1].isnan().all()


def test_not_a_number_reaches_later_steps_of_its_channel_alone() -> None:
    arguments = inputs(extras=False, length=100)
    arguments["u"][0, 1, 70] = float("nan")
    y = selective_scan(**arguments)
    assert y[0, 1, 70:].isnan().all()
    assert y.isnan().sum() == 30


def test_autocast_keeps_the_states_in_float32() -> None:
    arguments = inputs(length=300)
    mixed = {k: v.bfloat16() if k in ("delta", "B", "C") else v for k, v in arguments.items() if v is not None}
    with torch.autocast("cpu", torch.bfloat16):
        y = selective_scan(**mixed)
    assert y.dtype == torch.float32
    rounded = {k: v.float() if isinstance(v, Tensor) else v for k, v in mixed.items()}
    torch.testing.assert_close(y, selective_scan(**rounded))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": torch.zeros(2, 6)}, r"u must be \(batch, W \* D, L\), got shape \(2, 6\)"),
        ({"A": torch.zeros(6)}, r"A must be \(G \* D, N\), got shape \(6,\)"),
        ({"A": torch.zeros(5, 4)}, r"A must be .* = \(6, 4\), got \(5, 4\)"),
        ({"B": torch.zeros(2, 4)}, r"B must be \(batch, G, N, L\) or \(batch, N, L\), got shape \(2, 4\)"),
        ({"B": torch.zeros(2, 4, 4, 5)}, "groups of B must divide channels of delta, got groups=4, channels=6"),
        ({"B": torch.zeros(2, 0, 4, 5)}, "groups of B must divide channels of delta, got groups=0"),
        ({"C": torch.zeros(2, 2, 3, 5)}, r"C must be .* = \(2, 2, 4, 5\), got \(2, 2, 3, 5\)"),
        ({"delta": torch.zeros(2, 6, 4)}, r"delta must be \(batch, G \* D, L\) = \(2, 6, 5\), got \(2, 6, 4\)"),
        ({"u": torch.zeros(2, 5, 5)}, "u must have delta's channels, or .* got 5 of 6 in 2 groups"),
        ({"u": torch.zeros(2, 9, 5)}, "got 9 of 6 in 2 groups"),
        ({"z": torch.zeros(2, 6, 4)}, r"z must be u's shape"),
        ({"D": torch.zeros(5)}, r"D must be \(channels of delta,\) = \(6,\), got \(5,\)"),
        (
            {"delta_bias": torch.zeros(6, dtype=torch.float64)},
            "delta_bias must have u's dtype, got delta_bias in torch.flo",
        ),
        ({"delta": torch.zeros(2, 6, 5, dtype=torch.bfloat16)}, "delta must have u's dtype"),
        ({"C": torch.zeros(2, 2, 4, 5, device="meta")}, "C must be on u's device, got C on meta, u on cpu"),
        ({"u": torch.zeros(2, 6, 5, dtype=torch.int32)}, "u must be a floating-point tensor"),
    ],
)
def test_bad_input_is_refused_in_words(change: Inputs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        selective_scan(**{**inputs(), **change})
