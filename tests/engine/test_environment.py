"""What an engine on a GPU tells vLLM before it starts; the process that is asked here starts none."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

MAKE = """
import json, os, sys
from trd_ray.engine.actor import Engine, EngineSpec
out = os.dup(1)
Engine(EngineSpec("e", "m", None, False, "bfloat16", None, 1, sys.argv[1] == "gpu", 0.5, 1, 8, 0, 0, None,
                  sys.argv[2], {}))
os.write(out, json.dumps({k: v for k, v in os.environ.items() if k.startswith("VLLM_")}).encode())
os._exit(0)
"""


@pytest.mark.parametrize(("where", "given", "sampler"), [("gpu", None, "0"), ("gpu", "1", "1"), ("cpu", None, None)])
def test_flashinfer_s_sampler_is_off_on_a_gpu_unless_someone_asks_for_it(where, given, sampler, tmp_path, monkeypatch):
    monkeypatch.delenv("VLLM_USE_FLASHINFER_SAMPLER", raising=False)
    if given:
        monkeypatch.setenv("VLLM_USE_FLASHINFER_SAMPLER", given)
    command = [sys.executable, "-c", MAKE, where, str(tmp_path / "log")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, start_new_session=True)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout).get("VLLM_USE_FLASHINFER_SAMPLER") == sampler


def test_vllm_has_a_size_of_a_chunk_for_our_context_and_none_for_the_one_that_it_would_take():
    spec = find_spec("vllm")
    assert spec and spec.submodule_search_locations
    text = (Path(spec.submodule_search_locations[0]) / "engine" / "arg_utils.py").read_text()
    table = text.partition("def get_batch_defaults(")[2].partition("\n    def ")[0]
    assert "UsageContext.LLM_CLASS: 16384" in table and "UsageContext.LLM_CLASS: 8192" in table
    assert "ENGINE_CONTEXT" not in table
