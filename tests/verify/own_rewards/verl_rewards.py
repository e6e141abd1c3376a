"""As people write them for verl's custom_reward_function.path."""

import re


def extract_solution(solution_str, method="strict"):
    if method == "strict":
        found = re.findall(r"#### (\-?[0-9\.\,]+)", solution_str)
        return found[-1].replace(",", "") if found else None
    found = re.findall(r"(\-?[0-9\.\,]+)", solution_str)
    return next((one for one in reversed(found) if one not in ("", ".")), None)


def compute_score(data_source, solution_str, ground_truth, extra_info=None, method="strict", format_score=0.1):
    answer = extract_solution(solution_str, method)
    if answer is None:
        return 0
    return 1.0 if answer == ground_truth else format_score


def compute_score_dict(data_source, solution_str, ground_truth, extra_info=None):
    answer = extract_solution(solution_str, "flexible")
    correct = answer == ground_truth
    bonus = 0.1 * (extra_info or {}).get("difficulty", 0)
    return {"score": float(correct) + (bonus if correct else 0.0), "acc": correct, "pred": answer or ""}


def compute_score_batch(data_sources, solution_strs, ground_truths, extra_infos):
    known = {"gsm8k", ""}
    return [
        float(truth in text) if source in known else 0.0
        for source, text, truth, _ in zip(data_sources, solution_strs, ground_truths, extra_infos)
    ]
