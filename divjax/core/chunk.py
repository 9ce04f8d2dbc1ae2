"""Maps over blocks of rows, so that temporaries are of one block and stay in the cache.

Blocks are strided: block i holds the rows i, i + n, i + 2 n, ... With rows sharded over devices
every block then takes an equal share from each of them, and nothing is gathered.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from divjax.core.reduce import vary_like
from divjax.core.types import Array

RowFn = Callable[..., tuple[Array, ...]]


def even_block(rows: int, block: int) -> int:
    """The largest block up to this one that divides the rows; itself if that were below an eighth.

    Example:
        >>> from divjax.core.chunk import even_block
        >>> even_block(2048, 100), even_block(2039, 100)
        (64, 100)
    """
    sizes = range(max(1, block // 8), block + 1)
    return max((size for size in sizes if rows % size == 0), default=block)


def map_rows(fn: RowFn, arrays: Sequence[Array], *, block: int) -> tuple[Array, ...]:
    """fn(*arrays), evaluated for `block` rows at a time.

    Args:
        fn: maps arrays [b, ...] to a tuple of arrays [b, ...], row by row.
        arrays: each [N, ...].
        block: rows per call at most; fewer, down to an eighth, where that divides N. Else the
            last call takes what is left over, and the result is copied once.

    Returns:
        What fn(*arrays) returns, each [N, ...].

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.core.chunk import map_rows
        >>> x = jnp.arange(6.0).reshape(3, 2)
        >>> map_rows(lambda x: (x.sum(-1),), [x], block=2)[0].tolist()
        [1.0, 5.0, 9.0]
    """
    rows = arrays[0].shape[0]
    if rows >= 2 * block:  # joining what is left over would double the result
        block = even_block(rows, block)
    count = rows // block  # blocks of `block` rows; what is left over makes one call of its own
    if count < 2:
        return fn(*arrays)
    whole = count * block
    strided = [x[:whole].reshape(block, count, *x.shape[1:]) for x in arrays]
    shapes = jax.eval_shape(fn, *(x[:block] for x in arrays))
    empty = tuple(
        vary_like(jax.lax.empty((block, count, *s.shape[1:]), s.dtype), *arrays) for s in shapes
    )

    def body(i: Array, out: tuple[Array, ...]) -> tuple[Array, ...]:
        parts = fn(*(jax.lax.dynamic_index_in_dim(x, i, 1, keepdims=False) for x in strided))
        return tuple(
            jax.lax.dynamic_update_index_in_dim(o, part, i, 1)
            for o, part in zip(out, parts, strict=True)
        )

    out = jax.lax.fori_loop(0, count, body, empty)
    done = tuple(o.reshape(whole, *o.shape[2:]) for o in out)
    if whole == rows:
        return done
    rest = fn(*(x[whole:] for x in arrays))
    return tuple(jnp.concatenate(pair) for pair in zip(done, rest, strict=True))
