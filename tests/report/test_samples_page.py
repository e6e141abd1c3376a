"""The sample browser in a real browser: what it shows against the files, and against code that it does not use."""

import difflib
import json
import random
import re

import numpy as np
import pyarrow.parquet as pq
import pytest

from browsed import HOSTILE, ROWS, STEPS, a_run
from trd_ray.record.directory import RunDirectory
from trd_ray.report import samples
from trd_ray.report.html_page import html_page
from trd_ray.report.panel import Panel

SHADES = [0.01, 0.03, 0.1, 0.3, 1, 3]


class Opened:
    """A page in the browser, and everything that went wrong in it."""

    def __init__(self, browser, file, width: int = 1280):
        self.file = file
        self.wrong: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.set_default_timeout(10_000)
        self.page.on("console", lambda message: self.wrong.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: self.wrong.append(f"dialog: {dialog.message}"))
        self.page.on("request", self._asked)

    def _asked(self, request) -> None:
        if request.url.partition("#")[0] != self.file.as_uri():
            self.wrong.append(f"request: {request.url[:200]}")

    def go(self, asked: str = "") -> "Opened":
        """Open the page at this address; one that is open already goes there as by a link."""
        hash = f"#samples{'?' if asked else ''}{asked}"
        if self.page.url == "about:blank":
            self.page.goto(self.file.as_uri() + hash)
            return self.drawn()
        self.page.evaluate(
            """hash => location.hash === hash || new Promise(gone => {
                addEventListener("hashchange", () => setTimeout(gone), {once: true});
                location.hash = hash;
            })""",
            hash,
        )
        return self

    def drawn(self) -> "Opened":
        self.page.wait_for_selector("[data-panel=samples][data-done]", state="attached")
        return self

    def text(self, selector: str) -> str:
        return self.page.locator(selector).first.inner_text()

    def asked(self) -> dict[str, str]:
        return self.page.evaluate("Object.fromEntries(trd.place().asked)")

    def spans(self, y: str) -> list[dict]:
        """Each token's text and classes."""
        script = "all => all.map(one => ({text: one.textContent, classes: [...one.classList]}))"
        return self.page.locator(f".column.{y} .token").evaluate_all(script)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDirectory:
    return a_run(tmp_path_factory.mktemp("run") / "r")


@pytest.fixture(scope="module")
def rows(run) -> list[dict]:
    return [row for file in sorted(run.path.glob("rows/*.parquet")) for row in pq.read_table(file).to_pylist()]


@pytest.fixture(scope="module")
def file(run, tmp_path_factory):
    place = tmp_path_factory.mktemp("page") / "report.html"
    panel = samples.panel(run, 10_000_000)
    assert panel
    place.write_text(html_page("r", [Panel("first", "First", "", html="<p>Something above.</p>"), panel]))
    return place


@pytest.fixture(scope="module")
def opened(browser, file):
    one = Opened(browser, file)
    yield one
    one.page.close()


@pytest.fixture(autouse=True)
def nothing_goes_wrong(request):
    yield
    if "opened" in request.fixturenames:
        assert request.getfixturevalue("opened").wrong == []


def shade(value: float) -> int:
    return sum(value >= begin for begin in SHADES)


def test_every_token_has_the_shade_of_its_number(opened, rows):
    for row, colour, name in ((0, "kl", "kl"), (3, "student", "student_nll"), (4, "teacher", "teacher_nll")):
        opened.go(f"row={row}&colour={colour}")
        [trained] = [one for one in rows[row]["scored"] if one["trained"]]
        spans = opened.spans("y_r")
        assert len(spans) == len(rows[row]["y_r"]["ids"]) > 5
        for span, value in zip(spans, trained[name], strict=True):
            found = int(next((c for c in span["classes"] if c.startswith("shade-")), "shade-0").removeprefix("shade-"))
            assert shade(value / 1.061) <= found <= shade(value * 1.061)


