"""`python jobs/evaluate.py RECIPE key.sub=value ...`: `trd evaluate` as a script that `ray job submit` can run."""

import sys

from trd_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
