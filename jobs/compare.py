"""`python jobs/compare.py COMPARISON key.sub=value ...`: `trd compare` as a script that `ray job submit` can run."""

import sys

from trd_ray.cli import run

if __name__ == "__main__":
    sys.exit(run(["compare", *sys.argv[1:]]))
