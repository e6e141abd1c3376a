"""A reward function for OpenRLHF that needs no torch."""

import numpy as np


def reward_array(queries, prompts, labels):
    return np.array([len(query) - len(prompt) > 20 for query, prompt in zip(queries, prompts)])
