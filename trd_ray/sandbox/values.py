"""Python values as JSON trees and back, for both sides of the wall; the code is in the folder that goes inside."""

from trd_ray.sandbox.inside.values import MAX_DEPTH, MAX_KEYS, Opaque, decode, encode

__all__ = ["MAX_DEPTH", "MAX_KEYS", "Opaque", "decode", "encode"]
