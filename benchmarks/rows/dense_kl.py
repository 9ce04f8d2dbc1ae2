"""Forward KL from logits with the gradient by the student's, against optax, torch and jnp.

[4, 512, 32000] float32, normalisation counted on both sides. Every other record of the family is
compared with the KL row, and accuracy near the teacher with float64.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import MISSING, Limit, Row, interleaved, temporaries
from divjax.divergences import f_divergence_from_logits, generators

Pair = tuple[Any, Any]  # student, teacher


def ours(student, teacher, *, generator=generators.kl):
    """The sum of D(teacher || student)."""
    return f_divergence_from_logits(teacher, student, generator).sum()


def by_hand(student, teacher):
    """What everyone writes."""
    p, q = jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)
    return jnp.sum(jnp.exp(p) * (p - q))


def optax_forms() -> dict[str, Callable[..., Any]]:
    """Both spellings of optax."""
    try:
        from optax.losses import kl_divergence, kl_divergence_with_log_targets
    except ImportError:
        return {}

    def plain(s, t):
        return kl_divergence(jax.nn.log_softmax(s), jax.nn.softmax(t)).sum()

    def log_targets(s, t):
        return kl_divergence_with_log_targets(jax.nn.log_softmax(s), jax.nn.log_softmax(t)).sum()

    return {"optax": plain, "optax log targets": log_targets}


def torch_forms(student: np.ndarray, teacher: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Eager F.kl_div in both spellings, and compiled; each returns (value, gradient)."""
    try:
        import torch
        import torch.nn.functional as F
    except ImportError:
        return {}
    torch.set_num_threads(os.cpu_count() or 1)  # as many as XLA takes
    t = torch.from_numpy(teacher)
    s = torch.from_numpy(student).requires_grad_()

    def log_target(s, t):
        p, q = F.log_softmax(t, -1), F.log_softmax(s, -1)
        return F.kl_div(q, p, log_target=True, reduction="sum")

    def prob_target(s, t):
        return F.kl_div(F.log_softmax(s, -1), F.softmax(t, -1), reduction="sum")

    def run(loss):
        value = loss(s, t)
        (gradient,) = torch.autograd.grad(value, s)
        return value.detach().numpy(), gradient.numpy()

    forms = {"torch log target": log_target, "torch": prob_target}
    forms["torch.compile"] = torch.compile(log_target)
    return {name: partial(run, loss) for name, loss in forms.items()}


