"""`python jobs/evaluate.py MODEL|RECIPE BENCHMARK ... key.sub=value ...`: `trd evaluate` for `ray job submit`."""

import sys

from trd_ray.cli import run

if __name__ == "__main__":
    sys.exit(run(["evaluate", *sys.argv[1:]]))
