"""How rows of several sources are cut into strided blocks, and what one block gives."""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from divjax.core import Array, PyTree, check
from divjax.core.chunk import even_block
from divjax.divergences.sources import Parts, Source

_ELEMENTS = 1 << 22  # of a block of logits, where the head is narrow

RowFn = Callable[..., PyTree]


class Problem(NamedTuple):
    """All arrays; rows are cut as [block, count, ...], block i is [:, i]."""

    hidden: tuple[Array, ...]  # of each projection
    heads: tuple[Array, ...]
    rows: PyTree
    shared: PyTree
    mask: Array | None


class Layout(NamedTuple):
    """A problem and what turns a block of it into outputs [block, ...]."""

    pure: Callable[..., Any]  # (products, rows, shared) of a block; closes over nothing traced
    problem: Problem
    lead: tuple[int, ...]  # *E
    blocks: int
    restore: Callable[[PyTree], PyTree]  # outputs [count, block, ...] to [*E, ...]
    arrange: Callable[[PyTree], PyTree]  # arrays [*E, ...] to [block, count, ...]


def lay_out(
    caller: str, row_fn: RowFn, sources: tuple[Any, ...], mask: Array | None, block: int | None
) -> Layout:
    """Checks, flattens the rows, and cuts them into strided blocks of one size."""
    check.function(
        "row_fn", row_fn, caller=caller, signature="of one block of each source", remedy="pass one"
    )
    parts = [_parts(caller, source) for source in sources]
    lead = _leading(caller, sources)
    check.boolean_mask("mask", mask, lead, caller=caller)
    rows = prod(lead)
    check.require(rows > 0, caller, "sources must have rows", lead, "skip the call")
    size = _block(caller, block, rows, parts)
    blocks = -(-rows // size)
    if mask is None and blocks * size > rows:
        mask = jnp.ones(lead, bool)
    arrange = partial(_arrange, lead, size, blocks)
    projections = [p.projection for p in parts if p.projection is not None]
    problem = Problem(
        hidden=arrange(tuple(h for h, _ in projections)),
        heads=tuple(w for _, w in projections),
        rows=arrange(tuple(p.rows for p in parts)),
        shared=tuple(p.shared for p in parts),
        mask=None if mask is None else arrange(mask),
    )
    first = block_of(problem, 0)
    products = tuple(map(project, first.hidden, problem.heads))
    whole = partial(_built, row_fn, parts)
    pure, closed = jax.closure_convert(whole, products, first.rows, problem.shared)
    problem = problem._replace(shared=(problem.shared, tuple(map(jnp.asarray, closed))))

    def closing(products: tuple[Array, ...], rows: PyTree, shared: PyTree) -> PyTree:
        return pure(products, rows, shared[0], *shared[1])

    return Layout(closing, problem, lead, blocks, partial(_restore, lead), arrange)


def _arrange(lead: tuple[int, ...], size: int, blocks: int, tree: PyTree) -> PyTree:
    """[*E, ...] to [size, blocks, ...]: strided, each block has its share of every device."""
    rows = prod(lead)

    def cut(x: Array) -> Array:
        x = x.reshape(rows, *x.shape[len(lead) :])
        x = jnp.pad(x, [(0, size * blocks - rows)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(size, blocks, *x.shape[1:])

    return jax.tree.map(cut, tree)


def _restore(lead: tuple[int, ...], tree: PyTree) -> PyTree:
    """[blocks, size, ...] to [*E, ...]."""

    def join(x: Array) -> Array:
        x = jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])[: prod(lead)]
        return x.reshape(*lead, *x.shape[1:])

    return jax.tree.map(join, tree)


def _built(
    row_fn: RowFn, parts: list[Parts], products: tuple[Array, ...], rows: PyTree, shared: PyTree
) -> PyTree:
    """The row function of what the sources build of one block."""
    left = iter(products)
    return row_fn(
        *(
            p.build(None if p.projection is None else next(left), r, s)
            for p, r, s in zip(parts, rows, shared, strict=True)
        )
    )


def _parts(caller: str, source: Any) -> Parts:
    """Of a source, or of a plain array [*E, ...] that goes to the row function as it is."""
    if isinstance(source, Source):
        return source.parts(caller)
    return Parts(None, jnp.asarray(source), (), lambda _, x, __: x)


def _leading(caller: str, sources: tuple[Any, ...]) -> tuple[int, ...]:
    """The example shape *E that all sources share."""
    shapes = {
        type(s).__name__: jax.tree.leaves(s)[0].shape[:-1] for s in sources if isinstance(s, Source)
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
    """Rows a block: its logits are a quarter of a head, and enough for a fast product."""
    if block is not None:
        check.count("block", block, caller=caller)
        return even_block(rows, min(block, rows))
    heads = [p.projection[1].shape for p in parts if p.projection is not None]
    widths = [v for v, _ in heads] + [
        x.size // rows for p in parts for x in jax.tree.leaves(p.rows)
    ]
    wanted = max(_ELEMENTS // max(widths), *(h // 4 for _, h in heads), 1)
    return even_block(rows, min(int(wanted), rows))


def block_of(problem: Problem, i: Array | int) -> Problem:
    """Block i."""

    def pick(x: Array) -> Array:
        out: Array = jax.lax.dynamic_index_in_dim(x, i, 1, keepdims=False)
        return out

    hidden, rows, mask = jax.tree.map(pick, (problem.hidden, problem.rows, problem.mask))
    return living(problem._replace(hidden=hidden, rows=rows, mask=mask))


def living(block: Problem) -> Problem:
    """A block with its dead rows set to zero: what they held may be NaN."""
    hidden, rows = _alive((block.hidden, block.rows), block.mask)
    return block._replace(hidden=hidden, rows=rows)


def _alive(tree: PyTree, mask: Array | None) -> PyTree:
    """Zeros in dead rows [b]."""
    if mask is None:
        return tree

    def keep(x: Array) -> Array:
        return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 1)), x, jnp.zeros_like(x))

    return jax.tree.map(keep, tree)


def wide(x: Array) -> Any:
    """float32 at least."""
    return jnp.promote_types(x.dtype, jnp.float32)


def project(hidden: Array, head: Array) -> Array:
    """hidden head^T [b, V], accumulated and kept in float32 at least."""
    out: Array = jax.lax.dot_general(
        hidden, head, (((1,), (1,)), ((), ())), preferred_element_type=wide(hidden)
    )
    return out


def outputs(pure: Callable[..., PyTree], block: Problem, products: tuple[Array, ...]) -> PyTree:
    """What the row function gives of one block; 0 at dead rows."""
    return _alive(pure(products, block.rows, block.shared), block.mask)
