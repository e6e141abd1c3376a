"""`trd show` on runs whose rows are made up: which row it takes, what it prints of it, and that no text does harm."""

import io
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_rows import END, HOSTILE, a_row, a_run, bytes_tokenizer, ids_of, scored, trajectory
from rich.console import Console

from trd_ray import usage
from trd_ray.cli import main
from trd_ray.errors import UserError
from trd_ray.miniature.tokenizer import build
from trd_ray.record.directory import write_parquet
from trd_ray.rows import to_table
from trd_ray.show.command import show
from trd_ray.show.pieces import Decoder, decoder_of, pieces
from trd_ray.show.row_search import KINDS, WantedRow, found, listed, run_named
from trd_ray.show.shades import SCALES, STYLES, level_of
from trd_ray.show.word_diff import difference

REPO = Path(__file__).parents[2]
CODES = re.compile(r"\x1b\[[\d;]*m")
WRONG, RIGHT = "2+2 = 5, so\n\\boxed{5}", "Wait, 2+2 = 4:\n\\boxed{4}"


def failed(text: str = WRONG, **more: Any) -> dict[str, Any]:
    return trajectory(text, False, **({"extracted": "5", "detail": "not equal"} | more))


def passed(text: str = RIGHT, **more: Any) -> dict[str, Any]:
    return trajectory(text, True, **more)


def with_kl(number: int, step: int, kl: float, **more: Any) -> dict[str, Any]:
    return a_row(number, step, failed(), passed(), scored=[scored("y_r", [kl] * len(RIGHT))], **more)


@pytest.fixture
def run(tmp_path) -> Path:
    """Of each kind a row, in two steps."""
    return a_run(
        tmp_path / "mine",
        [
            with_kl(0, 1, 0.5),
            a_row(1, 1, passed(), failed(), problem_id="odd", source="gsm8k"),
            a_row(2, 1, failed(finish="length"), failed(), train=False, dropped_because="empty", trajectory=None),
        ],
        [
            with_kl(3, 2, 0.25),
            a_row(4, 2, passed(), None, trajectory="y_o", scored=[scored("y_o", [2.0] * len(RIGHT))]),
            a_row(
                5,
                2,
                failed(),
                failed(),
                fault="no verdict came",
                train=False,
                dropped_because="bad row",
                scored=[scored("y_o", [9.0] * len(WRONG), trained=False)],
            ),
        ],
    )


def shown(run: Path | str, *, color: str | None = None, width: int = 80, **asked: Any) -> str:
    """What is printed, with the codes of colors where there are some."""
    wish = WantedRow(**{name: asked.pop(name) for name in list(asked) if name in WantedRow.__dataclass_fields__})
    console = Console(
        file=io.StringIO(), width=width, force_terminal=color is not None, color_system=color, highlight=False
    )  # fmt: skip
    assert show(str(run), wish, console=console, **asked) == 0
    return console.file.getvalue()


# Which row


@pytest.mark.parametrize(
    "wish, row",
    [
        ({}, 3),
        ({"row": 1}, 1),
        ({"step": 1}, 0),
        ({"worst": True}, 4),
        ({"worst": True, "step": 1}, 0),
        ({"worst": True, "kind": "repaired"}, 0),
        ({"kind": "repaired"}, 3),
        ({"kind": "broken"}, 1),
        ({"kind": "failed"}, 5),
        ({"kind": "failed", "step": 1}, 2),
        ({"kind": "passed"}, 4),
        ({"kind": "dropped"}, 5),
        ({"kind": "cut"}, 2),
        ({"problem": "odd"}, 1),
        ({"source": "gsm8k"}, 1),
    ],
)
def test_a_row_is_found_by_what_is_asked_of_it_the_newest_first(run, wish, row):
    assert shown(run, **wish).startswith(f"row {row} of ")


