"""Forward KL from logits with the gradient by the student's, against optax, torch and jnp.

[4, 512, 32000] float32, normalisation counted on both sides. Every other record of the family is
compared with the KL row, and accuracy near the teacher with float64.
"""

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from optax.losses import kl_divergence, kl_divergence_with_log_targets

from benchmarks.harness import MISSING, Limit, Row, Times, doubts, interleaved, temporaries, timed
from divjax.divergences import f_divergence_from_logits, generators

Pair = tuple[Any, Any]  # student, teacher


def ours(student, teacher, *, generator=generators.kl):
    """The sum of D(teacher || student)."""
    return f_divergence_from_logits(teacher, student, generator).sum()


def by_hand(student, teacher):
    """What everyone writes."""
    p, q = jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)
    return jnp.sum(jnp.exp(p) * (p - q))


def optax_plain(student, teacher):
    """With a target of probabilities."""
    return kl_divergence(jax.nn.log_softmax(student), jax.nn.softmax(teacher)).sum()


def optax_log_targets(student, teacher):
    """With a target of log-probabilities."""
    p, q = jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)
    return kl_divergence_with_log_targets(q, p).sum()


FORMS = {
    "ours": ours,
    "jnp by hand": by_hand,
    "optax": optax_plain,
    "optax log targets": optax_log_targets,
}
TORCH = ("torch", "torch log target", "torch.compile", "torch.compile log target")


def torch_forms(*, reduction: str) -> dict[str, Callable[[np.ndarray, np.ndarray], Any]]:
    """F.kl_div in both spellings, eager and compiled: name -> (student, teacher) -> call.

    The call returns (value, gradient by the student's logits); the value is the sum, or one per
    row with reduction "none".
    """
    try:
        import torch
        import torch.nn.functional as F
    except ImportError:
        return {}
    torch.set_num_threads(os.cpu_count() or 1)  # as many as XLA takes

    def log_target(s, t):
        p, q = F.log_softmax(t, -1), F.log_softmax(s, -1)
        value = F.kl_div(q, p, log_target=True, reduction=reduction)
        return value if reduction == "sum" else value.sum(-1)

    def prob_target(s, t):
        value = F.kl_div(F.log_softmax(s, -1), F.softmax(t, -1), reduction=reduction)
        return value if reduction == "sum" else value.sum(-1)

    def prepared(loss):
        def prepare(student, teacher):
            s = torch.tensor(student, requires_grad=True)
            return partial(run, loss, s, torch.tensor(teacher))

        return prepare

    def run(loss, s, t):
        value = loss(s, t)
        (gradient,) = torch.autograd.grad(value.sum(), s)
        return value.detach().numpy(), gradient.numpy()

    both = [torch.compile(loss, dynamic=False) for loss in (prob_target, log_target)]
    losses = (prob_target, log_target, *both)
    return {name: prepared(loss) for name, loss in zip(TORCH, losses, strict=True)}


def attempt(name: str, call: Callable[[], Any]) -> Any:
    """(value, gradient), or the reason why a peer has none."""
    try:
        return call()
    except RuntimeError as problem:  # torch.compile without a C++ compiler, for one
        if name not in TORCH:
            raise
        return f"failed: {type(problem).__name__}"


def missing(calls: Mapping[str, Any]) -> dict[str, str]:
    """The peers that are not installed."""
    return {name: MISSING for name in TORCH if name not in calls}


