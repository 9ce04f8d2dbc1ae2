"""Divergences within an exponential family, from its log-partition function alone.

The densities are exp(<eta, t(x)> - A(eta)) by a common measure, and E_q (p/q)^a =
exp(A(a eta_p + (1 - a) eta_q) - a A(eta_p) - (1 - a) A(eta_q)). Everything is a Bregman
divergence of A, so that nothing cancels where the two laws are close. It is as accurate as A's
second derivatives: those of the log-partitions here keep their digits where a law is certain.
"""

from math import inf

import jax
import jax.numpy as jnp

from divjax.core import Array, check
from divjax.divergences.bregman import Potential, bregman


def exponential_family_kl(eta_p: Array, eta_q: Array, log_partition: Potential) -> Array:
    """KL(p || q) = A(eta_q) - A(eta_p) - <grad A(eta_p), eta_q - eta_p>.

    That is the Bregman divergence of A with the arguments swapped. Gaussians by their natural
    parameters lose as many digits in float32 as by their moments, see `gaussian.kl`.

    Args:
        eta_p: [*E, P] natural parameters of the law in front, inside the domain of A.
        eta_q: [*E, P].
        log_partition: A, [*E, P] -> [*E], differentiable; +inf outside its domain.

    Returns:
        [*E], >= 0, float32 at least; +inf where eta_q is outside the domain.

    Raises:
        ValueError: shapes or dtypes are not as above, or A returns another shape.

    References:
        Nielsen and Nock, arXiv 0911.4863.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import exponential_family_kl, poisson_log_partition
        >>> p, q = jnp.log(jnp.array([3.0])), jnp.log(jnp.array([5.0]))
        >>> print(f"{exponential_family_kl(p, q, poisson_log_partition):.6f}")
        0.467523
    """
    _check("exponential_family_kl", eta_p, eta_q)
    return bregman(eta_q, eta_p, log_partition)


def exponential_family_renyi(
    eta_p: Array, eta_q: Array, log_partition: Potential, *, order: float
) -> Array:
    """R_a(p || q) = (A(a eta_p + (1 - a) eta_q) - a A(eta_p) - (1 - a) A(eta_q)) / (a - 1).

    Args:
        eta_p: [*E, P] natural parameters, inside the domain of A.
        eta_q: [*E, P], inside the domain.
        log_partition: A, [*E, P] -> [*E], differentiable; +inf outside its domain.
        order: a >= 0, finite. 1 is the KL.

    Returns:
        [*E], >= 0, float32 at least; +inf where the mixed parameter leaves the domain.

    Raises:
        ValueError: the order is negative; arrays as in `exponential_family_kl`.

    References:
        Nielsen and Nock, arXiv 1105.3259.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import exponential_family_renyi, poisson_log_partition
        >>> p, q = jnp.log(jnp.array([3.0])), jnp.log(jnp.array([5.0]))
        >>> print(f"{exponential_family_renyi(p, q, poisson_log_partition, order=0.5):.6f}")
        0.254033
    """
    caller = "exponential_family_renyi"
    ok = isinstance(order, int | float) and 0 <= order < inf
    expected = "order must be a finite number >= 0"
    check.require(ok, caller, expected, order, "for example order=0.5")
    _check(caller, eta_p, eta_q)
    dtype = jnp.result_type(eta_p, eta_q, jnp.float32)
    p, q = eta_p.astype(dtype), eta_q.astype(dtype)
    if order == 0:
        lost = jnp.any(jnp.isnan(p) | jnp.isnan(q), axis=-1)
        return jnp.where(lost, jnp.nan, jnp.zeros_like(bregman(q, q, log_partition)))
    if order == 1:
        return bregman(q, p, log_partition)
    same = p == q  # -inf logits on both sides too
    safe_p, safe_q = jnp.where(same, 0.0, p), jnp.where(same, 0.0, q)
    mixed = jnp.where(same, p, order * safe_p + (1.0 - order) * safe_q)
    # Three points on a line, seen from the inner one: only positive terms.
    if order > 1:
        outer = bregman(mixed, p, log_partition)
        return bregman(q, p, log_partition) + outer / (order - 1.0)
    own, other = bregman(p, mixed, log_partition), bregman(q, mixed, log_partition)
    return order / (1.0 - order) * own + other


def _check(caller: str, eta_p: Array, eta_q: Array) -> None:
    names = ("eta_p", "eta_q")
    for name, eta in zip(names, (eta_p, eta_q), strict=True):
        check.floating(name, eta, caller=caller)
        check.rank_at_least(name, eta, 1, caller=caller)
    check.same_shape(names, (eta_p, eta_q), caller=caller)


def categorical_log_partition(eta: Array) -> Array:
    """Log sum exp over the last axis, [*E, K] -> [*E]: eta are the logits.

    References:
        Wainwright and Jordan, Graphical models, exponential families, 2008.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import categorical_log_partition
        >>> f"{categorical_log_partition(jnp.zeros(2)):.4f}"
        '0.6931'
    """
    return _log_sum_exp(eta)


def bernoulli_log_partition(eta: Array) -> Array:
    """sum log(1 + e^eta), [*E, P] -> [*E]: P independent coins with logits eta.

    References:
        Wainwright and Jordan, Graphical models, exponential families, 2008.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import bernoulli_log_partition
        >>> f"{bernoulli_log_partition(jnp.zeros(1)):.4f}"
        '0.6931'
    """
    return jnp.sum(_softplus(eta), axis=-1)


def poisson_log_partition(eta: Array) -> Array:
    """sum e^eta, [*E, P] -> [*E]: P independent counts with log-rates eta.

    References:
        Wainwright and Jordan, Graphical models, exponential families, 2008.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import poisson_log_partition
        >>> float(poisson_log_partition(jnp.zeros(2)))
        2.0
    """
    return jnp.sum(jnp.exp(eta), axis=-1)


@jax.custom_jvp
def _log_sum_exp(x: Array) -> Array:
    return jax.nn.logsumexp(x, axis=-1)


@_log_sum_exp.defjvp
def _log_sum_exp_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return _log_sum_exp(x), jnp.sum(_softmax(x) * dx, axis=-1)


@jax.custom_jvp
def _softmax(x: Array) -> Array:
    return jax.nn.softmax(x)


@_softmax.defjvp
def _softmax_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """p (dx - <p, dx>), centred twice: once loses the likeliest entry's own change to rounding."""
    (x,), (dx,) = primals, tangents
    p = _softmax(x)
    for _ in range(2):
        dx = dx - jnp.sum(p * dx, axis=-1, keepdims=True)
    return p, p * dx


@jax.custom_jvp
def _softplus(x: Array) -> Array:
    return jax.nn.softplus(x)


@_softplus.defjvp
def _softplus_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _softplus(*primals), _sigmoid(*primals) * tangents[0]


@jax.custom_jvp
def _sigmoid(x: Array) -> Array:
    return jax.nn.sigmoid(x)


@_sigmoid.defjvp
def _sigmoid_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return _sigmoid(x), _sigmoid(x) * _sigmoid(-x) * dx  # 1 - sigmoid(x) would be 0 above 17