def test_who_asks_for_nothing_gets_the_newest_repaired_row_and_is_told_how_to_ask_for_others(run, tmp_path):
    text = " ".join(shown(run).split())
    assert "the newest row that is repaired; others: --row N" in text and "--worst" in text and "--list" in text
    none = a_run(tmp_path / "none", [a_row(0, 1, failed(), failed())])
    assert "the newest row, since none is repaired; others" in " ".join(shown(none).split())
    assert "others:" not in shown(run, row=3)


@pytest.mark.parametrize(
    "wish, said",
    [
        ({"row": 9}, "has no row 9: its rows of steps 1 to 2 are 0 to 5"),
        ({"row": 3, "step": 1}, "has no row 3: its rows of step 1 are 0 to 2"),
        ({"step": 7}, "has no rows of step 7: it has those of steps 1 to 2"),
        (
            {"kind": "broken", "step": 2},
            "is broken (y_o passed and y_r failed): of 3 rows 1 repaired, 1 failed, 1 passed",
        ),
        ({"problem": "p\x1b"}, "no row of .* is of problem p\ufffd: of 6 rows"),
        ({"worst": True, "problem": "odd"}, "no row of .* has the KL of its tokens: .*diagnostics.tokens=true"),
    ],
)
def test_a_row_that_is_not_there_is_one_sentence_with_those_that_are(run, wish, said):
    with pytest.raises(UserError, match=said if ".*" in said else re.escape(said)):
        found(run_named(str(run)), WantedRow(**wish))


