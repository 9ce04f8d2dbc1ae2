"""Entropic optimal transport: cost, plan and Sinkhorn divergence, with how far the solver got.

Laws are weights of points, in log space; what couples them is a matrix of costs. A solver is a
value: `unrolled(n)` does n iterations and is differentiated through them, `converged(...)` lets
ott-jax iterate to a tolerance and differentiates the solution implicitly. Either way derivatives
go forward, backward and twice, without host callbacks.
"""

import math
from collections.abc import Callable
from math import inf
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from divjax.core import Array, check, mul_exp, vary_like
from divjax.divergences import generators
from divjax.divergences._sinkhorn import INNER, implicit, ott_potentials
from divjax.divergences._terms import at_sample
from divjax.divergences.wasserstein import squared_euclidean


class Potentials(NamedTuple):
    """Dual solution in units of epsilon: log P = u + v - cost / epsilon.

    Attributes:
        u: [N] of the rows; -inf where the weight is 0.
        v: [M] of the columns.
        iterations: [] int32; one iteration matches the rows, then the columns.
        tolerance: [] the relative marginal error that counts as converged.
    """

    u: Array
    v: Array
    iterations: Array
    tolerance: Array


Solver = Callable[[Array, Array, Array], Potentials]
"""(log_kernel [N, M], log_a [N], log_b [M]) -> Potentials, differentiable in all three."""


class Transport(NamedTuple):
    """An entropic transport between two weighted clouds.

    Attributes:
        cost: [] <P, C>, what moving costs, without entropy.
        regularised: [] OT_epsilon = <P, C> + epsilon KL(P || a b'), and before convergence the dual
            value, a lower bound of the converged one. Added up from terms that are as small as
            their sum, so that no digits are lost for large epsilon.
        log_plan: [N, M] log P; -inf where nothing moves.
        marginal_error: [] sum |P 1 - a| + sum |P' 1 - b|, relative to the mass of a.
        converged: [] bool, the error is within the solver's tolerance.
        iterations: [] int32.
    """

    cost: Array
    regularised: Array
    log_plan: Array
    marginal_error: Array
    converged: Array
    iterations: Array


