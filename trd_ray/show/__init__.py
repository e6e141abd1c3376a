"""`trd show RUN --row N`: one row of a run in the terminal, its tokens coloured by what the learner found at them."""
