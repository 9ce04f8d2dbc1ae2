"""Elementary functions that stay exact, with exact derivatives, where the textbook form does not.

Each takes and returns arrays of one shape. They follow one rule: a dead branch of `where` is fed
a harmless input, because 0 * inf in its derivative is NaN.
"""

import jax
import jax.numpy as jnp

from divjax.core.types import Array


def mul_exp(x: Array, log_w: Array) -> Array:
    """x * exp(log_w), and exactly 0 with zero gradient where exp(log_w) is 0.

    Args:
        x: [*E], may be infinite or NaN where the weight is 0.
        log_w: [*E].

    Returns:
        [*E].

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.core import mul_exp
        >>> float(mul_exp(jnp.float32(jnp.inf), jnp.float32(-jnp.inf)))
        0.0
    """
    w = jnp.exp(log_w)
    alive = w != 0  # NaN is alive
    return jnp.where(alive, jnp.where(alive, x, 0.0) * jnp.where(alive, w, 0.0), 0.0)


def xlogy(x: Array, y: Array) -> Array:
    """X log y with 0 log 0 = 0 and zero gradient there, +-inf elsewhere as the limit has it.

    Example:
        >>> from divjax.core import xlogy
        >>> import jax.numpy as jnp
        >>> float(xlogy(jnp.float32(0.0), jnp.float32(0.0)))
        0.0
    """
    alive = x != 0
    return jnp.where(alive, x * jnp.log(jnp.where(alive, y, 1.0)), 0.0)


def log1mexp(x: Array) -> Array:
    """log(1 - e^x) for x <= 0; -inf at 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.core import log1mexp
        >>> float(log1mexp(jnp.float32(0.0)))
        -inf
    """
    near = x > -0.6931472
    return jnp.where(
        near,
        jnp.log(-jnp.expm1(jnp.where(near, x, -0.5))),
        jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x))),
    )


def exprel(x: Array) -> Array:
    """(e^x - 1) / x, 1 at 0, with an accurate derivative everywhere.

    Example:
        >>> import jax
        >>> from divjax.core import exprel
        >>> float(exprel(0.0)), float(jax.grad(exprel)(0.0))
        (1.0, 0.5)
    """
    small = jnp.abs(x) < 0.1
    near = jnp.where(small, x, 0.0)
    series = jnp.ones_like(near)
    for k in range(8, 1, -1):  # 1 + x/2 (1 + x/3 (1 + ...))
        series = 1.0 + near / k * series
    large = x > 40.0  # e^x / x in logarithms: inf - inf has no derivative
    middle = jnp.where(small | large, 1.0, x)
    far = jnp.where(large & (x < jnp.inf), x, 50.0)
    value = jnp.where(large, jnp.exp(_less_log(far)), jnp.expm1(middle) / middle)
    return jnp.where(x == jnp.inf, x, jnp.where(small, series, value))


@jax.custom_jvp
def _less_log(x: Array) -> Array:
    """x - log x, its slope in one piece."""
    return x - jnp.log(x)


@_less_log.defjvp
def _less_log_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,) = primals
    return _less_log(x), (1.0 - 1.0 / x) * tangents[0]


def log_mean_exp(x: Array, axis: int = -1, where: Array | None = None) -> Array:
    """log of the mean of e^x over an axis, in float32 at least; -inf where nothing counts.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.core import log_mean_exp
        >>> float(log_mean_exp(jnp.array([2.0, 2.0])))
        2.0
    """
    x = jnp.asarray(x)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    counts = jnp.ones_like(x, bool) if where is None else jnp.broadcast_to(where, x.shape)
    count = jnp.sum(counts, axis=axis, dtype=jnp.int32)
    some = jnp.any(counts & (x > -jnp.inf), axis=axis, keepdims=True)
    total = jax.nn.logsumexp(jnp.where(some, x, 0.0), axis=axis, where=counts | ~some)
    mean = total - jnp.log(jnp.maximum(count, 1).astype(x.dtype))
    return jnp.where(jnp.squeeze(some, axis), mean, -jnp.inf)


def safe_sqrt(x: Array) -> Array:
    """sqrt(x) with derivative 0 at 0, the convention for norms of equal points; NaN below 0.

    Example:
        >>> import jax
        >>> from divjax.core import safe_sqrt
        >>> float(jax.grad(safe_sqrt)(0.0))
        0.0
    """
    alive = x != 0
    return jnp.where(alive, jnp.sqrt(jnp.where(alive, x, 1.0)), 0.0)


def safe_norm(x: Array, axis: int = -1) -> Array:
    """Euclidean norm over an axis, with gradient 0 at the origin; no overflow of the squares.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.core import safe_norm
        >>> float(safe_norm(jnp.array([3.0, 4.0])))
        5.0
    """
    size = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=axis, keepdims=True, initial=0.0))
    size = jnp.where((size > 0) & (size < jnp.inf), size, 1.0)
    return jnp.squeeze(size, axis) * safe_sqrt(jnp.sum((x / size) ** 2, axis=axis))
