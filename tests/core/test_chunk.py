"""core.chunk: blocks equal the whole, for every split, with rows in their place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from divjax.core.chunk import map_rows


def double_and_sum(x, y):
    return 2 * x, (x * y).sum(-1)


@pytest.mark.parametrize(
    ("rows", "block"),  # no number from 2 to 16 divides 37: five rows are left over
    [*((12, block) for block in (1, 2, 3, 4, 5, 11, 12, 100)), (37, 16)],
)
def test_blocks_equal_the_whole(rows, block):
    x = jnp.arange(3.0 * rows).reshape(rows, 3)
    got = map_rows(double_and_sum, [x, x + 1], block=block)
    for a, b in zip(got, double_and_sum(x, x + 1), strict=True):
        np.testing.assert_array_equal(a, b)


def test_strided_blocks_of_sharded_rows_gather_nothing():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x = jax.device_put(jnp.ones((64, 5)), NamedSharding(mesh, PartitionSpec("data")))
    fn = jax.jit(lambda x: map_rows(double_and_sum, [x, x], block=16))
    text = fn.lower(x).compile().as_text()
    assert "while" in text
    assert "all-gather" not in text
    np.testing.assert_array_equal(fn(x)[0], 2.0)


def test_uneven_rows_cost_no_second_copy_of_the_result():
    shape = (510, 700)  # 510 is no multiple of 64, but of 51
    fn = jax.jit(lambda x: map_rows(double_and_sum, [x, x], block=64))
    compiled = fn.lower(jax.ShapeDtypeStruct(shape, jnp.float32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 510 * 700
    x = jnp.arange(510.0 * 700).reshape(shape)
    for a, b in zip(fn(x), double_and_sum(x, x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
