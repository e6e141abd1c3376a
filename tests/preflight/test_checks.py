"""Nothing starts that could not end well: vocabularies, end of turn, lengths and references are checked first."""

import dataclasses
import json

import pyarrow as pa
import pytest
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from trd_ray import config, models
from trd_ray.errors import UserError
from trd_ray.preflight import checks
from trd_ray.problems.columns import SCHEMA
from trd_ray.problems.load import load_problems
from trd_ray.problems.order import Length
from trd_ray.views import WORDINGS

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
SPECIAL = ["<unk>", "<user>", "<assistant>", "<end>", "<stop>"]
WORDS = sorted({word for wording in WORDINGS["math"].values() for word in wording.split()} | set("0123456789+=?"))


def tokenizer(words: list[str] = WORDS, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *words])}
    backend = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="<end>", chat_template=template
    )


FACTS = models.ModelFacts(
    path="student",
    architecture="LlamaForCausalLM",
    parameters=1000,
    hidden_size=8,
    intermediate_size=16,
    vocab_size=512,
    layers=1,
    attention_heads=1,
    kv_heads=1,
    head_dim=8,
    tied_embeddings=True,
    max_positions=1024,
    dtype="float32",
    eos_ids=(3,),
)


def problems(*lengths: int, reference: str = "1 + 1 = 2") -> pa.Table:
    """One problem a length, of so many tokens."""
    rows = [
        {"problem_id": f"p{i}", "problem": " ".join("1" * n), "answer": "1", "reference": reference}
        for i, n in enumerate(lengths)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def check(tree: dict | None = None, **given) -> checks.Findings:
    lengths = {"max_response_tokens": 100}
    base = {"rollouts_per_step": 2, "sampler": lengths, "refiner": lengths, "evaluation": lengths}
    for key, value in (tree or {}).items():
        base[key] = base.get(key, {}) | value if isinstance(value, dict) else value
    arguments = {
        "problems": problems(3, 5, 40),
        "evaluation": problems(7, 20),
        "student": FACTS,
        "teacher": dataclasses.replace(FACTS, path="teacher"),
        "student_tokenizer": tokenizer(),
        "teacher_tokenizer": tokenizer(),
    }
    return checks.check(config.from_tree(base), **(arguments | given))


def refusal(tree: dict | None = None, **given) -> str:
    with pytest.raises(UserError) as refused:
        check(tree, **given)
    return str(refused.value)


# What is learned


def test_a_sound_run_passes_and_its_lengths_are_counted():
    found = check()
    # <user>, the problem, the words around it, <end>, <assistant>.
    around = len(WORDINGS["math"]["solve"].replace("{problem}", "").split()) + 3
    assert found.student_prompt == checks.Tokens(median=5 + around, longest=40 + around)
    assert found.evaluation_prompt == checks.Tokens(median=round(13.5) + around, longest=20 + around)
    assert found.length == Length(steps=1, rows=2, dropped_rows=1)
    refine = len(WORDINGS["math"]["refine_with_reference"].split()) - 3 + 3 + 40 + 5
    assert found.teacher_prompt is not None and found.teacher_prompt.longest == refine
    assert found.longest_sequence_tokens == refine + 100 + 100  # an attempt of full length, and the response
    assert "1 rollouts of a partial last step left out" in str(found)


def test_a_corpus_and_no_evaluation_leave_nothing_to_measure():
    found = check(problems=None, evaluation=None)
    assert (found.problems, found.length, found.student_prompt) == (0, None, None)
    assert str(found) == "nothing to sample"


# Vocabularies


def test_other_vocabularies_are_refused_with_a_token_that_differs():
    told = refusal(teacher_tokenizer=tokenizer(WORDS[::-1]))
    assert "different vocabularies" in told and "share one tokenizer" in told
    told = refusal(teacher_tokenizer=tokenizer([*WORDS, "extra"]))
    assert "1 tokens differ, such as 'extra', which is absent in student" in told


def test_an_lm_head_padded_further_is_compared_as_far_as_both_go_and_said_once():
    found = check(teacher=dataclasses.replace(FACTS, path="teacher", vocab_size=640))
    assert found.shared_vocabulary == 512
    assert str(found).count("has 512 rows and that of teacher 640, of which the first 512 are compared") == 1
    assert "compared" not in str(check(teacher=dataclasses.replace(FACTS, vocab_size=640), trains=False))
    assert check().shared_vocabulary == 512 and "compared" not in str(check())


def test_a_tokenizer_larger_than_its_model_is_refused():
    small = dataclasses.replace(FACTS, vocab_size=10)
    assert "do not belong together" in refusal(student=small, teacher=small)
    assert "the tokenizer of small has" in refusal(teacher=dataclasses.replace(small, path="small"))


# The end of a turn


def test_an_end_token_that_is_not_the_model_s_eos_is_refused():
    told = refusal(student=dataclasses.replace(FACTS, eos_ids=(4,)))
    assert "student's chat template ends a turn with '<end>' (3)" in told and "'<stop>' (4)" in told
    assert "generation_config.json" in told


def test_one_of_several_eos_tokens_is_enough():
    check(student=dataclasses.replace(FACTS, eos_ids=(4, 3)))


def test_a_tokenizer_without_a_chat_template_is_refused():
    assert "teacher's tokenizer (teacher) has no chat template" in refusal(teacher_tokenizer=tokenizer(template=None))


def test_a_template_that_leaves_an_answer_open_is_refused():
    bare = "{% for m in messages %}<{{ m.role }}> {{ m.content }}{% endfor %}"
    assert "puts nothing after an answer" in refusal(student_tokenizer=tokenizer(template=bare))


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        ("{% for m in messages %}{{ m['content'] }", "unexpected '}'"),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "range"),
        (TEMPLATE + "{% if messages|length > 1 %}{{ raise_exception('one turn only') }}{% endif %}", "one turn only"),
    ],
)
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_chat_template_that_cannot_render_is_one_sentence_with_what_it_said(template, shown, who):
    told = refusal(**{f"{who}_tokenizer": tokenizer(template=template)})
    assert f"the {who}'s chat template cannot render" in told and shown in told
    assert f"{who}.chat_template_kwargs" in told and "\n" not in told


