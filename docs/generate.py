"""Writes the generated parts of the documentation: `python docs/generate.py`; a test compares.

A generated part stands between `<!-- NAME -->` and `<!-- /NAME -->` in one of the .md files here.
"""

import math
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import migration
import papers
import timings

from divjax import divergences, estimators
from divjax.divergences import generators

FOLDER = Path(__file__).parent


def _table(header: list[str], rows: list[list[str]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in line] for line in (header, *rows)]
    lines = [cells[0], ["---"] * len(header), *cells[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(x: float) -> str:
    return "inf" if math.isinf(x) else f"{x:.4g}"


def _formula(name: str) -> str:
    """The first line of the docstring of the named function that a record belongs to."""
    base = re.sub(r"_-?[\d.]+$", "", name)
    return (getattr(divergences, base).__doc__ or "").split("\n")[0]


def divergence_table() -> str:
    """One row per record of `generators.ALL`."""
    rows = []
    for g in generators.ALL:
        curvature = g.taylor[0] if g.taylor else math.nan
        rows.append(
            [
                f"`{g.name}`",
                _formula(g.name),
                _number(g.at_zero),
                _number(g.at_inf),
                _number(g.at_zero + g.at_inf),
                "kink" if math.isnan(curvature) else _number(curvature),
            ]
        )
    header = ["record", "D(p, q)", "cost of q alone, f(0)", "cost of p alone, f'(inf)"]
    return _table([*header, "largest value", "f''(1)"], rows)


def placement_rows() -> list[tuple[str, str, np.ndarray]]:
    """(estimator, placement, expected gradient by the policy's logits), enumerated exactly.

    The policy p = softmax(z) draws the sample; the estimate is averaged over all K outcomes with
    their probabilities, so that the result is the expectation itself and no sample of it.
    """
    z, log_p, log_q, _ = placement_laws()
    p = jnp.exp(log_p)

    def log_policy(z):
        return jax.nn.log_softmax(z)

    def loss(term):  # the term is differentiated, the sample is not
        return jax.grad(lambda z: jnp.sum(p * term(log_policy(z), log_q)))(z)

    def reward(term):  # the term multiplies the score, and is not differentiated
        weight = p * term(log_p, log_q)
        return jax.grad(lambda z: jnp.sum(weight * log_policy(z)))(z)

    def times_ratio(term):
        return lambda a, b: jnp.exp(a - jax.lax.stop_gradient(a)) * term(a, b)

    k1, k2, k3 = estimators.k1, estimators.k2, estimators.k3
    js = generators.js()
    rows = [
        ("k1", "loss", loss(k1)),
        ("k2", "loss", loss(k2)),
        ("k3", "loss", loss(k3)),
        ("k3 x ratio", "loss", loss(times_ratio(k3))),
        (
            "with_gradient(k3, k2)",
            "loss",
            loss(lambda a, b: estimators.with_gradient(k3(a, b), k2(a, b))),
        ),
        ("k1", "reward", reward(k1)),
        ("k2", "reward", reward(k2)),
        ("k3", "reward", reward(k3)),
        (
            "score_under_p(kl)",
            "loss",
            loss(lambda a, b: estimators.score_under_p(a, b, generators.kl)),
        ),
        ("under_p(js)", "loss", loss(lambda a, b: estimators.under_p(a, b, js))),
        (
            "under_p(js) x ratio",
            "loss",
            loss(times_ratio(lambda a, b: estimators.under_p(a, b, js))),
        ),
        ("score_under_p(js)", "loss", loss(lambda a, b: estimators.score_under_p(a, b, js))),
    ]
    return [(name, where, np.asarray(g, np.float64)) for name, where, g in rows]


def placement_laws():
    """Logits of a policy over 8 outcomes, its log-probs, a reference's, exact gradients."""
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.normal(size=8), jnp.float32)
    log_q = jax.nn.log_softmax(jnp.asarray(rng.normal(size=8), jnp.float32))

    def gradient(g):
        value = lambda z: divergences.f_divergence_from_logits(z, log_q, g)  # noqa: E731
        return np.asarray(jax.grad(value)(z), np.float64)

    kl, reverse = gradient(generators.kl), gradient(generators.reverse(generators.kl))
    exact = {
        "KL(p, q)": kl,
        "KL(q, p)": reverse,
        "KL(p, q) - KL(q, p)": kl - reverse,
        "JS(p, q)": gradient(generators.js()),
        "nothing: it is 0": np.zeros(8),
    }
    return z, jax.nn.log_softmax(z), log_q, exact


def identify(gradient: np.ndarray, exact: dict[str, np.ndarray]) -> str:
    """Which quantity has this gradient, to 1e-5 of the size of the KL's."""
    size = np.linalg.norm(exact["KL(p, q)"])
    for name, g in exact.items():
        if np.linalg.norm(gradient - g) < 1e-5 * size:
            return name
    return "no divergence here"


def placement_table() -> str:
    """The table "estimator x placement -> gradient of which divergence"."""
    exact = placement_laws()[3]
    target = exact["KL(p, q)"]
    rows = []
    for name, where, g in placement_rows():
        size = float(np.linalg.norm(g) / np.linalg.norm(target))
        cosine = (
            float(g @ target / np.linalg.norm(g) / np.linalg.norm(target)) if size > 1e-5 else None
        )
        rows.append(
            [
                f"`{name}`",
                where,
                identify(g, exact),
                "-" if cosine is None else f"{cosine:.2f}",
                f"{size:.2f}",
            ]
        )
    header = [
        "estimator",
        "placed in",
        "its expected gradient is that of",
        "cosine to KL(p, q)",
        "size",
    ]
    return _table(header, rows)


def _code(text: str) -> str:
    return f"```python\n{text}```"


def migration_tables() -> str:
    """What is imported, then for each library their line, our line, and what parts them."""
    blocks = [_code(f"{migration.IMPORTS}\n{migration.INPUTS}")]
    for module, peer in migration.PEERS.items():
        rows = [
            [f"`{r.theirs}`", f"`{r.ours}`", r.note] for r in migration.ROWS if r.peer == module
        ]
        table = _table([peer.name, "divjax", "mind"], rows)
        blocks += [f"## {peer.name}", _code(peer.setup), table]
    return "\n\n".join(blocks)


PARTS = {
    "api/records.md": {"records": divergence_table},
    "benchmarks.md": timings.parts(_table),
    "divergences.md": {"records": divergence_table},
    "estimators.md": {"placement": placement_table},
    "migration.md": {"migration": migration_tables},
    "papers.md": papers.parts(_table),
}


def render(text: str, parts: dict) -> str:
    """The text with every generated part made anew."""
    for name, make in parts.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
        assert pattern.search(text), f"no place for the generated part {name}"
        text = pattern.sub(lambda m, make=make: m[1] + make() + "\n" + m[2], text)
    return text


if __name__ == "__main__":
    for file, parts in PARTS.items():
        path = FOLDER / file
        path.write_text(render(path.read_text(), parts))
