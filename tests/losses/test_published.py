"""The published formulas of other libraries' losses, in float64 NumPy: values and gradients.

TRL's GKD loss (Agarwal et al., arXiv 2306.13649) and torchdistill's KD term (Hinton et al., arXiv
1503.02531); the released SinKD is in test_sinkd.py. The libraries themselves are run by the test of
docs/migration.md where they are installed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from divjax.core import masked_mean
from divjax.divergences import f_divergence_from_logits, generators
from divjax.losses import temperature_kd

pytestmark = pytest.mark.usefixtures("x64")

STUDENT, TEACHER = np.random.default_rng(0).normal(size=(2, 4, 5, 7)) * 2
TOKENS = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 1, 0], [1, 0, 0, 0, 0]], bool)


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def kl(log_p, log_q):
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def gkd(student, teacher, beta, temperature, tokens):
    """beta KL(teacher || m) + (1 - beta) KL(student || m); at the ends one KL, per token."""
    p, q = log_softmax(teacher / temperature), log_softmax(student / temperature)
    if beta == 0:
        terms = kl(p, q)
    elif beta == 1:
        terms = kl(q, p)
    else:
        m = np.log(beta * np.exp(p) + (1 - beta) * np.exp(q))
        terms = beta * kl(p, m) + (1 - beta) * kl(q, m)
    return terms[tokens].sum() / tokens.sum()


def distilled(student, teacher, labels, alpha, temperature):
    """alpha CE + (1 - alpha) T^2 KL(teacher || student), means over the batch."""
    hard = -np.take_along_axis(log_softmax(student), labels[:, None], -1).mean()
    soft = kl(log_softmax(teacher / temperature), log_softmax(student / temperature)).mean()
    return alpha * hard + (1 - alpha) * temperature**2 * soft


def central(fn, x, step=1e-5):
    slope = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        move = np.zeros_like(x)
        move[i] = step
        slope[i] = (fn(x + move) - fn(x - move)) / (2 * step)
    return slope


def same(ours, theirs, x):
    value, slope = jax.jit(jax.value_and_grad(ours))(jnp.asarray(x))
    np.testing.assert_allclose(value, theirs(x), rtol=1e-12)
    np.testing.assert_allclose(slope, central(theirs, x), atol=1e-9)


def of_beta(beta):
    """What TRL's beta is here."""
    ends = {0: generators.kl, 1: generators.reverse(generators.kl)}
    return ends.get(beta) or generators.js(beta)


@pytest.mark.parametrize("beta", [0, 0.1, 0.5, 0.9, 1])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_generalised_js_of_gkd(beta, temperature):
    def ours(student):
        p, q = TEACHER / temperature, student / temperature
        return masked_mean(f_divergence_from_logits(p, q, of_beta(beta)), jnp.asarray(TOKENS)).value

    same(ours, lambda s: gkd(s, TEACHER, beta, temperature, TOKENS), STUDENT)
    if temperature != 1:  # the same through the loss, without a factor temperature^2

        def loss(student):
            divergence = lambda p, q: f_divergence_from_logits(p, q, of_beta(beta))  # noqa: E731
            options = {"temperature": temperature, "power": 0, "mask": jnp.asarray(TOKENS)}
            return temperature_kd(student, jnp.asarray(TEACHER), divergence=divergence, **options)

        np.testing.assert_allclose(loss(jnp.asarray(STUDENT)).value, ours(STUDENT), rtol=1e-12)


@pytest.mark.parametrize(("alpha", "temperature"), [(0.1, 4.0), (0.5, 1.0), (0.9, 20.0)])
def test_kd_of_torchdistill(alpha, temperature):
    student, teacher, labels = STUDENT[0], jnp.asarray(TEACHER[0]), np.array([0, 6, 3, 3, 1])

    def ours(student):
        hard = optax.softmax_cross_entropy_with_integer_labels(student, labels).mean()
        soft = temperature_kd(student, teacher, temperature=temperature).value
        return alpha * hard + (1 - alpha) * soft

    same(ours, lambda s: distilled(s, TEACHER[0], labels, alpha, temperature), student)


def test_kd_without_targets_has_no_factor():
    """Without labels torchdistill returns the KL as it is."""
    student, teacher = STUDENT[0], TEACHER[0]
    value = temperature_kd(jnp.asarray(student), jnp.asarray(teacher), temperature=4.0, power=0)
    np.testing.assert_allclose(
        value.value, distilled(student, teacher, np.zeros(5, int), 0.0, 4.0) / 16, rtol=1e-12
    )
