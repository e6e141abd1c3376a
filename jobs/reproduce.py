"""`python jobs/reproduce.py RECIPE BENCHMARK ... key.sub=value ...`: `trd reproduce` for `ray job submit`."""

import sys

from trd_ray.cli import run

if __name__ == "__main__":
    sys.exit(run(["reproduce", *sys.argv[1:]]))
