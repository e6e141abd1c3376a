"""A recorded run tells the alarms that it raised while it went on, but for those of steps that are done again."""

import json
from pathlib import Path

import pytest
from plausible import line

from trd_ray import alarms
from trd_ray.alarms import kept
from trd_ray.alarms.around import Around
from trd_ray.alarms.events_file import NewEvents
from trd_ray.alarms.replay import json_lines, of_run, replayed
from trd_ray.alarms.watcher import Watcher
from trd_ray.config import dump, load
from trd_ray.errors import UserError

RECORDED = Path(__file__).parent / "recorded"
RECIPE = load("paper_opsd_8b", ["stream.max_staleness=1"])


@pytest.fixture
def run(tmp_path) -> Path:
    (tmp_path / "recipe.yaml").write_text(dump(RECIPE))
    return tmp_path


def write(place: Path, lines: list[dict], events: list[dict] | None = None) -> None:
    (place / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    (place / "events.jsonl").write_text("".join(json.dumps(one) + "\n" for one in events or []))


def recorded(steps: int, spike: int | None = None) -> list[dict]:
    """Each step ends at 100 seconds times its number."""
    changed = {spike: {"kl__mean": 2.0}}
    return [{"step": n, "time_s": 100.0 * n} | line(n, **changed.get(n, {})) for n in range(1, steps + 1)]


@pytest.mark.parametrize("recipe", ["miniature_opsd"])
def test_a_recorded_run_on_the_miniature_world_raises_nothing(recipe):
    lines = json_lines(RECORDED / f"{recipe}.jsonl")
    assert len(lines) == 25 and replayed(load(recipe), lines).alarms == []


def test_a_run_that_goes_on_has_the_alarms_of_the_steps_that_it_keeps(run):
    write(run, recorded(20, spike=15))
    [alarm] = of_run(run).alarms
    assert (alarm.name, alarm.since_step, alarm.until_step) == ("kl_spike", 15, 16)
    assert of_run(run, until=15).alarms[0].until_step is None and list(of_run(run, 15).lasting) == ["kl_spike"]
    assert of_run(run, until=14).alarms == []


def test_a_replay_is_what_the_watcher_said_step_by_step(run):
    write(run, recorded(40, spike=22))
    seen = Watcher(Around.of(RECIPE))
    for one in json_lines(run / "metrics.jsonl"):
        seen.step(one["step"], one)
    assert of_run(run).told() == seen.told() != []


def test_a_number_that_metrics_jsonl_cannot_hold_is_not_finite_there_either(run):
    write(run, [*recorded(3), {"step": 4} | line(4, loss=None, skipped_updates=1.0) | {"loss": None}])
    [alarm] = of_run(run).alarms
    assert alarm.sentence == "Not finite in step 4: the loss; 1 of 2 updates were skipped"


def test_events_belong_to_the_step_in_whose_time_they_were(run):
    deaths = [{"kind": "engine", "what": "restarts", "engine": f"sampler-{n}", "when": when} for n, when in
              enumerate((150.0, 250.0, 350.0))]  # fmt: skip
    write(run, recorded(5), deaths)
    [alarm] = of_run(run).alarms
    assert alarm.name == "engine_restarts" and alarm.since_step == 4 and "sampler-0, sampler-1" in alarm.sentence


def test_what_happened_in_steps_that_were_rewound_is_forgotten(run):
    died = {"kind": "engine", "what": "restarts", "engine": "sampler-0"}
    rewound = [died | {"when": when} for when in (550.0, 560.0, 570.0)]
    write(run, recorded(8), [{"kind": "start", "when": 0.0}, *rewound, {"kind": "start", "when": 590.0}])
    assert of_run(run).alarms == []
    write(run, recorded(8), [{"kind": "start", "when": 0.0}, *rewound])
    assert [alarm.name for alarm in of_run(run).alarms] == ["engine_restarts"]


def test_a_score_belongs_to_its_step_whatever_came_while_it_was_made(run):
    lost = {
        "kind": "evaluation",
        "name": "step-000005",
        "of": "old",
        "step": 5,
        "avg": 0.3,
        "lost": True,
        "when": 530.0,
    }
    events = [{"kind": "start", "when": 0.0}, {"kind": "warning", "when": 520.0}, lost]
    write(run, recorded(5), events)
    assert [(a.name, a.since_step) for a in of_run(run).alarms] == [("guard_lost", 5)], "the last step that is recorded"
    assert of_run(run, 0).alarms == [], "before the first step"
    write(run, recorded(8), events)
    assert [(a.name, a.since_step) for a in of_run(run).alarms] == [("guard_lost", 5)]
    write(run, recorded(8), [*events, {"kind": "start", "when": 540.0}])
    assert of_run(run, 4).alarms == [] and [a.since_step for a in of_run(run).alarms] == [5]
    write(run, recorded(8), [events[0], lost | {"when": 310.0}, {"kind": "start", "when": 320.0}])
    assert of_run(run).alarms == [], "of a step that was done again"


def test_a_standstill_of_an_earlier_start_is_an_alarm_of_the_step_before_which_it_was(run):
    told = {"kind": "alarm", "name": "no_progress", "since_step": 3, "sentence": "Nothing has moved for 10 min"}
    write(run, recorded(5), [told | {"when": 250.0}, told | {"when": 280.0, "over": True}])
    [alarm] = of_run(run).alarms
    assert (alarm.name, alarm.since_step, alarm.until_step) == ("no_progress", 3, 3)


def test_a_recipe_that_goes_on_may_silence_what_it_told_before(run):
    write(run, recorded(20, spike=15))
    seen = of_run(run, recipe=load("paper_opsd_8b", ["alarms.silent=[kl_spike]"]))
    assert [alarm.name for alarm in seen.alarms] == ["kl_spike"] and seen.told() == []


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="it has no recipe"):
        of_run(tmp_path)


def test_alarms_json_holds_what_its_readers_are_promised_and_damage_is_no_error(run):
    write(run, recorded(15, spike=15))
    kept.write(run, of_run(run).told())
    [one] = alarms.read(run)
    assert list(one) == ["name", "since_step", "until_step", "sentence", "means", "do"]
    assert one["until_step"] is None and "learner.lr" in one["do"]
    for damage in ("[{", "{}", '[{"name": "x"}, 3]', ""):
        (run / "alarms.json").write_text(damage)
        assert alarms.read(str(run)) == []
    assert alarms.read(run / "nowhere") == []


def test_new_events_are_read_once_and_half_a_line_when_it_is_whole(tmp_path):
    place = tmp_path / "events.jsonl"
    place.write_text('{"kind": "start"}\n')
    new = NewEvents(tmp_path)
    assert new.read() == []
    with open(place, "a") as file:
        file.write('{"kind": "a"}\nnonsense\n{"kind": ')
        file.flush()
        assert new.read() == [{"kind": "a"}]
        file.write('"b"}\n')
    assert new.read() == [{"kind": "b"}] and new.read() == []
    assert NewEvents(tmp_path / "nowhere").read() == []


@pytest.mark.parametrize("key", ["silent", "stop_on"])
def test_an_alarm_that_does_not_exist_is_refused_with_one_that_is_near(key):
    with pytest.raises(UserError, match=f"alarms.{key} has 'kl_spikes', which is no alarm .did you mean kl_spike"):
        load("miniature_opsd", [f"alarms.{key}=[kl_spikes]"])