def test_a_teacher_that_ends_its_turn_otherwise_is_refused():
    told = refusal(
        teacher=dataclasses.replace(FACTS, path="teacher", eos_ids=(4,)),
        teacher_tokenizer=tokenizer(template=TEMPLATE.replace("<end>", "<stop>")),
    )
    assert "the student ends its turn with '<end>', the teacher with '<stop>'" in told


# Lengths


@pytest.mark.parametrize(
    ("tree", "keys"),
    [
        ({"sampler": {"max_response_tokens": 1000}}, ["sampler.max_response_tokens", "sampler.max_model_len"]),
        ({"sampler": {"max_model_len": 128}}, ["sampler.max_response_tokens", "sampler.max_model_len"]),
        ({"refiner": {"max_response_tokens": 900}}, ["refiner.max_prompt_tokens", "refiner.max_response_tokens"]),
        ({"refiner": {"max_model_len": 256}}, ["refiner.max_prompt_tokens", "refiner.max_model_len"]),
        ({"evaluation": {"max_response_tokens": 1000}}, ["evaluation.max_response_tokens", "sampler.max_model_len"]),
        ({"sampler": {"max_model_len": 2048}}, ["has 1024 positions", "sampler.max_model_len to 1024"]),
        ({"refiner": {"max_prompt_tokens": 64}}, ["refiner.max_prompt_tokens is 64"]),
    ],
)
def test_a_prompt_and_response_longer_than_the_context_are_refused(tree, keys):
    told = refusal(tree)
    assert all(key in told for key in keys), told


def test_a_context_that_just_suffices_is_accepted_and_one_token_less_is_not():
    found = check()
    assert found.student_prompt is not None
    context = found.student_prompt.longest + 100
    check({"sampler": {"max_model_len": context}})
    refusal({"sampler": {"max_model_len": context - 1}})
    refine = found.longest_sequence_tokens
    check({"refiner": {"max_model_len": refine}})
    refusal({"refiner": {"max_model_len": refine - 1}})


def test_a_bound_on_the_refine_prompt_makes_a_long_attempt_fit():
    tree = {"sampler": {"max_response_tokens": 800}}
    assert "refiner.max_prompt_tokens" in refusal(tree)
    check(tree | {"refiner": {"max_prompt_tokens": 512}})