def logits(shape: tuple[int, ...], distance: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Student and teacher."""
    rng = np.random.default_rng(seed)
    teacher = (3 * rng.standard_normal(shape)).astype(np.float32)
    noise = rng.standard_normal(shape).astype(np.float32)
    return (teacher + np.float32(distance) * noise).astype(np.float32), teacher


def speed(small: bool) -> Row:
    """The must of this file."""
    shape = (2, 4, 300) if small else (4, 512, 32000)
    rounds = 2 if small else 9
    s, t = logits(shape, 0.5)
    z = jnp.asarray(s), jnp.asarray(t)
    compiled = {
        name: jax.jit(jax.value_and_grad(f)).lower(*z).compile()
        for name, f in {"ours": ours, "jnp by hand": by_hand, **optax_forms()}.items()
    }
    calls = {name: partial(f, *z) for name, f in compiled.items()} | torch_forms(s, t)
    reference = float(by_hand(*z))
    for name, call in calls.items():
        value, gradient = call()
        assert abs(float(value) / reference - 1) < 1e-4, f"{name}: {value}, expected {reference}"
        assert np.shape(gradient) == shape
    calls["limit"] = partial(_limit(z), *z)
    wall, cpu = interleaved(calls, rounds=rounds)
    limit = wall.pop("limit")
    mine = wall.pop("ours")
    expected = ("optax", "optax log targets", "torch", "torch log target", "torch.compile")
    peers = wall | {name: MISSING for name in expected if name not in wall}
    best = min((wall[n] for n in expected[:2] if n in wall), default=None)
    graph = wall.get("torch.compile")
    sizes = {name: temporaries(f) for name, f in compiled.items()}
    of_optax = min((size for name, size in sizes.items() if "optax" in name), default=None)
    return Row(
        row="dense_kl",
        variant="forward KL, " + str(list(shape)),
        ours_ms=mine,
        peers=peers,
        ratios={name: mine / ms for name, ms in wall.items()},
        cpu_ms=cpu,
        limit_ms=limit,
        temp_bytes=sizes,
        rounds=rounds,
        limits=[
            Limit("time / best optax form", best and mine / best, 0.65),
            Limit("time / torch.compile", graph and mine / graph, 1.8),
            Limit("temporaries / optax", of_optax and sizes["ours"] / of_optax, 0.25),
            Limit("time / best optax form", best and mine / best, 0.35, must=False),
            Limit("time / torch.compile", graph and mine / graph, 0.85, must=False),
        ],
    )


def _limit(z: Pair) -> Any:
    """The exponentials of both arrays into a fresh result of their size."""
    return jax.jit(lambda s, t: jnp.exp(s) - jnp.exp(t)).lower(*z).compile()


def records(small: bool) -> list[Row]:
    """Every record against KL."""
    shape = (2, 4, 300) if small else (4, 512, 32000)
    z = tuple(map(jnp.asarray, logits(shape, 0.5)))
    compiled = {
        g.name: jax.jit(jax.value_and_grad(partial(ours, generator=g))).lower(*z).compile()
        for g in generators.ALL
    }
    rounds = 2 if small else 5
    wall, cpu = interleaved({n: partial(f, *z) for n, f in compiled.items()}, rounds=rounds)
    base = wall["kl"]
    return [
        Row(
            row="dense_kl",
            variant=f"record {name}",
            ours_ms=ms,
            peers={"our kl": base},
            ratios={"our kl": ms / base},
            cpu_ms={"ours": cpu[name], "our kl": cpu["kl"]},
            temp_bytes={"ours": temporaries(compiled[name])},
            rounds=rounds,
            limits=[
                Limit("time / KL", ms / base, 2.5),
                Limit("time / KL", ms / base, 1.5, must=False),
            ],
        )
        for name, ms in wall.items()
        if name != "kl"
    ]


def exact(student: np.ndarray, teacher: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """KL and gradient of each row in extended precision, free of cancellation."""
    s, t = student.astype(np.longdouble), teacher.astype(np.longdouble)
    p, q = (z - z.max(-1, keepdims=True) for z in (t, s))
    p, q = (z - np.log(np.exp(z).sum(-1, keepdims=True)) for z in (p, q))
    u = p - q
    value = (np.exp(p) * (u + np.expm1(-u))).sum(-1)
    slope = np.exp(p) * np.expm1(-u)
    return value, slope - np.exp(q) * slope.sum(-1, keepdims=True)


def near(small: bool) -> list[Row]:
    """Relative error of value and gradient where teacher and student nearly agree."""
    result = []
    width = 300 if small else 32000
    for distance in (1.5e-2, 1.5e-3, 4.5e-5):
        s, t = logits((8, width), distance, seed=1)
        value, slope = exact(s, t)
        error = {}
        for name, f in {"ours": ours, "jnp by hand": by_hand, **optax_forms()}.items():
            rowwise = jax.jit(jax.vmap(jax.value_and_grad(f)))
            v, g = rowwise(jnp.asarray(s), jnp.asarray(t))
            error[name] = _errors(v, g, value, slope)
        for name, run in torch_rowwise(s, t).items():
            error[name] = _errors(*run(), value, slope)
        result.append(
            Row("dense_kl", f"accuracy at KL {float(value.mean()):.1e}", 0.0, error=error)
        )
    return result


def torch_rowwise(s: np.ndarray, t: np.ndarray) -> dict[str, Callable[[], Any]]:
    """F.kl_div per row."""
    try:
        import torch
        import torch.nn.functional as F
    except ImportError:
        return {}

    def run():
        x = torch.from_numpy(s).requires_grad_()
        p, q = F.log_softmax(torch.from_numpy(t), -1), F.log_softmax(x, -1)
        value = F.kl_div(q, p, log_target=True, reduction="none").sum(-1)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach().numpy(), gradient.numpy()

    return {"torch log target": run}


def _errors(v: Any, g: Any, value: np.ndarray, slope: np.ndarray) -> dict[str, float]:
    v, g = np.asarray(v, np.longdouble), np.asarray(g, np.longdouble)
    norm = np.linalg.norm
    of_slope = norm((g - slope).astype(float), axis=-1) / norm(slope.astype(float), axis=-1)
    return {
        "value": float(f"{float(np.max(np.abs(v / value - 1))):.2g}"),
        "gradient": float(f"{float(of_slope.max()):.2g}"),
        "negative rows": int((v < 0).sum()),
    }


def measure(small: bool) -> list[Row]:
    """All of it."""
    return [speed(small), *records(small), *near(small)]
