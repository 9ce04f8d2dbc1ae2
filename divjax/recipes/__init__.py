"""Objectives put together from losses, models and teachers, one module per family."""

from divjax.recipes import kd

__all__ = ["kd"]
