"""As people write them for TRL's GRPOTrainer."""

import asyncio
import re


def format_reward(completions, **kwargs):
    """Reward completions that think first."""
    pattern = r"^<think>.*?</think>\s*<answer>.*?</answer>$"
    return [1.0 if re.match(pattern, content, re.DOTALL) else 0.0 for content in completions]


def accuracy_reward(prompts, completions, solution, **kwargs):
    """None where there is no solution to compare with."""
    contents = [completion[0]["content"] for completion in completions]
    rewards = []
    for content, sol in zip(contents, solution):
        if not sol:
            rewards.append(None)
            continue
        found = re.search(r"<answer>(.*?)</answer>", content, re.DOTALL)
        rewards.append(1.0 if found and found.group(1).strip() == sol else 0.0)
    return rewards


async def length_reward(prompts, completions, max_words, **kwargs):
    async def one(completion, limit):
        await asyncio.sleep(0)
        return min(1.0, len(completion.split()) / limit)

    return await asyncio.gather(*[one(c, m) for c, m in zip(completions, max_words)])


def logging_reward(completions, answer, trainer_state, log_extra=None, log_metric=None, **kwargs):
    if log_extra:
        log_extra("answer", answer)
    hits = [float(a in c) for a, c in zip(answer, completions)]
    if log_metric:
        log_metric("hits", sum(hits) / len(hits))
    print("step", trainer_state.global_step)
    return hits
