"""What the diagnostics take for granted: every threshold and limit of theirs, with its reason.

Another value changes how sharp a figure is, and what two runs are compared by: change none within a study.
"""

import math

# A teacher has left a trajectory at the first token to which it gives less than 1%, and ten times less than the student
# does. Engines sample at temperature 0.6 and top-p 0.95 as in the paper. There, a token of 1% beside one of 90% has
# (1/90)^(1/0.6) = 0.06% of the other's chance and is cut by top-p: the teacher would not have written it. Where its
# distribution is flat, a token of 1% is nothing unusual. But it is flat for the student too, and so the second
# condition leaves such tokens out.
DEPARTURE_NLL = math.log(100)
DEPARTURE_EXCESS = math.log(10)

# seq-rep-4 of Welleck et al., "Neural Text Generation with Unlikelihood Training" (arXiv:1908.04319): the share of a
# text's 4-grams that stood in it before. Four tokens are about three words: shorter ones repeat in any text.
REPEATED_TOKENS = 4

TENTHS = 10  # parts of a trajectory, by relative position
FIRST_THIRD = 3  # the first of so many parts: where the paper's prefix failure begins

# Pairs of tokens (of y_o and of y_r) that may be compared for edits: both shares together cost at most 0.2 ns each
# on one core, in long rows. Rows are taken in their order, which knows nothing of their lengths, and the row that
# passes the limit still counts. Miniature rows are all compared; of 128 rows of 4,096 tokens the first 120.
EDIT_PAIRS_OF_A_STEP = 2_000_000_000
EDIT_PAIRS_OF_A_RUN = 40_000_000_000

# Problems whose reference is encoded to count its tokens. A median of 2,000 is within 1% of the whole in rank.
REFERENCES = 2000

LEAK_CONTEXT_CHARACTERS = 60  # shown on each side of a leak
