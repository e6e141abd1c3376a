"""As people write them for OpenRLHF's --remote_rm_url reward_func.py."""

import torch


def reward_func(queries, prompts, labels, **kwargs):
    rewards = []
    for query, prompt, label in zip(queries, prompts, labels):
        response = query[len(prompt) :]
        rewards.append(1.0 if response.strip().endswith(label) else -1.0)
    scores = torch.tensor(rewards)
    return {"rewards": scores, "scores": (scores + 1) / 2, "extra_logs": {"mean": scores.mean()}}