def test_the_numbers_of_the_token_at_the_cursor_are_those_of_the_file(opened, rows):
    opened.go("row=8&view=vanilla")
    [scored] = [one for one in rows[8]["scored"] if one["view"] == "vanilla"]
    opened.page.locator(".column.y_o .text").focus()
    for n in range(6):
        opened.page.keyboard.press("ArrowRight")
        said = opened.text(".readout")
        assert said.startswith(f"y_o token {n + 1} of {len(rows[8]['y_o']['ids'])} ")
        told = re.search(
            r"KL ([\d.<≥ ]+), NLL of student ([\d.<≥ ]+)(?: \(p [\d.e-]+\))?, of teacher ([\d.<≥ ]+)", said
        )
        assert told
        for text, name in zip(told.groups(), ("kl", "student_nll", "teacher_nll"), strict=True):
            value = scored[name][n]
            if text.startswith("<"):
                assert value < 0.00107
            elif text.startswith("≥"):
                assert value > 33
            else:
                assert float(text) == pytest.approx(value, rel=0.12)  # two digits, after the letter's 6%
    opened.page.keyboard.press("ArrowLeft")
    assert opened.text(".readout").startswith("y_o token 5 of ")


def test_means_verdicts_and_feedback_are_those_of_the_row(opened, rows):
    for number in (0, 5, 7):
        row = rows[number]
        opened.go(f"row={number}")
        for y in ("y_o", "y_r"):
            assert opened.text(f".column.{y} .on-sample").endswith("passed" if row[y]["passed"] else "failed")
        facts = opened.text(".column.y_r .scored-means")
        kl = np.array(row["scored"][0]["kl"], np.float64)
        assert float(re.search(r"mean KL\s+([\d.]+)", facts)[1]) == pytest.approx(kl.mean(), rel=1e-3)
        assert float(re.search(r"highest\s+([\d.]+)", facts)[1]) == pytest.approx(kl.max(), rel=1e-3)
        assert "Test 2 failed:\n  expected 5" in opened.text(".column.y_o .facts")


def test_filters_leave_the_rows_that_the_file_has(opened, rows):
    def kl(row: dict) -> float:
        return float(np.mean(np.array(row["scored"][0]["kl"], np.float64)))

    middle = sorted(map(kl, rows))[12]
    wanted = {
        "cell=fail_pass": lambda row: not row["y_o"]["passed"] and row["y_r"]["passed"],
        "cell=pass_fail": lambda row: row["y_o"]["passed"] and not row["y_r"]["passed"],
        "step=2-3": lambda row: row["step"] in (2, 3),
        "step=2": lambda row: row["step"] == 2,
        "source=olympiad": lambda row: row["source"] == "olympiad",
        "tokens=40-": lambda row: len(row["y_o"]["ids"]) >= 40,
        "tokens=-40&step=1": lambda row: len(row["y_o"]["ids"]) <= 40 and row["step"] == 1,
        f"kl={middle:.4g}-": lambda row: float(f"{kl(row):.4g}") >= float(f"{middle:.4g}"),
        "q=LET%20me": lambda row: "let me" in row["y_o"]["text"].lower(),
        "q=x%5B::-1%5D": lambda row: "x[::-1]" in row["y_r"]["text"],
    }
    for asked, of in wanted.items():
        left = sum(map(bool, map(of, rows)))
        opened.go(asked)
        assert opened.text(".count") == f"{left} of {STEPS * ROWS} listed" and 0 < left < STEPS * ROWS, asked
        assert opened.page.locator(".list .list-row").count() == left


def test_controls_filter_and_write_the_address(opened, rows):
    opened.go()
    assert opened.text(".count") == f"{STEPS * ROWS} listed"
    opened.page.select_option("[name=cell]", "pass_pass")
    opened.page.fill("[name=step-from]", "2")
    left = [row["row"] for row in rows if row["y_o"]["passed"] and row["y_r"]["passed"] and row["step"] >= 2]
    assert opened.text(".count") == f"{len(left)} of {STEPS * ROWS} listed"
    assert opened.asked() == {"row": str(left[0]), "cell": "pass_pass", "step": "2-"}
    opened.page.reload()
    opened.drawn()
    assert opened.text(".count") == f"{len(left)} of {STEPS * ROWS} listed"
    opened.page.click(".clear")
    assert opened.text(".count") == f"{STEPS * ROWS} listed"


