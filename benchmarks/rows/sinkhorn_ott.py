"""Our converged Sinkhorn against ott-jax called directly, to the same tolerance.

Two clouds of 1024 points in three dimensions, squared Euclidean cost, float32. Both return the cost
<P, C>, whether they converged and in how many iterations; with gradient, that of the cost by the
matrix of costs.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from ott.geometry.geometry import Geometry
from ott.problems.linear.linear_problem import LinearProblem
from ott.solvers.linear.sinkhorn import Sinkhorn

from benchmarks.harness import Limit, Row, interleaved, timed
from divjax.divergences import sinkhorn, squared_euclidean, transport

TOLERANCE, MAX_ITERATIONS = 1e-4, 2000


def ours(cost, epsilon):
    """Through divjax."""
    solver = transport.converged(tolerance=TOLERANCE, max_iterations=MAX_ITERATIONS)
    out = sinkhorn(cost, epsilon=epsilon, solver=solver)
    return out.cost, (out.converged, out.iterations)


def direct(cost, epsilon):
    """ott-jax as its documentation calls it; it gets the transpose, as it matches columns first."""
    problem = LinearProblem(Geometry(cost_matrix=cost.T, epsilon=epsilon))
    out = Sinkhorn(threshold=TOLERANCE, max_iterations=MAX_ITERATIONS)(problem)
    return out.primal_cost, (out.converged, out.n_iters)


def compare(cost, epsilon: float, rounds: int, *, gradient: bool) -> Row:
    """Times of both, after their numbers were found equal."""
    forms = {"ours": ours, "ott-jax": direct}
    if gradient:
        forms = {name: jax.value_and_grad(form, has_aux=True) for name, form in forms.items()}
    calls = {name: partial(jax.jit(form), cost, epsilon) for name, form in forms.items()}
    first, second = (jax.tree.leaves(call()) for call in calls.values())
    for a, b in zip(first, second, strict=True):
        scale = float(jnp.abs(b).max())
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=(5e-2 if gradient else 1e-6) * scale)
    times = interleaved(calls, rounds=rounds)
    variant = f"{cost.shape[0]} x {cost.shape[1]}, epsilon {epsilon:g}"
    row = timed("sinkhorn_ott", variant + (", with gradient" if gradient else ""), times)
    row.limits = [Limit("time / ott-jax", row.ratios["ott-jax"], 1.1, must=not gradient)]
    return row


def measure(small: bool) -> list[Row]:
    """Two sizes of regularisation; value, and value with gradient."""
    points, rounds = (32, 3) if small else (1024, 11)
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(2, points, 3)), jnp.float32)
    cost = squared_euclidean(x, y)
    return [
        compare(cost, epsilon, rounds, gradient=gradient)
        for epsilon in (0.5, 0.05)
        for gradient in (False, True)
    ]
