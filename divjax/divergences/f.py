"""f-divergences of discrete laws, from log-probabilities and from logits."""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from divjax.core import Array, check
from divjax.core.chunk import map_rows
from divjax.divergences import generators
from divjax.divergences._terms import Weighted, weighted
from divjax.divergences.generators import Generator

_BLOCK = 1 << 18  # elements per block: three arrays of a block stay in a core's cache


class Pair(NamedTuple):
    """Two laws over the last axis, each [..., K]."""

    p: Array
    q: Array
    log_p: Array
    log_q: Array
    u: Array  # log p - log q


def _one_sided(u: Array, x_p: Array, x_q: Array) -> Array:
    """The log-ratio with its limits: 0 where both sides are -inf, +-inf where one is."""
    no_p, no_q = x_p == -jnp.inf, x_q == -jnp.inf
    u = jnp.where(no_p, -jnp.inf, jnp.where(no_q, jnp.inf, u))
    return jnp.where(no_p & no_q, 0.0, u)


def given(log_p: Array, log_q: Array) -> Pair:
    """The arrays as they are, normalised or not."""
    u = _one_sided(log_p - log_q, log_p, log_q)
    return Pair(jnp.exp(log_p), jnp.exp(log_q), log_p, log_q, u)


def _exact_difference(a: Array, b: Array) -> tuple[Array, Array]:
    """The rounded difference and its rounding error (Knuth's two-sum)."""
    d = a - b
    back = a - d
    error = (a - (d + back)) + (back - b)
    return d, jnp.where(jnp.abs(d) < jnp.inf, error, 0.0)  # beyond the largest number: +-inf


def normalised(z_p: Array, z_q: Array) -> Pair:
    """The softmax laws of two rows of logits.

    The log-ratio is formed from the difference of the logits and not of two log-softmaxes, each
    of which rounds at the size of its own value: near p = q that rounding is larger than u. What
    is subtracted is the same for all entries, so its error cancels to first order.
    """
    peak_p, peak_q = (
        jnp.where(m > -jnp.inf, m, 0.0)
        for m in (jnp.max(z_p, axis=-1, keepdims=True), jnp.max(z_q, axis=-1, keepdims=True))
    )
    # The barriers keep XLA from computing exponentials and ratios once per consumer.
    e_p, e_q = jax.lax.optimization_barrier((jnp.exp(z_p - peak_p), jnp.exp(z_q - peak_q)))
    sum_p = jnp.sum(e_p, axis=-1, keepdims=True)
    sum_q = jnp.sum(e_q, axis=-1, keepdims=True)
    sum_p, sum_q = (jnp.where(s > 0, s, 1.0) for s in (sum_p, sum_q))
    d, error = _exact_difference(z_p, z_q)
    shift, shift_error = _exact_difference(peak_p, peak_q)
    u = (d - shift) + ((error - shift_error) - jnp.log(sum_p / sum_q))
    u = jax.lax.optimization_barrier(_one_sided(u, z_p, z_q))
    return Pair(
        e_p * (1.0 / sum_p),
        e_q * (1.0 / sum_q),
        z_p - peak_p - jnp.log(sum_p),
        z_q - peak_q - jnp.log(sum_q),
        u,
    )


Given = tuple[Array, Array, Array | None]  # both laws as they came, support last, and `where`


def clean(p: Array, q: Array, where: Array | None = None) -> tuple[Array, Array]:
    """In float32 at least; masked entries are -inf on both sides."""
    dtype = jnp.promote_types(jnp.promote_types(p.dtype, q.dtype), jnp.float32)
    p, q = p.astype(dtype), q.astype(dtype)
    if where is None:
        return p, q
    return jnp.where(where, p, -jnp.inf), jnp.where(where, q, -jnp.inf)


