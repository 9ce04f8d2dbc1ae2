"""The leaves of a tree under their paths, and checksums of what they hold."""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from divjax.core import PyTree
from divjax.core.check import describe

Index = tuple[slice, ...]


def named(tree: PyTree) -> dict[str, Any]:
    """Path -> leaf, such as ".params['w']": independent of the classes of the nodes."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): _array(path, x) for path, x in leaves}


def _array(path: Any, x: Any) -> Any:
    if isinstance(x, jax.ShapeDtypeStruct):
        return x
    try:
        return jnp.asarray(x)
    except TypeError as error:
        raise ValueError(
            f"checkpoint: leaf {jax.tree_util.keystr(path)} must be an array or a number, got "
            f"{describe(x)}; keep it in the config, or out of the state"
        ) from error


def type_of(x: jax.Array | jax.ShapeDtypeStruct) -> str:
    """'float32 [4, 10]'."""
    return f"{x.dtype} {list(x.shape)}"


def plain(x: jax.Array) -> jax.Array:
    """The array, or the numbers of typed keys."""
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def checksums(leaves: Mapping[str, jax.Array]) -> dict[str, dict[str, int]]:
    """Path -> {region: checksum of its bytes}: one region, or the shards where processes share.

    Every process must call it, and every process gets all of them.
    """
    spread = {name: plain(x) for name, x in leaves.items() if not _is_here(x)}
    regions = {(name, region) for name, x in spread.items() for region in _regions(x)}
    order = {key: i for i, key in enumerate(sorted(regions))}
    found = np.zeros(len(order), np.uint32)
    for name, x in spread.items():
        for shard in x.addressable_shards:
            if shard.replica_id == 0:
                key = (name, _region(shard.index, x.shape))
                found[order[key]] = _crc(np.asarray(shard.data))
    if spread:  # each region is of one process; the others hold 0
        found = np.asarray(multihost_utils.process_allgather(found)).sum(0, dtype=np.uint32)
    sums: dict[str, dict[str, int]] = {name: {} for name in leaves}
    for (name, region), i in order.items():
        sums[name][region] = int(found[i])
    for name, x in leaves.items():
        if name not in spread:
            whole = np.asarray(plain(x))
            sums[name][_region((slice(None),) * whole.ndim, whole.shape)] = _crc(whole)
    return sums


def is_damaged(x: jax.Array, saved: Mapping[str, int]) -> bool:
    """Whether a region that this process holds has another checksum than it was saved with."""
    x = plain(x)
    if x.is_fully_addressable or x.is_fully_replicated:
        whole = np.asarray(x)
        return any(_crc(whole[_index(region)]) != crc for region, crc in saved.items())
    held = {_region(shard.index, x.shape): shard.data for shard in x.addressable_shards}
    return any(region in held and _crc(np.asarray(held[region])) != crc
               for region, crc in saved.items())  # fmt: skip


def _is_here(x: jax.Array) -> bool:
    return bool(x.is_fully_addressable or x.is_fully_replicated)


def _regions(x: jax.Array) -> set[str]:
    return {_region(i, x.shape) for i in x.sharding.devices_indices_map(x.shape).values()}


def _region(index: Index, shape: tuple[int, ...]) -> str:
    """'0:4,2:3' for x[0:4, 2:3]; '' for a scalar."""
    bounds = [part.indices(size) for part, size in zip(index, shape, strict=True)]
    return ",".join(f"{start}:{stop}" for start, stop, _ in bounds)


def _index(region: str) -> Index:
    bounds = [part.split(":") for part in region.split(",") if part]
    return tuple(slice(int(start), int(stop)) for start, stop in bounds)


def _crc(x: np.ndarray) -> int:
    return zlib.crc32(x.tobytes())