def test_a_problem_that_is_too_long_is_named_with_its_tokens_and_counted():
    told = refusal({"sampler": {"max_model_len": 180}}, problems=problems(3, 5, 120, 140), evaluation=None)
    assert "2 of 4 problems are too long for the sampler, the longest being p3 ('1 1 1 1" in told
    assert "its prompt of 154 tokens and sampler.max_response_tokens (100) make 254, but the context is 180" in told
    assert "data.too_long=drop" in told
    assert "\n" not in refusal({"sampler": {"max_model_len": 180}}, problems=problems(3, 140), evaluation=None)


def test_problems_that_are_too_long_are_left_out_and_counted_if_so_asked():
    tree = {"sampler": {"max_model_len": 180}, "data": {"too_long": "drop"}}
    found = check(tree, problems=problems(3, 5, 120, 140), evaluation=None)
    assert (found.problems, found.dropped_too_long) == (2, 2)
    assert [(one.problem_id, one.name) for one in found.too_long] == [
        ("p2", ("1 " * 60)[:60]),
        ("p3", ("1 " * 60)[:60]),
    ]
    assert found.too_long[1].reason.startswith("too long: its prompt of 154 tokens and sampler.max_response_tokens")
    assert found.length == Length(steps=1, rows=2, dropped_rows=0)
    assert "2 problems, 1 steps of 2 rollouts; 2 that are too long left out, such as 'p2'" in str(found)


def test_where_every_problem_is_too_long_none_is_dropped_and_the_length_is_refused():
    told = refusal({"sampler": {"max_response_tokens": 1020}, "data": {"too_long": "drop"}}, evaluation=None)
    assert "3 of 3 problems are too long" in told and "lower sampler.max_response_tokens" in told
    assert "data.too_long" not in told


def test_a_held_out_problem_that_is_too_long_is_named_and_never_dropped():
    tree = {"evaluation": {"max_response_tokens": 990}, "data": {"too_long": "drop"}}
    told = refusal(tree, evaluation=problems(1, 30))
    assert "1 of 2 problems is too long for the sampler in the evaluation, the longest being p1" in told
    assert "evaluation.max_response_tokens (990)" in told and "data.too_long" not in told


def test_a_response_that_the_student_cannot_be_trained_on_is_refused():
    told = refusal({"refiner": {"max_response_tokens": 300}}, student=dataclasses.replace(FACTS, max_positions=256))
    assert "too long for the student" in told and "lower refiner.max_response_tokens" in told


def test_everything_that_is_wrong_is_told_at_once():
    thinker = tokenizer()
    thinker.chat_template = "{% if enable_thinking %}{% endif %}" + thinker.chat_template
    tree = {
        "sampler": {"max_response_tokens": 1020},
        "refiner": {"max_response_tokens": 1001},
        "evaluation": {"max_response_tokens": 1002, "chat_template_kwargs": {"x": 1}},
        "learner": {"lora": {"targets": ["w_proj"]}},
    }
    with pytest.raises(UserError) as refused:
        check(tree, student_tokenizer=thinker, teacher_tokenizer=thinker, problems=problems(3, 4, reference=""))
    told = str(refused.value).splitlines()
    assert told[0] == f"{len(refused.value.sentences)} things are in the way:"
    assert all(line.startswith("  - ") for line in told[1:])
    keys = [
        "learner.lora.targets",
        *(f"set {group}.chat_template_kwargs" for group in ("student", "teacher", "evaluation")),
        "data.columns.reference=NAME",
        "evaluation.max_response_tokens (1002)",
        "sampler.max_response_tokens (1020)",
        "refiner.max_response_tokens (1001)",
    ]
    for key in keys:
        assert sum(key in line for line in told) == 1, (key, told)


# References


def test_opsd_without_references_is_refused_and_opd_is_not():
    bare = problems(3, 4, reference="  ")
    told = refusal(problems=bare)
    assert "2 of 2 problems have none, the first being p0" in told and "data.columns.reference=NAME" in told
    check({"teacher": {"mode": "opd", "path": "teacher"}}, problems=bare)


def test_smollm2_with_its_shipped_recipe_passes():
    recipe = config.load("smollm2_smoke")
    path = models.resolve("smollm2")
    facts, words = models.facts(path), models.tokenizer(path)
    found = checks.check(
        recipe,
        problems=load_problems(recipe.data).table,
        evaluation=load_problems(recipe.evaluation).table,
        student=facts,
        teacher=facts,
        student_tokenizer=words,
        teacher_tokenizer=words,
    )
    assert found.problems == 32 and found.length == Length(2, 8, 0)
    assert found.longest_sequence_tokens < 1024


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_model_that_adds_a_bias_to_its_logits_is_refused_by_what_trains(who):
    biased = dataclasses.replace(FACTS, path="phi", head_bias=True)
    assert "phi" in (said := refusal(**{who: biased})) and "bias" in said
    assert check(**{who: biased, "trains": False}).problems == 3


