"""The page of a run in a real browser: what it shows is what was recorded, and nothing that was recorded can hurt it.

Every number is recomputed here from Parquet and metrics.jsonl with pandas and NumPy, without the code of the report.
"""

import json
import re
from itertools import combinations
from statistics import fmean

import pandas as pd
import pyarrow.parquet as pq
import pytest

from opened_pages import Page, number, per_problem
from recorded_runs import BEGAN, recorded
from trd_ray.report.written import write_report

RESTART = {"when": BEGAN + 25, "kind": "learner", "said": "the ranks were started again"}
CHECKPOINT = {"when": BEGAN + 40, "kind": "checkpoint", "said": "checkpoint 4 is written", "step": 4}
ALARM = {"name": "truncation", "since_step": 2, "until_step": None, "sentence": "30% of <b>y_o</b> are cut"}
ALARM |= {"means": "The limit is short.", "do": "sampler.max_response_tokens"}
WIDTHS = (360, 820, 1280)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = recorded(tmp_path_factory.mktemp("runs") / "one", hostile=True, events=(RESTART, CHECKPOINT))
    (place / "alarms.json").write_text(json.dumps([ALARM]))
    return place


@pytest.fixture(scope="module")
def opened(browser, run):
    found = Page(browser, write_report([run], price=2.5))
    found.draw("curves", "ledger", "timeline", "diagnostics")
    yield found
    found.context.close()


@pytest.fixture(scope="module")
def rows(run) -> pd.DataFrame:
    return pd.concat([pq.read_table(file).to_pandas() for file in sorted((run / "rows").glob("*.parquet"))])


