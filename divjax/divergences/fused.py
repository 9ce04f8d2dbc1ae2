"""Row functions of logits that are never formed as a whole: [N, V] exists block by block.

Two entrances on one layout of blocks. `fused_rows` gives a value per row and recomputes the
logits when it is differentiated. `fused_sum` gives a weighted sum whose weights are known, so that
the derivatives are formed in the same pass: two thirds of the matrix products.
"""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from divjax.core import Array, PyTree, check
from divjax.core.chunk import even_block
from divjax.core.reduce import vary_like
from divjax.divergences.sources import Parts, Source

_ELEMENTS = 1 << 22  # of a block of logits, where the head is narrow
_SLICES = 8  # of a head's gradient: a block's share of it is never a second array of its size

RowFn = Callable[..., PyTree]


class _Problem(NamedTuple):
    """All arrays; rows are cut as [block, count, ...], block i is [:, i]."""

    hidden: tuple[Array, ...]  # of each projection
    heads: tuple[Array, ...]
    rows: PyTree
    shared: PyTree
    mask: Array | None


class _Layout(NamedTuple):
    """A problem and what turns a block of it into outputs [block, ...]."""

    pure: Callable[..., Any]  # (products, rows, shared) of a block; closes over nothing traced
    problem: _Problem
    count: int
    restore: Callable[[PyTree], PyTree]  # outputs [count, block, ...] to [*E, ...]
    arrange: Callable[[PyTree], PyTree]  # arrays [*E, ...] to [block, count, ...]


