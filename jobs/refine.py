"""`python jobs/refine.py RECIPE key.sub=value ...`: `trd refine` as a script that `ray job submit` can run."""

import sys

from trd_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["refine", *sys.argv[1:]]))
