"""Row functions of logits that are never formed as a whole: [N, V] exists block by block.

Two entrances on one layout of blocks. `fused_rows` gives a value per row and recomputes the
logits when it is differentiated. `fused_sum` gives a weighted sum whose weights are known, so that
the derivatives are formed in the same pass: two thirds of the matrix products.
"""

from collections.abc import Callable
from functools import partial
from math import gcd
from typing import Any

import jax
import jax.numpy as jnp

from divjax.core import Array, PyTree, check
from divjax.core.reduce import vary_like
from divjax.divergences._blocks import (
    Layout,
    Problem,
    RowFn,
    block_of,
    lay_out,
    living,
    outputs,
    project,
    wide,
)

_SLICES = 16  # of a head's gradient: a block's share of it is never a second array of its size
_PARTS = 16  # over how many devices a vocabulary may lie, if their number divides this


# --- an output per row, recomputed by whatever differentiates it ---


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _project_wide(dtypes: tuple[Any, Any], hidden: Array, head: Array) -> Array:
    """`project` of wide copies: the product sees the types of old, derivatives stay wide."""
    return project(hidden.astype(dtypes[0]), head.astype(dtypes[1]))


@_project_wide.defjvp
def _project_wide_jvp(dtypes: tuple[Any, Any], primals: Any, tangents: Any) -> Any:
    hidden, head = (x.astype(dtype) for x, dtype in zip(primals, dtypes, strict=True))
    moved, turned = tangents
    return project(hidden, head), project(moved, head) + project(hidden, turned)


def fused_rows(
    row_fn: RowFn, *sources: Any, mask: Array | None = None, block: int | None = None
) -> PyTree:
    """row_fn(*logits), a value per row, without an array of all rows' logits.

    Derivatives of any order and mode recompute the logits block by block: a gradient costs six
    matrix products of each head in place of four. `fused_sum` costs four.

    Args:
        row_fn: maps a block of each source, [b, V] logits (a `TopK` as it is), to an array
            [b, ...] or a tree of such, row by row. Several in one pass: return several.
        sources: `Linear`, `Logits` or `TopK` with the same rows *E; other arrays [*E, ...], for
            example token ids, reach row_fn as [b, ...].
        mask: bool [*E]; rows that are False may hold NaN, give 0 and have no gradient.
        block: rows at a time; by default so many that their logits are a quarter of a head, or
            2^22 numbers if that is more. Fewer cost less memory and more time.

    Returns:
        What row_fn gives, with [*E, ...] in place of [b, ...].

    Raises:
        ValueError: the sources' rows or shapes do not fit together.

    References:
        Hsu et al., 2024, arXiv 2410.10989 (rows in blocks); Wijmans et al., 2024,
        arXiv 2411.09009 (no logits in memory).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.divergences import Linear, fused_rows
        >>> head = Linear(jnp.ones((2, 3, 4)), jnp.ones((100, 4)))
        >>> fused_rows(lambda z: (z.max(-1), jax.nn.logsumexp(z, -1)), head)[1].shape
        (2, 3)
    """
    lay = lay_out("fused_rows", row_fn, sources, mask, block)
    hidden, heads = lay.problem.hidden, lay.problem.heads
    dtypes = [(h.dtype, w.dtype) for h, w in zip(hidden, heads, strict=True)]
    wide_heads = tuple(w.astype(wide(w)) for w in heads)

    def body(_: None, rows: Any) -> tuple[None, PyTree]:
        one = living(lay.problem._replace(hidden=rows[0], rows=rows[1], mask=rows[2]))
        products = tuple(
            _project_wide(d, h.astype(wide(h)), w)
            for d, h, w in zip(dtypes, one.hidden, wide_heads, strict=True)
        )
        return None, outputs(lay.pure, one, products)

    cut = (hidden, lay.problem.rows, lay.problem.mask)
    blocks = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), cut)
    return lay.restore(jax.lax.scan(jax.checkpoint(body, prevent_cse=False), None, blocks)[1])


# --- a weighted sum: derivatives in the same pass ---


def _weighted(values: PyTree, weights: PyTree) -> Array:
    products = jax.tree.map(lambda x, w: jnp.sum(x * w), values, weights)
    return jax.tree.reduce(jnp.add, products)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _total(pure: Any, count: int, weights: PyTree, problem: Problem) -> tuple[Array, PyTree]:
    def body(i: Array) -> PyTree:
        one = block_of(problem, i)
        return outputs(pure, one, tuple(map(project, one.hidden, one.heads)))

    values = jax.lax.map(body, jnp.arange(count))
    return _weighted(values, weights), values