@pytest.fixture(scope="module")
def metrics(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_page_says_no_error_and_asks_for_nothing(opened):
    assert opened.said == []
    assert opened.asked == [opened.page.url]


def test_the_verdict_is_the_difference_over_the_samples_that_were_kept(opened, run):
    base, trained = (per_problem(run, name).map(fmean) for name in ("base", "trained"))
    text = opened.page.locator("#verdict").inner_text()
    assert f"moved Avg@4 on {len(base)} held-out problems by {100 * (trained - base).mean():+.1f}" in text
    assert f"from {100 * base.mean():.1f}% to {100 * trained.mean():.1f}%" in text
    assert f"{100 * (trained - base).mean():+.1f}" in opened.page.locator(".interval .value").inner_text()


def test_avg_and_pass_at_k_are_those_of_the_samples(opened, run):
    lines = {line[0]: line[1:] for line in opened.titled("scores", "Evaluation")}
    for i, name in enumerate(("base", "trained")):
        of = per_problem(run, name)
        assert number(lines["Avg@4"][i]) == pytest.approx(100 * of.map(fmean).mean(), abs=0.06)
        for k in (2, 4):  # every choice of k samples, as the measure is defined
            chosen = of.map(lambda passed, k=k: fmean(any(some) for some in combinations(passed, k)))
            assert number(lines[f"Pass@{k}"][i]) == pytest.approx(100 * chosen.mean(), abs=0.06)


def test_the_ledger_counts_the_rows(opened, rows):
    raw, refined = ([y["passed"] for y in rows[name]] for name in ("y_o", "y_r"))
    for o in ("pass", "fail"):
        for r in ("pass", "fail"):
            count = sum((a, b) == (o == "pass", r == "pass") for a, b in zip(raw, refined, strict=True))
            cell = opened.page.locator(f"#ledger td[data-cell={o}_{r}]").inner_text()
            assert number(cell) == count
            assert f"{100 * count / len(rows):.1f}%" in cell


def test_the_ledger_over_the_steps_counts_the_rows_of_each(opened, rows):
    lines = opened.chart("Over the steps", "ledger")
    assert lines[0] == ["step", "passed before and after", "repaired", "failed before and after", "broken"]
    for line in lines[1:]:
        of = rows[rows["step"] == int(line[0])]
        pairs = [(a["passed"], b["passed"]) for a, b in zip(of["y_o"], of["y_r"], strict=True)]
        cells = [(True, True), (False, True), (False, False), (True, False)]
        assert [number(cell) for cell in line[1:]] == pytest.approx(
            [100 * fmean(p == c for p in pairs) for c in cells], abs=0.06
        )
    assert len(lines) == 7


def test_every_value_of_the_curves_is_that_of_the_step(opened, metrics, rows):
    drawn = {
        "KL": ("kl/mean", "kl/row_mean"),
        "Entropy": ("student/entropy", "teacher/entropy"),
        "Engine-learner gap": ("sync/gap_mean", "sync/gap_max"),
        "Learning rate": ("lr",),
        "Tokens a second": ("tokens_per_s/sampler", "tokens_per_s/refiner"),
        "Seconds by stage": tuple(
            f"seconds/{s}" for s in ("step", "sample", "refine", "train", "sync", "verify", "overhead")
        ),
    }
    for title, names in drawn.items():
        lines = opened.chart(title)
        steps = {int(line[0]): line[1:] for line in lines[1:]}
        for line in metrics:
            assert [number(one) for one in steps[line["step"]]] == pytest.approx([line[n] for n in names], rel=6e-3), (
                title
            )
    of_rows = {int(line[0]): [number(one) for one in line[1:]] for line in opened.chart("Length")[1:] if line[1] != "-"}
    for step, of in rows.groupby("step"):
        means = [fmean(len(y["ids"]) for y in of[name]) for name in ("y_o", "y_r")]
        assert of_rows[step] == pytest.approx(means, rel=1e-3)


def test_pass_rates_stand_beside_the_scores_which_begin_at_the_base(opened, run, rows):
    lines = {int(line[0]): line[1:] for line in opened.chart("Pass rate")[1:]}
    assert number(lines[0][2]) == pytest.approx(100 * per_problem(run, "base").map(fmean).mean(), abs=0.06)
    assert number(lines[6][2]) == pytest.approx(100 * per_problem(run, "trained").map(fmean).mean(), abs=0.06)
    for step, of in rows.groupby("step"):
        assert number(lines[step][0]) == pytest.approx(100 * fmean(y["passed"] for y in of["y_o"]), abs=0.06)


def test_evaluations_checkpoints_and_restarts_are_marked(opened):
    marks = opened.page.locator("#curves .marks li").all_text_contents()
    assert marks == [
        "Step 0: base evaluated",
        "Step 2: the ranks were started again",
        "Step 4: checkpoint 4",
        "Step 6: trained evaluated",
    ]


def test_the_cost_is_that_of_the_tokens_and_of_the_time(opened, rows):
    lines = {line[0]: line[1:] for line in opened.titled("scores", "Cost")}
    for y, what in (("y_o", "tokens of attempts (y_o), by the sampler"), ("y_r", "tokens trained on")):
        tokens = sum(len(one["ids"]) for one in rows[y])
        assert lines[what] == [f"{tokens:,}", f"{tokens / len(rows):,.0f}"]
    assert lines["wall time, starts and evaluations included"][0] == "1 min 00 s"
    assert lines["money at 2.5 a GPU-hour"][0] == "0.00"  # it had none


def test_work_and_waiting_are_those_of_the_timeline(opened, run):
    tree = json.loads((run / "timeline.json").read_text())["traceEvents"]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in tree if e["name"] == "thread_name"}
    lines = {line[0].partition(": ")[2]: line[1:3] for line in opened.cells("#timeline table")[1:]}
    for lane in ("driver", "sampler-0", "refiner-0", "rank 0"):
        for i, kind in enumerate(("work", "wait")):
            spans = [
                e["dur"] for e in tree if e["ph"] == "X" and names[e["pid"], e["tid"]] == lane and e["cat"] == kind
            ]
            assert number(lines[lane][i]) == pytest.approx(sum(spans) / 1e6, abs=0.06)


def test_the_kl_signal_is_that_of_the_tokens_that_were_scored(opened, rows):
    pytest.importorskip("trd_ray.diagnostics.whole")
    for line in opened.chart("KL signal", "diagnostics")[1:]:
        of_step = [kl for scored in rows[rows["step"] == int(line[0])]["scored"] for kl in scored[0]["kl"]]
        assert number(line[1]) == pytest.approx(fmean(map(float, of_step)), rel=2e-3)


def test_an_alarm_says_what_it_means_and_what_to_set(opened):
    text = opened.page.locator("#alarms .alarm").inner_text()
    assert "truncation since step 2, and it lasts" in text
    assert "30% of <b>y_o</b> are cut" in text and "Do: sampler.max_response_tokens" in text


