"""`python jobs/train.py RECIPE key.sub=value ...`: `trd train` as a script that `ray job submit` can run."""

import sys

from trd_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
