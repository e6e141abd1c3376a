"""`python -m trd_ray.doctor.gpu.one_part WORK FOLDER`: the process of one part, which trial.py starts and ends.

    the function WORK of FOLDER  ->  FOLDER/said.json: state, why, figures

A process that ends without said.json has crashed; trial.py says so with its last words. It ends with trial.py's.
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path

from trd_ray.doctor.gpu.outcome import FAIL, PASS, SKIPPED, PartFailed, PartSkipped
from trd_ray.doctor.gpu.parts import function
from trd_ray.files import write_atomically
from trd_ray.session.last_words import PR_SET_PDEATHSIG, prctl

SAID = "said.json"


def main(work: str, folder: Path) -> int:
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Everything on stdout and stderr is this part's log, in the order in which it was said.
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    try:
        figures = function(work)(folder)
        said = {"state": PASS, "why": "", "figures": figures}
    except PartSkipped as e:
        said = {"state": SKIPPED, "why": str(e), "figures": {}}
    except PartFailed as e:
        said = {"state": FAIL, "why": str(e), "figures": e.figures}
    except Exception as e:
        traceback.print_exc()
        said = {"state": FAIL, "why": f"{type(e).__name__}: {' '.join(str(e).split())[:300]}", "figures": {}}
    write_atomically(folder / SAID, json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
