"""Verifiers that are functions of the user's: found by name, called in a process of their own, whatever their shape."""
