"""Distances of points and of clouds without regularisation: costs, exact 1-d, sliced."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from divjax.core import Array, Estimate, check


def squared_euclidean(x: Array, y: Array) -> Array:
    """c(x_i, y_j) = |x_i - y_j|^2, from the differences: exact for points that nearly agree.

    Args:
        x: [N, D].
        y: [M, D].

    Returns:
        [N, M].

    References:
        Peyre and Cuturi, arXiv 1803.00567.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import squared_euclidean
        >>> squared_euclidean(jnp.array([[0.0, 0.0]]), jnp.array([[3.0, 4.0], [0.0, 1.0]])).tolist()
        [[25.0, 1.0]]
    """
    x, y = _pairs("squared_euclidean", x, y)
    return jnp.sum((x - y) ** 2, axis=-1)


def manhattan(x: Array, y: Array) -> Array:
    """c(x_i, y_j) = |x_i - y_j|_1; of probabilities, twice their total variation.

    Args:
        x: [N, D].
        y: [M, D].

    Returns:
        [N, M]; the derivative where two entries are equal, but for rounding, is 0.

    References:
        Peyre and Cuturi, arXiv 1803.00567.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import manhattan
        >>> manhattan(jnp.array([[0.0, 0.0]]), jnp.array([[3.0, 4.0], [0.0, 1.0]])).tolist()
        [[7.0, 1.0]]
    """
    return jnp.sum(_apart(*_pairs("manhattan", x, y)), axis=-1)


@jax.custom_jvp
def _apart(x: Array, y: Array) -> Array:
    """|x - y|, whose derivative is 0 where x = y but for rounding.

    Under jit the difference of a computed number and itself need not be 0: XLA may form it twice,
    once rounded and once inside a multiply-add, and not alike where it is used. The derivatives by
    x and by y then take two signs of one rounding error, and do not cancel.
    """
    return jnp.abs(x - y)


@_apart.defjvp
def _apart_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    x, y = primals
    rounding = 16.0 * float(np.finfo(x.dtype).eps) * jnp.maximum(jnp.abs(x), jnp.abs(y))
    sign = jax.lax.stop_gradient(jnp.where(jnp.abs(x - y) > rounding, jnp.sign(x - y), 0.0))
    return _apart(x, y), sign * (tangents[0] - tangents[1])


def _pairs(caller: str, x: Array, y: Array) -> tuple[Array, Array]:
    """[N, 1, D] and [M, D], in float32 at least."""
    for name, points in (("x", x), ("y", y)):
        check.floating(name, points, caller=caller)
        check.require(points.ndim == 2, caller, f"{name} must be [N, D]", points,
                      f"pass {name}.reshape(-1, D), and vmap for batches")  # fmt: skip
    check.require(x.shape[1] == y.shape[1], caller, f"y must be [M, {x.shape[1]}] as x", y,
                  "project one of them first")  # fmt: skip
    x, y = jnp.asarray(x), jnp.asarray(y)
    dtype = jnp.result_type(x.dtype, y.dtype, jnp.float32)
    return x.astype(dtype)[:, None], y.astype(dtype)


def wasserstein_1d(
    x: Array,
    y: Array,
    log_a: Array | None = None,
    log_b: Array | None = None,
    *,
    power: float = 1.0,
) -> Array:
    """W_p^p = int_0^1 |F^-1(t) - G^-1(t)|^p dt of two weighted samples of the line, exactly.

    Args:
        x: [*E, N] positions, in any order.
        y: [*E, M].
        log_a: [*E, N] log weights, normalised; -inf is an absent point, which may hold anything.
            None is 1 / N each.
        log_b: [*E, M].
        power: p >= 1; the value is in units of x to this power.

    Returns:
        [*E], 0 where a cloud has no point.

    Raises:
        ValueError: shapes do not match, power < 1; where values can be seen, log weights that are
            not normalised.

    References:
        Santambrogio, Optimal transport for applied mathematicians, 2015, section 2.2.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import wasserstein_1d
        >>> x, p, q = jnp.arange(3.0), jnp.array([0.5, 0.3, 0.2]), jnp.array([0.2, 0.5, 0.3])
        >>> print(f"{wasserstein_1d(x, x, jnp.log(p), jnp.log(q)):.4f}")
        0.4000
    """
    caller = "wasserstein_1d"
    ok = isinstance(power, int | float) and 1 <= power < float("inf")
    check.require(ok, caller, "power must be a number >= 1", power, "for example power=2.0")
    clouds = []
    for name, points, law in (("x", x, log_a), ("y", y, log_b)):
        check.floating(name, points, caller=caller)
        check.rank_at_least(name, points, 1, caller=caller)
        check.require(points.shape[-1] > 0, caller, f"{name} must not be empty", points, "skip it")
        points = jnp.asarray(points)
        if law is None:
            wide = jnp.promote_types(points.dtype, jnp.float32)
            law = jnp.full(points.shape, -math.log(points.shape[-1]), wide)
        else:
            check.log_weights(f"log_{'ab'['xy'.index(name)]}", law, caller=caller)
        check.same_shape((name, f"its log weights, log_{'ab'['xy'.index(name)]}"), (points, law),
                         caller=caller)  # fmt: skip
        clouds += [points, jnp.asarray(law)]
    same = x.shape[:-1] == y.shape[:-1]
    check.require(same, caller, f"y must be [*E, M] with the *E of x, {list(x.shape[:-1])}", y,
                  "broadcast one of them first")  # fmt: skip
    dtype = jnp.result_type(*clouds, jnp.float32)
    one = jnp.vectorize(_quantile_cost, excluded={4}, signature="(n),(n),(m),(m)->()")
    return one(*(z.astype(dtype) for z in clouds), power)  # type: ignore[no-any-return]


def _quantile_cost(x: Array, log_a: Array, y: Array, log_b: Array, power: float) -> Array:
    """Both quantile functions are steps: on each interval between two jumps a pair of points."""
    (x, a), (y, b) = _sorted(x, log_a), _sorted(y, log_b)
    # Jumps are compared, not differentiated; where they fall decides who meets whom.
    up_a, up_b = jnp.cumsum(a), jnp.cumsum(b)
    levels = jnp.sort(jnp.concatenate([up_a, up_b]))
    length = jnp.diff(levels, prepend=jnp.zeros(1, levels.dtype))
    middle = jax.lax.stop_gradient(levels - 0.5 * length)
    i, j = (jnp.searchsorted(jax.lax.stop_gradient(up), middle) for up in (up_a, up_b))
    gap = _apart(x[jnp.minimum(i, len(x) - 1)], y[jnp.minimum(j, len(y) - 1)])
    moved = jnp.where(gap != 0, jnp.where(gap != 0, gap, 1.0) ** power, 0.0)
    both = (a.sum() != 0) & (b.sum() != 0)
    return jnp.where(both, jnp.sum(length * moved), 0.0)


def _sorted(x: Array, log_weights: Array) -> tuple[Array, Array]:
    """(positions, weights) in order; absent points get weight 0 and a harmless position."""
    here = log_weights != -jnp.inf  # NaN is not absent
    x, w = jnp.where(here, x, 0.0), jnp.where(here, jnp.exp(jnp.where(here, log_weights, 0.0)), 0.0)
    order = jnp.argsort(jax.lax.stop_gradient(x))
    return x[order], w[order]


def sliced_wasserstein(
    key: Array,
    x: Array,
    y: Array,
    log_a: Array | None = None,
    log_b: Array | None = None,
    *,
    projections: int = 64,
    power: float = 2.0,
) -> Estimate:
    """SW_p^p = E_theta W_p^p(theta' x, theta' y) over directions theta of the unit sphere.

    Args:
        key: typed PRNG key, consumed.
        x: [N, D].
        y: [M, D].
        log_a: [N] log weights, as in `wasserstein_1d`.
        log_b: [M].
        projections: L, the number of random directions.
        power: p >= 1.

    Returns:
        Estimate: value [], terms [L] (one per direction), n_effective [] = L.

    Raises:
        ValueError: as `wasserstein_1d`; projections < 1.

    References:
        Bonneel et al., 2015; Kolouri et al., arXiv 1902.00434.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.divergences import sliced_wasserstein
        >>> x = jax.random.normal(jax.random.key(0), (100, 3))
        >>> far = sliced_wasserstein(jax.random.key(1), x, x + jnp.array([3.0, 0.0, 0.0]))
        >>> bool(jnp.abs(far.value - 3.0) < 1.0)  # |shift|^2 / D
        True
    """
    caller = "sliced_wasserstein"
    check.count("projections", projections, caller=caller)
    for name, points in (("x", x), ("y", y)):
        check.floating(name, points, caller=caller)
        check.require(points.ndim == 2, caller, f"{name} must be [N, D]", points, "reshape it")
    check.require(x.shape[1] == y.shape[1], caller, f"y must be [M, {x.shape[1]}] as x", y,
                  "project one of them first")  # fmt: skip
    dtype = jnp.result_type(x.dtype, y.dtype, jnp.float32)
    theta = jax.random.normal(key, (projections, x.shape[1]), dtype)
    theta = theta / jnp.linalg.norm(theta, axis=1, keepdims=True)
    clouds = [
        jnp.where(True if law is None else (law != -jnp.inf)[:, None], points, 0.0).astype(dtype)
        for points, law in ((x, log_a), (y, log_b))
    ]
    highest = jax.lax.Precision.HIGHEST
    x, y = (jnp.matmul(theta, points.T, precision=highest) for points in clouds)
    laws = [
        None if law is None else jnp.broadcast_to(law, (projections, *law.shape))
        for law in (log_a, log_b)
    ]
    terms = wasserstein_1d(x, y, *laws, power=power)
    return Estimate(terms.mean(), terms, jnp.asarray(projections, terms.dtype))
