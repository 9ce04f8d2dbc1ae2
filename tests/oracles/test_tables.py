"""The table against its script, the jets against finite differences, and printed reference values.

The reference values (twelve digits, worked out by hand and by quadrature elsewhere) are compared
with mpmath first and with divjax second.
"""

import f_exact
import f_table
import jax
import jax.numpy as jnp
import make_tables
import mpmath as mp
import numpy as np
import pytest

from divjax.divergences import f_divergence_from_logits, generators

P, Q = (0.5, 0.3, 0.2), (0.2, 0.5, 0.3)
ZERO_P, ZERO_Q = (0.7, 0.3, 0.0), (0.1, 0.5, 0.4)

# record -> D(P || Q), D(Q || P)
PAIR = {
    "kl": (0.223804657186, 0.193794197941),
    "reverse_kl": (0.193794197941, 0.223804657186),
    "jeffreys": (0.417598855126, 0.417598855126),
    "js": (0.050874612540, 0.050874612540),
    "js_0.1": (0.019661226328, 0.017562598302),
    "skew_kl_0.1": (0.172950594689, 0.159262968865),
    "skew_reverse_kl_0.1": (0.159262968865, 0.172950594689),
    "alpha_0.5": (0.206099700336, 0.206099700336),
    "alpha_0.3": (0.200593861535, 0.212464863025),
    "alpha_1.5": (0.248330309333, 0.185882389589),
    "squared_hellinger": (0.051524925084, 0.051524925084),
    "pearson": (0.563333333333, 0.363333333333),
    "neyman": (0.363333333333, 0.563333333333),
    "tv": (0.3, 0.3),
    "soft_reverse_kl": (0.092044972861, 0.122055432106),
    "lecam": (0.099285714286, 0.099285714286),
    "tsallis_1.5": (0.372495464000, None),
}
# record -> gradient of D(P || Q) by the logits of Q
PAIR_GRADIENT = {
    "kl": (-0.3, 0.2, 0.1),
    "reverse_kl": (-0.222016986, 0.158515713, 0.063501273),
    "js": (-0.0613960873, 0.0421996166, 0.0191964708),
    "squared_hellinger": (-0.0632663755, 0.0434696014, 0.0197967741),
    "pearson": (-0.937333333, 0.601666667, 0.335666667),
    "lecam": (-0.1159403061, 0.0797283163, 0.0362119898),
    "tv": (-0.16, 0.1, 0.06),
    "soft_reverse_kl": (-0.0992248114, 0.0741164798, 0.0251083315),
    "skew_kl_0.1": (-0.219552099, 0.148130622, 0.071421477),
}
ZEROS = {
    "kl": 1.208889417209,
    "js": 0.277813820794,
    "squared_hellinger": 0.348126534273,
    "tv": 0.6,
    "pearson": 4.08,
    "lecam": 0.45,
    "alpha_0.5": 1.392506137091,
    "skew_kl_0.1": 0.892133475093,
    "skew_reverse_kl_0.1": 0.958547789475,
    "reverse_kl": np.inf,
}
ZEROS_GRADIENT = {
    "kl": (-0.6, 0.2, 0.4),
    "js": (-0.0818247786, -0.0067644151, 0.0885891938),
    "squared_hellinger": (-0.0996938923, -0.0306808009, 0.1303746931),
    "lecam": (-0.12375, 0.00625, 0.1175),
    "pearson": (-4.392, 2.36, 2.032),
    "skew_kl_0.1": (-0.32625, 0.05625, 0.27),
}
# record -> F(-2), F(2)
CURVE = {
    "kl": (0.5939941503, 8.3890560989),
    "reverse_kl": (1.1353352832, 4.3890560989),
    "js": (0.1860890174, 1.3750221887),
    "squared_hellinger": (0.1997882004, 1.4762462210),
    "lecam": (0.3292617976, 2.4329338935),
    "soft_reverse_kl": (0.7631572485, 1.6390117216),
}
# record -> E_P[s] - E_Q[f*(s)] at s = (.3, -.2, .1)
VARIATIONAL = {
    "kl": 0.0991115865,
    "reverse_kl": 0.0982176349,
    "js": -0.0289685756,
    "squared_hellinger": -0.0060714286,
    "pearson": 0.10975,
    "neyman": 0.1093191045,
    "lecam": 0.0728544840,
}
RECORDS = {g.name: g for g in generators.ALL}


def exact(name, p, q):
    """Value and gradient by the logits of q, by mpmath."""
    logs = [[float(np.log(x)) if x else -np.inf for x in law] for law in (p, q)]
    value, _, grad, *_ = f_exact.row(name, *logs, limit=1e300, normalise=True)
    return float(value), [float(x) for x in grad]


