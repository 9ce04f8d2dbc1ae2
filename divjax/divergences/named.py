"""Named divergences of log-probabilities; each is `f_divergence` with one record.

Arguments, returns and errors of all of them are those of `f_divergence`: [*E, K] log-probs twice
in, [*E] nats out, D(p || q) in this order, truth at the boundary. From logits call
`f_divergence_from_logits` with the record of the same name.
"""

from divjax.core import Array, check
from divjax.divergences import generators
from divjax.divergences.f import f_divergence
from divjax.divergences.generators import Generator


def kl(log_p: Array, log_q: Array, *, axis: int = -1, where: Array | None = None) -> Array:
    """KL(p || q) = sum p log(p / q).

    Log-probs [*E, K] twice in, [*E] out, as in `f_divergence`.

    References:
        Kullback and Leibler, 1951.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import kl
        >>> p, q = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.log(jnp.array([0.2, 0.5, 0.3]))
        >>> print(f"{kl(p, q):.6f}")
        0.223805
    """
    return _of_laws(log_p, log_q, generators.kl, axis, where)


def reverse_kl(log_p: Array, log_q: Array, *, axis: int = -1, where: Array | None = None) -> Array:
    """KL(q || p) = sum q log(q / p): the one name whose second law is in front.

    Log-probs [*E, K] twice in, [*E] out, as in `f_divergence`.

    References:
        Kullback and Leibler, 1951.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import reverse_kl
        >>> p, q = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.log(jnp.array([0.2, 0.5, 0.3]))
        >>> print(f"{reverse_kl(p, q):.6f}")
        0.193794
    """
    return _of_laws(log_p, log_q, generators.reverse(generators.kl), axis, where)


def jeffreys(log_p: Array, log_q: Array, *, axis: int = -1, where: Array | None = None) -> Array:
    """KL(p || q) + KL(q || p) = sum (p - q) log(p / q).

    Log-probs [*E, K] twice in, [*E] out, as in `f_divergence`.

    References:
        Jeffreys, 1946.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import jeffreys
        >>> p, q = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.log(jnp.array([0.2, 0.5, 0.3]))
        >>> print(f"{jeffreys(p, q):.6f}")
        0.417599
    """
    return _of_laws(log_p, log_q, generators.jeffreys, axis, where)


def squared_hellinger(
    log_p: Array, log_q: Array, *, axis: int = -1, where: Array | None = None
) -> Array:
    """1 - sum sqrt(p q), at most 1.

    Log-probs [*E, K] twice in, [*E] out, as in `f_divergence`.

    References:
        Hellinger, 1909.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import squared_hellinger
        >>> p, q = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.log(jnp.array([0.2, 0.5, 0.3]))
        >>> print(f"{squared_hellinger(p, q):.6f}")
        0.051525
    """
    return _of_laws(log_p, log_q, generators.squared_hellinger, axis, where)


def pearson(log_p: Array, log_q: Array, *, axis: int = -1, where: Array | None = None) -> Array:
    """Pearson chi^2: sum (p - q)^2 / q.

    Log-probs [*E, K] twice in, [*E] out, as in `f_divergence`.

    References:
        Pearson, 1900.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import pearson
        >>> p, q = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.log(jnp.array([0.2, 0.5, 0.3]))
        >>> print(f"{pearson(p, q):.6f}")
        0.563333
    """
    return _of_laws(log_p, log_q, generators.pearson, axis, where)


def neyman(log_p: Array, log_q: Array, *, axis: int = -1, where: Array | None = None) -> Array:
    """Neyman chi^2: sum (p - q)^2 / p.

    Log-probs [*E, K] twice in, [*E] out, as in `f_divergence`.

    References:
        Neyman, 1949.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import neyman
        >>> p, q = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.log(jnp.array([0.2, 0.5, 0.3]))
        >>> print(f"{neyman(p, q):.6f}")
        0.363333
    """
    return _of_laws(log_p, log_q, generators.neyman, axis, where)


def tv(log_p: Array, log_q: Array, *, axis: int = -1, where: Array | None = None) -> Array:
    """Total variation: sum |p - q| / 2, at most 1; the gradient at p = q is 0.

    Log-probs [*E, K] twice in, [*E] out, as in `f_divergence`.

    References:
        Levin and Peres, Markov chains and mixing times, 2017.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import tv
        >>> p, q = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.log(jnp.array([0.2, 0.5, 0.3]))
        >>> print(f"{tv(p, q):.6f}")
        0.300000
    """
    return _of_laws(log_p, log_q, generators.tv, axis, where)


def lecam(log_p: Array, log_q: Array, *, axis: int = -1, where: Array | None = None) -> Array:
    """Le Cam (triangular): sum (p - q)^2 / (2 (p + q)), at most 1.

    Log-probs [*E, K] twice in, [*E] out, as in `f_divergence`.

    References:
        Le Cam, 1986; Topsoe, 2000.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import lecam
        >>> p, q = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.log(jnp.array([0.2, 0.5, 0.3]))
        >>> print(f"{lecam(p, q):.6f}")
        0.099286
    """
    return _of_laws(log_p, log_q, generators.lecam, axis, where)