def logits(shape: tuple[int, ...], distance: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Student and teacher."""
    rng = np.random.default_rng(seed)
    teacher = (3 * rng.standard_normal(shape)).astype(np.float32)
    noise = rng.standard_normal(shape).astype(np.float32)
    return (teacher + np.float32(distance) * noise).astype(np.float32), teacher


def speed(small: bool) -> Row:
    """The must of this file."""
    shape = (2, 4, 300) if small else (4, 512, 32000)
    s, t = logits(shape, 0.5)
    z = jnp.asarray(s), jnp.asarray(t)
    compiled = {
        name: jax.jit(jax.value_and_grad(f)).lower(*z).compile() for name, f in FORMS.items()
    }
    calls = {name: partial(f, *z) for name, f in compiled.items()}
    calls |= {name: prepare(s, t) for name, prepare in torch_forms(reduction="sum").items()}
    absent = agree(calls, z)
    calls = {name: call for name, call in calls.items() if name not in absent}
    calls["limit"] = partial(_limit(z), *z)
    times = interleaved(calls, rounds=2 if small else 11, settle=0.0 if small else 0.2)
    row = timed("dense_kl", f"forward KL, {list(shape)}", times, absent=absent)
    row.note = doubts(row)
    row.temp_bytes = {name: temporaries(f) for name, f in compiled.items()}
    of_optax = max(row.ratios["optax"], row.ratios["optax log targets"])
    graphs = [row.ratios[n] for n in TORCH if "compile" in n and n in row.ratios]
    of_graph = max(graphs, default=None)
    row.limits = [
        Limit("time / best optax form", of_optax, 0.65),
        Limit("time / best torch.compile", of_graph, 1.8),
        _room(row),
        Limit("time / best optax form", of_optax, 0.35, must=False),
        Limit("time / best torch.compile", of_graph, 0.85, must=False),
    ]
    return row


def _room(row: Row) -> Limit:
    of_optax = min(row.temp_bytes["optax"], row.temp_bytes["optax log targets"])
    return Limit("temporaries / optax", row.temp_bytes["ours"] / of_optax, 0.25)


def uneven(small: bool) -> Row:
    """Temporaries where the rows are no power of two: next-token pairs of 512 tokens."""
    z = [jax.ShapeDtypeStruct((2, 3, 300) if small else (4, 511, 32000), jnp.float32)] * 2
    row = Row("dense_kl", f"temporaries, {list(z[0].shape)}")
    row.temp_bytes = {
        name: temporaries(jax.jit(jax.value_and_grad(f)).lower(*z).compile())
        for name, f in FORMS.items()
    }
    row.limits = [_room(row)]
    return row


def agree(calls: Mapping[str, Callable[[], Any]], z: Pair) -> dict[str, str]:
    """Compares all values and gradients; the peers that are absent, with the reason."""
    student, teacher = z
    value = float(by_hand(student, teacher))
    slope = jax.nn.softmax(student) - jax.nn.softmax(teacher)
    size = jnp.linalg.norm(slope)
    absent = missing(calls)
    for name, call in calls.items():
        found = attempt(name, call)
        if isinstance(found, str):
            absent[name] = found
            continue
        off = abs(float(found[0]) / value - 1), float(jnp.linalg.norm(found[1] - slope) / size)
        if not max(off) < 1e-4:
            raise ValueError(f"{name}: value and gradient are off by {off}, nothing is timed")
    return absent


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
    calls = {name: partial(f, *z) for name, f in compiled.items()}
    times = interleaved(calls, rounds=2 if small else 5, settle=0.0 if small else 0.2)
    return [_against_kl(name, times, compiled) for name in compiled if name != "kl"]


def _against_kl(name: str, times: Times, compiled: Mapping[str, Any]) -> Row:
    pair = Times(*({n: x[n] for n in (name, "kl")} for x in times[:3]), *times[3:])
    row = timed("dense_kl", f"record {name}", pair, ours=name)
    row.temp_bytes = {"ours": temporaries(compiled[name]), "kl": temporaries(compiled["kl"])}
    row.note = doubts(row)
    ratio = row.ratios["kl"]
    row.limits = [Limit("time / KL", ratio, 2.5), Limit("time / KL", ratio, 1.5, must=False)]
    return row


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
    rowwise = {name: jax.jit(jax.vmap(jax.value_and_grad(f))) for name, f in FORMS.items()}
    torch_rowwise = torch_forms(reduction="none")
    result = []
    for distance, bound in ((1.5e-2, 1e-5), (1.5e-3, 2e-3), (4.5e-5, 2e-3)):
        s, t = logits((8, 300 if small else 32000), distance, seed=1)
        value, slope = exact(s, t)
        calls = {name: partial(f, jnp.asarray(s), jnp.asarray(t)) for name, f in rowwise.items()}
        calls |= {name: prepare(s, t) for name, prepare in torch_rowwise.items()}
        errors: dict[str, Any] = dict(missing(calls))
        for name, call in calls.items():
            found = attempt(name, call)
            errors[name] = found if isinstance(found, str) else _errors(*found, value, slope)
        row = Row("dense_kl", f"accuracy at KL {float(value.mean()):.1e}", error=errors)
        row.limits = [
            Limit("relative error of the value", errors["ours"]["value"], bound),
            Limit("relative error of the gradient", errors["ours"]["gradient"], 2e-3),
        ]
        result.append(row)
    return result


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
    return [speed(small), uneven(small), *records(small), *near(small)]