def test_sorting_by_kl_puts_the_highest_first(opened, rows):
    opened.go("sort=kl")
    order = sorted(rows, key=lambda row: -np.mean(np.array(row["scored"][0]["kl"], np.float64)))
    listed = opened.page.locator(".list .in-row").all_inner_texts()
    assert listed[:12] == [str(row["row"]) for row in order[:12]]


def test_a_link_to_a_row_survives_a_reload_and_j_and_k_go_on(opened):
    opened.page.goto("about:blank")
    opened.go("row=17&colour=student")
    for _ in range(2):
        assert opened.text(".sample h3").startswith("Row 17 of step 3")
        assert opened.page.locator("[name=colour]:checked").input_value() == "student"
        opened.page.reload()
        opened.drawn()
    opened.page.locator(".list").focus()
    opened.page.keyboard.press("j")
    assert opened.text(".sample h3").startswith("Row 18 ") and opened.asked() == {"row": "18", "colour": "student"}
    opened.page.keyboard.press("k")
    opened.page.keyboard.press("k")
    assert opened.text(".sample h3").startswith("Row 16 ")
    assert opened.page.locator(".list .current .in-row").inner_text() == "16"


def test_an_address_that_changes_is_followed(opened):
    opened.go("row=3")
    opened.page.evaluate("location.hash = '#samples?row=9&cell=pass_pass'")
    opened.page.wait_for_function("document.querySelector('.sample h3').textContent.startsWith('Row 9 ')")


def test_a_row_that_is_not_in_the_page_is_said_to_be_missing(opened):
    opened.go("row=999")
    assert "Row 999 is not in this page: All 24 rows are shown." in opened.text(".sample .note")
    opened.go("q=nowhere%20to%20be%20found")
    assert "No sample" in opened.text(".sample") and opened.text(".count") == "0 of 24 listed"


def test_hostile_text_is_text(opened):
    opened.go("row=2")
    opened.page.locator("details.view summary").first.click()
    panel = opened.page.locator(".samples-panel")
    assert opened.page.evaluate("typeof hacked") == "undefined"
    assert panel.locator("script, img, b, iframe").count() == 0
    text = opened.text(".column.y_o .text")
    assert "</script><script>hacked = 1</script> &lt;b&gt; <img src=x" in text
    assert "U+202E" in text and "U+0000" in text and "U+2028" in text and "U+200B" in text
    whole = panel.evaluate("one => one.textContent")
    assert not set(HOSTILE) & set("\u202e\u202c\x1b\0\u200b\u2028") & set(whole)


def test_prompts_are_shown_as_sent(opened, run, rows):
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(run.checkpoints()[-1][1] / "model")
    opened.go("row=1")
    for n, column in enumerate(("student_prompt_ids", "refine_prompt_ids")):
        view = opened.page.locator("details.view").nth(n)
        view.locator("summary").click()
        assert view.locator(".text").evaluate("one => one.textContent") == words.decode(rows[1][column])
        assert view.locator(".special").all_inner_texts() == ["<|user|>"]


def test_the_difference_leaves_the_same_tokens_on_both_sides(opened, rows):
    for number in (0, 2, 3):
        opened.go(f"row={number}&colour=diff")
        left, right = opened.spans("y_o"), opened.spans("y_r")
        common = [
            [span["text"] for span in side if not {"gone", "come"} & {*span["classes"]}] for side in (left, right)
        ]
        assert common[0] == common[1] and 0 < len(common[0]) < len(left)
        assert opened.text(".legend").startswith(f"{len(common[0])} tokens are in both")


def test_no_common_subsequence_is_longer(opened):
    chance = random.Random(0)
    for _ in range(30):
        a, b = ([chance.choice("abcdefg") for _ in range(chance.randint(0, 90))] for _ in range(2))
        found = opened.page.evaluate(
            "([a, b]) => { const f = trd.diff.common(a, b); return [[...f.a], [...f.b]]; }", [a, b]
        )
        kept = [
            [token for token, same in zip(side, flags, strict=True) if same]
            for side, flags in zip((a, b), found, strict=True)
        ]
        by_difflib = sum(m.size for m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks())
        assert kept[0] == kept[1] and len(kept[0]) == longest(a, b) >= by_difflib