def _moving(tangents: Problem) -> PyTree:
    """Which arrays have a derivative that somebody asked for."""
    return jax.tree.map(lambda t: not _is_zero(t), tangents, is_leaf=_is_leaf)


@partial(_total.defjvp, symbolic_zeros=True)
def _total_jvp(pure: Any, count: int, primals: Any, tangents: Any) -> Any:
    weights, problem = primals
    wanted = _moving(tangents[1])
    (total, values), slopes = _slopes(pure, count, wanted, weights, problem)
    flat = zip(jax.tree.leaves(wanted), jax.tree.leaves(tangents[1], is_leaf=_is_leaf), strict=True)
    moved = [t for w, t in flat if w]
    change = sum(
        (jnp.sum(s * t.astype(s.dtype)) for s, t in zip(slopes, moved, strict=True)),
        start=jnp.zeros_like(total),
    )
    by_weight = zip(
        jax.tree.leaves(tangents[0], is_leaf=_is_leaf), jax.tree.leaves(values), strict=True
    )
    change += sum((jnp.sum(dw * v) for dw, v in by_weight if not _is_zero(dw)), start=0.0)
    return (total, values), (change, jax.tree.map(jnp.zeros_like, values))


def _is_leaf(t: Any) -> bool:
    return type(t) is jax.custom_derivatives.SymbolicZero


def _is_zero(t: Any) -> bool:
    """No tangent: symbolically zero, or of a type that has none."""
    return _is_leaf(t) or t.dtype == jax.dtypes.float0


def _chosen(tree: PyTree, wanted: PyTree) -> tuple[list[Array], Callable[[list[Array]], PyTree]]:
    """The wanted leaves, and a function that puts others in their place."""
    leaves: list[Array] = jax.tree.leaves(tree)
    structure: Any = jax.tree.structure(tree)
    flags = jax.tree.leaves(wanted)

    def put(chosen: list[Array]) -> PyTree:
        left = iter(chosen)
        return structure.unflatten(
            [next(left) if w else x for x, w in zip(leaves, flags, strict=True)]
        )

    return [x for x, w in zip(leaves, flags, strict=True) if w], put


def _block_slopes(
    pure: Any, wanted: Problem, one: Problem, weights: PyTree
) -> tuple[PyTree, tuple[Array | None, ...], list[Array], list[Array]]:
    """Outputs of one block; derivatives of their weighted sum by products, rows and shared."""
    products = tuple(map(project, one.hidden, one.heads))
    turning = tuple(a or b for a, b in zip(wanted.hidden, wanted.heads, strict=True))
    chosen, put = _chosen(products, turning)
    rows, put_rows = _chosen(one.rows, wanted.rows)
    shared, put_shared = _chosen(one.shared, wanted.shared)

    def fn(z: list[Array], r: list[Array], s: list[Array]) -> PyTree:
        moved = one._replace(rows=put_rows(r), shared=put_shared(s))
        return outputs(pure, moved, put(z))

    values, pull = jax.vjp(fn, chosen, rows, shared)
    dz, drows, dshared = pull(jax.tree.map(lambda w, x: w.astype(x.dtype), weights, values))
    left = iter(dz)
    return values, tuple(next(left) if t else None for t in turning), drows, dshared


def _slopes(
    pure: Any, count: int, wanted: Problem, weights: PyTree, problem: Problem
) -> tuple[tuple[Array, PyTree], list[Array]]:
    """The total, the rows' values, and the derivatives of the total by the wanted arrays."""
    shared, _ = _chosen(problem.shared, wanted.shared)
    heads = [w for w, want in zip(problem.heads, wanted.heads, strict=True) if want]
    like = jax.tree.leaves((weights, problem))
    start = [vary_like(jnp.zeros(x.shape, wide(x)), *like) for x in (*heads, *shared)]
    step = jax.checkpoint(partial(_block_slopes, pure, wanted), prevent_cse=False)

    def body(sums: list[Array], i: Array) -> tuple[list[Array], Any]:
        one = block_of(problem, i)
        here = jax.tree.map(lambda w: w[i], weights)
        values, dz, drows, dshared = step(one, here)
        dhidden = [
            jax.lax.dot_general(d, w, (((1,), (0,)), ((), ())), preferred_element_type=d.dtype)
            for d, w, want in zip(dz, one.heads, wanted.hidden, strict=True)
            if want
        ]
        turned = [(d, h) for d, h, want in zip(dz, one.hidden, wanted.heads, strict=True) if want]
        sums = [
            *(_add_product(s, *pair) for s, pair in zip(sums, turned, strict=False)),
            *(s + d for s, d in zip(sums[len(turned) :], dshared, strict=True)),
        ]
        return sums, (values, dhidden, drows)

    sums, (values, dhidden, drows) = jax.lax.scan(body, start, jnp.arange(count))
    by_row = [jnp.moveaxis(x, 0, 1) for x in (*dhidden, *drows)]
    n = len(dhidden)
    slopes = [*by_row[:n], *sums[: len(heads)], *by_row[n:], *sums[len(heads) :]]
    return (_weighted(values, weights), values), slopes