def test_adapters_on_a_layer_that_the_student_does_not_have_are_refused_with_those_it_has():
    lora = {"learner": {"lora": {"targets": ["q_proj", "w_proj"]}}}
    said = refusal(lora, student=dataclasses.replace(FACTS, linear_layers=("q_proj", "v_proj")))
    assert "'w_proj'" in said and "did you mean v_proj?" in said


def test_compilation_without_a_compiler_is_refused(monkeypatch):
    tree = {"learner": {"compile": True}}
    monkeypatch.setenv("PATH", "")
    assert "learner.compile=false" in refusal(tree)
    assert check({"learner": {"compile": False}}).problems == 3


def test_a_thinking_mode_must_be_stated_for_student_teacher_and_evaluation():
    thinker = tokenizer()
    thinker.chat_template = "{% if enable_thinking %}{% endif %}" + thinker.chat_template
    both, stated = {"student_tokenizer": thinker, "teacher_tokenizer": thinker}, {"enable_thinking": False}
    groups = {name: {"chat_template_kwargs": stated} for name in ("student", "teacher")}
    check(groups, **both)  # the evaluation follows the student
    assert "set student.chat_template_kwargs={enable_thinking: true}" in refusal(groups | {"student": {}}, **both)
    assert "set teacher.chat_template_kwargs={enable_thinking: true}" in refusal(groups | {"teacher": {}}, **both)
    other = {"evaluation": {"chat_template_kwargs": {"x": 1}}}
    assert "set evaluation.chat_template_kwargs={enable_thinking: true}" in refusal(groups | other, **both)
    alone = both | {"problems": None, "trains": False}
    check({"evaluation": {"chat_template_kwargs": stated}}, **alone)  # nothing else is sampled from
    assert "set evaluation.chat_template_kwargs" in refusal({}, **alone)


def test_prompts_of_the_other_task_are_refused_unless_the_recipe_words_its_own():
    code = problems(3, 5).set_column(5 - 1, "tests", pa.array([b"packed"] * 2))
    assert "prompts.task=code or prompts.solve" in refusal(problems=code)
    assert "prompts.task=math or prompts.solve" in refusal({"prompts": {"task": "code"}}, evaluation=None)
    told = refusal({"verify": {"task": "code"}}, problems=code)
    assert "evaluation.path" in told and "trd evaluate" in told
    check({"prompts": {"solve": "1 {problem}"}}, problems=code)


# Held-out problems


def test_held_out_problems_that_are_trained_on_are_refused_with_how_many_and_the_key():
    told = refusal(evaluation=problems(7, 40, 20))
    assert "1 of 3 held-out problems is trained on" in told and "such as '1 1 1" in told
    assert told.endswith("set evaluation.allow_overlap=true")


def test_held_out_problems_that_are_trained_on_on_purpose_are_counted():
    found = check({"evaluation": {"allow_overlap": True}}, evaluation=problems(5, 40, 2))
    assert found.overlap and (found.overlap.trained_on, found.overlap.held_out) == (2, 3)
    assert "2 of 3 held-out problems are trained on" in str(found)
    assert "none of 2 held-out problems is trained on" in str(check(evaluation=problems(1, 2)))


def test_what_is_held_out_is_compared_with_the_problems_of_a_corpus_too():
    corpus = checks.Corpus(rows=10, steps=5, rows_per_step=2, problems=["1 1 1", "1 1"])
    assert "1 of 2 held-out problems is trained on" in refusal(problems=None, corpus=corpus, evaluation=problems(3, 9))
    found = check(problems=None, corpus=corpus, evaluation=problems(4, 9))
    assert "a corpus of 10 rows, 5 steps of 2 rollouts on 2 problems; 2 problems to evaluate on" in str(found)


def test_an_example_of_hostile_text_is_shown_cut_and_escaped():
    hostile = pa.Table.from_pylist(
        [{"problem_id": "p", "problem": "1\x1b[2J\u202e\n" + "1 " * 99, "answer": "1", "reference": "1"}],
        schema=SCHEMA,
    )
    told = refusal(problems=hostile, evaluation=hostile)
    assert told.isprintable() and len(told) < 500