def longest(a: list[str], b: list[str]) -> int:
    """The length of the longest common subsequence, by the usual table."""
    row = [0] * (len(b) + 1)
    for x in a:
        made = [0]
        for j, y in enumerate(b):
            made.append(row[j] + 1 if x == y else max(row[j + 1], made[j]))
        row = made
    return row[-1]


def test_samples_of_an_evaluation_have_their_own_list(opened, run):
    opened.go("set=trained&cell=fail")
    stored = pq.read_table(run.path / "evaluation" / "trained.parquet").to_pylist()
    first = {(one["problem_id"], one["y_o"]["passed"]): n for n, one in reversed(list(enumerate(stored)))}
    failed = sorted(n for (_, passed), n in first.items() if not passed)
    assert opened.page.locator(".list .in-row").all_inner_texts() == list(map(str, failed))
    assert re.match(r"\d+ of 24 samples of evaluations are shown", opened.text(".rule"))
    assert opened.text(".sample h3").startswith(f"Sample {failed[0]} of trained")
    assert opened.page.locator(".column").count() == 1
    opened.page.locator(".others button", has_text="of base").first.click()
    assert opened.asked()["set"] == "base" and opened.text(".sample h3").startswith("Sample ")


def test_the_page_fits_a_phone(browser, file, opened):
    phone = Opened(browser, file, width=360).go("row=4")
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 360
    left, right = (phone.page.locator(f".column.{y}").bounding_box() for y in ("y_o", "y_r"))
    assert left["x"] == right["x"] and right["y"] > left["y"]
    assert phone.wrong == []
    phone.page.close()


def test_long_texts_are_folded_until_they_are_asked_for(browser, run, tmp_path, opened):
    data = json.loads(json.dumps(samples.panel(run, 10_000_000).data))
    row, problem = data["rows"]["all"][0], data["rows"]["problems"][0]
    problem["problem"] = "x" * 1_000_000
    row["y_o"] |= {"text": "ab" * 2000, "lengths": data["scale"]["letters"][2] * 2000, "tokens": 2000, "special": []}
    place = tmp_path / "report.html"
    place.write_text(html_page("r", [Panel("samples", "Samples", "", data=data)]))
    long = Opened(browser, place, width=360).go("row=0")
    assert long.page.evaluate("document.documentElement.scrollWidth") <= 360
    assert len(long.spans("y_o")) == 1200
    long.page.click(".column.y_o .more")
    assert len(long.spans("y_o")) == 2000 and not long.page.locator(".column.y_o .more").is_visible()
    passage = long.page.locator("details.passage").first
    passage.locator("summary").click()
    assert passage.locator(".more").inner_text() == "Show all 1,000,000 characters"
    assert len(passage.locator(".text").inner_text()) == 6000
    passage.locator(".more").click()
    assert len(passage.locator(".text").inner_text()) == 1_000_000
    assert long.wrong == []
    long.page.close()


def test_thousands_of_rows_are_listed_and_few_are_drawn(browser, run, tmp_path, opened):
    panel = samples.panel(run, 10_000_000)
    data = json.loads(json.dumps(panel.data))
    one = data["rows"]["all"][0]
    data["rows"]["all"] = [one | {"row": n} for n in range(5_000)]
    place = tmp_path / "report.html"
    place.write_text(html_page("r", [Panel("samples", "Samples", "", data=data)]))
    many = Opened(browser, place).go()
    many.page.locator(".list").focus()
    many.page.keyboard.press("End")
    assert many.text(".sample h3").startswith("Row 4999 ")
    assert many.page.locator(".list .current .in-row").inner_text() == "4999"
    assert many.page.locator(".list .list-row").count() < 60
    assert many.wrong == []
    many.page.close()
