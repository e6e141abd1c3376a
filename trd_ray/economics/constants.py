"""Every number of the model that is measured or assumed, with its source. None was chosen to meet a reported time.

A GPU's figures are its makers' for dense bfloat16 and for its memory; what of them a program reaches is a share below.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    name: str
    gib: float
    memory_bytes_s: float
    flops: float  # dense bfloat16 with float32 sums (float16 on T4 and V100)
    link_bytes_s: float  # to another GPU of the node, one direction
    host_bytes_s: float  # over PCIe, one direction


# Data sheets of NVIDIA. Links: NVLink where the card has it, else PCIe (3.0 x16: 16, 4.0: 32, 5.0: 64 GB/s).
GPUS = (
    Gpu("B200", 178, 8.0e12, 2250e12, 900e9, 64e9),
    Gpu("H200", 140, 4.8e12, 989e12, 450e9, 64e9),
    Gpu("H100", 80, 3.35e12, 989e12, 450e9, 64e9),
    Gpu("A100-80G", 80, 2.039e12, 312e12, 300e9, 32e9),
    Gpu("A100-40G", 40, 1.555e12, 312e12, 300e9, 32e9),
    Gpu("A6000", 48, 0.768e12, 155e12, 32e9, 32e9),
    Gpu("L40S", 45, 0.864e12, 362e12, 32e9, 32e9),
    Gpu("L40", 45, 0.864e12, 181e12, 32e9, 32e9),
    Gpu("A40", 45, 0.696e12, 150e12, 32e9, 32e9),
    Gpu("RTX5090", 31, 1.792e12, 210e12, 64e9, 64e9),
    Gpu("RTX4090", 24, 1.008e12, 165e12, 32e9, 32e9),
    Gpu("RTX3090", 24, 0.936e12, 71e12, 32e9, 32e9),
    Gpu("A10G", 22, 0.600e12, 70e12, 32e9, 32e9),
    Gpu("L4", 22, 0.300e12, 121e12, 32e9, 32e9),
    Gpu("V100", 32, 0.900e12, 125e12, 150e9, 16e9),
    Gpu("T4", 15, 0.320e12, 65e12, 16e9, 16e9),
)
# The kind that is assumed where only the memory of a GPU is known (--on 8x80GiB): the commonest of that size.
ASSUMED_KINDS = ((150, "B200"), (100, "H200"), (60, "H100"), (42, "L40S"), (35, "A100-40G"), (23, "RTX4090"), (0, "L4"))
NETWORK_BYTES_S = 50e9  # between nodes, for each GPU: 400 Gbit/s, as in the makers' reference clusters

# Engines. Qwen3-8B at batch 1 on an H100 in vLLM takes 7.5 ms a token (GPUStack's benchmark: 1.66 s for a request of
# ShareGPT). It reads 15.1 GB: all but the embedding, of which a token looks up one row. At 72% of 3.35 TB/s that is
# 6.3 ms, and the launches of an iteration are the rest.
MEMORY_SHARE = 0.72
ITERATION_S = 1.2e-3
SEQUENCE_S = 15e-6  # sampling, log-probabilities and Python for a sequence, an iteration
MATRIX_SHARE = 0.50  # of the FLOPs in prefill and in large batches: vLLM's published prefill rates of 8B models
ALL_REDUCE_S = 20e-6  # tensor parallelism: one of the two all-reduces of a layer, of a small batch, over NVLink
ADAPTER_SLOWER = 1.08  # decoding with an adapter: vLLM's own LoRA benchmarks have 5 to 15%
PREFILL_WATERMARK_TOKENS = 64  # of the cache that vLLM leaves free when it admits a request

# The learner. 40% of the FLOPs, as TRL, torchtune and the like report for 8B models with activation checkpointing.
TRAINING_SHARE = 0.40
ATTENTION_BACKWARD = 2.5  # times the forward pass: FlashAttention-2 has 5 products there and 2 in the forward pass
OPTIMIZER_BYTES = 28  # that an AdamW step moves for each trained number: master, gradient, two moments, weight
UPDATE_S = 0.05  # an optimizer update besides: launches, clipping, the reading of its norm
LINK_SHARE = 0.7  # of a link's bytes a second, which NCCL's all-gathers reach for layers of 100 MB and more

# Weights to the engines: a part for the calls, and one for the bytes. An engine's loading binds, not the link: vLLM
# took 5.3 s for 61 GB of Qwen3-30B-A3B in packed buffers over CUDA IPC, on H200 (vllm-project/vime#175 and #176).
# NCCL's published figures lie on both sides: 0.94 GB in 0.19 s (vllm-project/vllm#40096), 7B in 0.5 s
# (allenai/open-instruct#1535).
SYNC_BYTES_S = 11.5e9
# An update of 27 MB kept a vLLM server from work for 1.1 s: gates, pauses, cache resets, answers (TRL's blog post
# "Delta Weight Sync").
SYNC_S = 1.1
HOST_SYNC_BYTES_S = 2.9e9  # by the host: 16 GB of Llama 3 8B over gloo in 5 to 6 s (vllm-project/vllm#5723)

# placement=timeshare: engines rest and wake. The fixed parts were seen on an A100 (vllm-project/vllm#48337): Qwen3-8B,
# whose 47 GiB go (level 2), and Qwen3-0.6B, whose 32 GiB are mapped anew (level 1). Weights that are kept on the host
# go over PCIe, at 55.6 of its 64 GB/s (NVIDIA's nvbandwidth, PCIe 5.0). The first rest also pins that memory, in 10 s
# for 8B.
REST_S = 0.31
WAKE_S = 1.22
PINNED_SHARE = 0.87
# The learner's own tensors go through memory that is not pinned, which a core copies: derived from the 10 to 15 GB/s
# that STREAM finds for one core of a server.
PAGEABLE_BYTES_S = 10e9

# The control plane, from jobs/bench_stream.py on 2 cores (jobs/README.md).
SCHEDULING_S = 1.5  # a step's look-ups, Ray Data's blocks, mailbox, metrics, beside the GPUs
ROWS_A_SECOND = 51.0  # blocks of one row at which a stage fills its core, with 8 engines; 75 with 256
CPU_MS_A_ROW = {"driver": 0.4, "pools": 2.3, "stages": 13.2, "verifiers": 5.4, "Ray": 2.9}  # at 512 rows, 256 engines
PULSE_SHARE = (0.25 - 0.20) / (256 - 8)  # of a core that an engine takes while no row is on its way
CALLS_OF_A_SYNC = 6  # to each engine: drained, paused, begun, updated, finished, resumed
HEAD_STORE_GIB = 30.0  # of the object store of a head with 128 GiB, as Ray sizes it (30% of the memory, with a margin)

# Starting: weights from local disks, compilation, CUDA graphs, Ray Train's group.
START_S = 240.0

# Lengths, where no run gives them: the paper's, of Qwen3-8B on DeepScaleR (arXiv:2606.08432): medians of y_o, y_r, y*.
# Spreads: y_o's is lognormal with a mean of 8.6k and 12% at the limit of 16,384; y_r's is narrower.
RAW_MEDIAN, RAW_SPREAD = 7700, 0.65
REFINED_MEDIAN, REFINED_SPREAD = 880, 0.5
REFERENCE_TOKENS = 490
PROBLEM_TOKENS = 250  # of a problem with the words around it
REFINE_WORDS_TOKENS = 260  # the instructions of a refine prompt
EVALUATION_LONGER = 1.6  # held-out competition problems take longer answers than DeepScaleR's
TOKENS_OF_A_SHORT_LIMIT = 0.5  # of the limit, where that is less than a quarter of the assumed median
DRAWS = 3  # of a step's lengths, over which an estimate is the mean

# Rows of data sets that recipes name, as published, where nothing is read (--on).
ROWS_OF = {"agentica-org/DeepScaleR-Preview-Dataset": 40_245, "BAAI/TACO": 25_443}

# A CPU, measured: `trd train miniature_opsd` on 2 cores of an AMD EPYC (steps 3 to 25 of 64 rows of about 30 tokens).
CPU_ITERATION_S = 2.3e-3  # an iteration of vLLM's CPU build, of its own Python
CPU_SEQUENCE_S = 10e-6
CPU_REQUEST_S = 0.05  # a call of the stream to its engine and back, with the block of rows
CPU_FLOPS = 35e9  # a core's of an engine, in float32, of small matrices
CPU_RANK_FLOPS = 71e9  # of a thread of the learner, which has larger ones
CPU_ENGINE_CORES = 1.4  # at work while an engine is: its core and the actor that serves it, by their CPU time
CPU_CONTROL_S = 0.25  # CPU time of a step in stages, pools and Ray, besides sync and scheduling
CPU_BYTES_S = 8e9
CPU_UPDATE_S = 0.03
CPU_SYNC_S = 0.10
CPU_SCHEDULING_S = 0.24
CORPUS_SHARE = 0.08  # of the scheduling, where rows are there already: 0.02 s there
CPU_VERIFY_S = 0.05  # from the end of a rollout to its request for a refinement