def _lay_out(
    caller: str, row_fn: RowFn, sources: tuple[Any, ...], mask: Array | None, block: int | None
) -> _Layout:
    """Checks, flattens the rows, and cuts them into strided blocks of one size."""
    check.function(
        "row_fn", row_fn, caller=caller, signature="of one block of each source", remedy="pass one"
    )
    parts = [_parts(caller, source) for source in sources]
    lead = _leading(caller, sources)
    check.boolean_mask("mask", mask, lead, caller=caller)
    count_rows = prod(lead)
    check.require(count_rows > 0, caller, "sources must have rows", lead, "skip the call")
    projections = [p.projection for p in parts if p.projection is not None]
    size = _block(caller, block, count_rows, parts)
    count = -(-count_rows // size)
    padded = count * size
    if mask is None and padded > count_rows:
        mask = jnp.ones(lead, bool)

    def arrange(tree: PyTree) -> PyTree:
        def cut(x: Array) -> Array:
            x = x.reshape(count_rows, *x.shape[len(lead) :])
            x = jnp.pad(x, [(0, padded - count_rows)] + [(0, 0)] * (x.ndim - 1))
            return x.reshape(size, count, *x.shape[1:])

        return jax.tree.map(cut, tree)

    def restore(tree: PyTree) -> PyTree:
        def join(x: Array) -> Array:
            x = jnp.moveaxis(x, 0, 1).reshape(padded, *x.shape[2:])[:count_rows]
            return x.reshape(*lead, *x.shape[1:])

        return jax.tree.map(join, tree)

    def whole(products: tuple[Array, ...], rows: PyTree, shared: PyTree) -> PyTree:
        left = iter(products)
        return row_fn(
            *(
                p.build(None if p.projection is None else next(left), r, s)
                for p, r, s in zip(parts, rows, shared, strict=True)
            )
        )

    problem = _Problem(
        hidden=arrange(tuple(h for h, _ in projections)),
        heads=tuple(w for _, w in projections),
        rows=arrange(tuple(p.rows for p in parts)),
        shared=tuple(p.shared for p in parts),
        mask=None if mask is None else arrange(mask),
    )
    first = _block_of(problem, 0)
    products = tuple(map(_project, first.hidden, problem.heads))
    pure, closed = jax.closure_convert(whole, products, first.rows, problem.shared)
    problem = problem._replace(shared=(problem.shared, tuple(closed)))
    return _Layout(
        lambda z, rows, shared: pure(z, rows, shared[0], *shared[1]),
        problem,
        count,
        restore,
        arrange,
    )


def _parts(caller: str, source: Any) -> Parts:
    """Of a source, or of a plain array [*E, ...] that goes to the row function as it is."""
    if hasattr(source, "parts"):
        return cast(Parts, source.parts(caller))
    return Parts(None, jnp.asarray(source), (), lambda _, x, __: x)


def _leading(caller: str, sources: tuple[Any, ...]) -> tuple[int, ...]:
    """The example shape *E that all sources share."""
    shapes = {
        type(s).__name__: jax.tree.leaves(s)[0].shape[:-1] for s in sources if hasattr(s, "parts")
    }
    check.require(
        len(shapes) > 0, caller, "needs a source: Linear, Logits or TopK", sources, "wrap it"
    )
    lead = next(iter(shapes.values()))
    for source in sources:
        shape = jax.tree.leaves(source)[0].shape
        check.require(
            shape[: len(lead)] == lead,
            caller,
            f"every source must have rows {list(lead)} as {next(iter(shapes))} has",
            f"{type(source).__name__} of {list(shape)}",
            "reshape it, or cut it with the same indices",
        )
    return cast(tuple[int, ...], lead)


def _block(caller: str, block: int | None, rows: int, parts: list[Parts]) -> int:
    """Rows a block: a head's products should be an eighth of it, and large enough to be fast."""
    if block is not None:
        check.count("block", block, caller=caller)
        return even_block(rows, min(block, rows))
    heads = [p.projection[1].shape for p in parts if p.projection is not None]
    widths = [v for v, _ in heads] + [
        max(prod(x.shape[-1:]), 1) for p in parts for x in jax.tree.leaves(p.rows)
    ]
    wanted = max(_ELEMENTS // max(widths), *(h // _SLICES for _, h in heads), 1)
    return even_block(rows, min(wanted, rows))


def _block_of(problem: _Problem, i: Array | int) -> _Problem:
    """Block i, its dead rows set to zero: what they held may be NaN."""

    def pick(x: Array) -> Array:
        return jax.lax.dynamic_index_in_dim(x, i, 1, keepdims=False)

    hidden, rows, mask = jax.tree.map(pick, (problem.hidden, problem.rows, problem.mask))
    hidden, rows = _alive((hidden, rows), mask)
    return problem._replace(hidden=hidden, rows=rows, mask=mask)


def _alive(tree: PyTree, mask: Array | None) -> PyTree:
    if mask is None:
        return tree

    def keep(x: Array) -> Array:
        return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 1)), x, jnp.zeros_like(x))

    return jax.tree.map(keep, tree)


def _wide(x: Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)


def _project(hidden: Array, head: Array) -> Array:
    """hidden head^T [b, V], accumulated and kept in float32 at least."""
    dtype = _wide(hidden)
    return jax.lax.dot_general(
        hidden, head, (((1,), (1,)), ((), ())), preferred_element_type=dtype
    )


def _outputs(pure: Any, block: _Problem, products: tuple[Array, ...]) -> PyTree:
    return _alive(pure(products, block.rows, block.shared), block.mask)


# --- an output per row, recomputed by whatever differentiates it ---


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _project_wide(dtypes: tuple[Any, Any], hidden: Array, head: Array) -> Array:
    """`_project` of wide copies: the product sees the types of old, derivatives stay wide."""
    return _project(hidden.astype(dtypes[0]), head.astype(dtypes[1]))


