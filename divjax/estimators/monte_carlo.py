"""Divergences from samples whose log-probabilities are known under both laws.

The value and the gradient of a sample estimate are two choices. Differentiating a sample value
does not give the gradient of what it estimates: the law that drew the samples moves too. So an
estimate of the value (`under_p`, `under_q`, `k1`, `k2`, `k3`), an estimate of the gradient
(`score_under_p`, `score_under_q`) and their union (`with_gradient`) are separate functions; the
guide on estimators tells which pairing has the gradient of which divergence.

Every function takes log-probs [*N] of the drawn samples and returns unreduced terms [*N].
"""

import jax
import jax.numpy as jnp

from divjax.core import Array, Estimate, check, masked_mean
from divjax.divergences import _terms, generators
from divjax.divergences.generators import Generator


def _log_ratio(log_p: Array, log_q: Array, mask: Array | None, caller: str) -> Array:
    """log p - log q in float32 at least; 0 where masked or impossible under both laws."""
    for name, x in (("log_p", log_p), ("log_q", log_q)):
        check.floating(name, x, caller=caller)
    check.same_shape(("log_p", "log_q"), (log_p, log_q), caller=caller)
    check.boolean_mask("mask", mask, log_p.shape, caller=caller)
    dtype = jnp.promote_types(jnp.promote_types(log_p.dtype, log_q.dtype), jnp.float32)
    p, q = log_p.astype(dtype), log_q.astype(dtype)
    alive = (p > -jnp.inf) | (q > -jnp.inf)
    alive = alive | jnp.isnan(p) | jnp.isnan(q)  # a NaN that counts is not hidden
    if mask is not None:
        alive = alive & mask
    return jnp.where(alive, p, 0.0) - jnp.where(alive, q, 0.0)


def under_q(
    log_p: Array,
    log_q: Array,
    generator: Generator,
    *,
    control: float = 0.0,
    mask: Array | None = None,
) -> Array:
    """f(p/q) + control (p/q - 1) at samples of q: unbiased for D_f(p || q), >= 0 for control 0.

    Args:
        log_p: [*N] log p at the samples.
        log_q: [*N] log q at the samples, which q drew.
        generator: the record. With reverse(kl), control 0 is k3 and control -1 is k1.
        control: coefficient of the control variate p/q - 1, whose mean under q is 0.
        mask: bool [*N]; masked samples give 0, with zero gradient, whatever they hold.

    Returns:
        [*N], float32 at least.

    Raises:
        ValueError: shapes, dtypes or mask are not as above.

    References:
        Schulman, Approximating KL divergence, 2020.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import generators
        >>> from divjax.estimators import under_q
        >>> terms = under_q(jnp.array([-1.0]), jnp.array([-1.5]), generators.reverse(generators.kl))
        >>> print(f"{terms[0]:.4f}")
        0.1487
    """
    u = _log_ratio(log_p, log_q, mask, "under_q")
    terms = _terms.at_sample(generator, u)
    return terms + control * jnp.expm1(u) if control else terms


def under_p(
    log_p: Array,
    log_q: Array,
    generator: Generator,
    *,
    control: float = 0.0,
    mask: Array | None = None,
) -> Array:
    """(q/p) f(p/q) + control (q/p - 1) at samples of p: unbiased for D_f(p || q).

    Args:
        log_p: [*N] log p at the samples, which p drew.
        log_q: [*N] log q at the samples.
        generator: the record. With kl, control 0 is k3 and control -1 is k1.
        control: coefficient of the control variate q/p - 1, whose mean under p is 0.
        mask: bool [*N].

    Returns:
        [*N], >= 0 for control 0.

    Raises:
        ValueError: as `under_q`.

    References:
        Schulman, Approximating KL divergence, 2020.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import generators
        >>> from divjax.estimators import under_p
        >>> print(f"{under_p(jnp.array([-1.0]), jnp.array([-1.5]), generators.kl)[0]:.4f}")
        0.1065
    """
    u = _log_ratio(log_p, log_q, mask, "under_p")
    terms = _terms.at_sample(generators.reverse(generator), -u)
    return terms + control * jnp.expm1(-u) if control else terms


def k1(log_p: Array, log_q: Array, *, mask: Array | None = None) -> Array:
    """log p - log q at samples of p: unbiased for KL(p || q), of either sign, high variance.

    Args:
        log_p: [*N], of the law that drew the samples (the policy).
        log_q: [*N] (the reference).
        mask: bool [*N].

    Returns:
        [*N].

    Raises:
        ValueError: as `under_q`.

    References:
        Schulman, Approximating KL divergence, 2020.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.estimators import k1
        >>> float(k1(jnp.array([-1.0]), jnp.array([-1.5]))[0])
        0.5
    """
    return _log_ratio(log_p, log_q, mask, "k1")


def k2(log_p: Array, log_q: Array, *, mask: Array | None = None) -> Array:
    """(log p - log q)^2 / 2 at samples of p: >= 0, biased for KL(p || q), exact in gradient.

    Args:
        log_p: [*N], of the law that drew the samples.
        log_q: [*N].
        mask: bool [*N].

    Returns:
        [*N].

    Raises:
        ValueError: as `under_q`.

    References:
        Schulman, Approximating KL divergence, 2020.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.estimators import k2
        >>> float(k2(jnp.array([-1.0]), jnp.array([-1.5]))[0])
        0.125
    """
    u = _log_ratio(log_p, log_q, mask, "k2")
    far = jnp.isinf(u)  # infinite, with the derivative of the finite terms: none
    return jnp.where(far, jnp.inf, 0.5 * jnp.where(far, 0.0, u) ** 2)


