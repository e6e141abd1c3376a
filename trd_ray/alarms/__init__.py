"""Alarms: what goes wrong in a run while it goes on, what it means, and what to set. README.md has the table."""

from trd_ray.alarms.kept import FILE, read

__all__ = ["FILE", "read"]
