"""What a run costs, estimated before it starts: seconds, hours, money, and which split of the same GPUs is faster.

    ModelFacts         -> model_costs  -> bytes and FLOPs of a token
    GPU, those         -> engine_speed -> seconds of an iteration of an engine
    lengths, that      -> batching     -> when each request of a step is done (continuous batching, preemption)
    lengths, FLOPs     -> learning     -> seconds of a step's training
    all of it          -> step_cost    -> a step: separate pools, one shared pool, one set of GPUs in turn
    recipe, placement  -> run_cost     -> hours, tokens a second, idle shares, money  -> told, same_gpus, at_scale
    a recorded run     -> calibration  -> its lengths and rates, in place of the assumed ones

Pure: no Ray, no torch, no clock, no files.
"""
