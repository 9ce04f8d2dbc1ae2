"""The potentials of entropic transport: ott-jax's step in a loop, and how the limit moves."""

from math import inf

import jax
import jax.numpy as jnp

from divjax.core import Array, vary_like

INNER = 10  # iterations between two looks at the error


def ott_potentials(
    log_kernel: Array, log_a: Array, log_b: Array, *, tolerance: float, max_iterations: int
) -> tuple[Array, Array, Array]:
    """(u, v, iterations) of laws of mass 1; ott matches columns first, so it gets the transpose.

    The loop is ours and what it repeats is ott's: its own loop does not trace under shard_map,
    where a constant and what depends on the device have different types.
    """
    from ott.geometry.geometry import Geometry
    from ott.problems.linear.linear_problem import LinearProblem
    from ott.solvers.linear.sinkhorn import Sinkhorn, SinkhornState

    mass = jax.nn.logsumexp(log_a), jax.nn.logsumexp(log_b)
    geometry = Geometry(cost_matrix=-log_kernel.T, epsilon=1.0)
    problem = LinearProblem(geometry, a=jnp.exp(log_b - mass[1]), b=jnp.exp(log_a - mass[0]))
    ott = Sinkhorn()

    def iterate(carry: tuple[SinkhornState, Array, Array]) -> tuple[SinkhornState, Array, Array]:
        state, _, done = carry
        state, _ = jax.lax.scan(
            lambda state, _: (ott.lse_step(problem, state, 0), None), state, None, length=INNER
        )
        error = state.solution_error(
            problem, (1,), lse_mode=True, parallel_dual_updates=False, recenter=False
        )
        return state, error[0], done + INNER

    def unfinished(carry: tuple[SinkhornState, Array, Array]) -> Array:
        _, error, done = carry
        return (done < max_iterations) & ((error > tolerance) | (done == 0))

    start = tuple(jnp.where(x != -inf, 0.0, -inf).astype(x.dtype) for x in (log_b, log_a))
    first = SinkhornState(start), jnp.zeros((), log_a.dtype), jnp.int32(0)
    first = jax.tree.map(lambda x: vary_like(x, log_kernel, log_a, log_b), first)
    state, _, iterations = jax.lax.while_loop(unfinished, iterate, first)
    u = jnp.where(log_a != -inf, state.gv, -inf) + mass[0]
    v = jnp.where(log_b != -inf, state.fu, -inf) + (mass[1] - mass[0])
    return u, v, iterations


@jax.custom_jvp
def implicit(
    log_kernel: Array, log_a: Array, log_b: Array, u: Array, v: Array
) -> tuple[Array, Array]:
    """(u, v), which solve row sums = a, column sums = b: their derivatives follow from that."""
    return u, v


@implicit.defjvp
def _implicit_jvp(
    primals: tuple[Array, ...], tangents: tuple[Array, ...]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    log_kernel = primals[0]
    u, v = implicit(*primals)
    d_kernel, d_a, d_b = (
        jnp.where(x != -inf, d, 0.0) for x, d in zip(primals[:3], tangents[:3], strict=True)
    )
    plan = jnp.exp(u[:, None] + v + log_kernel)
    moved = plan * d_kernel
    rows, columns = plan.sum(1), plan.sum(0)
    to_rows, to_columns = rows * d_a - moved.sum(1), columns * d_b - moved.sum(0)
    if plan.shape[0] <= plan.shape[1]:
        du, dv = _balance(plan, rows, columns, to_rows, to_columns)
    else:
        dv, du = _balance(plan.T, columns, rows, to_columns, to_rows)
    return (u, v), (du, dv)


def _balance(
    plan: Array, rows: Array, columns: Array, to_rows: Array, to_columns: Array
) -> tuple[Array, Array]:
    """Solves rows x + P y = to_rows, P' x + columns y = to_columns, for x by elimination of y.

    The system has one null direction, (1, -1), which the plan does not see; the solution without
    it is taken. As epsilon -> 0 the matrix becomes singular in more directions that the plan does
    not see either: the ridge, one rounding error, keeps them finite.
    """
    root = jnp.sqrt(jnp.where(rows > 0, rows, 1.0))
    weight = jnp.where(columns > 0, 1.0 / jnp.where(columns > 0, columns, 1.0), 0.0)
    seen = plan / root[:, None]
    null = jnp.where(rows > 0, root, 0.0) / jnp.sqrt(rows.sum())
    ridge = 4.0 * jnp.finfo(plan.dtype).eps  # type: ignore[no-untyped-call]
    matrix = (1.0 + ridge) * jnp.eye(len(root), dtype=plan.dtype) - (seen * weight) @ seen.T
    right = (to_rows - plan @ (weight * to_columns)) / root
    x = jnp.linalg.solve(matrix + jnp.outer(null, null), right) / root
    return x, weight * (to_columns - plan.T @ x)
