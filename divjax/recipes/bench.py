"""The small task that several distillation papers share: many seeds of one arm, side by side.

Each seed has its own data, an early-stopped teacher of its own and a student. The numbers of a
seed do not depend on which other seeds run with it beyond the rounding of batched products.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from divjax.core import Array, Batch, Context, Loss, PyTree
from divjax.divergences import f_divergence_from_logits, generators
from divjax.measure import calibration, expected_calibration_error
from divjax.models import MLP, Apply, split
from divjax.recipes import kd
from divjax.train import make_step, over_seeds, parallel

Batches = Callable[[int], Batch]
Splits = Mapping[str, tuple[Array, Array]]


def networks(
    sizes: Sequence[int], seeds: Sequence[int], *, offset: int = 0
) -> tuple[PyTree, Apply]:
    """(params [S, ...], apply) of one MLP per seed; an offset gives other starts.

    Example:
        >>> from divjax.recipes import bench
        >>> bench.networks([4, 3], (0, 1))[0]["layers"][0]["kernel"].shape
        (2, 4, 3)
    """
    both = [split(MLP(sizes, rngs=nnx.Rngs(seed + offset))) for seed in seeds]
    return jax.tree.map(lambda *x: jnp.stack(x), *(params for params, _ in both)), both[0][1]


def teachers(
    params: PyTree, apply: Apply, batches: Batches, seeds: Sequence[int], *, steps: int, rate: float
) -> PyTree:
    """Networks [S, ...] after so many steps of Adam on the cross-entropy of their batches.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.recipes import bench
        >>> params, apply = bench.networks([4, 3], (0,))
        >>> rows = {"x": jnp.ones((1, 2, 4)), "y": jnp.zeros((1, 2), int)}
        >>> fitted = bench.teachers(params, apply, lambda i: rows, (0,), steps=1, rate=0.1)
        >>> fitted["layers"][0]["bias"].shape
        (1, 3)
    """

    def objective(params: PyTree, batch: Batch, ctx: Context) -> Loss:
        logits = apply(params, batch["x"])[0]
        seen = kd.Outputs(logits, logits, batch["y"], None, ctx.axis_name)
        return Loss({"ce": (1.0, kd.cross_entropy(seen))})

    step = over_seeds(make_step(objective, optax.adam(rate)), batch_axis=0)
    update = parallel.compile(step)
    state = step.init(params, _keys(seeds))
    for i in range(steps):
        state, _ = update(state, batches(i))
    return state.params


def distil(
    run: Any,
    terms: Mapping[str, tuple[float, kd.Term]],
    splits: Splits,
    draw: Callable[[Mapping[str, Array]], Batches],
    *,
    student: Sequence[int],
    teacher: Sequence[int],
    tx: optax.GradientTransformation,
    steps: int,
    evaluations: int,
    test: bool,
    teacher_steps: int,
    teacher_rate: float,
) -> Iterator[Any]:
    """All seeds of one arm: teachers, then students that learn from their logits by `terms`.

    Args:
        run: what the laboratory hands to an experiment; its cell names the seeds.
        terms: as in `kd.offline`.
        splits: "train", "validation" and "test" -> (inputs [S, N, ...], labels [S, N]).
        draw: {name: [S, N, ...]} -> (step -> {name: [S, B, ...]}).
        student: widths of its layers.
        teacher: widths of its layers.
        tx: the students' optimiser.
        steps: of the students.
        evaluations: on the validation split, evenly spaced.
        test: whether the test split is scored at the end.
        teacher_steps: after which the teachers stop, early.
        teacher_rate: of their Adam.

    Returns:
        A generator of rows with "SPLIT_accuracy", "_teacher_accuracy", "_ece" (calibration error
        of the student) and "_kl" (KL(teacher || student)).

    Example:
        >>> from divjax.recipes import bench
        >>> bench.distil.__name__  # used in experiments/pld.py and experiments/sinkd.py
        'distil'
    """
    seeds = run.cell.seeds
    data = dict(zip("xy", splits["train"], strict=True))
    start, teach = networks(teacher, seeds, offset=10**6)
    taught = teachers(start, teach, draw(data), seeds, steps=teacher_steps, rate=teacher_rate)
    data["teacher"] = jax.vmap(lambda p, x: teach(p, x)[0])(taught, data["x"])

    params, apply = networks(student, seeds)
    objective = kd.offline(apply, lambda batch, ctx: batch["teacher"], terms)
    step = over_seeds(make_step(objective, tx), batch_axis=0)

    def scores(params: PyTree, teaching: PyTree, x: Array, y: Array) -> dict[str, Array]:
        logits, target = apply(params, x)[0], teach(teaching, x)[0]
        return {
            "accuracy": jnp.mean(logits.argmax(-1) == y),
            "teacher_accuracy": jnp.mean(target.argmax(-1) == y),
            "ece": expected_calibration_error(calibration(logits, y)),
            "kl": jnp.mean(f_divergence_from_logits(target, logits, generators.kl)),
        }

    def score(state: PyTree, name: str) -> dict[str, Array]:
        values = jax.vmap(scores)(state.params, taught, *splits[name])
        return {f"{name}_{metric}": value for metric, value in values.items()}

    state = yield from run.train(
        parallel.compile(step),
        step.init(params, _keys(seeds)),
        draw(data),
        steps=steps,
        evaluate=lambda state: score(state, "validation"),
        every=max(1, steps // evaluations),
    )
    if test:
        yield from run.rows(score(state, "test"))


def _keys(seeds: Sequence[int]) -> Array:
    keys: Array = jax.vmap(jax.random.key)(jnp.array(seeds))
    return keys