def test_a_run_that_is_not_there_or_has_no_rows_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a_run(tmp_path / "runs" / "mine", [with_kl(0, 1, 0.1)])
    assert run_named("mine").path == Path("runs/mine")
    for name, said in (
        ("mime", "there is no run mime (did you mean mine?)"),
        ("runs", "runs holds several runs: name one of them, such as runs/mine"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            run_named(name)
    (tmp_path / "new").mkdir()
    with pytest.raises(UserError, match="new has no rows .*: they come when the first step .* is recorded"):
        run_named("new")


def test_a_file_that_goes_or_is_damaged_while_it_is_read_is_one_sentence(run):
    rows = run_named(str(run))
    rows.files[1][1].write_bytes(b"PAR1 and no more")
    with pytest.raises(
        UserError, match="step-000002.parquet cannot be read .*: if the run goes on just now, ask again"
    ):
        found(rows, WantedRow())
    assert found(rows, WantedRow(step=1))["row"] == 2
    rows.files[1][1].unlink()
    with pytest.raises(UserError, match="cannot be read"):
        found(rows, WantedRow())


def test_a_list_has_a_line_a_row_with_verdicts_lengths_and_kl(run):
    lines = [line.split() for line in shown(run, listing=20).splitlines()]
    assert [line[0] for line in lines] == ["row", "5", "4", "3", "2", "1", "0"]
    assert lines[3] == ["3", "2", "failed", "21", "passed", "24", "0.2500", "y_r", "p-3:", "What", "is", "2+2?"]
    assert lines[2][4:7] == ["-", "-", "2.0000"]
    assert [line.split()[0] for line in shown(run, listing=2, worst=True).splitlines()] == ["row", "4", "0"]
    assert [one["row"] for one in listed(run_named(str(run)), WantedRow(kind="failed"), 20)] == [5, 2]
    with pytest.raises(UserError, match="--list shows many rows, and --row names one"):
        shown(run, listing=2, row=1)


def test_an_answer_of_an_evaluation_is_shown_first_one_that_failed(run, tmp_path):
    answers = [a_row(n, 2, y, None, train=None, trajectory=None) for n, y in enumerate((failed(), passed()))]
    place = run / "evaluation" / "old"
    place.mkdir(parents=True)
    write_parquet(place / "trained.parquet", to_table(answers))
    text = shown(run, evaluation="old/trained")
    assert text.startswith(f"row 0 of {run}, evaluation old/trained: step 2") and "corpus" not in text
    assert "the newest row that is failed; others" in " ".join(text.split())
    assert "row 1 of" in shown(run, evaluation="old/trained", kind="passed")
    for asked, said in (
        ({"evaluation": "trained"}, "has no evaluation trained: it has old/trained"),
        ({"evaluation": "old/trained", "step": 1}, "leave one of them out"),
        ({"evaluation": "old/trained", "row": 5}, "has no row 5: its rows are 0 to 1"),
    ):
        with pytest.raises(UserError, match=said):
            shown(run, **asked)
    pq.write_table(pa.table({"problem_id": ["a"]}), run / "evaluation" / "aime24.parquet")
    with pytest.raises(UserError, match="is a directory of trd evaluate"):
        shown(run, evaluation="aime24")


# What is printed of it


def test_a_row_has_its_problem_answer_reference_both_texts_verdicts_and_feedback(tmp_path):
    parts = [{"name": "style", "score": 0.5}]
    turns = json.dumps([{"role": "user", "content": "before that"}])
    row = a_row(
        7, 1, failed(feedback="an answer was\nfound: 5"), passed(score=0.75, parts=parts, finish="length"),
        turns=turns, sample_index=2, source="gsm8k", teacher="big",
    )  # fmt: skip
    text = shown(a_run(tmp_path / "mine", [row]), row=7)
    for words in (
        "row 7 of ", "step 1, problem p-7, rollout 3 of it, source gsm8k, teacher big\ntrained on y_r\n",
        "-- before, by user\n| before that\n", "-- problem\n| What is 2+2?\n", "-- answer\n| 4\n",
        "-- reference\n| 2+2=4\n", "-- y_o, the attempt: failed; extracted 5; not equal\n",
        "21 tokens, ended by itself, policy version 2, by sampler-0\n", "feedback: an answer was found: 5\n",
        "| 2+2 = 5, so\n| \\boxed{5}\n", "-- y_r, the refinement: passed; score 0.75; style 0.5; extracted 4\n",
        "24 tokens, cut at the length limit", "| Wait, 2+2 = 4:\n| \\boxed{4}\n",
    ):  # fmt: skip
        assert words in text, text


def test_what_was_not_trained_on_says_why_and_so_does_a_row_that_could_not_be_made(run):
    assert "not trained on: empty" in shown(run, row=2)
    assert "it could not be made or judged: no verdict came" in shown(run, row=5)
    assert "y_r" not in shown(run, row=4).replace("y_o", "")


def test_tokens_are_shaded_by_their_kl_with_a_legend_and_the_numbers_of_the_whole(tmp_path):
    kl = [0.0] * len(RIGHT)
    kl[0:4] = [0.06, 0.3, 3.0, math.nan]
    run = a_run(tmp_path / "mine", [a_row(0, 1, failed(), passed(), scored=[scored("y_r", kl)])])
    text = shown(run, row=0, color="truecolor", width=200)
    backgrounds = dict(re.findall(r"\x1b\[[\d;]*48;2;(\d+;\d+;\d+)m(.)", text.partition("KL of a token")[0]))
    assert [backgrounds[color] for color in ("140;155;176", "204;184;70", "210;50;60")] == ["W", "a", "i"]
    assert (
        "mean a token, refine view, which it trained under: KL 0.1461 (most 3.000, at token 3), student 0.2500" in text
    )
    assert "KL of a token in nats: below 0.05  0.05  " in CODES.sub("", text)
    assert "-- y_r, the refinement" in CODES.sub("", text)


@pytest.mark.parametrize("by, title", [(by, scale.title) for by, scale in SCALES.items()])
def test_tokens_are_shaded_by_what_is_asked_for(tmp_path, by, title):
    numbers = {scale.column: [9.0] * len(RIGHT) for scale in SCALES.values()}
    row = a_row(0, 1, failed(), passed(), scored=[scored("y_r", **({"kl": numbers["kl"]} | numbers))])
    assert title in shown(a_run(tmp_path / "mine", [row]), row=0, by=by, color="256", width=200)


def test_without_colors_the_tokens_with_the_most_are_listed_with_their_numbers(tmp_path, monkeypatch):
    kl = [0.0] * len(RIGHT)
    kl[0], kl[2], kl[14] = 0.5, 1.5, 0.25
    row = a_row(0, 1, failed(), passed(), scored=[scored("y_r", kl, student_nll=[3.5] * len(kl))])
    run = a_run(tmp_path / "mine", [row])
    text = shown(run, row=0)
    assert "\x1b" not in text
    lines = [line.split() for line in text.splitlines()]
    at = lines.index(["token", "KL", "student", "teacher", "onset", "text"])
    assert lines[at + 1 : at + 4] == [
        ["3", "1.500", "3.500", "0.250", "0.250", '"i"'],
        ["1", "0.500", "3.500", "0.250", "0.250", '"W"'],
        ["15", "0.250", "3.500", "0.250", "0.250", '"\\n"'],
    ]
    assert "in nats: below" not in text, "no legend of colors that there are not"
    assert len(shown(run, row=0, top=1).splitlines()) == len(lines) - 2
    monkeypatch.setenv("NO_COLOR", "1")
    assert "token        KL" in shown(run, row=0, color="truecolor")


def test_a_newline_that_stands_out_can_be_seen(tmp_path):
    kl = [0.0] * len(RIGHT)
    kl[14] = 5.0
    run = a_run(tmp_path / "mine", [a_row(0, 1, failed(), passed(), scored=[scored("y_r", kl)])])
    assert "↵" in shown(run, row=0, color="truecolor") and "↵" not in shown(run, row=0)


def test_rows_without_numbers_say_which_key_gives_them(run, tmp_path):
    text = " ".join(shown(run, row=1).split())
    assert "no numbers for its tokens: a run keeps them with diagnostics.tokens=true" in text
    assert "it was not trained on (diagnostics.rows scores both of some rows)" in text


def test_of_several_views_that_which_trained_is_shown_and_another_can_be_asked_for(tmp_path):
    n = len(RIGHT)
    found = [
        scored("y_r", [0.1] * n, "vanilla", False),
        scored("y_r", [0.2] * n),
        scored("y_o", [0.3] * 21, trained=False),
    ]
    run = a_run(tmp_path / "mine", [a_row(0, 1, failed(), passed(), scored=found)])
    text = shown(run, row=0)
    assert "refine view, which it trained under: KL 0.2000" in text and "refine view: KL 0.3000" in text
    assert "vanilla view: KL 0.1000" in shown(run, row=0, view="vanilla")
    assert "not scored under the ema view: --view refine or vanilla" in shown(run, row=0, view="ema")


def test_the_views_are_the_prompts_as_sent_with_special_tokens_in_sight(run):
    text = shown(run, row=3, views=True)
    assert "-- the student's prompt: 12 tokens\n| What is 2+2?\n" in text
    assert f"-- the refiner's prompt: 21 tokens, 3 more were cut off\n| What is 2+2?«{END}»Rewrite.\n" in text
    assert "the teacher's view in the loss: " in text and "the same as the refiner's prompt" in text


def test_the_difference_says_what_is_gone_and_what_is_new(run):
    assert "| {+Wait, +}2+2 = [-5, so-]{+4:+}\n| \\boxed{[-5-]{+4+}}\n" in shown(run, row=3, diff=True)
    colored = CODES.sub("", shown(run, row=3, diff=True, color="truecolor"))
    assert "Wait, 2+2 = 5, so4:" in colored and "{+" not in colored
    assert "nothing was refined, so there is nothing to compare" in shown(run, row=4, diff=True)
    assert list(difference(["a", "b", "d"], ["a", "c", "d"])) == [
        ("same", "a"), ("gone", "b"), ("new", "c"), ("same", "d"),
    ]  # fmt: skip


def test_json_holds_the_row_with_its_pieces_and_no_number_that_json_lacks(tmp_path, capsys):
    kl = [math.nan] + [0.125] * (len(RIGHT) - 1)
    run = a_run(tmp_path / "mine", [a_row(0, 1, failed(), passed(), scored=[scored("y_r", kl)])])
    assert main(["show", str(run), "--row", "0", "--json"]) == 0

    def refuse(word):
        raise AssertionError(word)

    told = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert (told["run"], told["row"], told["y_r"]["passed"]) == (str(run), 0, True)
    assert told["y_r"]["ids"] == ids_of(RIGHT) and told["scored"][0]["kl"][:2] == [None, 0.125]
    assert "".join(text for _, _, text in told["y_r"]["pieces"]) == RIGHT


# Tokens and their text


def decoder() -> Decoder:
    t = bytes_tokenizer()
    special = t.token_to_id(END)
    return Decoder(lambda ids: t.decode(list(ids), skip_special_tokens=False), frozenset([special]))


def test_tokens_that_only_together_make_a_character_are_one_piece():
    found = pieces(decoder(), ids_of("aé😀b"))
    assert [(one.first, one.end, one.text) for one in found] == [(0, 1, "a"), (1, 3, "é"), (3, 7, "😀"), (7, 8, "b")]


def test_half_a_character_at_the_end_or_before_a_special_token_is_shown_as_broken():
    half = ids_of("😀")[:2]
    assert [one.text for one in pieces(decoder(), [*ids_of("a"), *half])][1:] == ["\ufffd"]
    found = pieces(decoder(), [*half, *ids_of(END), *ids_of("b")])
    assert [one.text for one in found] == ["\ufffd", f"«{END}»", "b"] and found[1].special


def test_bytes_that_never_make_a_character_cost_no_more_than_a_few_tokens_a_piece():
    found = pieces(decoder(), [ids_of("😀")[1]] * 100)
    assert sum(one.end - one.first for one in found) == 100 and max(one.end - one.first for one in found) <= 8


def test_every_token_of_a_miniature_run_is_in_one_piece_and_the_pieces_make_the_text():
    found = decoder_of("miniature:student", None, False)
    t = build()
    text = "Hmm 7@2=5; \\boxed{5}"
    ids = [*t(text).input_ids, t.convert_tokens_to_ids("<|end|>")]
    cut = pieces(found, ids)
    assert [(one.first, one.end) for one in cut] == [(i, i + 1) for i in range(len(ids))]
    assert "".join(one.text for one in cut) == text + "«<|end|>»"


def test_where_there_is_no_tokenizer_the_text_is_shown_with_one_sentence(tmp_path):
    row = with_kl(0, 1, 0.5)
    for what in ("model", "recipe"):
        run = a_run(tmp_path / what, [row], model=tmp_path / "gone")
        if what == "recipe":
            (run / "recipe.yaml").unlink()
        text = shown(run, row=0, views=True, diff=True)
        assert "| Wait, 2+2 = 4:\n| \\boxed{4}\n" in text
        assert text.count("tokens are not told apart, since their tokenizer is not to be had: ") == 1
        assert "it is kept as token ids, which need a tokenizer to be read" in text and "{+Wait, +}" in text


def test_where_the_model_has_gone_the_newest_checkpoint_has_its_tokenizer(tmp_path):
    run = a_run(tmp_path / "mine", [with_kl(0, 1, 0.5)], model=tmp_path / "gone")
    place = run / "checkpoints" / "step-000001" / "model"
    place.mkdir(parents=True)
    bytes_tokenizer().save(str(place / "tokenizer.json"))
    assert "not to be had" not in shown(run, row=0)


# What means harm


def test_no_text_of_a_row_steers_the_terminal_or_is_read_as_markup(tmp_path):
    y = trajectory(HOSTILE, False, extracted=HOSTILE, detail=HOSTILE, feedback=HOSTILE, engine=HOSTILE, parts=[])
    row = a_row(
        0, 1, y, trajectory(HOSTILE, True), problem=HOSTILE, problem_id=HOSTILE, answer=HOSTILE, reference=HOSTILE,
        source=HOSTILE, fault=HOSTILE, scored=[scored("y_r", [1.0] * len(ids_of(HOSTILE)))],
        turns=json.dumps([{"role": HOSTILE, "content": HOSTILE}]), refine_prompt_ids=ids_of(HOSTILE),
    )  # fmt: skip
    run = a_run(tmp_path / "mine", [row])
    for asked in ({"row": 0, "views": True, "diff": True}, {"listing": 3}):
        for color in (None, "truecolor"):
            text = CODES.sub("", shown(run, color=color, width=60, **asked))
            assert not {c for c in text if not c.isprintable()} - {"\n"}
            assert "[bold]" in text
    lines = CODES.sub("", shown(run, row=0, color="truecolor", width=60)).splitlines()
    assert max(map(len, lines)) <= 60
    assert not [line for line in lines if line.startswith("[bold]")], "a line of the text has a bar before it"


def test_a_line_without_end_is_cut_into_lines_of_the_terminal_and_kept_whole_in_a_pipe(tmp_path):
    text = "x" * 5000
    run = a_run(tmp_path / "mine", [a_row(0, 1, failed(text), passed("\n\n  y"))])
    assert max(map(len, shown(run, row=0, color="truecolor", width=60).splitlines())) < 200
    assert f"| {text}\n" in shown(run, row=0) and "| \n| \n|   y\n" in shown(run, row=0)


def test_a_long_row_is_shown_in_seconds(tmp_path):
    text = "All the words of a long answer, and 1+1. " * 400
    n = len(text)
    run = a_run(
        tmp_path / "mine", [a_row(0, 1, failed(text), passed(text), scored=[scored("y_r", [0.5, 0.0] * (n // 2))])]
    )
    began = time.process_time()
    shown(run, row=0, color="truecolor", diff=True)
    assert time.process_time() - began < 20


# The command


def test_the_command_line_offers_the_kinds_and_scales_that_there_are(capsys):
    with pytest.raises(SystemExit):
        main(["show", "--help"])
    told = capsys.readouterr().out
    assert all(f"--{kind}" in told and says in " ".join(told.split()) for kind, (says, _) in KINDS.items())
    assert "{" + ",".join(SCALES) + "}" in told and "trd show miniature-opsd --row 17" in told
    assert "show" in usage.OTHERS


@pytest.mark.parametrize("option", ["--row=-1", "--row=a", "--step=0", "--list=0", "--by=loss", "--broken --failed"])
def test_an_option_that_means_nothing_is_refused(run, option):
    with pytest.raises(SystemExit) as refused:
        main(["show", str(run), *option.split()])
    assert refused.value.code == 2


def test_it_runs_without_torch_ray_or_transformers(run):
    heavy = "print([name for name in ('torch', 'ray', 'vllm', 'transformers') if name in sys.modules])"
    code = f"import sys; from trd_ray.cli import main; main(['show', {str(run)!r}, '--worst']); {heavy}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
        env=os.environ | {"PYTHONPATH": str(REPO), "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.stdout.startswith("row 4 of ") and done.stdout.splitlines()[-1] == "[]", done.stderr


def test_every_shade_has_a_step_and_what_is_not_finite_has_none():
    for scale in SCALES.values():
        assert len(STYLES) == len(scale.steps) + 1
        assert [level_of(scale, step) for step in scale.steps] == [1, 2, 3, 4, 5, 6]
        assert level_of(scale, math.nan) == level_of(scale, None) == level_of(scale, 0.0) == 0
