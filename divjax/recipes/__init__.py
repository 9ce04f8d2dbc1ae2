"""Objectives put together from losses, models and teachers, one module per family.

`divjax.recipes.bench` is imported by name: it reads images and draws on the extra `lab`.
"""

from divjax.recipes import kd

__all__ = ["kd"]
