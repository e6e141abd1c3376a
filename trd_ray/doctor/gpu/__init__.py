"""`trd doctor --gpu`: the first half hour on GPUs as a program, in parts that go on where an earlier start ended.

    parts.py: what is tried        trial.py: the parts one after another, each in a process of its own
                                         |        one_part.py: that process
                                         v
    gpu_card  gpu_tests  speed  lone_engine  short_runs  pushes  ->  OUT/PART.json, OUT/results.json, .md

Parts that need only torch run where neither Ray nor vLLM is installed, so nothing here imports them at its top.
"""