@_project_wide.defjvp
def _project_wide_jvp(dtypes: tuple[Any, Any], primals: Any, tangents: Any) -> Any:
    hidden, head = (x.astype(dtype) for x, dtype in zip(primals, dtypes, strict=True))
    moved, turned = tangents
    return _project(hidden, head), _project(moved, head) + _project(hidden, turned)


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
        block: rows at a time; by default so many that their logits are an eighth of a head, and
            2^22 numbers at least. Fewer cost less memory and more time.

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
    lay = _lay_out("fused_rows", row_fn, sources, mask, block)
    hidden, heads = lay.problem.hidden, lay.problem.heads
    dtypes = [(h.dtype, w.dtype) for h, w in zip(hidden, heads, strict=True)]
    wide = tuple(w.astype(_wide(w)) for w in heads)

    def body(_: None, rows: Any) -> tuple[None, PyTree]:
        one = lay.problem._replace(hidden=rows[0], rows=rows[1], mask=rows[2])
        alive = _alive((one.hidden, one.rows), one.mask)
        one = one._replace(hidden=alive[0], rows=alive[1])
        products = tuple(
            _project_wide(d, h.astype(_wide(h)), w)
            for d, h, w in zip(dtypes, one.hidden, wide, strict=True)
        )
        return None, _outputs(lay.pure, one, products)

    cut = (hidden, lay.problem.rows, lay.problem.mask)
    blocks = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), cut)
    return lay.restore(jax.lax.scan(jax.checkpoint(body, prevent_cse=False), None, blocks)[1])


# --- a weighted sum: derivatives in the same pass ---


def _weighted(outputs: PyTree, weights: PyTree) -> Array:
    return sum(
        jnp.sum(x * w) for x, w in zip(jax.tree.leaves(outputs), jax.tree.leaves(weights), strict=True)
    )


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _total(pure: Any, count: int, weights: PyTree, problem: _Problem) -> tuple[Array, PyTree]:
    def body(i: Array) -> PyTree:
        one = _block_of(problem, i)
        return _outputs(pure, one, tuple(map(_project, one.hidden, one.heads)))

    values = jax.lax.map(body, jnp.arange(count))
    return _weighted(values, weights), values


def _moving(tangents: _Problem) -> _Problem:
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
    for dw, v in zip(jax.tree.leaves(tangents[0], is_leaf=_is_leaf), jax.tree.leaves(values)):
        change += 0.0 if _is_zero(dw) else jnp.sum(dw * v)
    return (total, values), (change, jax.tree.map(jnp.zeros_like, values))


def _is_leaf(t: Any) -> bool:
    return type(t) is jax.custom_derivatives.SymbolicZero


def _is_zero(t: Any) -> bool:
    """No tangent: symbolically zero, or of a type that has none."""
    return type(t) is jax.custom_derivatives.SymbolicZero or t.dtype == jax.dtypes.float0


def _chosen(tree: PyTree, wanted: PyTree) -> tuple[list[Array], Callable[[list[Array]], PyTree]]:
    """The wanted leaves, and a function that puts others in their place."""
    leaves, structure = jax.tree.flatten(tree)
    flags = jax.tree.leaves(wanted)

    def put(chosen: list[Array]) -> PyTree:
        left = iter(chosen)
        return structure.unflatten(
            [next(left) if w else x for x, w in zip(leaves, flags, strict=True)]
        )

    return [x for x, w in zip(leaves, flags, strict=True) if w], put


def _block_slopes(
    pure: Any, wanted: _Problem, one: _Problem, weights: PyTree
) -> tuple[PyTree, tuple[Array | None, ...], list[Array], list[Array]]:
    """Outputs of one block; derivatives of their weighted sum by products, rows and shared."""
    products = tuple(map(_project, one.hidden, one.heads))
    turning = tuple(a or b for a, b in zip(wanted.hidden, wanted.heads, strict=True))
    chosen, put = _chosen(products, turning)
    rows, put_rows = _chosen(one.rows, wanted.rows)
    shared, put_shared = _chosen(one.shared, wanted.shared)

    def fn(z: list[Array], r: list[Array], s: list[Array]) -> PyTree:
        moved = one._replace(rows=put_rows(r), shared=put_shared(s))
        return _outputs(pure, moved, put(z))

    outputs, pull = jax.vjp(fn, chosen, rows, shared)
    dz, drows, dshared = pull(jax.tree.map(lambda w, x: w.astype(x.dtype), weights, outputs))
    left = iter(dz)
    return outputs, tuple(next(left) if t else None for t in turning), drows, dshared