def _add_product(total: Array, dz: Array, hidden: Array) -> Array:
    """total [V, H] + dz^T hidden, a few rows of it at a time, in place.

    A slice takes some rows of each of `_PARTS` equal parts of the vocabulary: a head that lies in
    parts on several devices is cut the same way on each, and nothing has to move.
    """
    size, width = total.shape
    parts = gcd(size, _PARTS)
    rows = size // parts
    part = -(-rows // _SLICES)

    def body(i: Array, total: Array) -> Array:  # a loop, as XLA would form all products at once
        start = jnp.minimum(i * part, rows - part)
        columns = jax.lax.dynamic_slice_in_dim(dz.reshape(-1, parts, rows), start, part, 2)
        fresh = start + jnp.arange(part) >= i * part  # the last slice overlaps the one before it
        columns = jnp.where(fresh, columns, 0).reshape(-1, parts * part)
        product = jax.lax.dot_general(
            columns, hidden, (((0,), (0,)), ((), ())), preferred_element_type=total.dtype
        ).reshape(parts, part, width)
        sum_ = jax.lax.dynamic_slice_in_dim(total, start, part, 1) + product
        return jax.lax.dynamic_update_slice_in_dim(total, sum_, start, 1)

    sums = jax.lax.fori_loop(0, -(-rows // part), body, total.reshape(parts, rows, width))
    out: Array = sums.reshape(size, width)
    return out


def fused_sum(
    row_fn: RowFn,
    weights: PyTree,
    *sources: Any,
    mask: Array | None = None,
    block: int | None = None,
) -> tuple[Array, PyTree]:
    """sum_i weights_i row_fn(*logits)_i, with its derivatives formed in the same pass.

    What a training loss is: four matrix products a head (two where it is frozen) and no second
    look at the logits. Any number of outputs may be weighted at once.

    Args:
        row_fn: as in `fused_rows`, with outputs [b].
        weights: [*E] for each output, in the structure that row_fn returns.
        sources: as in `fused_rows`.
        mask: as in `fused_rows`.
        block: as in `fused_rows`.

    Returns:
        ([] the sum, [*E] each output). Only the sum carries derivatives: by the sources and by
        the weights, in forward and in reverse mode; the outputs are for metrics.

    Raises:
        ValueError: as `fused_rows`; weights of another structure or shape.

    References:
        Hsu et al., 2024, arXiv 2410.10989.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divjax.divergences import Linear, f_divergence_from_logits, fused_sum, generators
        >>> h, w = jnp.ones((6, 4)), jnp.eye(100, 4)
        >>> def loss(w):
        ...     kl = lambda p, q: f_divergence_from_logits(p, q, generators.kl)
        ...     return fused_sum(kl, jnp.full(6, 1 / 6), Linear(h, 2 * w), Linear(h, w))[0]
        >>> f"{loss(w):.4f}", jax.grad(loss)(w).shape
        ('0.0743', (100, 4))
    """
    lay = lay_out("fused_sum", row_fn, sources, mask, block)
    _check_weights(lay, weights)
    cut = jax.tree.map(lambda w: jnp.moveaxis(w, 1, 0), lay.arrange(weights))
    if lay.problem.mask is not None:
        counts = jnp.moveaxis(lay.problem.mask, 1, 0)
        cut = jax.tree.map(lambda w: jnp.where(counts, w, 0), cut)
    total, values = _total(lay.pure, lay.blocks, cut, lay.problem)
    return total, jax.lax.stop_gradient(lay.restore(values))


def _check_weights(lay: Layout, weights: PyTree) -> None:
    one = block_of(lay.problem, 0)
    out = jax.eval_shape(lambda: outputs(lay.pure, one, tuple(map(project, one.hidden, one.heads))))
    given, wanted = (jax.tree.flatten(tree) for tree in (weights, out))
    check.require(
        bool(given[1] == wanted[1])  # type: ignore[operator]
        and all(jnp.shape(w) == lay.lead for w in given[0])
        and all(x.ndim == 1 for x in wanted[0]),
        "fused_sum",
        f"weights must be {list(lay.lead)} for each output of row_fn, and outputs [b]",
        (jax.tree.map(jnp.shape, weights), jax.tree.map(jnp.shape, out)),
        "return one number per row, and pass weights of zeros for what is only reported",
    )
