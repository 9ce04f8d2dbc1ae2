"""f(t) of every record, and all the rest from it by mpmath; nothing here knows divjax.

A new f-divergence needs one line in FORMULAS. Derivatives are those of the line, by second-order
jets at a working precision that outruns the cancellation of the line at the given log-ratio.
"""

from functools import cache

import mpmath as mp
from mpmath import inf, mpf

DIGITS = 60


class Jet:
    """A value with its first and second derivative by t."""

    def __init__(self, v, d=0, e=0):
        self.v, self.d, self.e = v, d, e

    def __add__(self, other):
        o = other if isinstance(other, Jet) else Jet(other)
        return Jet(self.v + o.v, self.d + o.d, self.e + o.e)

    def __mul__(self, other):
        o = other if isinstance(other, Jet) else Jet(other)
        e = self.e * o.v + 2 * self.d * o.d + self.v * o.e
        return Jet(self.v * o.v, self.d * o.v + self.v * o.d, e)

    def chain(self, g, g1, g2):
        return Jet(g, g1 * self.d, g2 * self.d**2 + g1 * self.e)

    def __pow__(self, a):
        w = self.v ** (a - 2) if a != 2 else mpf(1)
        return self.chain(w * self.v**2, a * w * self.v, a * (a - 1) * w)

    def log(self):
        return self.chain(mp.log(self.v), 1 / self.v, -1 / self.v**2)

    def __abs__(self):
        return self.chain(abs(self.v), mp.sign(self.v), mpf(0))

    def __neg__(self):
        return self * -1

    def __sub__(self, other):
        return self + -other

    def __rsub__(self, other):
        return -self + other

    def __truediv__(self, other):
        return self * (other ** mpf(-1))

    def __rtruediv__(self, other):
        return self ** mpf(-1) * other

    __radd__, __rmul__ = __add__, __mul__


def log(x):
    return x.log() if isinstance(x, Jet) else mp.log(x)


def alpha(a):
    a = mpf(a)
    return lambda t: (t**a - a * t - (1 - a)) / (a * (a - 1))


B = mpf(1) / 10  # the mixing weight of the weighted records

# One line f(t) per record, in the gauge f(1) = f'(1) = 0.
FORMULAS = {
    "kl": lambda t: t * log(t) - t + 1,
    "reverse_kl": lambda t: t - 1 - log(t),
    "jeffreys": lambda t: (t - 1) * log(t),
    "js": lambda t: (t * log(t) - (t + 1) * log((t + 1) / mpf(2))) / mpf(2),
    "js_0.1": lambda t: B * t * log(t) - (B * t + 1 - B) * log(B * t + 1 - B),
    "skew_kl_0.1": lambda t: t * (log(t) - log(B * t + 1 - B)) - (1 - B) * (t - 1),
    "skew_reverse_kl_0.1": lambda t: (1 - B) * (t - 1) - log(B + (1 - B) * t),
    "alpha_0.3": alpha("0.3"),
    "alpha_0.5": alpha("0.5"),
    "alpha_1.5": alpha("1.5"),
    "alpha_-0.5": alpha("-0.5"),
    "alpha_2.5": alpha("2.5"),
    "squared_hellinger": lambda t: (t ** mpf("0.5") - 1) ** 2 / mpf(2),
    "pearson": lambda t: (t - 1) ** 2,
    "neyman": lambda t: (t - 1) ** 2 / t,
    "tv": lambda t: abs(t - 1) / mpf(2),
    "soft_reverse_kl": lambda t: (t + 1) * (log(t + 1) - log(t) - log(mpf(2))) + t - 1,
    "lecam": lambda t: (t - 1) ** 2 / (2 * (t + 1)),
    "tsallis_1.5": lambda t: (t ** mpf("1.5") - mpf("1.5") * t + mpf("0.5")) / mpf("0.5"),
}


def formula(name):
    """The line of a record, or an error that says which line is missing."""
    assert name in FORMULAS, (
        f"generators.ALL holds {name!r}, which has no oracle: add the line "
        f'"{name}": lambda t: ... to FORMULAS in tests/oracles/f_exact.py, '
        "then run python tests/oracles/make_tables.py"
    )
    return FORMULAS[name]


@cache
def point(name, u, digits=DIGITS):
    """(F, G, R, S, h) = f, f/t, f', f - t f', t^2 f'' at t = e^u, right to this many digits."""
    with mp.workdps(digits + int(abs(u))):
        t = mp.exp(u)
        f = formula(name)(Jet(t, mpf(1), mpf(0)))
        out = f.v, f.v / t, f.d, f.v - t * f.d, t * t * f.e
    with mp.workdps(digits):
        return tuple(+x for x in out)


