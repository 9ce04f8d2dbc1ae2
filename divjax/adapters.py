"""Foreign models and distributions at the edge: what they become is plain arrays and functions.

Each `apply` keeps the contract of `divjax.models.Apply`: noise comes from `key` alone, and only in
training. With one key per row (`divjax.core.row_keys`) the rows go through the model one by one, by
vmap, so that the noise of a row does not depend on its batch; a model that couples rows (batch
statistics) needs one key.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from divjax.core import Array, PyTree
from divjax.core.check import require
from divjax.divergences.gaussian import DiagonalGaussian, Gaussian
from divjax.models import Apply


class Stateful(NamedTuple):
    """A model with statistics that are not trained.

    Attributes:
        params: what the optimiser moves.
        apply: (params, inputs, *, key, train, carry) -> (outputs, carry).
        carry: the statistics at the start, for `Step.init(params, key, carry)`.
    """

    params: PyTree
    apply: Apply
    carry: PyTree


def linen(
    module: Any,
    variables: Mapping[str, PyTree],
    *,
    train_keyword: str | None = None,
    stream: str = "dropout",
) -> Stateful:
    """A flax.linen module with its variables.

    Args:
        module: called as module(inputs), or module(inputs, TRAIN_KEYWORD=bool).
        variables: as `module.init` returns them: "params", and collections such as "batch_stats".
        train_keyword: the keyword that says whether it is trained, for example "train".
        stream: the name of its random stream.

    Returns:
        Stateful. `carry` holds the other collections, () if there are none: hand it to
        step.init(params, key, carry) and to every apply, whose second output is the next one.

    Raises:
        ValueError: there are no "params"; in apply: `carry` is missing.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from divjax import adapters
        >>> module, x = nn.Dense(3), jnp.ones((2, 4))
        >>> params, apply, _ = adapters.linen(module, module.init(jax.random.key(0), x))
        >>> apply(params, x)[0].shape
        (2, 3)
    """
    require(
        "params" in variables, "linen", 'variables must have "params"', sorted(variables),
        "pass what module.init returned",
    )  # fmt: skip
    rest = {name: tree for name, tree in variables.items() if name != "params"}

    def call(
        params: PyTree, inputs: Array, key: Array | None, train: bool, carry: PyTree
    ) -> tuple[Array, PyTree]:
        keyword = {} if train_keyword is None else {train_keyword: train}
        rngs = None if key is None else {stream: key}
        require(
            not rest or bool(carry), "linen", f"carry must hold {sorted(rest)}", carry,
            "pass carry=, the third of what linen(...) returned: start with step.init(params, key, "
            "carry), call apply(..., carry=ctx.carry), return Loss(..., carry=carry)",
        )  # fmt: skip
        everything = {"params": params, **(carry or {})}
        mutable = sorted(carry) if train and carry else False
        out = module.apply(everything, inputs, rngs=rngs, mutable=mutable, **keyword)
        return (out[0], dict(out[1])) if mutable else (out, carry)

    return Stateful(variables["params"], _rowwise(call), rest or ())


def haiku(transformed: Any, params: PyTree, *, train_keyword: str | None = None) -> Stateful:
    """A pair (init, apply) whose apply is (params, rng, inputs) -> outputs, as of haiku.transform.

    Neither of haiku.without_apply_rng nor of haiku.transform_with_state, whose signatures differ.

    Args:
        transformed: has `.apply`.
        params: as `transformed.init` returned them.
        train_keyword: the keyword that says whether it is trained, for example "is_training".

    Returns:
        Stateful with carry ().

    Example:
        >>> import jax.numpy as jnp
        >>> from types import SimpleNamespace
        >>> from divjax import adapters
        >>> linear = SimpleNamespace(apply=lambda params, rng, x: x @ params["w"])
        >>> params, apply, _ = adapters.haiku(linear, {"w": jnp.ones((4, 3))})
        >>> apply(params, jnp.ones((2, 4)))[0].shape
        (2, 3)
    """

    def call(
        params: PyTree, inputs: Array, key: Array | None, train: bool, carry: PyTree
    ) -> tuple[Array, PyTree]:
        keyword = {} if train_keyword is None else {train_keyword: train}
        return transformed.apply(params, key, inputs, **keyword), carry

    return Stateful(params, _rowwise(call), ())


def equinox(
    module: PyTree, *, inference: Callable[[PyTree, bool], PyTree] | None = None
) -> Stateful:
    """An Equinox module, which maps one example; the batch is a vmap.

    Args:
        module: called as module(x), or module(x, key=key) while it is trained with a key.
        inference: (module, value) -> module for models that differ in training; for those with
            dropout pass equinox.nn.inference_mode.

    Returns:
        Stateful with carry (); params are the module with everything but floating arrays left out.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp
        >>> from divjax import adapters
        >>> params, apply, _ = adapters.equinox(eqx.nn.Linear(4, 3, key=jax.random.key(0)))
        >>> apply(params, jnp.ones((2, 4)))[0].shape
        (2, 3)
    """
    import equinox as eqx

    params, static = eqx.partition(module, eqx.is_inexact_array)

    def apply(
        params: PyTree,
        inputs: Array,
        *,
        key: Array | None = None,
        train: bool = False,
        carry: PyTree = (),
    ) -> tuple[Array, PyTree]:
        whole = eqx.combine(params, static)
        if inference is not None:
            whole = inference(whole, not train)
        if key is None or not train:
            return jax.vmap(whole)(inputs), carry
        keys = key if key.ndim else jax.random.split(key, inputs.shape[0])
        return jax.vmap(lambda x, k: whole(x, key=k))(inputs, keys), carry

    return Stateful(params, apply, ())


Call = Callable[[PyTree, Array, Array | None, bool, PyTree], tuple[Array, PyTree]]


def _rowwise(call: Call) -> Apply:
    """Keys only in training; with a key per row, row by row."""

    def apply(
        params: PyTree,
        inputs: Array,
        *,
        key: Array | None = None,
        train: bool = False,
        carry: PyTree = (),
    ) -> tuple[Array, PyTree]:
        if key is None or not train or key.ndim == 0:
            return call(params, inputs, key if train else None, train, carry)
        require(
            not carry, "apply", "key must be one key for a model with statistics", key,
            "pass ctx.key: rows that are coupled cannot have noise of their own",
        )  # fmt: skip

        def row(x: Array, k: Array) -> Array:
            return call(params, x[None], k, train, ())[0][0]

        return jax.vmap(row)(inputs, key), carry

    return apply


def laws(p: Any, q: Any) -> tuple[Any, Any]:
    """A pair of distrax distributions as what `divjax.divergences` takes.

    Categorical and Bernoulli become log-probs [*E, K], for `divergences.kl(*laws(p, q))` and every
    other function of log-probs. A Bernoulli is a law of two outcomes, failure and success, and can
    stand against a Categorical of two. An entry of probability 0 has the slope 0. Normal, and
    multivariate normals with diagonal, triangular or full scale, become
    `gaussian.DiagonalGaussian` [*E, D] or `gaussian.Gaussian` [*E, D, D], for
    `gaussian.kl(*laws(p, q))`; a Normal is a law of one dimension.

    Args:
        p: the law in front.
        q: the second law.

    Returns:
        The pair in the same order.

    Raises:
        ValueError: a distribution is none of these, or the two differ in kind or shape.

    Example:
        >>> import distrax
        >>> from divjax import adapters
        >>> from divjax.divergences import kl
        >>> p, q = distrax.Categorical(probs=[0.5, 0.5]), distrax.Categorical(probs=[0.25, 0.75])
        >>> print(f"{kl(*adapters.laws(p, q)):.4f}")
        0.1438
    """
    first, second = _law("p", p), _law("q", q)
    discrete = isinstance(first, jax.Array), isinstance(second, jax.Array)
    require(
        discrete[0] == discrete[1], "laws", "p and q must be of one kind",
        f"{type(p).__name__} and {type(q).__name__}", "pass two discrete or two Gaussian laws",
    )  # fmt: skip
    shapes = [list((law if discrete[0] else law.mean).shape) for law in (first, second)]
    require(
        shapes[0] == shapes[1], "laws", "p and q must have the same batch and the same outcomes",
        f"{type(p).__name__} {shapes[0]} and {type(q).__name__} {shapes[1]}",
        "broadcast one of them; a Bernoulli has 2 outcomes, failure first",
    )  # fmt: skip
    return first, second


def _law(name: str, law: Any) -> Any:
    import distrax

    if isinstance(law, distrax.Categorical | distrax.Bernoulli):
        return _log_probs(law)
    if isinstance(law, distrax.Normal):
        return DiagonalGaussian(law.mean()[..., None], law.variance()[..., None])
    if isinstance(law, distrax.MultivariateNormalDiag):
        return DiagonalGaussian(law.mean(), law.variance())
    known = isinstance(
        law, distrax.MultivariateNormalTri | distrax.MultivariateNormalFullCovariance
    )
    require(
        known, "laws", f"{name} must be a Categorical, Bernoulli or (multivariate) Normal",
        type(law).__name__, "or hand its log-probs or moments to the divergence yourself",
    )  # fmt: skip
    return Gaussian(law.mean(), law.covariance())


def _log_probs(law: Any) -> Array:
    """[*E, K]; of probabilities by their own logarithm, where `law.logits` has the slope NaN."""
    import distrax

    given = law._probs is not None  # distrax has no public way to ask
    if isinstance(law, distrax.Categorical):
        return _log(law.probs) if given else jax.nn.log_softmax(law.logits)
    if given:
        return jnp.stack([_log(law.probs, of_rest=True), _log(law.probs)], axis=-1)
    return jnp.stack([jax.nn.log_sigmoid(-law.logits), jax.nn.log_sigmoid(law.logits)], axis=-1)


def _log(p: Array, *, of_rest: bool = False) -> Array:
    """log p, or log(1 - p); -inf with slope 0 where that is log 0."""
    alive = p != (1 if of_rest else 0)  # NaN is alive
    safe = jnp.where(alive, p, 0.5)
    return jnp.where(alive, jnp.log1p(-safe) if of_rest else jnp.log(safe), -jnp.inf)
