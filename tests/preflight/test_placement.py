"""A plan says what every actor reserves and takes, and says no, with the remedy, before Ray has to."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from trd_ray import models
from trd_ray.config import Recipe
from trd_ray.errors import UserError
from trd_ray.preflight import machines, memory, placement, shown
from trd_ray.preflight.actors import ActorPlan

GIB = 2**30
QWEN3_8B = models.facts_of(
    Qwen3Config(
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
    ),
    "Qwen/Qwen3-8B",
)
TINY_CONFIG = Qwen3Config(
    vocab_size=512,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
)
TINY = models.facts_of(TINY_CONFIG, "tiny")
LAPTOP = {"CPU": 2.0, "memory": 16 * GIB}
NODE = {"CPU": 128.0, "GPU": 8.0, "memory": 1000 * GIB, "accelerator_type:H100": 1.0}


def recipe(**tree) -> Recipe:
    small = {"cpus": 0.5, "max_model_len": 512}
    base = {"sampler": small, "refiner": small, "learner": {"cpus": 0.5}, "verify": {"cpus": 0.5}}
    return Recipe.model_validate({k: base.get(k, {}) | tree.get(k, {}) if k in base else tree[k] for k in base | tree})


def on(
    cluster: dict, /, *, facts: models.ModelFacts = TINY, gpu_gib: float | None = None, **tree
) -> placement.Placement:
    return placement.plan(recipe(**tree), facts, facts, cluster, gpu_gib=gpu_gib)


def only_reason(plan: placement.Placement) -> str:
    assert not plan.fits
    assert len(plan.reasons) == 1, plan.reasons
    with pytest.raises(UserError):
        placement.require(plan)
    return plan.reasons[0]


# Resources


def test_a_cpu_run_of_two_cores_fits_and_asks_for_no_gpu():
    plan = on(LAPTOP)
    assert plan.fits, plan.reasons
    assert plan.needs["CPU"] == 2.0 and plan.needs["GPU"] == 0.0
    assert plan.sync_backend == "gloo"
    placement.require(plan)


def test_engines_and_ranks_take_whole_gpus_where_there_are_some():
    specs = placement.resources(recipe(sampler={"replicas": 3, "tensor_parallel": 2}, learner={"workers": 4}), True)
    assert {name: (s.replicas, s.gpus) for name, s in specs.items()} == {
        "sampler": (3, 2.0),
        "refiner": (1, 1.0),
        "learner": (4, 1.0),
        "verifier": (1, 0.0),
    }


@pytest.mark.parametrize(
    ("tree", "pools"),
    [
        ({}, {"sampler", "refiner"}),
        ({"teacher": {"follow": "live"}, "placement": "shared"}, {"sampler"}),
        ({"learner": {"lora": {}}, "sync": {"lora": "adapter"}, "placement": "shared"}, {"sampler"}),
        ({"train": {"trajectory": "y_o"}, "teacher": {"view": "vanilla"}}, {"sampler"}),
        ({"data": {"source": "corpus", "path": "c"}}, {"sampler"}),  # for the evaluation
        ({"data": {"source": "corpus", "path": "c"}, "evaluation": {"path": None}}, set()),
    ],
)
def test_only_the_pools_that_a_recipe_uses_are_placed(tree, pools):
    assert placement.resources(recipe(**tree), False).keys() - {"learner", "verifier"} == pools


def test_too_few_cpus_are_refused_with_every_actor_s_share():
    told = only_reason(on({"CPU": 1.0}))
    assert "needs 2 CPUs (sampler 1 x 0.5, refiner 1 x 0.5, learner 1 x 0.5, verifier 1 x 0.5)" in told
    assert "has 1:" in told and "verify.cpus" in told


def test_too_few_gpus_are_refused():
    assert "needs 10 GPUs (sampler 8 x 1, refiner 1 x 1, learner 1 x 1)" in only_reason(
        on(NODE, sampler={"replicas": 8})
    )


def test_gpus_asked_for_where_there_are_none_are_refused():
    assert "has 0" in only_reason(on(LAPTOP, refiner={"gpus": 1}))


def test_host_memory_that_does_not_suffice_is_refused():
    assert "about" in only_reason(on(LAPTOP | {"memory": 2 * GIB}))


SMALL_HOST = {"CPU": 2.0, "memory": 0.5 * GIB, "free_gib": 1.0, "total_gib": 23.5}


def test_memory_that_others_hold_is_told_as_such_and_may_be_counted_on():
    told = only_reason(on(SMALL_HOST))
    assert "1.0 of 23.5 GiB are free now (other processes hold 22.5), and the object store takes 0.5" in told
    assert "cluster.memory_gib" in told and "ray start" not in told
    assert on(SMALL_HOST, cluster={"memory_gib": 32}).fits
    told = only_reason(on(LAPTOP, cluster={"memory_gib": 2}))
    assert "but cluster.memory_gib allows 2" in told and "raise cluster.memory_gib" in told


def test_a_cluster_s_memory_is_what_its_nodes_found_when_they_started():
    told = only_reason(on(LAPTOP | {"memory": 2 * GIB}))
    assert "the cluster has 2.0, as each of its nodes found when it started" in told
    assert "`ray start --memory`" in told and "cluster.memory_gib" in told


def test_remedies_name_keys_of_the_job_alone():
    small = recipe(sampler={"replicas": 2, "cpu_kv_cache_gib": 4})

    def reasons(job: placement.Job) -> str:
        return " ".join(placement.plan(small, TINY, TINY, LAPTOP | {"CPU": 0.5, "memory": GIB}, job=job).reasons)

    trained, evaluated = reasons("train"), reasons("evaluate")
    for key in ("learner.tokens_per_micro_batch", "learner.activation_checkpointing", "workers"):
        assert key in trained and key not in evaluated
    assert "lower sampler.replicas or sampler.cpu_kv_cache_gib" in evaluated and "refiner" not in evaluated


def test_an_object_store_larger_than_the_free_memory_is_named():
    told = only_reason(on(SMALL_HOST | {"memory": 0.0}, cluster={"object_store_gib": 900}))
    assert told.startswith("cluster.object_store_gib is 900, but 1.0 of 23.5 GiB are free now: lower it")
    here = machines.this_machine(recipe(cluster={"object_store_gib": 1e6}))
    assert here.memory_gib == 0 and here.free_gib and here.total_gib and 0 < here.free_gib <= here.total_gib


# Sync


@pytest.mark.parametrize(
    ("tree", "gpus", "backend"),
    [
        ({}, False, "gloo"),
        ({}, True, "nccl"),
        ({"sampler": {"gpus": 0.5}, "learner": {"gpus": 0.5}}, True, "ipc"),
        ({"sampler": {"gpus": 0.5, "replicas": 2}, "learner": {"gpus": 0.5, "workers": 2}}, True, "ipc"),
        ({"sampler": {"gpus": 0}}, True, "gloo"),
    ],
)
def test_weights_travel_by_what_the_placement_allows(tree, gpus, backend):
    assert placement.sync_backend(recipe(**tree), gpus) == backend


@pytest.mark.parametrize(
    ("tree", "gpus", "told"),
    [
        ({"sync": {"backend": "nccl"}}, False, "needs the sampler and the learner on GPUs"),
        ({"sync": {"backend": "ipc"}}, False, "needs the sampler and the learner on GPUs"),
        ({"sync": {"backend": "ipc"}}, True, "reserve 2 of a GPU"),
        (
            {"sync": {"backend": "ipc"}, "sampler": {"gpus": 0.5, "replicas": 2}, "learner": {"gpus": 0.5}},
            True,
            "2 workers (sampler.replicas x sampler.tensor_parallel) for 1 ranks",
        ),
        ({"sync": {"backend": "nccl"}, "sampler": {"gpus": 0.5}, "learner": {"gpus": 0.5}}, True, "sync.backend=ipc"),
    ],
)
def test_a_backend_that_cannot_work_is_refused(tree, gpus, told):
    with pytest.raises(UserError) as refused:
        placement.sync_backend(recipe(**tree), gpus)
    assert told in str(refused.value)
    assert any(told in reason for reason in on(NODE if gpus else LAPTOP, **tree).reasons)


SHARED = {"sampler": {"gpus": 0.5, "replicas": 2, "memory_utilization": 0.4}, "learner": {"gpus": 0.5, "workers": 2}}


def h100(*gpus: int, **facts) -> list[machines.Machine]:
    return [machines.Machine(f"node {i}", 64, gpus=n, gpu_gib=80, **facts) for i, n in enumerate(gpus)]


def planned(cluster: list[machines.Machine], **tree) -> placement.Placement:
    tree = {"refiner": {"memory_utilization": 0.4}} | tree
    tree["learner"] = {"tokens_per_micro_batch": 1024} | tree.get("learner", {})
    return placement.plan(recipe(**tree), TINY, TINY, cluster)


def test_ipc_is_planned_only_where_every_rank_meets_one_sampler():
    plan = planned(h100(8), **SHARED)
    assert plan.fits, plan.reasons
    assert plan.sync_backend == "ipc"
    assert [seat.gpus for seat in plan.seats_of("sampler")] == [seat.gpus for seat in plan.seats_of("learner")]
    assert plan.turns() == {"sampler": 0, "refiner": 0, "learner": 1}


def test_weights_of_a_moving_teacher_do_not_travel_by_ipc_to_two_pools():
    tree = SHARED | {"teacher": {"follow": "live"}}
    assert planned(h100(8), **tree).sync_backend == "gloo"
    [told] = planned(h100(8), **tree, sync={"backend": "ipc"}).reasons
    assert "sync.backend=ipc needs every engine that follows the learner to share its GPU with one rank" in told


def test_two_engines_on_one_gpu_cannot_be_in_one_nccl_group():
    tree = {"sampler": {"gpus": 0.4, "replicas": 2, "memory_utilization": 0.35}}
    assert planned(h100(4), **tree).sync_backend == "nccl"
    assert planned(h100(3), **tree).sync_backend == "gloo"
    [told] = planned(h100(3), **tree, sync={"backend": "nccl"}).reasons
    assert "sync.backend=nccl needs a GPU of its own for rank 0 and for each engine worker" in told


# Nodes


def test_a_tensor_parallel_engine_that_fits_no_node_is_refused_though_the_sum_would_do():
    [told] = planned(h100(2, 2, 2), sampler={"tensor_parallel": 4}).reasons
    assert told.startswith("sampler 0 needs 4 GPUs") and "node 0 has 2 GPUs" in told
    assert "lower sampler.tensor_parallel" in told
    assert planned(h100(2, 4), sampler={"tensor_parallel": 4}).fits


def test_each_actor_is_planned_for_the_smallest_gpu_that_it_sits_on():
    mixed = [*h100(2), machines.Machine("small", 64, gpus=2, gpu_gib=24)]
    tree = {"learner": {"activation_checkpointing": True, "workers": 2, "tokens_per_micro_batch": 1024, "lora": {}}}
    plan = placement.plan(recipe(**tree), QWEN3_8B, QWEN3_8B, mixed)
    assert plan.fits, plan.reasons
    on = {name: {plan.machines[seat.machine].name for seat in plan.seats_of(name)} for name in plan.specs}
    assert on["learner"] == {"node 0"} or on["sampler"] == {"node 0"}
    for actor in plan.actors[:2]:
        [node] = on[actor.spec.name]
        assert (actor.memory_gib["KV cache"] > 24) == (node == "node 0")


def test_gpus_that_a_node_cannot_show_are_not_guessed_but_may_be_said():
    blind = [machines.with_gpus(machines.Machine("a", 64), 8, machines.Seen((), "cuda"))]
    told = planned(blind).reasons
    assert told[0].startswith("node a offers 8 GPUs to Ray, but their memory cannot be read there")
    assert placement.plan(recipe(learner={"tokens_per_micro_batch": 1024}), TINY, TINY, blind, gpu_gib=80).fits


def test_what_a_sync_takes_is_that_of_the_way_which_the_seats_leave():
    tree = {"sampler": {"gpus": 0.4, "replicas": 2, "memory_utilization": 0.35}}
    apart, met = planned(h100(4), **tree), planned(h100(3), **tree)
    assert (apart.sync_backend, met.sync_backend) == ("nccl", "gloo")
    takes = [actor(plan, "sampler").memory_gib["weight sync"] * GIB for plan in (apart, met)]
    assert takes == pytest.approx([memory.sync_bytes(way, TINY, 2) for way in ("nccl", "gloo")])


def test_the_rank_that_reads_the_models_needs_the_room_on_its_node():
    tree = {"learner": {"workers": 2, "activation_checkpointing": True}}
    plan = on(NODE, facts=QWEN3_8B, **tree)
    reader = actor(plan, "learner")
    assert plan.needs["memory"] == pytest.approx(
        sum(a.spec.replicas * a.host_gib for a in plan.actors) + reader.first_gib
    )
    first, other, rest = reader.host_gib + reader.first_gib, reader.host_gib, 6.0  # of two engines and a verifier
    for nodes, fits in (
        ([first + other, rest], True),
        ([first, other + rest], True),
        ([first - 1, other + rest + 1], False),  # the sum would do
    ):
        cluster = [machines.Machine(f"node {i}", 64, gib, gpus=4, gpu_gib=180) for i, gib in enumerate(nodes)]
        placed = placement.plan(recipe(**tree), QWEN3_8B, QWEN3_8B, cluster)
        assert placed.fits == fits, (nodes, placed.reasons)
        assert fits or "GiB of memory" in placed.reasons[0]


def test_an_object_store_is_taken_off_what_is_free_where_ray_is_still_to_start():
    here = machines.Machine("here", 8, memory_gib=16, free_gib=16, total_gib=32)
    node = machines.Machine("node", 8, memory_gib=16)
    for machine, left in ((here, 12), (node, 16)):
        plan = placement.plan(recipe(cluster={"object_store_gib": 4}), TINY, TINY, [machine])
        assert (plan.object_store_gib, plan.has["memory"]) == (4, left)


@pytest.mark.parametrize(
    ("engine", "told"),
    [
        ({"tensor_parallel": 2, "gpus": 1}, "sampler.gpus is 1, but its 2 tensor-parallel workers need a GPU each"),
        ({"gpus": 1.5}, "sampler.gpus is 1.5, but Ray gives whole GPUs or a share of one: set sampler.gpus=1"),
    ],
)
def test_gpus_that_ray_cannot_give_are_refused(engine, told):
    assert told in planned(h100(8), sampler=engine).reasons[0]


def test_engines_without_a_gpu_are_refused_where_vllm_is_a_cuda_build():
    told = planned(h100(8, vllm="cuda"), sampler={"gpus": 0}, refiner={"gpus": 0}).reasons
    assert [reason.partition(" keeps no engine")[0] for reason in told] == ["sampler.gpus=0", "refiner.gpus=0"]
    assert planned(h100(8, vllm="cpu"), sampler={"gpus": 0}, refiner={"gpus": 0}).fits
    [told] = planned([machines.Machine("laptop", 8, vllm="cuda")], evaluation={"path": None}, sync={"backend": "auto"},
                     refiner={}, train={"trajectory": "y_o"}, teacher={"view": "vanilla"}).reasons  # fmt: skip
    assert told.startswith("the sampler would run on CPUs, since there is no GPU, but vLLM on laptop is a CUDA build")


# Memory


def actor(plan: placement.Placement, name: str) -> ActorPlan:
    return next(a for a in plan.actors if a.spec.name == name)


def test_an_8b_model_takes_what_arithmetic_says():
    plan = on(NODE, facts=QWEN3_8B, learner={"workers": 4}, sampler={"max_model_len": 40960})
    sampler, learner = actor(plan, "sampler").memory_gib, actor(plan, "learner").memory_gib
    billion = 8_190_735_360 / GIB
    assert sampler["weights"] == pytest.approx(2 * billion)
    assert sum(size for part, size in sampler.items() if part != "weight sync") == pytest.approx(0.85 * 80)
    assert learner["weights"] == learner["gradients"] == pytest.approx(4 * billion / 4)  # float32, over 4 ranks
    assert learner["optimizer"] == pytest.approx(8 * billion / 4)
    assert learner["teacher"] == pytest.approx(2 * billion / 4)
    # Qwen3-8B keeps 144 KiB a token in bfloat16: 2 x 36 layers x 8 heads x 128 x 2 bytes.
    sequence = memory.sequence_gib(recipe().sampler, recipe(), QWEN3_8B, 40960)
    assert sequence == pytest.approx(40960 * 144 / 2**20)


def test_tensor_parallel_engines_split_weights_and_cache():
    one = on(NODE, facts=QWEN3_8B)
    two = on(NODE, facts=QWEN3_8B, sampler={"tensor_parallel": 2})
    assert actor(two, "sampler").memory_gib["weights"] == pytest.approx(actor(one, "sampler").memory_gib["weights"] / 2)


ADAPTERS = {"learner": {"lora": {}}, "sync": {"lora": "adapter"}}


def test_adapters_take_room_beside_the_weights_as_many_as_may_be_in_use_at_a_time():
    bare = actor(on(NODE, facts=QWEN3_8B), "sampler").memory_gib
    two = actor(on(NODE, facts=QWEN3_8B, **ADAPTERS), "sampler").memory_gib
    four = actor(on(NODE, facts=QWEN3_8B, **ADAPTERS, stream={"max_staleness": 3}), "sampler").memory_gib
    one = 2 * memory.adapter_parameters(QWEN3_8B, 64) / GIB
    assert "adapters" not in bare and two["adapters"] == pytest.approx(2 * one)
    assert four["adapters"] == pytest.approx(4 * one)
    assert bare["KV cache"] - two["KV cache"] == pytest.approx(2 * one)


def test_one_pool_for_both_roles_is_said_in_the_plan_and_needs_no_gpu_of_a_refiner():
    separate = on(NODE, facts=QWEN3_8B, **ADAPTERS)
    shared = on(NODE, facts=QWEN3_8B, **ADAPTERS, placement="shared")
    assert shared.needs["GPU"] == separate.needs["GPU"] - 1
    live = on(NODE, facts=QWEN3_8B, teacher={"follow": "live"}, placement="shared")
    for plan, words in (
        (separate, ""),
        (shared, "of the refiner too (without the adapter)"),
        (live, "of the refiner too"),
    ):
        said = " ".join(shown.render(plan).split())
        assert words in said and ("without the adapter" in said) == (plan is shared)
        assert ("of the refiner too" in said) == (plan is not separate)


def test_a_live_teacher_takes_no_memory_of_its_own():
    assert "teacher" not in actor(on(NODE, facts=QWEN3_8B, teacher={"follow": "live"}), "learner").memory_gib


def test_a_learner_that_overflows_its_gpu_is_refused_and_more_ranks_mend_it():
    tree = {"learner": {"activation_checkpointing": True, "workers": 1}}
    told = only_reason(on(NODE, facts=QWEN3_8B, **tree))
    assert "the learner needs about" in told and "raise learner.workers" in told
    tree["learner"]["workers"] = 6
    assert on(NODE, facts=QWEN3_8B, **tree).fits


def test_a_share_of_a_gpu_is_a_share_of_its_memory():
    tree = {"sampler": {"gpus": 0.5}, "learner": {"gpus": 0.5, "tokens_per_micro_batch": 1024}}
    assert "may use 40.0" in only_reason(on(NODE, **tree))
    tree["sampler"]["memory_utilization"] = 0.4
    assert on(NODE, **tree).fits


def test_a_cache_too_small_for_one_sequence_is_refused():
    told = only_reason(on(LAPTOP, sampler={"max_model_len": 2_000_000}))
    assert "one sequence of 2000000 tokens takes" in told and "raise sampler.cpu_kv_cache_gib" in told
    told = on(NODE, facts=QWEN3_8B, gpu_gib=24, sampler={"max_model_len": 40960}).reasons[0]
    assert "one sequence of 40960 tokens takes 5.6: raise sampler.tensor_parallel" in told


def test_a_tensor_parallel_size_that_splits_no_heads_is_refused():
    assert "does not divide the 8 attention heads" in only_reason(on(NODE, sampler={"tensor_parallel": 3}))


@pytest.mark.parametrize(
    ("cluster", "given", "gib"),
    [
        (NODE, None, 80),
        (NODE, 40, 40),
        (NODE | {"accelerator_type:A10G": 1.0}, None, 22),  # the smallest counts
        ({"CPU": 128.0, "GPU": 8.0}, None, 80),
        ({"CPU": 128.0, "GPU": 8.0, "gpu_gib": 47.5}, None, 47.5),
    ],
)
def test_the_memory_of_a_gpu_is_given_or_told_by_the_cluster(cluster, given, gib):
    assert on(cluster, gpu_gib=given).gpu_gib == gib


def test_optimizer_state_is_what_adamw_holds_after_its_first_step():
    model = AutoModelForCausalLM.from_config(TINY_CONFIG, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.zeros(1, 4, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    state = [t for s in optimizer.state.values() for t in s.values() if t.numel() > 1]
    held = sum(t.numel() * t.element_size() for t in state)
    assert memory.rank_gib(recipe(), TINY, TINY, False)["optimizer"] * GIB == held


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_activations_are_within_a_quarter_of_what_autograd_keeps(dtype, architecture):
    config = TINY_CONFIG
    if architecture == "llama":
        config = LlamaConfig(
            vocab_size=512, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4
        )
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).train()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model.base_model(input_ids=torch.zeros(1, 512, dtype=torch.long), use_cache=False).last_hidden_state
    tree = {"learner": {"dtype": dtype, "tokens_per_micro_batch": 512}}
    estimate = memory.rank_gib(recipe(**tree), models.facts_of(config, "tiny"), TINY, False)["activations"] * GIB
    assert hidden.requires_grad
    assert estimate == pytest.approx(sum(kept.values()), rel=0.25)


# What the user reads


def test_the_rendered_plan_names_every_actor_and_ends_with_yes_or_the_reasons():
    text = shown.render(on(NODE, facts=QWEN3_8B, learner={"workers": 6, "activation_checkpointing": True}))
    assert all(name in text for name in ("sampler", "refiner", "learner", "verifier", "optimizer", "KV cache"))
    assert text.endswith("fits: yes")
    assert "fits: no\n  - the placement needs" in shown.render(on({"CPU": 1.0}))
    assert max(map(len, text.splitlines())) <= 140


def test_adapters_are_counted_as_peft_makes_them():
    from peft import LoraConfig
    from transformers import Qwen3Config, Qwen3ForCausalLM

    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8,
        )
    )  # fmt: skip
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=5, target_modules="all-linear"))
    made = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert memory.adapter_parameters(models.facts_of(model.config, "tiny"), 5) == made


@pytest.mark.parametrize("workers", [1, 4])
def test_adapters_with_a_frozen_self_teacher_take_no_second_copy_of_the_weights(workers):
    full, adapted = (
        memory.rank_gib(recipe(learner={"workers": workers, **lora}), TINY, TINY, False)
        for lora in ({}, {"lora": {"rank": 4}})
    )
    assert "teacher" in full and "teacher" not in adapted
    assert adapted["optimizer"] == pytest.approx(8 * memory.adapter_parameters(TINY, 4) / workers / GIB)
