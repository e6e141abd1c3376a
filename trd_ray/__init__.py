"""Trajectory-Refined Distillation on Ray."""

from trd_ray import miniature as miniature  # enters the names of what comes with the package into trd_ray.made_here

__version__ = "0.1.0"
