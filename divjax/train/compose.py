"""Steps from steps: players that take turns, and many seeds at once."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import accumulate

import jax
import jax.numpy as jnp

from divjax.core import Array, Batch, PyTree
from divjax.core.check import positive, require
from divjax.train.state import Info, Step, TrainState

_OWN = ("opt_state", "controllers", "refs", "carry")  # of each player; the other fields are shared


def alternate(players: Mapping[str, tuple[Step, int]]) -> Step:
    """Players that take turns on shared params: n_1 steps of the first, n_2 of the second, ...

    Whose turn it is follows from state.step. The optimiser state, controllers, references and
    carry of a waiting player do not move; usually each player has its own `train=`.

    Args:
        players: name -> (step, number of consecutive updates per round).

    Returns:
        A Step. Of its TrainState, opt_state, controllers, refs and carry are {player: ...};
        `init` takes carry={player: ...} for the players that have one. In Info, names are
        "player/name", value is that of the player who moved, and what was not measured in this
        step, a waiting player's terms and metrics, is NaN.

    Raises:
        ValueError: no player, or a number of updates below 1.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from divjax.core import Loss, masked_mean
        >>> from divjax.train import alternate, make_step
        >>> def fit(name):
        ...     return lambda p, batch, ctx: Loss({"fit": (1.0, masked_mean(p[name] * batch["x"]))})
        >>> step = alternate({n: (make_step(fit(n), optax.sgd(1.0), train=[n]), 1) for n in "ab"})
        >>> state = step.init({"a": jnp.float32(0.0), "b": jnp.float32(0.0)}, jax.random.key(0))
        >>> state, info = step.update(state, {"x": jnp.ones(2)})
        >>> float(state.params["a"]), float(state.params["b"])
        (-1.0, 0.0)
    """
    _check_players(players)
    names = list(players)
    ends = jnp.asarray(list(accumulate(count for _, count in players.values())))

    def init(params: PyTree, key: Array, carry: PyTree = ()) -> TrainState:
        given = carry or {}
        require(
            isinstance(given, Mapping) and set(given) <= set(names),
            "alternate",
            f"carry must be a dict with keys among {names}",
            given,
            "pass carry={player: carry of its objective}",
        )
        own = {n: step.init(params, key, given.get(n, ())) for n, (step, _) in players.items()}
        first = own[names[0]]._asdict()
        kept = {field: {n: own[n]._asdict()[field] for n in names} for field in _OWN}
        return TrainState(**{**first, **kept})

    def update(
        state: TrainState, batch: Batch, frozen: PyTree = None, *, axis_name: str | None = None
    ) -> tuple[TrainState, Info]:
        shared = state._asdict()

        def move(name: str) -> tuple[TrainState, Info]:
            mine = TrainState(**{**shared, **{field: shared[field][name] for field in _OWN}})
            new, info = players[name][0].update(mine, batch, frozen, axis_name=axis_name)
            moved = new._asdict()
            kept = {field: {**shared[field], name: moved[field]} for field in _OWN}
            return TrainState(**{**moved, **kept}), info

        infos = {n: jax.eval_shape(partial(move, n))[1] for n in names}

        def turn(name: str) -> Callable[[], tuple[TrainState, Info]]:
            def branch() -> tuple[TrainState, Info]:
                new, info = move(name)
                return new, _among(name, info, infos)

            return branch

        whose = jnp.searchsorted(ends, state.step % ends[-1], side="right")
        result: tuple[TrainState, Info] = jax.lax.switch(whose, [turn(n) for n in names])
        return result

    return Step(init, update)


def over_seeds(step: Step, *, batch_axis: int | None = None) -> Step:
    """The same step for S seeds at once: one compilation, states with a leading axis [S].

    Args:
        step: any Step.
        batch_axis: None gives every seed the same batch [B, ...]; 0 takes batches [S, B, ...].

    Returns:
        A Step: init(params [S, ...], keys [S], carry [S, ...]), update(state [S], batch, frozen)
        with `frozen` shared, and Info with a leading axis [S].

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from divjax.core import Loss, masked_mean
        >>> from divjax.train import make_step, over_seeds
        >>> def objective(w, batch, ctx):
        ...     return Loss({"fit": (0.5, masked_mean((w - batch["y"]) ** 2))})
        >>> step = over_seeds(make_step(objective, optax.sgd(0.5)))
        >>> state = step.init(jnp.arange(3.0), jax.random.split(jax.random.key(0), 3))
        >>> step.update(state, {"y": jnp.array([2.0, 4.0])})[0].params.tolist()
        [1.5, 2.0, 2.5]
    """

    def init(params: PyTree, key: Array, carry: PyTree = ()) -> TrainState:
        state: TrainState = jax.vmap(step.init)(params, key, carry)
        return state

    def update(
        state: TrainState, batch: Batch, frozen: PyTree = None, *, axis_name: str | None = None
    ) -> tuple[TrainState, Info]:
        def one(state: TrainState, batch: Batch) -> tuple[TrainState, Info]:
            return step.update(state, batch, frozen, axis_name=axis_name)

        result: tuple[TrainState, Info] = jax.vmap(one, in_axes=(0, batch_axis))(state, batch)
        return result

    return Step(init, update)


def _among(name: str, info: Info, infos: Mapping[str, Info]) -> Info:
    """The mover's Info under "player/name", with NaN for what the others would have measured."""

    def fill(field: str) -> dict[str, Array]:
        absent = {
            f"{player}/{key}": jnp.full(like.shape, jnp.nan, like.dtype)
            for player, other in infos.items()
            for key, like in other._asdict()[field].items()
        }
        return {**absent, **{f"{name}/{key}": x for key, x in info._asdict()[field].items()}}

    return Info(info.value, fill("terms"), fill("metrics"))


def _check_players(players: Mapping[str, tuple[Step, int]]) -> None:
    require(len(players) > 0, "alternate", "players must not be empty", players, "pass one or more")
    for name, (_, count) in players.items():
        positive(f"updates of {name!r} per round", count, caller="alternate")
