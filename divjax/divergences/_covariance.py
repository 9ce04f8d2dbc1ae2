"""Linear algebra of covariances [..., d, d], singular ones too; the case d = 1 is elementwise.

No eigenvector is differentiated, as its derivative is NaN at repeated eigenvalues: roots and
distances have closed-form derivatives through the Sylvester equation, whose own derivative is a
Sylvester equation again.

Factorisations form one chain, by `stack` or `after`: on a CPU of few cores, batched LAPACK calls
that run at the same time can wait for each other's threads for ever (seen with jaxlib 0.10.2).
"""

from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np

from divjax.core import Array


def transpose(x: Array) -> Array:
    return jnp.matrix_transpose(x)


def diagonal(x: Array) -> Array:
    return jnp.linalg.diagonal(x)


def product(*factors: Array) -> Array:
    """The matrix product, in full precision on all platforms."""
    return reduce(partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST), factors)


def after(x: Array, done: Array) -> Array:
    """x, not before `done`: a dependence that no compiler sees through."""
    never = jnp.any(jnp.abs(jax.lax.stop_gradient(done)) < 0)
    return jnp.where(never, jnp.nan, x)


def eigh(x: Array) -> tuple[Array, Array]:
    """Eigenvalues [..., d], exactly 0 where they are rounding or negative; vectors [..., d, d]."""
    if x.shape[-1] == 1:
        return jnp.maximum(x[..., 0], 0.0), jnp.ones_like(x)
    w, v = jnp.linalg.eigh(x)
    floor = 4.0 * float(np.finfo(x.dtype).eps) * jnp.max(jnp.abs(w), axis=-1, keepdims=True)
    return jnp.where(w > floor, w, 0.0), v


@jax.custom_jvp
def root(x: Array) -> tuple[Array, Array]:
    """The Cholesky factor L of x and L^-1; the identity and 0 where x is not positive definite."""
    if x.shape[-1] == 1:
        alive = x > 0
        factor = jnp.sqrt(jnp.where(alive, x, 1.0))
        return factor, jnp.where(alive, 1.0 / factor, 0.0)
    eye = jnp.broadcast_to(jnp.eye(x.shape[-1], dtype=x.dtype), x.shape)
    factor = jnp.linalg.cholesky(x)
    alive = jnp.all(diagonal(factor) > 0, axis=-1)[..., None, None]
    factor = jnp.where(alive, factor, eye)
    inverse = jax.lax.linalg.triangular_solve(factor, eye, left_side=True, lower=True)
    return factor, jnp.where(alive, inverse, 0.0)


@root.defjvp
def _root_jvp(
    primals: tuple[Array], tangents: tuple[Array]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    factor, inverse = root(*primals)
    change = product(inverse, tangents[0], transpose(inverse))
    change = change + transpose(change)
    lower = jnp.tril(change, -1) / 2 + change * jnp.eye(change.shape[-1], dtype=change.dtype) / 4
    return (factor, inverse), (product(factor, lower), -product(lower, inverse))


@jax.custom_jvp
def sylvester(p: Array, q: Array, f: Array) -> Array:
    """z with p z + z q = f, for symmetric p, q >= 0; 0 along their common null directions."""
    (a, b), (v, w) = eigh(jnp.stack([p, q]))
    sums = a[..., :, None] + b[..., None, :]
    alive = sums > 0
    turned = product(transpose(v), f, w) / jnp.where(alive, sums, 1.0)
    return product(v, jnp.where(alive, turned, 0.0), transpose(w))


@sylvester.defjvp
def _sylvester_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    p, q, _ = primals
    dp, dq, df = tangents
    z = sylvester(*primals)
    return z, sylvester(p, q, df - product(dp, z) - product(z, dq))


@jax.custom_jvp
def sqrt(x: Array) -> Array:
    """The symmetric square root."""
    w, v = eigh(x)
    return product(v * jnp.sqrt(w)[..., None, :], transpose(v))


@sqrt.defjvp
def _sqrt_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    k = sqrt(*primals)
    return k, sylvester(k, k, tangents[0])


@jax.custom_jvp
def squared_bures(a: Array, b: Array) -> Array:
    """tr(A + B - 2 (A^{1/2} B A^{1/2})^{1/2}), [..., d, d] twice in, [...] out.

    With K = A^{1/2} and J the square root of B closest to it, this is |J - K|^2, and Z = J - K
    solves A Z + Z R = (B - A) K with R = K J: accurate however close A and B are.
    """
    (wa, wb), (va, vb) = eigh(jnp.stack([a, b]))
    deviation = jnp.sqrt(wa)
    overlap = deviation[..., :, None] * product(transpose(va), vb) * jnp.sqrt(wb)[..., None, :]
    if a.shape[-1] == 1:
        u, r = jnp.ones_like(overlap), overlap[..., 0]
    else:
        u, r, _ = jnp.linalg.svd(overlap)
    total = jnp.sum(diagonal(a) + diagonal(b), axis=-1)
    far = total - 2.0 * jnp.sum(r, axis=-1)
    right = product(transpose(va), b - a, va * deviation[..., None, :], u)
    sums = wa[..., :, None] + r[..., None, :]
    z = jnp.where(sums > 0, right / jnp.where(sums > 0, sums, 1.0), 0.0)
    rows = jnp.where(wa > 0, jnp.sum(z * z, axis=-1), diagonal(product(transpose(va), b, va)))
    return jnp.where(far < 0.01 * total, jnp.sum(rows, axis=-1), far)


@squared_bures.defjvp
def _bures_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    a, b = primals
    value = squared_bures(a, b)
    pair = after(jnp.stack(primals), value)
    slopes = _bures_slope(pair, pair[::-1])
    change = jnp.sum(slopes * jnp.stack(tangents), axis=(0, -1, -2))
    return value, change


def _bures_slope(a: Array, b: Array) -> Array:
    """I - T by A, where T is the linear map that carries N(0, A) to N(0, B)."""
    k = sqrt(a)
    z = sylvester(a, sqrt(product(k, b, k)), product(b - a, k))
    x = sylvester(k, k, z + transpose(z))  # T - I where A has variance
    w, v = eigh(jax.lax.stop_gradient(after(k, x)))
    v = jnp.where((w == 0)[..., None, :], v, 0.0)
    return product(v, transpose(v)) - x