def soft_reverse_kl(
    log_p: Array, log_q: Array, *, axis: int = -1, where: Array | None = None
) -> Array:
    """2 KL((p + q) / 2 || p), a softened reverse KL.

    Log-probs [*E, K] twice in, [*E] out, as in `f_divergence`.

    References:
        Shannon et al., arXiv 2001.04290.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import soft_reverse_kl
        >>> p, q = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.log(jnp.array([0.2, 0.5, 0.3]))
        >>> print(f"{soft_reverse_kl(p, q):.6f}")
        0.092045
    """
    return _of_laws(log_p, log_q, generators.soft_reverse_kl, axis, where)


def js(
    log_p: Array,
    log_q: Array,
    *,
    weight: float = 0.5,
    normalise: bool = False,
    axis: int = -1,
    where: Array | None = None,
) -> Array:
    """b KL(p || m) + (1 - b) KL(q || m) with m = b p + (1 - b) q.

    Args:
        log_p: [*E, K].
        log_q: [*E, K].
        weight: b in (0, 1), GKD's beta; 1/2 is the Jensen-Shannon divergence, at most log 2.
        normalise: divides by b (1 - b), so that b -> 1 gives KL(p || q) and b -> 0 KL(q || p).
        axis: the axis of the support.
        where: bool [*E, K].

    Returns:
        [*E].

    Raises:
        ValueError: weight out of its range; arrays as in `f_divergence`.

    References:
        Agarwal et al., GKD, arXiv 2306.13649; Lin, 1991.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import js
        >>> p, q = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.log(jnp.array([0.2, 0.5, 0.3]))
        >>> print(f"{js(p, q):.6f}")
        0.050875
    """
    return _of_laws(log_p, log_q, generators.js(weight, normalise=normalise), axis, where)


def skew_kl(
    log_p: Array, log_q: Array, *, weight: float = 0.1, axis: int = -1, where: Array | None = None
) -> Array:
    """KL(p || a p + (1 - a) q), at most -log a.

    Args:
        log_p: [*E, K].
        log_q: [*E, K].
        weight: a in (0, 1), the share of p in the mixture.
        axis: the axis of the support.
        where: bool [*E, K].

    Returns:
        [*E].

    Raises:
        ValueError: weight out of its range; arrays as in `f_divergence`.

    References:
        Ko et al., DistiLLM, arXiv 2402.03898.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import skew_kl
        >>> p, q = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.log(jnp.array([0.2, 0.5, 0.3]))
        >>> print(f"{skew_kl(p, q):.6f}")
        0.172951
    """
    return _of_laws(log_p, log_q, generators.skew_kl(weight), axis, where)


def skew_reverse_kl(
    log_p: Array, log_q: Array, *, weight: float = 0.1, axis: int = -1, where: Array | None = None
) -> Array:
    """KL(q || a q + (1 - a) p), at most -log a.

    Args:
        log_p: [*E, K].
        log_q: [*E, K].
        weight: a in (0, 1), the share of q in the mixture.
        axis: the axis of the support.
        where: bool [*E, K].

    Returns:
        [*E].

    Raises:
        ValueError: weight out of its range; arrays as in `f_divergence`.

    References:
        Ko et al., DistiLLM, arXiv 2402.03898.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import skew_reverse_kl
        >>> p, q = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.log(jnp.array([0.2, 0.5, 0.3]))
        >>> print(f"{skew_reverse_kl(p, q):.6f}")
        0.159263
    """
    return _of_laws(log_p, log_q, generators.skew_reverse_kl(weight), axis, where)


def alpha(
    log_p: Array, log_q: Array, *, order: float, axis: int = -1, where: Array | None = None
) -> Array:
    """(sum p^a q^(1 - a) - 1) / (a (a - 1)), with the KLs as limits at 1 and 0.

    Args:
        log_p: [*E, K].
        log_q: [*E, K].
        order: a, any finite number.
        axis: the axis of the support.
        where: bool [*E, K].

    Returns:
        [*E].

    Raises:
        ValueError: order out of its range; arrays as in `f_divergence`.

    References:
        Cressie and Read, 1984; Amari, 2009.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import alpha
        >>> p, q = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.log(jnp.array([0.2, 0.5, 0.3]))
        >>> print(f"{alpha(p, q, order=0.5):.6f}")
        0.206100
    """
    return _of_laws(log_p, log_q, generators.alpha(order), axis, where)


def tsallis(
    log_p: Array, log_q: Array, *, order: float, axis: int = -1, where: Array | None = None
) -> Array:
    """(sum p^a q^(1 - a) - 1) / (a - 1) = a * alpha(order=a).

    Args:
        log_p: [*E, K].
        log_q: [*E, K].
        order: a > 0.
        axis: the axis of the support.
        where: bool [*E, K].

    Returns:
        [*E].

    Raises:
        ValueError: order out of its range; arrays as in `f_divergence`.

    References:
        Tsallis, 1998.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.divergences import tsallis
        >>> p, q = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.log(jnp.array([0.2, 0.5, 0.3]))
        >>> print(f"{tsallis(p, q, order=1.5):.6f}")
        0.372495
    """
    return _of_laws(log_p, log_q, generators.tsallis(order), axis, where)


def _of_laws(
    log_p: Array, log_q: Array, generator: Generator, axis: int, where: Array | None
) -> Array:
    """f_divergence, of what can be laws: logits in their place would pass unnoticed."""
    value = f_divergence(log_p, log_q, generator, axis=axis, where=where)
    if where is None:  # masked entries may hold anything
        for name, x in (("log_p", log_p), ("log_q", log_q)):
            check.not_logits(name, x, axis, caller=generator.name)
    return value
