"""The program of a round: `trd` with a witness in its driver and, if asked, stand-ins for engines and arithmetic.

    TRD_CHAOS_PLAN=plan.json python jobs/chaos_rounds/lead.py train RECIPE ...

Only `jobs/chaos.py` starts it, with `jobs/` on PYTHONPATH, and in front of that the stand-in for vLLM.
"""

import json
import os
import signal
import sys
from pathlib import Path

from trd_ray.session.supervise import supervised

PLAN = "TRD_CHAOS_PLAN"


def main(arguments: list[str]) -> int:
    from chaos_rounds import witness
    from trd_ray import cli
    from trd_ray.distill import trainer

    plan = json.loads(Path(os.environ[PLAN]).read_text())
    witness.install(plan)
    if plan["stand_ins"]:
        from chaos_rounds import made_up

        trainer.work = made_up.work
    return cli.main(arguments)


if __name__ == "__main__":
    # As a terminal starts a program. In the background of a script it would ignore Ctrl-C, and below nohup SIGHUP.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    sys.exit(supervised(main, sys.argv[1:]))
