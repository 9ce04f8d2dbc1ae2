"""Reference models; everything else sees (params, apply)."""

from divjax.models.functional import Apply, split, split_with_carry
from divjax.models.nets import CNN, MLP, Norm, ResNet, batch_norm, dropout, group_norm

__all__ = [
    "CNN",
    "MLP",
    "Apply",
    "Norm",
    "ResNet",
    "batch_norm",
    "dropout",
    "group_norm",
    "split",
    "split_with_carry",
]