def unrolled(iterations: int, *, tolerance: float = 1e-3) -> Solver:
    """A fixed number of iterations, differentiated through them.

    Each divides the rows of the plan by their sums, then the columns: the columns match whatever
    the number is. The gradient is that of the truncated iteration, converged or not. For it the
    potentials of each iteration are kept, [N + M] numbers, and the plans made anew.

    Args:
        iterations: >= 1.
        tolerance: the relative marginal error that counts as converged.

    Returns:
        A Solver of log_kernel [N, M], log_a [N], log_b [M].

    Raises:
        ValueError: iterations < 1, tolerance is not > 0.

    References:
        Sinkhorn, 1967; Cuturi, arXiv 1306.0895.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import transport
        >>> cost = jnp.array([[0.0, 1.0], [1.0, 0.0]])
        >>> out = transport.sinkhorn(cost, epsilon=0.2, solver=transport.unrolled(20))
        >>> print(f"{out.cost:.6f}", int(out.iterations))
        0.006693 20
    """
    check.count("iterations", iterations, caller="unrolled")
    check.positive("tolerance", tolerance, caller="unrolled")

    def solve(log_kernel: Array, log_a: Array, log_b: Array) -> Potentials:
        @jax.checkpoint
        def iterate(pair: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
            u = log_a - jax.nn.logsumexp(log_kernel + pair[1], axis=1)
            return (u, log_b - jax.nn.logsumexp(log_kernel + u[:, None], axis=0)), None

        u, v = jnp.zeros_like(log_a), jnp.where(log_b != -inf, 0.0, -inf).astype(log_b.dtype)
        u, v = (vary_like(x, log_kernel, log_a, log_b) for x in (u, v))
        (u, v), _ = jax.lax.scan(iterate, (u, v), None, length=iterations)
        return Potentials(u, v, jnp.int32(iterations), jnp.asarray(tolerance, u.dtype))

    return solve


def converged(*, tolerance: float = 1e-4, max_iterations: int = 2000) -> Solver:
    """ott-jax's Sinkhorn to a marginal error, differentiated as the solution it approaches.

    The derivatives come from the implicit function theorem: one dense linear system of the smaller
    side, min(N, M)^3, per derivative. They are those of the limit, so they are as wrong as the
    marginals are where `Transport.converged` is False; `unrolled` has no such error.

    Args:
        tolerance: relative marginal error to reach, looked at every 10 iterations.
        max_iterations: where to give up; a multiple of 10.

    Returns:
        A Solver of log_kernel [N, M], log_a [N], log_b [M].

    Raises:
        ValueError: the tolerance is not > 0, max_iterations is no positive multiple of 10.

    References:
        Cuturi et al., OTT-JAX, arXiv 2201.12324; Luise et al., arXiv 1805.11897 (derivatives).

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import transport
        >>> cost = jnp.array([[0.0, 1.0], [1.0, 0.0]])
        >>> out = transport.sinkhorn(cost, epsilon=0.2, solver=transport.converged())
        >>> print(f"{out.cost:.6f}", bool(out.converged))
        0.006693 True
    """
    check.count("max_iterations", max_iterations, caller="converged")
    check.positive("tolerance", tolerance, caller="converged")
    check.require(
        max_iterations % INNER == 0,
        "converged",
        f"max_iterations must be a multiple of {INNER}",
        max_iterations,
        "round it up",
    )

    def solve(log_kernel: Array, log_a: Array, log_b: Array) -> Potentials:
        fixed = jax.lax.stop_gradient((log_kernel, log_a, log_b))
        u, v, iterations = ott_potentials(
            *fixed, tolerance=tolerance, max_iterations=max_iterations
        )
        u, v = implicit(log_kernel, log_a, log_b, u, v)
        return Potentials(u, v, iterations, jnp.asarray(tolerance, u.dtype))

    return solve


def sinkhorn(
    cost: Array,
    log_a: Array | None = None,
    log_b: Array | None = None,
    *,
    epsilon: float | Array,
    solver: Solver | None = None,
) -> Transport:
    """min over plans P with marginals a, b of <P, C> + epsilon KL(P || a b').

    Args:
        cost: [N, M], finite wherever both weights are positive; `vmap` for batches.
        log_a: [N] log weights of the rows; -inf is an absent row, whose costs may hold anything.
            None is 1 / N each.
        log_b: [M] log weights of the columns, of the same mass.
        epsilon: > 0, in units of the cost.
        solver: `converged()` by default, or `unrolled(n)`.

    Returns:
        Transport; all zero where no row or no column is present.

    Raises:
        ValueError: arrays are not as above; where values can be seen, epsilon is not > 0 or the
            masses differ (then the result is NaN, or not converged).

    References:
        Cuturi, arXiv 1306.0895; Peyre and Cuturi, arXiv 1803.00567.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import transport
        >>> p, q = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.log(jnp.array([0.2, 0.5, 0.3]))
        >>> cost = (jnp.arange(3.0)[:, None] - jnp.arange(3.0)) ** 2
        >>> print(f"{transport.sinkhorn(cost, p, q, epsilon=0.5).regularised:.4f}")
        0.6450
    """
    cost, log_a, log_b = _prepare("sinkhorn", cost, log_a, log_b, epsilon)
    signature = "(log_kernel, log_a, log_b) -> Potentials"
    remedy = "for example transport.unrolled(20) or transport.converged()"
    solver = converged() if solver is None else solver
    check.function("solver", solver, caller="sinkhorn", signature=signature, remedy=remedy)
    epsilon = jnp.where(epsilon > 0, epsilon, jnp.nan)  # a traced one is seen here only
    here = (log_a != -inf)[:, None] & (log_b != -inf)  # NaN is not absent
    empty = ~jnp.any(here)
    # No row or no column: any solvable problem in its place, and zeros at the end.
    log_a, log_b = (jnp.where(empty, -math.log(x.size), x) for x in (log_a, log_b))
    cost = jnp.where(here, cost, 0.0)
    log_kernel = -cost / epsilon
    u, v, iterations, tolerance = solver(log_kernel, log_a, log_b)
    log_plan = jnp.where(here, jnp.where(here, u[:, None] + v + log_kernel, 0.0), -inf)
    plan, a, b = (jnp.where(empty, 0.0, jnp.exp(x)) for x in (log_plan, log_a, log_b))
    error = (jnp.abs(plan.sum(1) - a).sum() + jnp.abs(plan.sum(0) - b).sum()) / jnp.where(
        empty, 1.0, a.sum()
    )
    moved = mul_exp(cost, log_plan).sum()
    laws = (u, log_a, a - plan.sum(1)), (v, log_b, b - plan.sum(0))
    entropy = _relative_entropy(log_kernel, *laws)
    return Transport(
        cost=moved,
        regularised=jnp.where(empty, 0.0, moved + epsilon * entropy),
        log_plan=log_plan,
        marginal_error=error,
        converged=error <= tolerance,
        iterations=iterations,
    )


def _relative_entropy(
    log_kernel: Array, rows: tuple[Array, Array, Array], columns: tuple[Array, Array, Array]
) -> Array:
    """KL(P || a b') + <f, a - P 1> + <g, b - P' 1>, each side (potential, log law, what it lacks).

    With f = u - log a and g = v - log b, centred: a constant may move from one to the other. Plus
    <P, C> / epsilon it is the dual value <f, a> + <g, b> + a'1 1'b - 1'P 1, whose terms do not
    become small as epsilon grows; those of this sum do.
    """
    f, g = (jnp.where(law != -inf, potential - law, 0.0) for potential, law, _ in (rows, columns))
    log_a, log_b = rows[1], columns[1]
    shift = mul_exp(f, log_a).sum() / jnp.exp(log_a).sum()
    f, g = f - shift, g + shift
    here = (log_a != -inf)[:, None] & (log_b != -inf)
    terms = at_sample(generators.kl, jnp.where(here, f[:, None] + g + log_kernel, 0.0))
    lacks = (f * rows[2]).sum() + (g * columns[2]).sum()
    return mul_exp(terms, log_a[:, None] + log_b).sum() + lacks


class SinkhornDivergence(NamedTuple):
    """A debiased transport.

    Attributes:
        value: [] >= 0 up to the rounding of its three terms, and 0 for equal clouds.
        between: Transport of the two clouds.
        within: Transports of each cloud to itself.
    """

    value: Array
    between: Transport
    within: tuple[Transport, Transport]


def sinkhorn_divergence(
    x: Array,
    y: Array,
    log_a: Array | None = None,
    log_b: Array | None = None,
    *,
    epsilon: float | Array,
    cost: Callable[[Array, Array], Array] | None = None,
    solver: Solver | None = None,
) -> SinkhornDivergence:
    """OT_epsilon(x, y) - OT_epsilon(x, x) / 2 - OT_epsilon(y, y) / 2.

    Unlike OT_epsilon it is 0 for equal clouds. epsilon -> 0 gives the transport cost, epsilon ->
    inf the squared maximum mean discrepancy of the kernel -cost, divided by 2.

    Args:
        x: [N, D] points.
        y: [M, D].
        log_a: [N] log weights of x, -inf where a row is absent; None is 1 / N each.
        log_b: [M] log weights of y.
        epsilon: > 0, in units of the cost.
        cost: (x [N, D], y [M, D]) -> [N, M]; None is `squared_euclidean`.
        solver: as in `sinkhorn`.

    Returns:
        SinkhornDivergence. Near equality its value is a difference of larger numbers.

    Raises:
        ValueError: as `sinkhorn`.

    References:
        Genevay, Peyre and Cuturi, arXiv 1706.00292; Feydy et al., arXiv 1810.08278.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import transport
        >>> x = jnp.array([[0.0], [1.0]])
        >>> print(f"{transport.sinkhorn_divergence(x, x + 2.0, epsilon=0.5).value:.4f}")
        4.0000
    """
    for name, points in (("x", x), ("y", y)):
        check.floating(name, points, caller="sinkhorn_divergence")
        check.require(points.ndim == 2, "sinkhorn_divergence", f"{name} must be [N, D]", points,
                      f"pass {name}.reshape(-1, D), and vmap for batches")  # fmt: skip
    x, y = (_present(jnp.asarray(z), w) for z, w in ((x, log_a), (y, log_b)))
    between = squared_euclidean if cost is None else cost
    signature, remedy = "(x [N, D], y [M, D]) -> [N, M]", "for example manhattan"
    caller = "sinkhorn_divergence"
    check.positive("epsilon", epsilon, caller=caller)
    check.function("cost", between, caller=caller, signature=signature, remedy=remedy)

    def transport(x: Array, y: Array, log_a: Array | None, log_b: Array | None) -> Transport:
        return sinkhorn(between(x, y), log_a, log_b, epsilon=epsilon, solver=solver)

    xy = transport(x, y, log_a, log_b)
    xx, yy = transport(x, x, log_a, log_a), transport(y, y, log_b, log_b)
    value = xy.regularised - 0.5 * (xx.regularised + yy.regularised)
    return SinkhornDivergence(value, xy, (xx, yy))


def _present(points: Array, log_weights: Array | None) -> Array:
    """Absent points become 0 before anything is computed from them."""
    return points if log_weights is None else jnp.where(log_weights[:, None] != -inf, points, 0.0)


def _prepare(
    caller: str, cost: Array, log_a: Array | None, log_b: Array | None, epsilon: float | Array
) -> tuple[Array, Array, Array]:
    """Checked, in one type of float32 at least, with uniform weights where none were given."""
    check.floating("cost", cost, caller=caller)
    cost = jnp.asarray(cost)
    check.require(cost.ndim == 2, caller, "cost must be [N, M]", cost, "vmap over batches")
    check.require(cost.size > 0, caller, "cost must not be empty", cost, "skip it")
    check.positive("epsilon", epsilon, caller=caller)
    given = [cost]
    for name, law, size in (("log_a", log_a, cost.shape[0]), ("log_b", log_b, cost.shape[1])):
        if law is None:
            given.append(
                jnp.full(size, -math.log(size), jnp.promote_types(cost.dtype, jnp.float32))
            )
            continue
        check.floating(name, law, caller=caller)
        check.require(
            law.shape == (size,), caller, f"{name} must be [{size}], an axis of cost", law,
            "pass one log weight per row and per column",
        )  # fmt: skip
        given.append(law)
    _check_masses(caller, log_a, log_b)
    dtype = jnp.result_type(*given)
    cost, log_a, log_b = (jnp.asarray(x, dtype) for x in given)
    return cost, log_a, log_b


def _check_masses(caller: str, log_a: Array | None, log_b: Array | None) -> None:
    """Both sides have one mass, where values can be seen."""
    if log_b is None and log_a is not None:
        check.log_weights("log_a", log_a, caller=caller)
    if log_b is not None:
        seen = np.zeros(1) if log_a is None else check.seen(log_a)
        mass = 0.0 if seen is None else float(np.exp(np.minimum(seen, 700.0)).sum())
        if 0 < mass < inf:
            check.log_weights("log_b", log_b, caller=caller, mass=mass)
