"""Linear algebra of covariances [..., d, d], singular ones too; the case d = 1 is elementwise.

No eigenvector is differentiated, as its derivative is NaN at repeated eigenvalues: roots and
distances have closed-form derivatives through the Sylvester equation, whose own derivative is a
Sylvester equation again.
"""

import jax
import jax.numpy as jnp
import numpy as np

from divjax.core import Array


def transpose(x: Array) -> Array:
    return jnp.matrix_transpose(x)


def diagonal(x: Array) -> Array:
    return jnp.linalg.diagonal(x)


def eigh(x: Array) -> tuple[Array, Array]:
    """Eigenvalues [..., d], exactly 0 where they are rounding or negative; vectors [..., d, d]."""
    if x.shape[-1] == 1:
        return jnp.maximum(x[..., 0], 0.0), jnp.ones_like(x)
    w, v = jnp.linalg.eigh(x)
    floor = 4.0 * float(np.finfo(x.dtype).eps) * jnp.max(jnp.abs(w), axis=-1, keepdims=True)
    return jnp.where(w > floor, w, 0.0), v


def cholesky(x: Array) -> tuple[Array, Array]:
    """The factor, and whether x is positive definite; elsewhere the factor of the identity."""

    def factor(x: Array) -> Array:
        return jnp.sqrt(x) if x.shape[-1] == 1 else jnp.linalg.cholesky(x)

    pivots = diagonal(factor(jax.lax.stop_gradient(x)))
    definite = jnp.all(pivots > 0, axis=-1)
    return factor(
        jnp.where(definite[..., None, None], x, jnp.eye(x.shape[-1], dtype=x.dtype))
    ), definite


def solve(factor: Array, x: Array) -> Array:
    """factor^-1 x for a lower triangular factor."""
    if factor.shape[-1] == 1:
        return x / factor
    return jax.lax.linalg.triangular_solve(factor, x, left_side=True, lower=True)


@jax.custom_jvp
def sylvester(p: Array, q: Array, f: Array) -> Array:
    """z with p z + z q = f, for symmetric p, q >= 0; 0 along their common null directions."""
    (a, v), (b, w) = eigh(p), eigh(q)
    sums = a[..., :, None] + b[..., None, :]
    alive = sums > 0
    return (
        v
        @ jnp.where(alive, (transpose(v) @ f @ w) / jnp.where(alive, sums, 1.0), 0.0)
        @ transpose(w)
    )


@sylvester.defjvp
def _sylvester_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    p, q, _ = primals
    dp, dq, df = tangents
    z = sylvester(*primals)
    return z, sylvester(p, q, df - dp @ z - z @ dq)


@jax.custom_jvp
def sqrt(x: Array) -> Array:
    """The symmetric square root."""
    w, v = eigh(x)
    return (v * jnp.sqrt(w)[..., None, :]) @ transpose(v)


@sqrt.defjvp
def _sqrt_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    root = sqrt(*primals)
    return root, sylvester(root, root, tangents[0])


@jax.custom_jvp
def squared_bures(a: Array, b: Array) -> Array:
    """tr(A + B - 2 (A^{1/2} B A^{1/2})^{1/2}), [..., d, d] twice in, [...] out.

    With K = A^{1/2} and J the square root of B closest to it, this is |J - K|^2, and Z = J - K
    solves A Z + Z R = (B - A) K with R = K J: accurate however close A and B are.
    """
    (wa, va), (wb, vb) = eigh(a), eigh(b)
    root = jnp.sqrt(wa)
    overlap = root[..., :, None] * (transpose(va) @ vb) * jnp.sqrt(wb)[..., None, :]
    if a.shape[-1] == 1:
        u, r = jnp.ones_like(overlap), overlap[..., 0]
    else:
        u, r, _ = jnp.linalg.svd(overlap)
    total = jnp.sum(diagonal(a) + diagonal(b), axis=-1)
    far = total - 2.0 * jnp.sum(r, axis=-1)
    right = transpose(va) @ (b - a) @ ((va * root[..., None, :]) @ u)
    sums = wa[..., :, None] + r[..., None, :]
    z = jnp.where(sums > 0, right / jnp.where(sums > 0, sums, 1.0), 0.0)
    rows = jnp.where(wa > 0, jnp.sum(z * z, axis=-1), diagonal(transpose(va) @ b @ va))
    return jnp.where(far < 0.01 * total, jnp.sum(rows, axis=-1), far)


@squared_bures.defjvp
def _bures_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    a, b = primals
    slopes = _bures_slope(a, b), _bures_slope(b, a)
    change = sum(jnp.sum(s * t, axis=(-1, -2)) for s, t in zip(slopes, tangents, strict=True))
    return squared_bures(a, b), jnp.asarray(change)


def _bures_slope(a: Array, b: Array) -> Array:
    """I - T by A, where T is the linear map that carries N(0, A) to N(0, B)."""
    k = sqrt(a)
    z = sylvester(a, sqrt(k @ b @ k), (b - a) @ k)
    w, v = eigh(jax.lax.stop_gradient(a))
    v = jnp.where((w == 0)[..., None, :], v, 0.0)
    return v @ transpose(v) - sylvester(k, k, z + transpose(z))
