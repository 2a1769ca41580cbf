"""Mamba's selective scan: a linear state space whose step and mixing depend on the input (Gu and Dao, 2023, Alg. 2).

h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t        zero-order hold for A, Euler's rule for B
y_t = <C_t, h_t> + D u_t
"""

import ctypes
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_ext.ops import checks, loader

EXPORTED_CHUNKS = 4  # of a graph: each makes it longer to write, fewer take more memory to run
CHUNK = 64  # steps between saved states: their memory is N / CHUNK of u's
CUDA_CHUNK = 16  # of the CUDA kernel, kChunk there


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """Scan along the last axis; with G > 1, G scans in one call.

    What is to be scanned from both ends is given once: with W ways in u and G > W groups, group W + i is the scan of
    way i from its end, and its result is added to that of group i. Everything lies in the order of u all the same.

    Args:
        u: ``(batch, W * D, L)``, W of G / 2 to G.
        delta: ``(batch, G * D, L)``, the step; ``delta_bias`` is added to it, then softplus if ``delta_softplus``.
        A: ``(G * D, N)``, the rates of decay, below zero in all practice.
        B: ``(batch, G, N, L)``, or ``(batch, N, L)`` for G = 1.
        C: as B.
        D: ``(G * D,)``, the weight of u itself.
        z: as u, a gate: the result is multiplied by ``silu(z)``.
        delta_bias: ``(G * D,)``.
        delta_softplus: whether the step goes through softplus.

    Returns:
        As u, in its dtype; states are kept in float32 or better, autocast or not.

    Raises:
        ValueError: shapes that do not fit together, another device or dtype.

    Example:
        >>> ones = torch.ones(1, 1, 4)  # one channel, one state: no decay and steps of 1 make a running sum
        >>> selective_scan(ones, ones, A=torch.zeros(1, 1), B=ones, C=ones).tolist()
        [[[1.0, 2.0, 3.0, 4.0]]]
        >>> both = torch.ones(1, 2, 1, 4)  # and from the end as well
        >>> selective_scan(ones, both[:, :, 0], A=torch.zeros(2, 1), B=both, C=both).tolist()
        [[[5.0, 5.0, 5.0, 5.0]]]
    """
    if B.dim() == 3:
        B = B.unsqueeze(1)
    if C.dim() == 3:
        C = C.unsqueeze(1)
    if not torch.jit.is_scripting():
        if not checks.stands_alone():
            _check(u, delta, A, B, C, D, z, delta_bias)
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    D_ = None if D is None else D.to(dtype)
    bias_ = None if delta_bias is None else delta_bias.to(dtype)
    inputs = (u.to(dtype), delta.to(dtype), A.to(dtype), B.to(dtype), C.to(dtype), D_, bias_, delta_softplus)
    if torch.jit.is_scripting():
        y = selective_scan_reference(*inputs)[0]
    elif checks.stands_alone():
        y = selective_scan_reference(*inputs, chunk=max(CHUNK, -(-u.shape[-1] // EXPORTED_CHUNKS)))[0]
    else:
        loader.ready("selective_scan", u.device.type)
        y = _operator(*inputs, CUDA_CHUNK if u.is_cuda and loader.attached("selective_scan", "cuda") else CHUNK)[0]
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(u.dtype)


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Compute selective_scan in plain PyTorch, a chunk of steps at a time.

    Args:
        u, delta, A, B, C, D, delta_bias, delta_softplus: as of `selective_scan`, B and C with their axis G.
        chunk: steps between the states that are kept for the backward pass.

    Returns:
        y as u, and the states before each chunk ``(batch, chunks, N, G * D)``.
    """
    batch, groups, states, length = B.shape[0], B.shape[1], B.shape[2], B.shape[3]
    width, ways = u.shape[1], _ways(u, delta, groups)
    u, delta = _each_way(u, delta.shape[1]), _in_turn(delta, width)
    B, C = _in_turn(B, ways), _in_turn(C, ways)
    shape = [batch, groups, u.shape[1] // groups]
    A = A.reshape(shape[1:] + [states, 1])
    step = _step(delta, delta_bias, delta_softplus).reshape(shape + [1, length])
    drive = step * u.reshape(shape + [1, length])
    state = u.new_zeros(shape + [states])
    saved, outputs = [u.new_zeros([batch, 0, states, u.shape[1]])], [u.new_zeros(shape + [0])]
    for start in range(0, length, chunk):
        stop = min(start + chunk, length)
        saved.append(state.flatten(1, 2).transpose(1, 2).unsqueeze(1))
        path = _recurrence(step[..., start:stop] * A, drive[..., start:stop] * B[:, :, None, :, start:stop], state)
        outputs.append((path * C[:, :, None, :, start:stop]).sum(3))
        state = path[..., -1]
    y = torch.cat(outputs, 3).reshape(u.shape)
    if D is not None:
        y = y + D[:, None] * u
    return _added(_in_turn(y, width), width).contiguous(), torch.cat(saved, 1)


def selective_scan_backward_reference(
    grad: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    saved: Tensor,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of selective_scan by hand; the states of a chunk are made again from the saved one.

    Args:
        grad: ``(batch, G * D, L)``, the gradient by y.
        u, delta, A, B, C, D, delta_bias, delta_softplus, chunk: what `selective_scan_reference` was given.
        saved: the states that it returned.

    Returns:
        The gradients by u, delta, A, B, C, D and delta_bias.
    """
    batch, groups, states, length = B.shape
    width, ways = u.shape[1], _ways(u, delta, groups)
    u, grad, delta = _each_way(u, delta.shape[1]), _each_way(grad, delta.shape[1]), _in_turn(delta, width)
    B, C = _in_turn(B, ways), _in_turn(C, ways)
    shape = [batch, groups, u.shape[1] // groups]
    rates = A.reshape([*shape[1:], states, 1])
    step = _step(delta, delta_bias, delta_softplus).reshape([*shape, 1, length])
    x, dy = u.reshape([*shape, 1, length]), grad.reshape([*shape, 1, length])
    du, dstep = torch.zeros_like(x), torch.zeros_like(step)
    dA, dB, dC = torch.zeros_like(rates), B.new_zeros(B.shape), C.new_zeros(C.shape)
    carry = u.new_zeros([*shape, states])  # decay times the state's gradient, one step later
    for number in reversed(range(saved.shape[1])):
        now = slice(number * chunk, min((number + 1) * chunk, length))
        b, c, dt = B[:, :, None, :, now], C[:, :, None, :, now], step[..., now]
        exponent = dt * rates
        decay = torch.exp(exponent)
        before = saved[:, number].transpose(1, 2).reshape([*shape, states])
        path = _recurrence(exponent, dt * x[..., now] * b, before)
        earlier = torch.cat([before[..., None], path[..., :-1]], -1)
        # The state's gradient runs the same recurrence from the end: g_t = C_t dy_t + decay_{t+1} g_{t+1}.
        later = torch.cat([torch.zeros_like(exponent[..., :1]), exponent[..., 1:].flip(-1)], -1)
        state_grad = _recurrence(later, (c * dy[..., now]).flip(-1), carry).flip(-1)
        carry = decay[..., 0] * state_grad[..., 0]
        decay_grad = state_grad * earlier * decay
        through_B = (state_grad * b).sum(3, keepdim=True)
        du[..., now] = through_B * dt
        dstep[..., now] = through_B * x[..., now] + (decay_grad * rates).sum(3, keepdim=True)
        dA += (decay_grad * dt).sum((0, 4)).unsqueeze(-1)
        dB[..., now] = (state_grad * dt * x[..., now]).sum(2)
        dC[..., now] = (dy[..., now] * path).sum(2)
    du, dstep = du.reshape(u.shape), dstep.reshape(u.shape)
    if delta_softplus:
        dstep = dstep * torch.sigmoid(delta if delta_bias is None else delta + delta_bias[:, None])
    if D is not None:
        du = du + D[:, None] * grad
    dD, dbias = (grad * u).sum((0, 2)), dstep.sum((0, 2))
    du, dstep = _added(_in_turn(du, width), width).contiguous(), _in_turn(dstep, width).contiguous()
    return du, dstep, dA.reshape(A.shape).contiguous(), _in_turn(dB, ways), _in_turn(dC, ways), dD, dbias


def _ways(u: Tensor, delta: Tensor, groups: int) -> int:
    return u.shape[1] * groups // max(delta.shape[1], 1)


def _in_turn(x: Tensor, first: int) -> Tensor:
    """(batch, G, .., L): what comes after the `first` of G in the order of its scan, or from that order back."""
    return x if x.shape[1] == first else torch.cat([x[:, :first], x[:, first:].flip(-1)], 1)


def _each_way(u: Tensor, width: int) -> Tensor:
    """(batch, W * D, L) -> (batch, width, L), a row a group in the order of its scan"""
    return u if u.shape[1] == width else torch.cat([u, u[:, : width - u.shape[1]].flip(-1)], 1)


def _added(y: Tensor, width: int) -> Tensor:
    """(batch, G * D, L), all in the order of u -> (batch, width, L), both scans of a way in one row"""
    if y.shape[1] == width:
        return y
    again = y.shape[1] - width
    return torch.cat([y[:, :again] + y[:, width:], y[:, again:width]], 1)


def _step(delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool) -> Tensor:
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    return F.softplus(delta) if delta_softplus else delta


def _recurrence(exponent: Tensor, drive: Tensor, state: Tensor) -> Tensor:
    """All h_t = exp(exponent_t) h_{t-1} + drive_t along the last axis, by doubling: log2(T) steps instead of T.

    Exponents are added, for products of decays would multiply the rounding of each.
    """
    drive = torch.cat([drive[..., :1] + torch.exp(exponent[..., :1]) * state[..., None], drive[..., 1:]], -1)
    reach = 1
    while reach < drive.shape[-1]:
        earlier = torch.exp(exponent[..., reach:]) * drive[..., :-reach]
        drive = torch.cat([drive[..., :reach], drive[..., reach:] + earlier], -1)
        exponent = torch.cat([exponent[..., :reach], exponent[..., reach:] + exponent[..., :-reach]], -1)
        reach *= 2
    return drive


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    checks.check_rank("u", u, "(batch, W * D, L)", 3)
    checks.check_rank("A", A, "(G * D, N)", 2)
    checks.check_rank("B", B, "(batch, G, N, L) or (batch, N, L)", 4)
    checks.check_rank("delta", delta, "(batch, G * D, L)", 3)
    (batch, lines, length), width, groups = u.shape, delta.shape[1], B.shape[1]
    if groups < 1 or width % groups:
        raise ValueError(f"groups of B must divide channels of delta, got groups={groups}, channels={width}")
    if lines % max(1, width // groups) or not lines <= width <= 2 * lines:
        raise ValueError(
            f"u must have delta's channels, or those of its first groups, half of them at least, got {lines} of "
            f"{width} in {groups} groups"
        )
    checks.check_shape("delta", delta, "(batch, G * D, L)", (batch, width, length))
    checks.check_shape("A", A, "(channels of delta, N)", (width, A.shape[1]))
    for name, mix in (("B", B), ("C", C)):
        checks.check_shape(name, mix, "(batch, G, N, L)", (batch, groups, A.shape[1], length))
    if z is not None:
        checks.check_shape("z", z, "u's shape", (batch, lines, length))
    for name, vector in (("D", D), ("delta_bias", delta_bias)):
        if vector is not None:
            checks.check_shape(name, vector, "(channels of delta,)", (width,))
    tensors = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    checks.check_alike(tensors, float32_too=("A", "D", "delta_bias"))


_operator = torch.library.custom_op("monai_ext::selective_scan", mutates_args=())(selective_scan_reference)
_backward_operator = torch.library.custom_op("monai_ext::selective_scan_backward", mutates_args=())(
    selective_scan_backward_reference
)


@_operator.register_fake
def _(u, delta, A, B, C, D, delta_bias, delta_softplus, chunk=CHUNK):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return u.new_empty(u.shape), _saved(u, A, chunk)  # contiguous, as kernels make them


@_backward_operator.register_fake
def _(grad, u, delta, A, B, C, D, delta_bias, delta_softplus, saved, chunk=CHUNK):  # type: ignore[no-untyped-def]  # noqa: ARG001
    per_channel = u.new_empty(A.shape[0]), u.new_empty(A.shape[0])
    return (*(tensor.new_empty(tensor.shape) for tensor in (u, delta, A, B, C)), *per_channel)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, ctx.softplus, ctx.chunk = inputs
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx, grad: Tensor, _: Tensor):  # type: ignore[no-untyped-def]
    *inputs, saved = ctx.saved_tensors
    *grads, D_grad, bias_grad = _backward_operator(grad, *inputs, ctx.softplus, saved, ctx.chunk)
    return (*grads, None if inputs[5] is None else D_grad, None if inputs[6] is None else bias_grad, None, None)


_operator.register_autograd(_backward, setup_context=_save)


class _Shape(ctypes.Structure):
    """ScanShape of cuda_ops/selective_scan/selective_scan.h."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("batch", "groups", "ways", "channels", "states", "length", "chunk", "softplus")
    ]


def _shape(u: Tensor, delta: Tensor, B: Tensor, delta_softplus: bool, chunk: int) -> _Shape:
    batch, groups, states, length = B.shape
    ways = _ways(u, delta, groups)
    return _Shape(batch, groups, ways, delta.shape[1] // groups, states, length, chunk, delta_softplus)


def _saved(u: Tensor, A: Tensor, chunk: int) -> Tensor:
    return u.new_empty(u.shape[0], (u.shape[2] + chunk - 1) // chunk, A.shape[1], A.shape[0])


def _kernels(kernels: loader.Kernels) -> dict[str, Callable[..., object]]:
    kernels.require("selective_scan_forward", "selective_scan_backward", "selective_scan_parts", "selective_scan_rows")

    def forward(u, delta, A, B, C, D, delta_bias, delta_softplus, chunk=CHUNK):  # type: ignore[no-untyped-def]
        inputs = [tensor if tensor is None else tensor.contiguous() for tensor in (u, delta, A, B, C, D, delta_bias)]
        shape = _shape(u, delta, B, delta_softplus, chunk)
        rows = kernels.named("selective_scan_rows", u.dtype)(ctypes.byref(shape))
        y, saved = u.new_empty(u.shape[0], rows, u.shape[2]), _saved(u, A, chunk)
        kernels("selective_scan_forward", shape, *inputs, y, saved)
        return _added(y, u.shape[1]), saved

    def backward(grad, u, delta, A, B, C, D, delta_bias, delta_softplus, saved, chunk=CHUNK):  # type: ignore[no-untyped-def]
        inputs = [
            tensor if tensor is None else tensor.contiguous() for tensor in (grad, u, delta, A, B, C, D, delta_bias)
        ]
        shape, (batch, width, length) = _shape(u, delta, B, delta_softplus, chunk), delta.shape
        # What is summed over the batch, and over parts of a group's channels, is summed here: in a fixed order.
        parts = kernels.named("selective_scan_parts", u.dtype)(ctypes.byref(shape))
        rows = kernels.named("selective_scan_rows", u.dtype)(ctypes.byref(shape))
        du, ddelta = u.new_empty(batch, rows, length), torch.empty_like(delta, memory_format=torch.contiguous_format)
        dA = u.new_empty(batch, A.shape[1], width)
        dB, dC = u.new_empty(parts, *B.shape), u.new_empty(parts, *C.shape)
        dD, dbias = u.new_empty(batch, width), u.new_empty(batch, width)
        carries = torch.empty_like(saved)  # memory that the CPU kernel does not touch is not taken
        outputs = du, ddelta, dA, dB, dC, dD, dbias, carries
        kernels("selective_scan_backward", shape, *inputs, saved.contiguous(), *outputs)
        du = _added(du, u.shape[1])
        return du, ddelta, dA.sum(0).t().contiguous(), dB.sum(0), dC.sum(0), dD.sum(0), dbias.sum(0)

    return {"selective_scan": forward, "selective_scan_backward": backward}


loader.BINDERS["selective_scan"] = _kernels
