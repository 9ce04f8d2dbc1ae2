"""The small task that several distillation papers share: many seeds of one arm, side by side.

Each seed has its own data, an early-stopped teacher of its own and a student. The numbers of a
seed do not depend on which other seeds run with it beyond the rounding of batched products.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from divjax.core import Array, Batch, Context, Loss, PyTree
from divjax.divergences import f_divergence_from_logits, generators
from divjax.lab import (
    Cell,
    Data,
    cifar10,
    digits,
    fashion_mnist,
    minibatches,
    piloted,
    stacked_splits,
)
from divjax.lab.pilot import Gridded
from divjax.measure import calibration, expected_calibration_error
from divjax.models import CNN, MLP, Apply, split
from divjax.recipes import kd
from divjax.train import make_step, over_seeds, parallel

Batches = Callable[[int], Batch]
Build = Callable[[nnx.Rngs], nnx.Module]

Known = Literal["digits", "fashion_mnist", "cifar10"]  # the keys of IMAGES
ROWS = 1000  # images that are scored at once: activations of all would not fit


class Images(NamedTuple):
    """Real images, their split, and a small and a larger network for them.

    Attributes:
        load: () -> Data with inputs [N, ...] and labels [N].
        student: rngs -> module.
        teacher: rngs -> module.
        train: images of each seed's training split.
        validation: of its validation split.
        test: of its test split; all others when None.
        teacher_steps: after which the teacher stops, early.
        apart: one cell a seed: on a CPU, convolutions of several seeds at once are slower.
        networks: student and teacher in words.
    """

    load: Callable[[], Data]
    student: Build
    teacher: Build
    train: int
    validation: int
    test: int | None
    teacher_steps: int
    apart: bool
    networks: str


def mlp(*sizes: int) -> Build:
    """Builds MLPs of these widths.

    Example:
        >>> from flax import nnx
        >>> from divjax.recipes import bench
        >>> len(bench.mlp(4, 8, 3)(nnx.Rngs(0)).layers)
        2
    """
    return lambda rngs: MLP(sizes, rngs=rngs)


def cnn(*channels: int) -> Build:
    """Builds CNNs of these channels, for ten classes.

    Example:
        >>> from flax import nnx
        >>> from divjax.recipes import bench
        >>> len(bench.cnn(3, 8, 16)(nnx.Rngs(0)).convolutions)
        2
    """
    return lambda rngs: CNN(channels, classes=10, rngs=rngs)


def halved(data: Data) -> Data:
    """Images of half the height and width: means of 2 x 2 pixels.

    Args:
        data: inputs [N, H, W, C] with even H and W.

    Example:
        >>> import numpy as np
        >>> from divjax.recipes import bench
        >>> bench.halved(bench.Data(np.ones((5, 4, 4, 3)), np.zeros(5), None)).inputs.shape
        (5, 2, 2, 3)
    """
    count, height, width, channels = data.inputs.shape
    blocks = data.inputs.reshape(count, height // 2, 2, width // 2, 2, channels)
    return data._replace(inputs=blocks.mean((2, 4)))


@lru_cache
def _halved_cifar10() -> Data:
    return halved(cifar10(count=17000))


IMAGES: Mapping[str, Images] = {
    "digits": Images(
        load=digits,
        student=mlp(64, 12, 10),
        teacher=mlp(64, 128, 128, 10),
        train=900,
        validation=297,
        test=None,
        teacher_steps=300,
        apart=False,
        networks="multilayer perceptrons with 12 and with 128 and 128 hidden units",
    ),
    "fashion_mnist": Images(
        load=fashion_mnist,
        student=mlp(784, 32, 10),
        teacher=mlp(784, 256, 256, 10),
        train=10000,
        validation=2000,
        test=10000,
        teacher_steps=300,
        apart=False,
        networks="multilayer perceptrons with 32 and with 256 and 256 hidden units",
    ),
    "cifar10": Images(
        load=_halved_cifar10,
        student=cnn(3, 8, 16, 32),
        teacher=cnn(3, 16, 32, 64),
        train=10000,
        validation=2000,
        test=5000,
        teacher_steps=600,
        apart=True,
        networks="convolutional networks with 8, 16, 32 and with 16, 32, 64 channels; images are "
        "halved to 16 x 16 pixels",
    ),
}
"""Name -> images; sizes of those beside the digits were chosen by the time of a step alone."""


BESIDE: Mapping[str, str] = {
    name: f"On noisy {images} images, the comparisons of the claim: three seeds and no grid, each "
    "arm at the rate that it had chosen on digits."
    for name, images in (("fashion_mnist", "Fashion-MNIST"), ("cifar10", "CIFAR-10"))
}
"""Preset -> what it measures, where a claim speaks of digits and an arm has a rate alone."""


class Rated(Gridded, Protocol):
    """The fields of a config that `rated` asks for."""

    @property
    def images(self) -> Known:
        """The key of IMAGES."""
        ...


def rated(config: Rated, chosen: Mapping[str, float], rates: Sequence[float]) -> list[Cell]:
    """Cells of every arm: with a grid at every rate, first on the pilot's seeds; else at its own.

    Args:
        config: has `grid`, `seeds` and `images`.
        chosen: arm -> the rate that it has without a grid.
        rates: the grid.

    Example:
        >>> from types import SimpleNamespace
        >>> from divjax.recipes import bench
        >>> config = SimpleNamespace(grid=False, seeds=2, images="digits")
        >>> [(c.name, c.seeds) for c in bench.rated(config, {"kd": 0.01}, (0.01, 0.1))]
        [('kd-rate0.01', (0, 1))]
    """
    settings = [
        {"arm": arm, "rate": rate}
        for arm, own in chosen.items()
        for rate in (rates if config.grid else (own,))
    ]
    apart = IMAGES[config.images].apart
    return piloted(config, settings, "{arm}-rate{rate:g}".format_map, apart=apart)


def how_chosen(by_pilot: bool) -> str:
    """Where the rates of `rated` come from, as a note of a report.

    Example:
        >>> from divjax.recipes import bench
        >>> bench.how_chosen(False)[:23]
        'No rate was chosen here'
    """
    if by_pilot:
        return (
            "The rate of each arm (three, equally many for all) was chosen by accuracy on clean "
            "validation images, in pilot runs with seeds that are not reported."
        )
    return "No rate was chosen here: each arm has the one that the cpu preset chose on digits."


def described(images: Images, *, noise: float) -> str:
    """Sizes and networks, as a note of a report.

    Example:
        >>> from divjax.recipes import bench
        >>> bench.described(bench.IMAGES["digits"], noise=0.2)[:64]
        'Each seed draws 900 images to learn from, 20 % of them with a la'
    """
    tested = "all others" if images.test is None else images.test
    return (
        f"Each seed draws {images.train} images to learn from, {noise:.0%} of them with a label "
        f"drawn anew, {images.validation} to validate and {tested} to test. Student and teacher "
        f"are {images.networks}."
    ).replace("%", " %")


def networks(build: Build, seeds: Sequence[int], *, offset: int = 0) -> tuple[PyTree, Apply]:
    """(params [S, ...], apply) of one network per seed; an offset gives other starts.

    Example:
        >>> from divjax.recipes import bench
        >>> bench.networks(bench.mlp(4, 3), (0, 1))[0]["layers"][0]["kernel"].shape
        (2, 4, 3)
    """
    both = [split(build(nnx.Rngs(seed + offset))) for seed in seeds]
    return jax.tree.map(lambda *x: jnp.stack(x), *(params for params, _ in both)), both[0][1]


def teachers(
    params: PyTree, apply: Apply, batches: Batches, seeds: Sequence[int], *, steps: int, rate: float
) -> PyTree:
    """Networks [S, ...] after so many steps of Adam on the cross-entropy of their batches.

    Example:
        >>> import jax.numpy as jnp
        >>> from divjax.recipes import bench
        >>> params, apply = bench.networks(bench.mlp(4, 3), (0,))
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