def k3(log_p: Array, log_q: Array, *, mask: Array | None = None) -> Array:
    """q/p - 1 + log p/q at samples of p: unbiased for KL(p || q) and >= 0.

    It is `under_p` of the record kl. Past log q/p = 88 it is +inf in float32, never NaN.

    Args:
        log_p: [*N], of the law that drew the samples.
        log_q: [*N].
        mask: bool [*N].

    Returns:
        [*N].

    Raises:
        ValueError: as `under_q`.

    References:
        Schulman, Approximating KL divergence, 2020.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.estimators import k3
        >>> print(f"{k3(jnp.array([-1.0]), jnp.array([-1.5]))[0]:.4f}")
        0.1065
    """
    return under_p(log_p, log_q, generators.kl, mask=mask)


def score_under_p(
    log_p: Array,
    log_q: Array,
    generator: Generator,
    *,
    baseline: Array | float = 0.0,
    mask: Array | None = None,
) -> Array:
    """Terms whose mean has the gradient of D_f(p || q) by p: (f'(p/q) - baseline) log p.

    Args:
        log_p: [*N], differentiated; of the law that drew the samples.
        log_q: [*N].
        generator: the record.
        baseline: [] or [*N], independent of its sample; it changes the variance alone.
        mask: bool [*N].

    Returns:
        [*N]; only the gradient has a meaning.

    Raises:
        ValueError: as `under_q`.

    References:
        Williams, 1992; Go et al., f-DPG, arXiv 2302.08215.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.divergences import generators
        >>> from divjax.estimators import score_under_p
        >>> f = lambda log_p: score_under_p(log_p, jnp.array([-1.5]), generators.kl).sum()
        >>> float(jax.grad(f)(jnp.array([-1.0]))[0])
        0.5
    """
    u = _log_ratio(log_p, log_q, mask, "score_under_p")
    return _score(_terms.slope_at_sample(generator, u) - baseline, log_p, mask)


def score_under_q(
    log_p: Array,
    log_q: Array,
    generator: Generator,
    *,
    baseline: Array | float = 0.0,
    mask: Array | None = None,
) -> Array:
    """Terms whose mean has the gradient of D_f(p || q) by q: (f - t f' - baseline) log q.

    Args:
        log_p: [*N].
        log_q: [*N], differentiated; of the law that drew the samples.
        generator: the record.
        baseline: [] or [*N].
        mask: bool [*N].

    Returns:
        [*N]; only the gradient has a meaning.

    Raises:
        ValueError: as `under_q`.

    References:
        Go et al., f-DPG, arXiv 2302.08215.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.divergences import generators
        >>> from divjax.estimators import score_under_q
        >>> g = generators.reverse(generators.kl)
        >>> f = lambda log_q: score_under_q(jnp.array([-1.5]), log_q, g).sum()
        >>> float(jax.grad(f)(jnp.array([-1.0]))[0])
        0.5
    """
    u = _log_ratio(log_p, log_q, mask, "score_under_q")
    weight = _terms.slope_at_sample(generators.reverse(generator), -u)
    return _score(weight - baseline, log_q, mask)


def _score(weight: Array, log_law: Array, mask: Array | None) -> Array:
    alive = log_law > -jnp.inf if mask is None else mask & (log_law > -jnp.inf)
    log_law = jnp.where(alive, log_law, 0.0)
    return jax.lax.stop_gradient(weight) * log_law


def with_gradient(value: Array, gradient: Array) -> Array:
    """The value of the first argument with the gradient of the second.

    Args:
        value: [*N], for example `k3(log_p, log_q)`.
        gradient: [*N], for example `score_under_p(log_p, log_q, generators.kl)` or `k2(...)`.

    Returns:
        [*N].

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.estimators import k2, k3, with_gradient
        >>> f = lambda p, q: with_gradient(k3(p, q), k2(p, q)).sum()
        >>> value, slope = jax.value_and_grad(f)(jnp.array([-1.0]), jnp.array([-1.5]))
        >>> print(f"{value:.4f} {slope[0]:.1f}")
        0.1065 0.5
    """
    check.same_shape(("value", "gradient"), (value, gradient), caller="with_gradient")
    return jax.lax.stop_gradient(value) + (gradient - jax.lax.stop_gradient(gradient))


def estimate(terms: Array, *, mask: Array | None = None) -> Estimate:
    """The mean of independent terms, with what its error bars need.

    Args:
        terms: [N], one per sample.
        mask: bool [N].

    Returns:
        Estimate(value [], terms [N], n_effective []).

    Raises:
        ValueError: terms are not [N], or the mask does not match.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.estimators import estimate, standard_error
        >>> e = estimate(jnp.array([1.0, 2.0, 3.0]))
        >>> print(f"{e.value} +- {standard_error(e):.4f}")
        2.0 +- 0.5774
    """
    check.require(terms.ndim == 1, "estimate", "terms must be [N]", terms, "pass terms.ravel()")
    check.boolean_mask("mask", mask, terms.shape, caller="estimate")
    mean = masked_mean(terms, mask)
    kept = terms if mask is None else jnp.where(mask, terms, mean.value)
    return Estimate(mean.value, kept, mean.weight)


def standard_error(e: Estimate) -> Array:
    """The standard error of the mean of independent terms; NaN below two samples.

    Args:
        e: what `estimate` returned.

    Returns:
        [] sqrt(sum (terms - value)^2 / (n (n - 1))).

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.estimators import estimate, standard_error
        >>> float(standard_error(estimate(jnp.array([1.0, 3.0]))))
        1.0
    """
    n = e.n_effective
    squares = jnp.sum((e.terms - e.value) ** 2, axis=-1)
    return jnp.where(n > 1, jnp.sqrt(squares / (n * (n - 1.0))), jnp.nan)