def _rows(fn: Callable[[Array, Array], tuple[Array, ...]], laws: Given) -> tuple[Array, ...]:
    """fn over rows [N, K] of clean laws [*E, K], in blocks; what cleans them is done per block."""
    batch, size = laws[0].shape[:-1], laws[0].shape[-1]
    flat = [x.reshape(prod(batch), x.shape[-1]) for x in laws if x is not None]
    block = max(1, _BLOCK // max(size, 1))
    out = map_rows(lambda *rows: fn(*clean(*rows)), flat, block=block)
    return tuple(x.reshape(batch + x.shape[1:]) for x in out)


def _terms(g: Generator, pair: Pair) -> Weighted:
    return weighted(g, pair.u, pair.p, pair.q, pair.log_p, pair.log_q)


def _sum_free(x: Array, law: Array) -> Array:
    """x - law * sum(x): of zero sum over the support."""
    return x - law * jnp.sum(x, axis=-1, keepdims=True)


def _sum_free_slope(x: Array, law: Array) -> Array:
    """`_sum_free` of what is no tangent, hence need not be linear.

    The total is finite; the select keeps XLA:CPU from joining sum and result in one library call,
    whose output is copied once more (6 % of the time of a dense KL).
    """
    total = jnp.sum(x, axis=-1, keepdims=True)
    return x - law * jnp.where(jnp.isfinite(total), total, 0.0)


Chain = Callable[[Array, Array], Array]


def _centred(weighted_slope: Array, law: Array, sum_free: Chain = _sum_free_slope) -> Array:
    """Chain rule of the softmax: from p R to p (R - E_p R).

    Twice: a law with one dominant entry loses that entry to cancellation, and what was lost is
    the sum of the first result, whose true value is 0.
    """
    return sum_free(sum_free(weighted_slope, law), law)


Wanted = tuple[bool, bool]  # whether the derivative by the first, second argument is needed


def _pick(wanted: Wanted, *pair: Array) -> tuple[Array, ...]:
    return tuple(x for x, w in zip(pair, wanted, strict=True) if w)


def _alive(tangents: tuple[Array, ...], where: Array | None) -> tuple[Array, ...]:
    """Tangents of masked entries may be NaN and count for nothing."""
    return tangents if where is None else tuple(jnp.where(where, t, 0.0) for t in tangents)


def _dot(slopes: tuple[Array, ...], tangents: tuple[Array, ...]) -> Array:
    return sum(
        (jnp.sum(s * t, axis=-1) for s, t in zip(slopes, tangents, strict=True)),
        start=jnp.zeros(slopes[0].shape[:-1], slopes[0].dtype),
    )


# --- the log-prob entrance: the derivative of a sum of terms is the sum of weighted slopes ---


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _of_log_probs(g: Generator, *laws: *Given) -> Array:
    return _rows(lambda a, b: (jnp.sum(_terms(g, given(a, b)).value, -1),), laws)[0]


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _of_log_probs_slopes(
    g: Generator, wanted: Wanted, *laws: *Given
) -> tuple[Array, tuple[Array, ...]]:
    def fn(a: Array, b: Array) -> tuple[Array, ...]:
        t = _terms(g, given(a, b))
        return (jnp.sum(t.value, -1), *_pick(wanted, t.slope_p, t.slope_q))

    value, *slopes = _rows(fn, laws)
    return value, tuple(slopes)


def _jvp_by_slopes(slopes_of: Any, g: Generator, primals: Any, tangents: Any) -> Any:
    wanted = tuple(type(t) is not jax.custom_derivatives.SymbolicZero for t in tangents[:2])
    if not any(wanted):
        value, _ = slopes_of(g, wanted, *primals)
        return value, jnp.zeros_like(value)
    value, slopes = slopes_of(g, wanted, *primals)
    moving = _alive(_pick(wanted, *tangents[:2]), primals[2])  # type: ignore[arg-type]
    return value, _dot(slopes, moving)


@partial(_of_log_probs.defjvp, symbolic_zeros=True)
def _of_log_probs_jvp(g: Generator, primals: Any, tangents: Any) -> Any:
    return _jvp_by_slopes(_of_log_probs_slopes, g, primals, tangents)


@_of_log_probs_slopes.defjvp
def _of_log_probs_slopes_jvp(g: Generator, wanted: Wanted, primals: Any, tangents: Any) -> Any:
    dp, dq = _alive(tangents[:2], primals[2])

    def fn(a: Array, b: Array) -> tuple[Array, ...]:
        t = _terms(g, given(a, b))
        return jnp.sum(t.value, -1), t.slope_p, t.slope_q, t.pull

    value, slope_p, slope_q, pull = _rows(fn, primals)
    du = pull * (dp - dq)
    change = _pick(wanted, slope_p * dp + du, slope_q * dq - du)
    return (value, _pick(wanted, slope_p, slope_q)), (
        _dot((slope_p, slope_q), (dp, dq)),
        change,
    )


# --- the logits entrance: the same slopes, centred ---


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _of_logits(g: Generator, *laws: *Given) -> Array:
    return _rows(lambda a, b: (jnp.sum(_terms(g, normalised(a, b)).value, -1),), laws)[0]


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _of_logits_slopes(
    g: Generator, wanted: Wanted, *laws: *Given
) -> tuple[Array, tuple[Array, ...]]:
    def fn(a: Array, b: Array) -> tuple[Array, ...]:
        pair = normalised(a, b)
        t = _terms(g, pair)
        both = _centred(t.slope_p, pair.p), _centred(t.slope_q, pair.q)
        return (jnp.sum(t.value, -1), *_pick(wanted, *both))

    value, *slopes = _rows(fn, laws)
    return value, tuple(slopes)


@partial(_of_logits.defjvp, symbolic_zeros=True)
def _of_logits_jvp(g: Generator, primals: Any, tangents: Any) -> Any:
    return _jvp_by_slopes(_of_logits_slopes, g, primals, tangents)


@_of_logits_slopes.defjvp
def _of_logits_slopes_jvp(g: Generator, wanted: Wanted, primals: Any, tangents: Any) -> Any:
    def fn(a: Array, b: Array) -> tuple[Array, ...]:
        pair = normalised(a, b)
        t = _terms(g, pair)
        return jnp.sum(t.value, -1), pair.p, pair.q, t.slope_p, t.slope_q, t.pull

    moving = _alive(tangents[:2], primals[2])
    value, p, q, slope_p, slope_q, pull = _rows(fn, primals)
    dp, dq = (
        dz - jnp.sum(law * dz, axis=-1, keepdims=True)
        for law, dz in zip((p, q), moving, strict=True)
    )
    du = pull * (dp - dq)
    both = _centred(slope_p, p), _centred(slope_q, q)
    mean_p, mean_q = (jnp.sum(s, axis=-1, keepdims=True) for s in (slope_p, slope_q))
    change_p = _sum_free(_centred(slope_p * dp + du, p, _sum_free) - p * dp * mean_p, p)
    change_q = _sum_free(_centred(slope_q * dq - du, q, _sum_free) - q * dq * mean_q, q)
    change = _pick(wanted, change_p, change_q)
    return (value, _pick(wanted, *both)), (_dot(both, moving), change)


# --- the public functions ---


def prepare(
    caller: str,
    names: tuple[str, str],
    p: Array,
    q: Array,
    axis: int,
    where: Array | None,
) -> Given:
    """Checks, and puts the support on the last axis; `clean` does the rest."""
    for name, x in zip(names, (p, q), strict=True):
        check.floating(name, x, caller=caller)
        check.rank_at_least(name, x, 1, caller=caller)
    check.same_shape(names, (p, q), caller=caller)
    check.broadcastable_mask("where", where, p.shape, caller=caller)
    check.require(
        isinstance(axis, int) and -p.ndim <= axis < p.ndim,
        caller,
        f"axis must be in [-{p.ndim}, {p.ndim})",
        axis,
        "pass one integer, -1 for the last axis, and reshape where several form the support",
    )
    check.require(p.shape[axis] > 0, caller, f"{names[0]} must have a support", p, "skip it")
    for name, x in zip(names, (p, q), strict=True):
        remedy = f"pass jnp.log({name})"
        check.not_probabilities(name, x, axis, caller=caller, remedy=remedy)
    p, q = jnp.moveaxis(p, axis, -1), jnp.moveaxis(q, axis, -1)
    if where is not None:
        where = jnp.moveaxis(where, axis, -1)
        where = jnp.broadcast_to(where, (*p.shape[:-1], where.shape[-1]))
    return p, q, where


def _check_generator(caller: str, generator: Generator) -> None:
    check.require(
        isinstance(generator, Generator),
        caller,
        "generator must be a Generator",
        generator,
        "pass a record such as generators.kl, or call its factory: generators.js(0.5)",
    )


def f_divergence(
    log_p: Array,
    log_q: Array,
    generator: Generator,
    *,
    axis: int = -1,
    where: Array | None = None,
    max_log_ratio: float | None = None,
) -> Array:
    """D_f(p || q) = sum_i q_i f(p_i / q_i) from log-probabilities, in nats.

    The arrays count as they are given, normalised or not, in the gauge f(1) = f'(1) = 0.

    Args:
        log_p: [*E, K] log-probabilities of the law in front; -inf is probability 0.
        log_q: [*E, K] log-probabilities of the second law.
        generator: the record of the divergence, for example `generators.kl`.
        axis: the axis of the support.
        where: bool [*E, K] or [*E, 1]; entries that are False may hold NaN and count for nothing.
        max_log_ratio: None gives the truth, +inf where it is +inf. A number gives the finite
            surrogate of `generators.linear_tails`.

    Returns:
        [*E], >= 0, float32 at least. Points with both -inf contribute 0 with zero gradient; where
        the value is +inf the derivative is that of the finite terms.

    Raises:
        ValueError: shapes, dtypes, mask or axis are not as above; probabilities were handed in.

    References:
        Liese and Vajda, 2006, On divergences and informations in statistics.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import f_divergence, generators
        >>> p, q = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.log(jnp.array([0.2, 0.5, 0.3]))
        >>> print(f"{f_divergence(p, q, generators.kl):.6f}")
        0.223805
    """
    _check_generator("f_divergence", generator)
    laws = prepare("f_divergence", ("log_p", "log_q"), log_p, log_q, axis, where)
    return _of_log_probs(_bounded(generator, max_log_ratio), *laws)


def f_divergence_from_logits(
    logits_p: Array,
    logits_q: Array,
    generator: Generator,
    *,
    axis: int = -1,
    where: Array | None = None,
    max_log_ratio: float | None = None,
) -> Array:
    """D_f(softmax(logits_p) || softmax(logits_q)), accurate however close the two laws are.

    Gradients: q (S - E_q S) by logits_q and p (R - E_p R) by logits_p, with S, R the slopes of
    the record. Temporaries are of one block of rows.

    Args:
        logits_p: [*E, K] unnormalised; -inf is probability 0.
        logits_q: [*E, K].
        generator: the record of the divergence.
        axis: the axis of the support.
        where: bool [*E, K] or [*E, 1]; entries that are False may hold NaN and count for nothing.
        max_log_ratio: as in `f_divergence`.

    Returns:
        [*E], >= 0, float32 at least; gradients come in the type of the logits.

    Raises:
        ValueError: shapes, dtypes, mask or axis are not as above.

    References:
        Liese and Vajda, 2006, On divergences and informations in statistics.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.divergences import f_divergence_from_logits, generators
        >>> teacher, student = jnp.array([2.0, 0.0, -jnp.inf]), jnp.array([1.0, 0.5, -jnp.inf])
        >>> kl = lambda z: f_divergence_from_logits(teacher, z, generators.kl)
        >>> value, gradient = jax.value_and_grad(kl)(student)
        >>> print(f"{value:.4f}", [f"{g:.4f}" for g in gradient])
        0.1683 ['-0.2583', '0.2583', '0.0000']
    """
    _check_generator("f_divergence_from_logits", generator)
    laws = prepare(
        "f_divergence_from_logits", ("logits_p", "logits_q"), logits_p, logits_q, axis, where
    )
    return _of_logits(_bounded(generator, max_log_ratio), *laws)


def _bounded(g: Generator, max_log_ratio: float | None) -> Generator:
    return g if max_log_ratio is None else generators.linear_tails(g, max_log_ratio)