def _limit(g):
    """g(0+): two points so far out that they agree if the limit is finite; else inf."""
    with mp.workdps(2000):
        near, nearer = g(mpf("1e-400")), g(mpf("1e-800"))
        return nearer if abs(near - nearer) < mpf("1e-40") * (1 + abs(nearer)) else inf


@cache
def edges(name):
    """f(0) and f'(inf) = lim f(t)/t."""
    f = formula(name)
    return _limit(f), _limit(lambda s: s * f(1 / s))


def taylor(name):
    """f''(1) and f'''(1)."""
    with mp.workdps(2 * DIGITS):
        return tuple(mp.diff(formula(name), 1, n) for n in (2, 3))


def log_normalise(z):
    total = mp.fsum(mp.exp(x) for x in z)
    return [x - mp.log(total) for x in z]


@cache
def _laws(a, b, normalise):
    """Digits to work with, log p, log q, p, q of rows of floats.

    The gradients by logits cancel down to the smallest probability, twice in second derivatives.
    """
    finite = [[x for x in z if x > -inf] or [0.0] for z in (a, b)]
    span = max(max(z) - min(z) if normalise else -min(0.0, *z) for z in finite)
    digits = DIGITS + int(0.9 * float(span))
    with mp.workdps(digits):
        a, b = ([mpf(x) for x in z] for z in (a, b))
        if normalise:
            a, b = log_normalise(a), log_normalise(b)
        return digits, a, b, [mp.exp(x) for x in a], [mp.exp(x) for x in b]


def _terms(name, a, b, p, q, limit, digits):
    """value, p R, q S and q h of one entry; None if the value is not a number of the type.

    Such a term makes the sum +inf, and the derivative is that of the other terms.
    """
    if a == -inf and b == -inf:
        return (mpf(0),) * 4
    if a == -inf or b == -inf:
        zero, slope = edges(name)
        value = q * zero if a == -inf else p * slope
        left = value if b == -inf else mpf(0)
        return None if value > limit else (value, left, value - left, mpf(0))
    u = a - b
    u = mpf(0) if abs(u) < mpf(10) ** (15 - digits) else u
    f, _, r, s, h = point(name, u, digits)
    assert not limit / 20 < q * f < limit * 20, f"{name}: a term too close to overflow to judge"
    return None if q * f > limit else (q * f, p * r, q * s, q * h)


def row(name, a, b, *, limit, normalise, directions=None):
    """The divergence of two rows with its derivatives by the arrays handed in.

    Args:
        name: which line of FORMULAS.
        a: K floats, log p or logits of p. b: likewise for q.
        limit: the largest number of the result type.
        normalise: the entrance by logits.
        directions: (v_a, v_b), K floats each, for the Hessian-vector product; or None.

    Returns:
        value (inf beyond the limit), gradients by a and b, Hessian-vector products by a and b.
    """
    if all(x == y == -inf for x, y in zip(a, b, strict=True)):  # empty rows too
        return (mpf(0),) + ([mpf(0)] * len(a),) * 4
    digits, a, b, p, q = _laws(tuple(a), tuple(b), normalise)
    with mp.workdps(digits):
        entries = zip(a, b, p, q, strict=True)
        terms = [_terms(name, *entry, mpf(limit), digits) for entry in entries]
        kept = [t or (mpf(0),) * 4 for t in terms]
        value, ga, gb, w = (list(x) for x in zip(*kept, strict=True))
        value = mp.fsum(value)
        value = inf if None in terms or value > limit else value
        va, vb = directions or ([0] * len(a),) * 2
        ha, hb = _hessian(p, q, ga, gb, w, va, vb, normalise)
        if normalise:
            ga, gb = _centre(ga, p), _centre(gb, q)
        return value, ga, gb, ha, hb


def _centre(g, weights):
    """The pull-back of g through the log-softmax with these probabilities."""
    total = mp.fsum(g)
    return [x - w * total for x, w in zip(g, weights, strict=True)]


def _hessian(p, q, ga, gb, w, va, vb, normalise):
    """d/ds of the gradient along (va, vb); ga = p R, gb = q S, w = q t^2 f''."""
    va, vb = [mpf(x) for x in va], [mpf(x) for x in vb]
    if normalise:
        mean_a, mean_b = mp.fdot(p, va), mp.fdot(q, vb)
        va, vb = [x - mean_a for x in va], [x - mean_b for x in vb]
    da = [g * x + h * (x - y) for g, h, x, y in zip(ga, w, va, vb, strict=True)]
    db = [g * y + h * (y - x) for g, h, x, y in zip(gb, w, va, vb, strict=True)]
    if not normalise:
        return da, db
    total_a, total_b = mp.fsum(ga), mp.fsum(gb)
    da = [x - w * v * total_a for x, w, v in zip(_centre(da, p), p, va, strict=True)]
    db = [x - w * v * total_b for x, w, v in zip(_centre(db, q), q, vb, strict=True)]
    return da, db
