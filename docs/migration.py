"""Lines of other libraries and the lines of divjax that give the same numbers.

A test executes both columns of every row whose library is installed and compares them;
`python docs/generate.py` writes the tables into migration.md, with what was imported above them.
"""

from typing import NamedTuple


class Row(NamedTuple):
    """One line of theirs, one of ours, after `IMPORTS`, `INPUTS` and the peer's of `PEERS`."""

    peer: str  # the module that theirs needs
    theirs: str
    ours: str
    note: str = ""


IMPORTS = """\
import jax, jax.numpy as jnp, numpy as np
from divjax import adapters
from divjax.core import masked_mean
from divjax.divergences import (
    f_divergence_from_logits, gaussian, generators, kl, sinkhorn, wasserstein_1d)
from divjax.divergences.transport import converged
from divjax.losses import temperature_kd
"""

INPUTS = """\
rng = np.random.default_rng(0)
z_p, z_q = jnp.asarray(rng.normal(size=(2, 5, 7)), jnp.float32)         # logits [5, 7]
log_p, log_q = jax.nn.log_softmax(z_p), jax.nn.log_softmax(z_q)
p, q = jnp.exp(log_p), jnp.exp(log_q)
m, n = jnp.asarray(rng.normal(size=(2, 5, 3)), jnp.float32)             # means [5, 3]
s, r = jnp.asarray(rng.uniform(0.5, 2.0, size=(2, 5, 3)), jnp.float32)  # scales [5, 3]
x, y = np.asarray(rng.normal(size=(2, 8)), np.float32)                  # on a line [8]
a, b = np.asarray(rng.dirichlet(np.ones(8), size=2), np.float32)        # weights [8]
C = np.abs(x[:, None] - y) ** 2                                         # costs [8, 8]
"""


class Peer(NamedTuple):
    """Another library: its name, and what its lines need."""

    name: str
    setup: str


PEERS = {
    "optax": Peer("optax", "import optax\n"),
    "torch": Peer(
        "PyTorch",
        "import torch, torch.nn.functional as F, torch.distributions as D\n"
        "t = lambda x: torch.tensor(np.asarray(x))\n",
    ),
    "trl": Peer(
        "TRL",
        "import os; os.environ['TRL_EXPERIMENTAL_SILENCE'] = '1'\n"
        "import torch\n"
        "from trl.experimental.gkd import GKDTrainer\n"
        "gjsd = GKDTrainer.generalized_jsd_loss\n"
        "t = lambda x: torch.tensor(np.asarray(x))\n",
    ),
    "torchdistill": Peer(
        "torchdistill",
        "import optax, torch\n"
        "from torchdistill.losses.mid_level import KDLoss\n"
        "names = dict(student_module_path='m', student_module_io='out',\n"
        "             teacher_module_path='m', teacher_module_io='out')\n"
        "t = lambda x: {'m': {'out': torch.tensor(np.asarray(x))}}\n"
        "labels, targets = jnp.arange(5), torch.arange(5)\n",
    ),
    "distrax": Peer("distrax", "import distrax\n"),
    "ott": Peer(
        "ott-jax",
        "from ott.geometry.geometry import Geometry\n"
        "from ott.problems.linear.linear_problem import LinearProblem\n"
        "from ott.solvers.linear.sinkhorn import Sinkhorn\n",
    ),
    "ot": Peer("POT", "import ot\n"),
}