class _Taught(NamedTuple):
    splits: Mapping[str, Any]  # "train", "validation" and "test"
    params: PyTree  # of the teachers, [S, ...]
    apply: Apply
    logits: Array  # of the teachers on the training split, [S, N, K]


@lru_cache(maxsize=4)  # every arm has the same teachers: trained once a process
def _taught(
    images: Images, seeds: tuple[int, ...], noise: float, batch: int, rate: float
) -> _Taught:
    splits = stacked_splits(
        images.load(),
        seeds,
        train=images.train,
        validation=images.validation,
        noise=noise,
        test=images.test,
    )
    x, y = splits["train"]
    start, apply = networks(images.teacher, seeds, offset=10**6)
    draw = minibatches({"x": x, "y": y}, seeds, size=batch)
    params = teachers(start, apply, draw, seeds, steps=images.teacher_steps, rate=rate)
    logits = jax.vmap(lambda p, x: _logits(apply, p, x))(params, x)
    return _Taught(splits, params, apply, logits)


def distil(
    run: Any,
    terms: Mapping[str, tuple[float, kd.Term]],
    images: Images,
    *,
    noise: float,
    batch: int,
    rate: float,
    steps: int,
    evaluations: int,
    test: bool,
    teacher_rate: float = 3e-3,
) -> Iterator[Any]:
    """The seeds of one cell: teachers, then students that learn from their logits by `terms`.

    Args:
        run: what the laboratory hands to an experiment; its cell names the seeds.
        terms: as in `kd.offline`.
        images: what is learnt and by which networks.
        noise: share of the training labels that is drawn anew.
        batch: rows per step, of teachers and students.
        rate: of the students' Adam, with a cosine decay to 0.
        steps: of the students.
        evaluations: on the validation split, evenly spaced.
        test: whether the test split is scored at the end.
        teacher_rate: of the teachers' Adam.

    Returns:
        A generator of rows with "SPLIT_accuracy", "_teacher_accuracy", "_ece" (calibration error
        of the student) and "_kl" (KL(teacher || student)), [] each.

    Example:
        >>> from types import SimpleNamespace
        >>> from divjax.recipes import bench, kd
        >>> def train(step, state, batches, *, steps, evaluate, every):  # divjax.lab's writes rows
        ...     for i in range(steps):
        ...         state, _ = step(state, batches(i))
        ...     yield evaluate(state)
        ...     return state
        >>> cell = SimpleNamespace(seeds=(0, 1))
        >>> run = SimpleNamespace(cell=cell, train=train, rows=lambda metrics: [metrics])
        >>> few = bench.IMAGES["digits"]._replace(teacher_steps=2)
        >>> sizes = {"noise": 0.2, "batch": 8, "rate": 3e-3, "steps": 2, "evaluations": 1}
        >>> rows = list(bench.distil(run, kd.classical(temperature=2.0), few, test=True, **sizes))
        >>> rows[0]["validation_accuracy"].shape, sorted(rows[1])[:2]
        ((2,), ['test_accuracy', 'test_ece'])
    """
    seeds = run.cell.seeds
    taught = _taught(images, tuple(seeds), noise, batch, teacher_rate)
    x, y = taught.splits["train"]

    params, apply = networks(images.student, seeds)
    objective = kd.offline(apply, lambda batch, ctx: batch["teacher"], terms)
    tx = optax.adam(optax.cosine_decay_schedule(rate, steps))
    step = over_seeds(make_step(objective, tx), batch_axis=0)

    def score(state: PyTree, name: str) -> dict[str, Array]:
        one = partial(_scores, apply, taught.apply)
        values = jax.vmap(one)(state.params, taught.params, *taught.splits[name])
        return {f"{name}_{metric}": value for metric, value in values.items()}

    state = yield from run.train(
        parallel.compile(step),
        step.init(params, _keys(seeds)),
        minibatches({"x": x, "y": y, "teacher": taught.logits}, seeds, size=batch),
        steps=steps,
        evaluate=lambda state: score(state, "validation"),
        every=max(1, steps // evaluations),
    )
    if test:
        yield from run.rows(score(state, "test"))


def _scores(
    apply: Apply, teach: Apply, params: PyTree, teaching: PyTree, x: Array, y: Array
) -> dict[str, Array]:
    logits, target = _logits(apply, params, x), _logits(teach, teaching, x)
    return {
        "accuracy": jnp.mean(logits.argmax(-1) == y),
        "teacher_accuracy": jnp.mean(target.argmax(-1) == y),
        "ece": expected_calibration_error(calibration(logits, y)),
        "kl": jnp.mean(f_divergence_from_logits(target, logits, generators.kl)),
    }


def _logits(apply: Apply, params: PyTree, x: Array) -> Array:
    parts = [apply(params, x[i : i + ROWS])[0] for i in range(0, len(x), ROWS)]
    return jnp.concatenate(parts) if len(parts) > 1 else parts[0]


def _keys(seeds: Sequence[int]) -> Array:
    keys: Array = jax.vmap(jax.random.key)(jnp.array(seeds))
    return keys