def ours(name, p, q):
    with jax.enable_x64(True), np.errstate(divide="ignore"):
        log_p, log_q = (jnp.asarray(np.log(np.array(x, np.float64))) for x in (p, q))
        value, grad = jax.value_and_grad(f_divergence_from_logits, argnums=1)(
            log_p, log_q, RECORDS[name]
        )
        return float(value), np.asarray(grad)


@pytest.mark.parametrize("both", [exact, ours])
@pytest.mark.parametrize("name", PAIR)
def test_printed_pair(name, both):
    forward, backward = PAIR[name]
    value, gradient = both(name, P, Q)
    assert value == pytest.approx(forward, abs=6e-13)
    if backward is not None:
        assert both(name, Q, P)[0] == pytest.approx(backward, abs=6e-13)
    if name in PAIR_GRADIENT:
        assert gradient == pytest.approx(PAIR_GRADIENT[name], abs=6e-10)


@pytest.mark.parametrize("both", [exact, ours])
@pytest.mark.parametrize("name", ZEROS)
def test_printed_zeros(name, both):
    value, gradient = both(name, ZERO_P, ZERO_Q)
    assert value == pytest.approx(ZEROS[name], abs=6e-13)
    if name in ZEROS_GRADIENT:
        assert gradient == pytest.approx(ZEROS_GRADIENT[name], abs=6e-11)


@pytest.mark.parametrize(("weight", "value"), [(1e-2, 1.900428437467), (1e-4, 3.744933185342)])
def test_printed_mixture_makes_reverse_kl_finite(weight, value):
    mixed = [(1 - weight) * x + weight * y for x, y in zip(ZERO_P, ZERO_Q, strict=True)]
    for both in (exact, ours):
        assert both("reverse_kl", mixed, ZERO_Q)[0] == pytest.approx(value, abs=6e-13)


@pytest.mark.parametrize("name", CURVE)
def test_printed_curve(name):
    for u, printed in zip((-2.0, 2.0), CURVE[name], strict=True):
        assert float(f_exact.point(name, mp.mpf(u))[0]) == pytest.approx(printed, abs=6e-11)
        with jax.enable_x64(True):
            value = float(RECORDS[name].under_q(jnp.float64(u)))
        assert value == pytest.approx(printed, abs=6e-11)


@pytest.mark.parametrize("name", VARIATIONAL)
def test_printed_variational_bound(name):
    """f*(s) = -S(R^-1(s)), from the inverse of mpmath and from that of the record."""
    slopes = (0.3, -0.2, 0.1)
    printed = pytest.approx(VARIATIONAL[name], abs=6e-11)

    def conjugate(s):
        u = mp.findroot(lambda u: f_exact.point(name, u)[2] - s, (-3, 0.6), solver="anderson")
        return -float(f_exact.point(name, u)[3])

    def bound(conjugates):
        return np.dot(P, slopes) - np.dot(Q, conjugates)

    assert bound([conjugate(s) for s in slopes]) == printed
    record = RECORDS[name]
    with jax.enable_x64(True):
        stars = -record.slope_q(record.inverse_p(jnp.array(slopes, jnp.float64)))
        assert bound(np.asarray(stars)) == printed


def test_table_is_what_its_script_writes():
    assert not make_tables.mismatches(f_table.table())


@pytest.mark.parametrize("name", f_exact.FORMULAS)
def test_oracle_derivatives_against_differences(name):
    """Gradients and Hessian-vector products of the oracle, by central differences of its values."""
    with mp.workdps(f_exact.DIGITS):
        step = mp.mpf(10) ** -15
        a, b = [mp.mpf("0.3"), mp.mpf("-1.1"), mp.mpf(2)], [mp.mpf(1), mp.mpf("-0.4"), mp.mpf(0)]
        va, vb = (1, 2, -1), (0, 1, 3)

        def at(s, **options):
            moved = [[x + s * y for x, y in zip(*pair, strict=True)] for pair in ((a, va), (b, vb))]
            return f_exact.row(name, *moved, limit=1e300, **options)

        for normalise in (True, False):
            _, ga, gb, ha, hb = at(0, normalise=normalise, directions=(va, vb))
            high, low = (at(s, normalise=normalise) for s in (step, -step))
            slope = (high[0] - low[0]) / (2 * step)
            assert abs(slope - mp.fdot(ga, va) - mp.fdot(gb, vb)) < 1e-24
            for x, y, h in zip(high[1] + high[2], low[1] + low[2], ha + hb, strict=True):
                assert abs((x - y) / (2 * step) - h) < 1e-24
