"""What is planned is what Ray launches: which node and which GPU each engine and each rank sees."""

import json
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("seats_in_ray.py")
PLANS = ("two nodes", "shared", "wide", "in turn")


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    place = tmp_path_factory.mktemp("seats")
    environment = os.environ | {"PYTHONPATH": str(PROGRAM.parents[2])}
    command = [sys.executable, str(PROGRAM), str(place / "found.json")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, cwd=place)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads((place / "found.json").read_text())


@pytest.mark.parametrize("plan", PLANS)
def test_every_engine_and_every_rank_sees_the_gpus_that_it_was_planned(found, plan):
    assert [(seat["actor"], seat["got"]) for seat in found[plan]] == [
        (seat["actor"], seat["planned"]) for seat in found[plan]
    ]


@pytest.mark.parametrize("plan", PLANS)
def test_no_two_of_a_kind_are_on_one_gpu(found, plan):
    for one, other in combinations(found[plan], 2):
        if one["actor"] == other["actor"] and one["got"][0] == other["got"][0]:
            assert not set(one["got"][1]) & set(other["got"][1])


def test_ranks_are_together_where_they_fit_and_only_there(found):
    on = {plan: {seat["got"][0] for seat in found[plan] if seat["actor"] == "learner"} for plan in ("shared", "wide")}
    assert {plan: len(nodes) for plan, nodes in on.items()} == {"shared": 1, "wide": 2}


@pytest.mark.parametrize("plan", ["shared", "in turn"])
def test_sampler_refiner_and_rank_meet_on_the_gpu_that_they_share(found, plan):
    on = {
        name: [seat["got"] for seat in found[plan] if seat["actor"] == name]
        for name in ("sampler", "refiner", "learner")
    }
    assert on["sampler"] == on["refiner"] == on["learner"] and len({str(place) for place in on["learner"]}) == 2


def test_gpus_that_others_hold_are_refused_in_time_and_by_node(found):
    held = found["held"]
    assert held["told"].startswith("node a did not give GPU 1 and the CPUs of the plan within 2 s")
    assert "another job holds them" in held["told"] and held["seconds"] < 20
    [engine] = held["then"]
    assert engine["got"] == ["a", [7]]  # the only one that the other job leaves


def test_a_node_that_offers_gpus_which_cannot_be_read_says_so(found):
    for node in found["asked"]:
        assert node["gpus"] == 8 and "offers 8 GPUs to Ray, but their memory cannot be read" in node["lacks"]


def test_an_engine_whose_node_leaves_starts_on_one_that_comes_and_the_other_stays(found):
    again = found["again"]
    assert again["told"]["of it"] and 500 < again["told"]["left_s"] <= 600
    assert again["while it leaves"] == ["a"]
    assert [text.partition(": ")[0] for text in again["said"]] == ["waiting up to 120 s for a node"]
    assert again["again on the new node"] and again["the other stays"]