def _slopes(
    pure: Any, count: int, wanted: _Problem, weights: PyTree, problem: _Problem
) -> tuple[tuple[Array, PyTree], list[Array]]:
    """The total, the rows' values, and the derivatives of the total by the wanted arrays."""
    shared, _ = _chosen(problem.shared, wanted.shared)
    heads = [w for w, want in zip(problem.heads, wanted.heads, strict=True) if want]
    like = jax.tree.leaves((weights, problem))
    start = [vary_like(jnp.zeros(x.shape, _wide(x)), *like) for x in (*heads, *shared)]
    step = jax.checkpoint(partial(_block_slopes, pure, wanted), prevent_cse=False)

    def body(sums: list[Array], i: Array) -> tuple[list[Array], Any]:
        one = _block_of(problem, i)
        here = jax.tree.map(lambda w: w[i], weights)
        outputs, dz, drows, dshared = step(one, here)
        dhidden = [
            jax.lax.dot_general(
                d, w, (((1,), (0,)), ((), ())), preferred_element_type=d.dtype
            )
            for d, w, want in zip(dz, one.heads, wanted.hidden, strict=True)
            if want
        ]
        turned = [
            (d, h) for d, h, want in zip(dz, one.hidden, wanted.heads, strict=True) if want
        ]
        sums = [
            *(_add_product(s, *pair) for s, pair in zip(sums, turned, strict=False)),
            *(s + d for s, d in zip(sums[len(turned) :], dshared, strict=True)),
        ]
        return sums, (outputs, dhidden, drows)

    sums, (values, dhidden, drows) = jax.lax.scan(body, start, jnp.arange(count))
    by_row = [jnp.moveaxis(x, 0, 1) for x in (*dhidden, *drows)]
    n = len(dhidden)
    slopes = [*by_row[:n], *sums[: len(heads)], *by_row[n:], *sums[len(heads) :]]
    return (_weighted(values, weights), values), slopes


def _add_product(total: Array, dz: Array, hidden: Array) -> Array:
    """total [V, H] + dz^T hidden, a few columns at a time, in place."""
    width = hidden.shape[1]
    for part in np.array_split(np.arange(width), min(_SLICES, width)):
        columns = slice(int(part[0]), int(part[-1]) + 1)
        product = jax.lax.dot_general(
            dz, hidden[:, columns], (((0,), (0,)), ((), ())), preferred_element_type=total.dtype
        )
        total = total.at[:, columns].add(product)
    return total


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
        ('0.0426', (100, 4))
    """
    lay = _lay_out("fused_sum", row_fn, sources, mask, block)
    lead = _leading("fused_sum", sources)
    shapes = jax.eval_shape(lambda: fused_rows(row_fn, *sources, mask=mask, block=block))
    check.require(
        jax.tree.structure(weights) == jax.tree.structure(shapes)
        and all(x.shape == lead for x in jax.tree.leaves((weights, shapes))),
        "fused_sum",
        f"weights and outputs must be {list(lead)} each, in one structure",
        (jax.tree.map(jnp.shape, weights), jax.tree.map(jnp.shape, shapes)),
        "return one number per row, and pass weights of zeros for what is only reported",
    )
    cut = jax.tree.map(lambda w: jnp.moveaxis(w, 1, 0), lay.arrange(weights))
    if lay.problem.mask is not None:
        alive = jnp.moveaxis(lay.problem.mask, 1, 0)
        cut = jax.tree.map(lambda w: jnp.where(alive, w, 0), cut)
    total, values = _total(lay.pure, lay.count, cut, lay.problem)
    return total, jax.lax.stop_gradient(lay.restore(values))