def test_the_recipe_shows_what_differs_and_the_command_that_repeats_it(opened, run):
    lines = {line[0]: line[1:] for line in opened.titled("recipe", "What differs from the defaults")}
    assert lines["rollouts_per_step"] == ["8", "128"] and lines["steps"] == ["6", "null"]
    assert "loss.divergence" not in lines
    assert f"trd train {run}/recipe.yaml run_dir=runs/again" in opened.page.locator("#recipe pre").first.inner_text()


def test_texts_of_models_data_and_users_are_inert_and_cannot_hide(opened):
    page = opened.page
    assert page.evaluate("window.hurt") is None
    assert page.locator("img").count() == 0
    moved = page.locator("#scores .scrolls[aria-label='Problem by problem']").inner_text()
    assert "</script><script>window.hurt=1</script>" in moved and "{{ 7*7 }}" in moved
    whole = page.locator("body").evaluate("body => body.innerText")
    assert not re.search("[\x00-\x08\x0b\x1b\u202a-\u202e\u2066-\u2069\ud800-\udfff]", whole)


def test_another_script_a_style_and_a_request_are_refused_by_the_policy(browser, run, opened):
    other = Page(browser, run / "report.html")
    ran = other.page.evaluate(
        """async () => {
            const script = document.createElement("script");
            try { script.textContent = "window.ran = 1"; document.body.append(script); } catch {}
            document.body.setAttribute("style", "color: red");
            const asked = await fetch("https://example.org/").then(() => true, () => false);
            let markup = true;
            try { document.body.insertAdjacentHTML("beforeend", "<i>x</i>"); } catch { markup = false; }
            return [window.ran ?? 0, getComputedStyle(document.body).color === "rgb(255, 0, 0)", asked, markup];
        }"""
    )
    other.context.close()
    assert ran == [0, False, False, False]


def test_nothing_scrolls_sideways_at_the_width_of_a_phone_a_tablet_and_a_desk(opened):
    page = opened.page
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(50)
        assert page.evaluate("document.documentElement.scrollWidth") == width
    page.set_viewport_size({"width": 1280, "height": 900})


def test_texts_stand_out_in_light_and_in_dark(opened):
    """Contrasts as WCAG 2 asks for: 4.5 of text, 3 of lines."""
    read = """names => {
        const light = c => { const v = c / 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; };
        const of = name => { const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
            const [r, g, b] = [1, 3, 5].map(i => light(parseInt(hex.slice(i, i + 2), 16)));
            return .2126 * r + .7152 * g + .0722 * b; };
        const paper = of("--paper");
        const ratio = it => (Math.max(it, paper) + .05) / (Math.min(it, paper) + .05);
        return names.map(name => ratio(of(name)));
    }"""
    texts, lines = ["--ink", "--muted", "--accent", "--good", "--bad", "--warn"], [f"--line-{i}" for i in range(12)]
    shown = []
    for _ in range(2):
        assert min(opened.page.evaluate(read, texts)) >= 4.5
        assert min(opened.page.evaluate(read, lines)) >= 3
        shown.append(opened.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        opened.page.locator("#theme").click()
    assert shown[0] != shown[1]


def test_charts_can_be_read_with_keys_and_lines_differ_by_more_than_colour(opened):
    figure = opened.page.locator("#curves figure[data-chart=KL]")
    plot = figure.locator(".plot")
    assert plot.get_attribute("aria-label").startswith("KL: over tokens from 0.")
    plot.focus()
    opened.page.keyboard.press("Home")
    opened.page.keyboard.press("ArrowRight")
    figure.locator(".at", has_text="step").wait_for()
    assert figure.locator(".at").inner_text() == "step 1"
    dashes = figure.locator(".stroke line").evaluate_all("all => all.map(one => one.getAttribute('stroke-dasharray'))")
    assert len(set(dashes)) == len(dashes) == 2


def test_without_scripts_the_verdict_the_tables_and_the_recipe_are_there(browser, run, opened):
    plain = Page(browser, run / "report.html", java_script_enabled=False)
    text = plain.page.locator("main").inner_text()
    plain.context.close()
    assert "Charts and samples need JavaScript" in text and "held-out problems by" in text
    assert "Pass@2" in text and "rollouts_per_step" in text


def test_on_paper_the_page_is_light_and_without_what_can_only_be_clicked(opened):
    page = opened.page
    page.emulate_media(media="print")
    assert not page.locator(".top").is_visible() and not page.locator(".bar").is_visible()
    assert page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--paper')").strip() == "#fbfaf8"
    page.emulate_media(media="screen")
