"""Reference models; everything else sees (params, apply)."""

from divjax.models.functional import Apply, split
from divjax.models.nets import CNN, MLP, dropout

__all__ = ["CNN", "MLP", "Apply", "dropout", "split"]
