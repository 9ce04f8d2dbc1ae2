"""Objectives put together from losses, models and teachers, one module per family."""

from divjax.recipes import bench, kd

__all__ = ["bench", "kd"]
