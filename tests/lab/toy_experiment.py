"""Softmax regression on the digits, small enough to be killed a hundred times."""

import os
import time
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from divjax.lab import (
    Cell,
    Experiment,
    Report,
    by_seed,
    choose,
    digits,
    final,
    keep,
    not_worse,
    plots,
    summary,
    superior,
)


@dataclass(frozen=True)
class Noise:
    scale: float = 0.1


@dataclass(frozen=True)
class Config:
    lr: tuple[float, ...] = (0.3, 1.0)
    steps: int = 120
    every: int = 20
    seeds: int = 6
    pause: float = 0.0
    blow_up: bool = False
    noise: Noise = field(default_factory=Noise)


class State(NamedTuple):
    step: jax.Array  # [S]
    w: jax.Array  # [S, 64, 10]
    key: jax.Array  # [S]


ARMS = {"plain": 0.0, "decay": 3e-3, "flat": 0.3}


def cells(config):
    seeds = range(40, 40 + config.seeds)
    return [
        Cell(f"{arm}-lr{lr}", {"arm": arm, "lr": lr}, seeds) for arm in ARMS for lr in config.lr
    ]


def loss(w, decay, x, y):
    return -jnp.mean(jax.nn.log_softmax(x @ w)[jnp.arange(len(y)), y]) + decay * jnp.sum(w**2)


@partial(jax.jit, donate_argnums=0)
@partial(jax.vmap, in_axes=(0, None, None, None, None, None))
def update(state, batch, lr, decay, scale, blow_up):
    value, grad = jax.value_and_grad(loss)(state.w, decay, *batch)
    key, noise = jax.random.split(state.key)
    grad = grad + scale * jax.random.normal(noise, grad.shape)
    w = state.w - lr * grad
    value = jnp.where(blow_up & (state.step >= 13), jnp.nan, value)
    return State(state.step + 1, w, key), {"terms": {"ce": value}}


@jax.jit
def score(w, x, y):
    logits = x @ w  # [S, N, 10]
    log_p = jax.nn.log_softmax(logits)
    right = jnp.argmax(logits, -1) == y
    confidence = jnp.exp(jnp.max(log_p, -1))
    bins = jnp.clip(jnp.ceil(confidence * 10).astype(int) - 1, 0, 9)
    onehot = jax.nn.one_hot(bins, 10)
    count = jnp.sum(onehot, 1)
    hits, trust = (jnp.einsum("snb,sn->sb", onehot, v) for v in (right * 1.0, confidence))
    return {
        "accuracy": jnp.mean(right, -1),
        "nll": -jnp.mean(jnp.take_along_axis(log_p, y[None, :, None], -1)[..., 0], -1),
        "ece": jnp.sum(jnp.abs(hits - trust), -1) / y.size,
        "hits": hits,
        "trust": trust,
        "count": count,
    }


def run(config, cell, run):
    data = digits()
    train, valid, test = ((data.inputs[a:b], data.labels[a:b]) for a, b in SPLITS)
    seeds = jnp.asarray(cell.seeds)
    keys = jax.vmap(jax.random.key)(seeds)
    w = jax.vmap(lambda key: 0.1 * jax.random.normal(key, (64, 10)))(keys)
    zero = jnp.zeros(len(cell.seeds), jnp.int32)

    def batches(step):
        time.sleep(config.pause)
        rows = np.random.default_rng(step).integers(0, len(train[0]), 64)
        return train[0][rows], train[1][rows]

    def step(state, batch):
        decay = ARMS[cell.settings["arm"]]
        return update(state, batch, cell.settings["lr"], decay, config.noise.scale, config.blow_up)

    state = yield from run.train(
        step,
        State(zero, w, keys),
        batches,
        steps=config.steps,
        evaluate=lambda state: {
            k: v for k, v in score(state.w, *valid).items() if k in ("accuracy", "nll")
        },
        every=config.every,
        log=lambda info: info["terms"],
        save_steps=int(os.environ.get("TOY_SAVE_STEPS", "0")) or None,
    )
    yield from run.rows({f"test_{k}": v for k, v in score(state.w, *test).items()})


SPLITS = (0, 1000), (1000, 1400), (1400, 1797)


def reliability(records):
    def pooled(arm, key):
        return np.sum([r[key] for r in records if r["arm"] == arm and key in r], 0)

    count = {arm: pooled(arm, "test_count") for arm in ARMS}
    share = {
        key: {arm: pooled(arm, f"test_{key}") / np.maximum(count[arm], 1) for arm in ARMS}
        for key in ("trust", "hits")
    }
    return plots.reliability(share["trust"], share["hits"], count)


def analyse(config, records):
    best = choose(records, "nll", by="arm", over=["lr"], larger_is_better=False)
    kept = keep(records, best, by="arm")
    ece = by_seed(final(kept, "test_ece"), "test_ece", by="arm")
    accuracy = by_seed(final(kept, "test_accuracy"), "test_accuracy", by="arm")
    return Report(
        parts=[
            superior(
                "calibration error lower with decay",
                ece["decay"],
                ece["plain"],
                margin=0.005,
                larger_is_better=False,
            ),
            not_worse("accuracy not lower", accuracy["decay"], accuracy["plain"], margin=0.01),
        ],
        tables={
            "Test split": summary(kept, ["test_accuracy", "test_nll", "test_ece"], by="arm"),
        },
        figures={
            "Validation loss": lambda: plots.learning_curves(
                kept, "nll", label="negative log-likelihood"
            ),
            "Calibration error on the test split": lambda: plots.by_arm(
                kept, "test_ece", label="expected calibration error"
            ),
            "Reliability on the test split": lambda: reliability(kept),
        },
        notes=[
            "Learning rates chosen on the validation split: "
            + ", ".join(f"{arm} {chosen['lr']}" for arm, chosen in best.items())
            + ". The flat arm is there to be bad."
        ],
    )


EXPERIMENT = Experiment(
    name="toy_experiment",
    paper="0000.00000",
    claim="Weight decay lowers the calibration error of softmax regression on the digits "
    "and keeps its accuracy.",
    config=Config,
    presets={
        "smoke": {"steps": 20, "every": 5, "seeds": 2, "lr": (1.0,)},
        "demo": {"seeds": 3},
        "cpu": {},
    },
    cells=cells,
    run=run,
    analyse=analyse,
    data=lambda config: [digits().provenance],
)
