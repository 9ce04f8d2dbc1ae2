import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.optim import Reference, ema, frozen, periodic, soup, swap_when


def trees(n):
    rng = np.random.default_rng(0)
    return [{"w": rng.normal(size=3).astype(np.float32), "n": np.int32(i)} for i in range(n)]


def follow(reference, params):
    ref = reference.init(params[0])
    update = jax.jit(reference.update)
    for step, p in enumerate(params[1:], 1):
        ref = update(ref, p, step, value=0.0)
    return ref


@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_ema_is_the_geometric_sum(decay):
    params = trees(6)
    weights = np.array([decay**5, *((1 - decay) * decay ** np.arange(4, -1, -1.0))])
    expected = sum(w * p["w"].astype(np.float64) for w, p in zip(weights, params, strict=True))
    ref = follow(ema(decay), params)
    np.testing.assert_allclose(ref["w"], expected, rtol=1e-5, atol=1e-7)
    assert ref["w"].dtype == np.float32
    assert int(ref["n"]) == 5  # integers are copied


def test_ema_keeps_the_type_of_the_reference():
    for kept, other in [(jnp.float32, jnp.bfloat16), (jnp.bfloat16, jnp.float32)]:
        ref = ema(0.5).update(jnp.ones(2, kept), jnp.zeros(2, other), 1)
        assert ref.dtype == kept


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_ema_checks_decay(bad):
    with pytest.raises(ValueError, match=r"ema: decay must lie in \[0, 1\]"):
        ema(bad)


def test_swap_when_takes_the_whole_tree_or_nothing():
    params = trees(2)
    reference = swap_when(lambda step, *, new, old, **_: (step % 2 == 0) & (new < old))
    ref = reference.init(params[0])
    for step, new, swapped in [(1, 0.1, False), (2, 0.9, False), (2, 0.1, True)]:
        after = reference.update(ref, params[1], step, new=new, old=0.5, value=0.0)
        expected = params[1] if swapped else params[0]
        np.testing.assert_array_equal(after["w"], expected["w"])
        assert int(after["n"]) == int(expected["n"])


def test_frozen_in_one_line():
    frozen = Reference(lambda params: params, lambda ref, params, step, **_: ref)
    params = trees(3)
    np.testing.assert_array_equal(follow(frozen, params)["w"], params[0]["w"])


def test_periodic_in_one_line():
    ref = follow(swap_when(lambda step, **_: step % 2 == 0), trees(6))
    np.testing.assert_array_equal(ref["w"], trees(6)[4]["w"])


def test_an_average_of_bfloat16_goes_on_moving():
    average = ema(0.999)
    ref = average.init(jnp.bfloat16(1.0))
    assert ref.dtype == jnp.float32
    for step in range(3000):
        ref = average.update(ref, jnp.bfloat16(2.0), step)
    np.testing.assert_allclose(ref, 2.0 - 0.999**3000, rtol=1e-3)


def test_frozen_periodic_and_soup():
    assert frozen({"w": 3.0}).init({"w": jnp.zeros(())})["w"] == 3.0
    target = periodic(3)
    ref, seen = target.init(jnp.float32(0.0)), []
    for step in range(1, 8):
        ref = target.update(ref, jnp.float32(step), jnp.int32(step), value=0.0)
        seen.append(float(ref))
    assert seen == [0, 0, 3, 3, 3, 6, 6]
    trees = [{"w": jnp.bfloat16(x), "n": jnp.int32(7)} for x in (1.0, 2.0, 4.0)]
    mixed = soup(*trees, weights=(1, 1, 2)).init(None)
    assert mixed["w"].dtype == jnp.bfloat16
    assert float(mixed["w"]) == 2.75
    assert int(mixed["n"]) == 7
    np.testing.assert_allclose(soup(*trees).init(None)["w"], 7 / 3, rtol=1e-2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: periodic(0), "every must be an integer >= 1"),
        (lambda: soup(), "trees must not be empty"),
        (lambda: soup({"w": 1.0}, {"v": 1.0}), "one structure"),
        (lambda: soup({"w": jnp.ones(2)}, {"w": jnp.ones(3)}), "one structure"),
        (lambda: soup(1.0, 2.0, weights=(1.0,)), "weights must be 2 positive numbers"),
        (lambda: soup(1.0, weights=(-1.0,)), "positive numbers"),
    ],
)
def test_wrong_references(call, message):
    with pytest.raises(ValueError, match=message):
        call()
