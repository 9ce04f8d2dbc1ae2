"""Other libraries' losses of a head, as calls that return (value, (dh, dW))."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

TORCH = ("torch naive", "torch.compile", "Liger chunked", "Liger chunked, compiled", "orda-kernel")
JAX = ("jax-cce", "tokamax")


def torch_peers(arrays: list[np.ndarray], *, half: bool = False) -> dict[str, Callable[[], Any]]:
    """Forward KL, the mean over rows, in float32 or bfloat16; those that are installed."""
    try:
        import torch
        import torch.nn.functional as F
    except ImportError:
        return {}
    torch.set_num_threads(os.cpu_count() or 1)
    h, w, hp, wp = (torch.tensor(x).to(torch.bfloat16 if half else torch.float32) for x in arrays)
    h.requires_grad_(True), w.requires_grad_(True)
    labels = torch.zeros(len(h), dtype=torch.long)

    def naive(h, w, hp, wp):
        p, q = F.log_softmax(hp @ wp.T, -1), F.log_softmax(h @ w.T, -1)
        return F.kl_div(q, p, log_target=True, reduction="batchmean")

    compiled = torch.compile(naive, dynamic=False)
    losses: dict[str, Callable[[], Any]] = {
        "torch naive": lambda: naive(h, w, hp, wp),
        "torch.compile": lambda: compiled(h, w, hp, wp),
    }
    for name, make in (("Liger chunked", False), ("Liger chunked, compiled", True)):
        if loss := _liger(compiled=make):
            losses[name] = partial(loss, h, w, hp, wp, labels)
    try:
        from orda_kernel import SeparateTeacher, distillation_loss

        losses["orda-kernel"] = lambda: (
            distillation_loss(
                h, w, labels, SeparateTeacher(hp, wp), student_ce_weight=0.0, kl_weight=1.0
            ).loss
        )
    except ImportError:
        pass

    def run(loss):
        value = loss()
        gradients = torch.autograd.grad(value, (h, w))
        return value.detach().float().numpy(), tuple(g.float().numpy() for g in gradients)

    return {name: partial(run, loss) for name, loss in losses.items()}


def _liger(*, compiled: bool) -> Any:
    try:
        from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDLoss
    except ImportError:
        return None
    return LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=compiled, chunk_size=256
    )


def jax_peers(labels: Any) -> dict[str, Callable]:
    """Mean cross-entropy of (h, W [V, H]); those that are installed."""
    found: dict[str, Callable] = {}
    try:
        from jax_cce import linear_cross_entropy

        found["jax-cce"] = lambda h, w: linear_cross_entropy(h, w, labels)
    except ImportError:
        pass
    try:
        from tokamax import linear_softmax_cross_entropy_loss

        found["tokamax"] = lambda h, w: linear_softmax_cross_entropy_loss(
            h, labels, w.T, reduction="mean", implementation="xla"
        )
    except ImportError:
        pass
    return found


def agreeing(
    calls: Mapping[str, Callable[[], Any]], reference: str
) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """The calls whose value and gradients are the reference's to 1e-4; why others are left out."""
    value, slopes = calls[reference]()
    kept, absent = {}, {}
    for name, call in calls.items():
        try:
            found = call()
        except (RuntimeError, TypeError, ImportError) as problem:
            absent[name] = f"failed: {type(problem).__name__}"
            continue
        pairs = zip((found[0], *found[1]), (value, *slopes), strict=True)
        off = max(np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b) for a, b in pairs)
        if name.startswith("ours") and not off < 1e-4:
            raise ValueError(f"{name}: value or gradient off by {off}, nothing is timed")
        if off < 1e-4:
            kept[name] = call
        else:
            absent[name] = f"another result, off by {off:.1e}"
    return kept, absent