ROWS = [
    Row(
        "optax",
        "optax.losses.kl_divergence(log_q, p)",
        "kl(log_p, log_q)",
        "optax has the model in front and the target as probabilities; its gradient by a target "
        "of 0 is NaN",
    ),
    Row(
        "optax",
        "optax.losses.kl_divergence_with_log_targets(log_q, log_p)",
        "kl(log_p, log_q)",
        "NaN in optax where both sides are -inf; 0 here",
    ),
    Row(
        "optax",
        "optax.losses.generalized_kl_divergence(log_q, p)",
        "kl(log_p, log_q)",
        "sum p log(p / q) - p + q in both, so unnormalised arrays agree too",
    ),
    Row(
        "torch",
        "F.kl_div(t(log_q), t(p), reduction='none').sum(-1)",
        "kl(log_p, log_q)",
        "the model in front, the target as probabilities",
    ),
    Row(
        "torch",
        "F.kl_div(t(log_q), t(log_p), log_target=True, reduction='batchmean')",
        "masked_mean(kl(log_p, log_q)).value",
        "'mean' divides by the vocabulary too",
    ),
    Row(
        "torch",
        "D.kl_divergence(D.Normal(t(m), t(s)), D.Normal(t(n), t(r))).sum(-1)",
        "gaussian.kl(gaussian.DiagonalGaussian(m, s**2), gaussian.DiagonalGaussian(n, r**2))",
        "scales there, variances here",
    ),
    Row(
        "trl",
        "gjsd(t(z_q), t(z_p), beta=0.3, temperature=2.0, reduction='sum')",
        "f_divergence_from_logits(z_p / 2, z_q / 2, generators.js(0.3)).sum()",
        "`gjsd = GKDTrainer.generalized_jsd_loss`, the student in front; its 'batchmean' divides "
        "by the first axis, or by the tokens where there are labels",
    ),
    Row(
        "trl",
        "gjsd(t(z_q), t(z_p), beta=0, reduction='sum')",
        "f_divergence_from_logits(z_p, z_q, generators.kl).sum()",
        "at 0 and 1 TRL switches to the two KLs; they are no limits of JS, but of "
        "`js(b, normalise=True)`",
    ),
    Row(
        "trl",
        "gjsd(t(z_q), t(z_p), beta=1, reduction='sum')",
        "f_divergence_from_logits(z_p, z_q, generators.reverse(generators.kl)).sum()",
    ),
    Row(
        "torchdistill",
        "KDLoss(**names, temperature=4.0, alpha=0.1)(t(z_q), t(z_p), targets)",
        "0.1 * optax.softmax_cross_entropy_with_integer_labels(z_q, labels).mean() "
        "+ 0.9 * temperature_kd(z_q, z_p, temperature=4.0).value",
        "without targets, or with alpha=0 (None, its default, raises), KDLoss leaves "
        "temperature^2 out: `temperature_kd(..., power=0)`",
    ),
    Row(
        "torchdistill",
        "KDLoss(**names, temperature=4.0, alpha=0.0)(t(z_q), t(z_p))",
        "temperature_kd(z_q, z_p, temperature=4.0, power=0).value",
    ),
    Row(
        "distrax",
        "distrax.Categorical(logits=z_p).kl_divergence(distrax.Categorical(logits=z_q))",
        "f_divergence_from_logits(z_p, z_q, generators.kl)",
    ),
    Row(
        "distrax",
        "distrax.MultivariateNormalDiag(m, s).kl_divergence(distrax.MultivariateNormalDiag(n, r))",
        "gaussian.kl(*adapters.laws("
        "distrax.MultivariateNormalDiag(m, s), distrax.MultivariateNormalDiag(n, r)))",
    ),
    Row(
        "ott",
        "Sinkhorn(threshold=1e-4)(LinearProblem(Geometry(cost_matrix=C.T, epsilon=0.5), b, a))"
        ".primal_cost",
        "sinkhorn(C, jnp.log(a), jnp.log(b), epsilon=0.5, solver=converged()).cost",
        "ott matches columns first, so equal iterates need the transpose; weights are logs here",
    ),
    Row(
        "ot",
        "ot.sinkhorn2(a, b, C, 2.0, method='sinkhorn_log')",
        "sinkhorn(C, jnp.log(a), jnp.log(b), epsilon=2.0, solver=converged(tolerance=1e-6)).cost",
        "POT returns <P, C> as well; its threshold is 1e-9",
    ),
    Row(
        "ot",
        "ot.wasserstein_1d(x, y, a, b, p=2)",
        "wasserstein_1d(jnp.asarray(x), jnp.asarray(y), jnp.log(a), jnp.log(b), power=2.0)",
        "both to the power p",
    ),
]
