"""Every threshold of every alarm, with the reason for it. They were set before the runs that they judge.

A share of rows begins an alarm only where chance does not explain it (`ALPHA`), and ends it only clearly below
(`END`): between the two an alarm stays what it is, so it does not flap.
"""

# Shares of rows

# A one-sided binomial test over the window must be below this. A run has hundreds of windows, so 0.05 would cry; with
# 0.005, four of four rows are enough against a share of a quarter, which is all that a smoke run has in a step.
ALPHA = 0.005
# A share counts over the newest step, which shows at once what broke, and over the newest steps that together have so
# many rows, which is enough to tell a quarter from a seventh.
WINDOW_ROWS = 64
WINDOW_STEPS = 16  # and over no older steps: what was fixed should end its alarm
END = 0.8  # of the threshold: an alarm of a share ends below that

# A cut response teaches to leave out the end. A run may begin with some that are cut; a quarter is a limit too short.
TRUNCATED = 0.25
# Of the responses that ended by themselves. A quarter without an answer is a prompt that does not ask for one.
NO_ANSWER = 0.25
VIEWS_CUT = 0.25  # of the rows: a refine or teacher prompt that was cut hides the end of the attempt or the reference
# A refinement that mentions what the student never sees teaches to mention it. One in twenty shows in what is learned.
LEAK = 0.05
# Of the verdicts: programs that never end are normal in code, one in ten is a limit that is too short.
VERIFIER_DEADLINES = 0.10

# Where one in twenty passes, 64 rows without any come once in 27 windows.
NONE_PASSED_ROWS = 64
# Where 98 of 100 pass, 256 rows that all pass come once in 176 windows: nothing is left to learn.
ALL_PASSED_ROWS = 256
HARM_ROWS = 256  # the window of refinements that broke or repaired something, which most rows are not
DROPPED_ROWS = 4  # fewer rows than a step of the smallest recipe say nothing
LONGER_ROWS = 64
LONGER = 2.0  # times the attempts' mean length: a rewrite is shorter; twice as long is a teacher that thinks aloud
LONGER_END = 1.5

# Lengths explode from a sound start: it was below a tenth, and now half is cut, at twice the length.
EXPLODED_TRUNCATED = 0.5
EXPLODED_END = 0.25
SOUND_TRUNCATED = 0.1
EXPLODED_LENGTH = 2.0
BASELINE_STEPS = 5  # the first steps of a run, in which it is what it was before training
EXPLODED_ROWS = 16  # of the newest steps; sixteen rows that are all cut are no chance after a start without any

BAD_ROWS = 0.5  # of data.max_bad_rows: half of it is left to repair the data in
BAD_ROWS_LEAST = 3  # one or two bad rows are the world, whatever the limit is

# Learning

# Largest mean difference of log-probabilities of engine and learner, by the coarser of the two.
# float32: right weights and templates give 3e-7 here, and a wrong template 0.1 and more; 1e-3 is far from both.
# bfloat16: others report 0.01 where all is right, and 0.036 where it is called a drift (vllm-project/vime issue 64);
# short answers and few rows double that. float16 and fp8 follow from the bits of their mantissas: 10 and 3, against 7.
GAP = {"float32": 1e-3, "float16": 0.01, "bfloat16": 0.05, "fp8": 0.15}
GAP_END = 0.5  # of it
GAP_STEPS = 3  # the median of so many probes, since a probe is of few rows; one that is five times it speaks at once
GAP_AT_ONCE = 5.0

SPIKE_STEPS = 10  # whose median a spike is measured by
# The KL of a step is a mean over few rows, of which the hardest make most: from step to step it doubles by chance in
# the miniature world. Five times the median is none.
KL_SPIKE = 5.0
KL_SPIKE_END = 2.0
KL_LEAST = 0.01  # nats a token: below it, teacher and student agree, and a ratio of small numbers says nothing
# A gradient's norm is noisier: it falls by a factor of 20 in a good run, and rises threefold by chance.
GRADIENT_SPIKE = 10.0
GRADIENT_SPIKE_END = 3.0
# A KL that rises is no spike: the median of ten steps is twice the lowest median of ten before.
KL_RISES = 2.0
KL_RISES_END = 1.5
KL_RISES_STEPS = 10
# Distillation ends where the student is as sure as the teacher. One that is three times surer lost what it could say
# else; a student below a fifth of where it began may still be right, so both must hold.
ENTROPY_OF_TEACHER = 1 / 3
ENTROPY_OF_START = 0.2
ENTROPY_OF_START_ALONE = 0.05  # where the teacher follows the student, it collapses with it, and says nothing
ENTROPY_STEPS = 3
# Staleness 1 is what overlapped sampling costs. From 2 on a row that is always as old as it may be waits for the
# learner, which never waits for rows: then a lower bound gives fresher rows at the same speed.
STALE_FROM = 2
STALE_WITHIN = 0.25  # versions below the bound
STALE_STEPS = 10
STALE_WAIT = 0.05  # of the step in which the learner waits

# Held-out scores

# The interval of a difference from the best of several earlier scores must be wider than that from one, which was not
# chosen: 1.75 times half of the 95% interval is 3.4 standard errors.
FALL_WIDER = 1.75
FALL_STEPS = 5  # over which the KL before and after is averaged

# Time

# A step that is shorter is a trial: nobody gives it more machines. Its overhead is the start of processes.
LONG_STEP_S = 30.0
PACE_STEPS = 10  # medians, since one step in ten waits for a checkpoint or an engine
MOST_OF_A_STEP = 0.6  # a stage that is waited for so long is worth another engine; half of a step may be chance
MOST_END = 0.4
ENGINES_BUSY = (
    0.4  # share of a step in which something sampled or refined: below it, engines stand still for most of it
)
OVERHEAD = 0.2  # of a step in which nothing works: an engine in five stands still for nothing
OVERHEAD_END = 0.1
THROUGHPUT_FELL = 0.5  # tokens a second against the best ten steps: half of the engines are gone, or a GPU is throttled
THROUGHPUT_END = 0.7
THROUGHPUT_STEPS = 5
THROUGHPUT_LENGTH = 1.3  # longer answers hold more cache and are slower for a reason
# Ranks meet in every layer, so one that is slow slows all. A third more than the others is no rounding.
SLOW_RANK = 1.3
SLOW_RANK_END = 1.15
SLOW_RANK_STEPS = 5
SLOW_CHECKPOINTS = 2  # in a row that took longer than the steps between two: one may have met a busy disk
SLOW_CHECKPOINT_S = 30.0  # one that is faster disturbs nobody

# Machines

# One death is told when it comes, and the engine starts again. Three in twenty steps are a cause that stays.
RESTARTS = 3
RESTARTS_STEPS = 20
LEARNER_RESTARTS = 2  # each of them trains steps again
# Ray Data holds blocks within its budget. What spills is beyond it, and is written and read at disk speed.
SPILLED_GIB = 0.1
SPILLED_STEPS = 5  # without any: then it is over
DISK_CHECKPOINTS = 2.0  # the next checkpoint is written before an old one is deleted
DISK_LEAST_GIB = 2.0
DISK_END = 1.5  # times that

# Nothing moves: no row, token, sample or phase. What was measured before in this run says what is long.
STILL_S = 600.0  # the least: engines compile, and an update of a large model takes minutes
STILL_TIMES = 5.0  # the median of that part of a step
STILL_FIRST_S = 1800.0  # before STILL_KNOWN steps have told how long the part takes
STILL_KNOWN = 3
