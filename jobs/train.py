"""`python jobs/train.py RECIPE key.sub=value ...`: `trd train` as a script that `ray job submit` can run."""

import sys

from trd_ray.cli import run

if __name__ == "__main__":
    sys.exit(run(["train", *sys.argv[1:]]))
