"""`python jobs/refine.py RECIPE key.sub=value ...`: `trd refine` as a script that `ray job submit` can run."""

import sys

from trd_ray.cli import run

if __name__ == "__main__":
    sys.exit(run(["refine", *sys.argv[1:]]))
