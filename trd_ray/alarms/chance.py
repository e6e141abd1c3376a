"""Whether chance explains a count: the upper tail of the binomial distribution.

A library would take longer to load than all else that `trd status` does.
"""

import math


def at_least(count: int, n: int, share: float) -> float:
    """The probability of `count` or more of `n` where each comes with the probability `share`, which is not 0 or 1."""
    if count <= 0:
        return 1.0
    return min(1.0, sum(_exactly(k, n, share) for k in range(count, n + 1)))


def _exactly(k: int, n: int, share: float) -> float:
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(ways + k * math.log(share) + (n - k) * math.log1p(-share))
