"""What the JSON files of a run folder look like, and in words what is wrong with one."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from divjax.lab.records import revive
from divjax.lab.verdict import BESIDE, STATUSES


class Leaf(NamedTuple):
    """A value without parts: what it must be in words, and the test."""

    words: str
    holds: Callable[[Any], bool]


class Maybe(NamedTuple):
    """null, or the shape."""

    shape: Any


def _is_number(value: Any) -> bool:
    value = revive(value)
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return whole or isinstance(value, float)


TEXT = Leaf("text", lambda value: isinstance(value, str))
FLAG = Leaf("true or false", lambda value: isinstance(value, bool))
NUMBER = Leaf("a number", _is_number)
STATUS = Leaf(f"{', '.join(STATUSES[:-1])} or {STATUSES[-1]}", lambda value: value in STATUSES)
CONCLUSION = Leaf(f"{', '.join(STATUSES)} or {BESIDE}", lambda value: value in (*STATUSES, BESIDE))
ANYTHING = Leaf("anything", lambda value: True)

# A list holds any number of its one shape, an object the named ones; ... stands for any key.
HEAD = {"name": TEXT, "paper": TEXT, "claim": TEXT, "preset": TEXT}
PART = {
    "name": TEXT,
    "estimate": NUMBER,
    "low": NUMBER,
    "high": NUMBER,
    "threshold": NUMBER,
    "status": STATUS,
    "differences": {...: NUMBER},
}
VERDICT = {**HEAD, "status": CONCLUSION, "reason": TEXT, "parts": [PART]}
CONFIG = {
    **HEAD,
    "overrides": {...: ANYTHING},
    "config": {...: ANYTHING},
    "cells": [{"name": TEXT, "settings": {...: ANYTHING}, "seeds": [NUMBER]}],
    "data": [{"name": TEXT, "source": TEXT, "sha256": TEXT, "real": FLAG}],
}
ENVIRONMENT = {
    "divjax": TEXT,
    "python": TEXT,
    "packages": {...: TEXT},
    "git": Maybe({"revision": TEXT, "dirty": FLAG}),
    "experiment_sha256": TEXT,
    "device": {"platform": TEXT, "kind": TEXT, "count": NUMBER},
    "x64": FLAG,
}


def shown(value: Any) -> str:
    """A value as an error shows it: of a long one the beginning and the length."""
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:120]}... ({len(text)} characters)"


def fault(content: Any, shape: Any, path: str = "") -> str:
    """The first thing in which content is not of the shape, as a sentence; "" when it is.

    Example:
        >>> fault({"parts": [{"low": "x"}]}, {"parts": [{"low": NUMBER}]})
        "parts[0].low must be a number, got 'x'"
    """
    where = path.lstrip(".") or "it"
    if isinstance(shape, Maybe):
        return "" if content is None else fault(content, shape.shape, path)
    if isinstance(shape, Leaf):
        return (
            "" if shape.holds(content) else f"{where} must be {shape.words}, got {shown(content)}"
        )
    if isinstance(shape, list):
        if not isinstance(content, list):
            return f"{where} must be a list, got {shown(content)}"
        below = [(item, shape[0], f"{path}[{i}]") for i, item in enumerate(content)]
    else:
        if not isinstance(content, Mapping):
            return f"{where} must be an object, got {shown(content)}"
        if missing := [key for key in shape if key is not ... and key not in content]:
            return f"{where} lacks {', '.join(missing)}"
        keys = content if ... in shape else shape
        below = [(content[key], shape.get(key, shape.get(...)), f"{path}.{key}") for key in keys]
    return next(filter(None, (fault(*each) for each in below)), "")