def test_a_support_larger_than_the_vocabulary_is_refused():
    assert "loss.top_k is 513, but the vocabulary has 512 tokens" in refusal({"loss": {"top_k": 513}})
    check({"loss": {"top_k": 512}})


@pytest.mark.parametrize("pool", ["sampler", "refiner"])
def test_an_engine_argument_that_vllm_does_not_have_is_refused_with_what_was_meant(pool):
    told = refusal({pool: {"extra": {"enforce_eagre": True, "foo_bar": 1, "enable_prefix_caching": False}}})
    assert f"{pool}.extra.enforce_eagre is no engine argument of vLLM (did you mean enforce_eager?)" in told
    assert f"{pool}.extra.foo_bar is no engine argument" in told and "enable_prefix_caching" not in told


def test_the_refiner_may_copy_drafts_from_its_prompt_and_does_not_by_default():
    assert not check({}).recipe.refiner.extra
    ngram = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_min": 2, "prompt_lookup_max": 4}
    found = check({"refiner": {"extra": {"speculative_config": ngram}}}).recipe
    assert found.refiner.extra["speculative_config"] == ngram
    assert "speculative_confg is no engine argument of vLLM (did you mean speculative_config?)" in refusal(
        {"refiner": {"extra": {"speculative_confg": ngram}}}
    )


def test_the_engine_arguments_read_from_its_source_are_those_of_vllm():
    from vllm.engine.arg_utils import AsyncEngineArgs

    from trd_ray.preflight.arguments import engine_arguments

    assert engine_arguments() == {field.name for field in dataclasses.fields(AsyncEngineArgs)}


def test_without_vllm_its_arguments_are_not_checked(monkeypatch):
    from trd_ray.preflight import arguments

    arguments.engine_arguments.cache_clear()
    monkeypatch.setattr(arguments, "find_spec", lambda name: None)
    assert check({"sampler": {"extra": {"foo_bar": 1}}}).problems == 3
    arguments.engine_arguments.cache_clear()


# Conversations and sources


def said(table: pa.Table, *turns: dict, source: str | None = None) -> pa.Table:
    """The same problems with these turns before each."""
    rows = [row | {"turns": json.dumps(turns), "source": source} for row in table.to_pylist()]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


SYSTEM = {"role": "system", "content": "1 2 3"}


def test_what_is_said_before_a_problem_counts_to_its_prompts():
    longer = check(
        problems=said(problems(3, 5, 40), {"role": "user", "content": "1 2 3"}, {"role": "assistant", "content": "4"})
    )
    plain = check()
    assert longer.student_prompt and plain.student_prompt
    assert longer.student_prompt.longest == plain.student_prompt.longest + 4 + 2 * 2  # two turns, each in two marks


def test_a_template_that_drops_the_system_turn_of_the_data_is_refused():
    drops = "{% for m in messages if m.role != 'system' %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}"
    templates = tokenizer(template=drops + "{% if add_generation_prompt %}<assistant> {% endif %}")
    both = {"student_tokenizer": templates, "teacher_tokenizer": templates}
    check(**both)
    told = refusal(problems=said(problems(3), SYSTEM), **both)
    assert "the student's chat template does not show the system turn of a conversation exactly once" in told


def test_one_question_after_another_conversation_is_another_problem():
    asked, held_out = problems(9), problems(9)
    assert "problems in common" in refusal(problems=asked, evaluation=held_out)
    assert "problems in common" in refusal(problems=said(asked, SYSTEM), evaluation=said(held_out, SYSTEM))
    found = check(problems=said(asked, SYSTEM), evaluation=said(held_out, SYSTEM | {"content": "7 8 9"}))
    assert found.overlap and not found.overlap.trained_on


def test_a_source_with_a_prompt_of_its_own_need_not_fit_the_default_one():
    code = pa.Table.from_pylist(
        [row | {"tests": b"x", "source": "code"} for row in problems(3, 5).to_pylist()], schema=SCHEMA
    )
    sources = [{"name": "code", "path": "c.jsonl"}]
    assert "prompts.task is math, whose prompts do not fit" in refusal({"data": {"sources": sources}}, problems=code)
    check({"data": {"sources": [sources[0] | {"prompts": {"solve": "Write: {problem}"}}]}}, problems=code)
