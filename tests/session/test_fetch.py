"""Every node gets the models before anything starts, or the run is refused with the name of the node that cannot.

A cluster of two real Ray nodes on this machine, each with a cache of its own, and a stand-in for the Hugging Face hub.
"""

import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from trd_ray import models
from trd_ray.errors import UserError
from trd_ray.session.fetch import ModelsWanted, fetch_models
from trd_ray.session.on_nodes import nodes_with, require_compilers

SHA = "0" * 39 + "1"
REPO = "owner/model"
HUNG = "owner/hung"
FILES = {
    "config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": (2).to_bytes(8, "little") + b"{}",
    "pytorch_model.bin": b"\1", "model.gguf": b"\2", "README.md": b"# A model",
}  # fmt: skip


class Hub(ThreadingHTTPServer):
    """What huggingface_hub asks of the real one, for two models; the weights of HUNG never come."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.sent: Counter[str] = Counter()  # files of REPO that were downloaded -> how often
        self.over = threading.Event()


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        repo = next((name for name in (REPO, HUNG) if name in path), None)
        if repo is None:
            self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif path.startswith(f"/api/models/{repo}/tree/"):
            tree = [{"type": "file", "path": name, "size": len(b), "oid": name} for name, b in FILES.items()]
            self.reply(200, json.dumps(tree).encode())
        elif path.startswith(f"/api/models/{repo}"):
            siblings = [{"rfilename": name} for name in FILES]
            self.reply(200, json.dumps({"id": repo, "modelId": repo, "sha": SHA, "siblings": siblings}).encode())
        else:
            self.file(repo, path.rpartition("/")[2])

    def file(self, repo: str, name: str) -> None:
        if self.command == "GET":
            if repo == HUNG:
                self.server.over.wait()
            self.server.sent[name] += 1
        self.reply(200, FILES[name], {"X-Repo-Commit": SHA, "ETag": f'"{name}"'})

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()


@pytest.fixture(scope="module")
def caches(hub, tmp_path_factory) -> Iterator[list[Path]]:
    """Those of two nodes, of which the second has a GPU and no compiler."""
    folders = [tmp_path_factory.mktemp(f"node-{i}") for i in range(2)]
    temp = Path(f"/tmp/trd-fetch-{os.getpid()}")  # Ray's sockets need a short path
    temp.mkdir()
    url = f"http://127.0.0.1:{hub.server_port}"
    changed = {"RAY_TMPDIR": str(temp)}  # where Cluster notes its address; others must not find it there
    before = {name: os.environ.get(name) for name in changed}
    os.environ |= changed
    cluster = Cluster()
    for i, folder in enumerate(folders):
        environment = {"HF_ENDPOINT": url, "HF_HOME": str(folder), "HF_HUB_OFFLINE": "0"}
        others = {"num_gpus": 1, "env_vars": environment | {"CC": "/no/cc"}} if i else {"env_vars": environment}
        cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20, include_dashboard=False, **others)
    ray.init(address=cluster.address, log_to_driver=False)
    yield folders
    ray.shutdown()
    cluster.shutdown()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    shutil.rmtree(temp, ignore_errors=True)


def fetch(*wanted: ModelsWanted, on_gpus: bool = False, timeout_s: float = 60, **others) -> bool:
    return fetch_models(list(wanted), local=False, on_gpus=on_gpus, timeout_s=timeout_s, **others)


def of_hub(name: str) -> ModelsWanted:
    return ModelsWanted.of(name, name, None)


def files_in(cache: Path) -> set[str]:
    return {file.name for file in cache.glob("hub/models--owner--model/snapshots/*/*")}


def test_a_model_of_the_hub_is_downloaded_once_to_every_node_without_what_nobody_loads(hub, caches):
    said: list[str] = []
    assert fetch(of_hub(REPO), of_hub(REPO), say=said.append)
    assert said == [f"fetching {REPO} to 2 nodes"]
    wanted = {"config.json", "model.safetensors", "tokenizer.json"}
    assert [files_in(cache) for cache in caches] == [wanted, wanted]
    assert hub.sent == dict.fromkeys(wanted, 2)
    fetch(of_hub(REPO))  # it is there now
    assert hub.sent == dict.fromkeys(wanted, 2)


def test_only_nodes_with_gpus_are_asked_where_all_who_load_the_model_are_on_gpus(caches):
    said: list[str] = []
    fetch(of_hub(REPO), on_gpus=True, say=said.append)
    assert said == [f"fetching {REPO} to 1 node"]


def test_a_model_that_the_hub_does_not_have_is_refused_with_the_node_and_the_remedies(caches):
    with pytest.raises(UserError) as told:
        fetch(of_hub("owner/absent"))
    host = nodes_with("CPU")[0].host
    assert str(told.value).startswith(
        f"node {host} cannot have the model owner/absent: owner/absent is not whole in its"
    )
    assert "HF_TOKEN" in str(told.value)


def test_a_download_has_a_deadline_and_may_be_given_up(caches):
    begin = time.monotonic()
    with pytest.raises(UserError) as told:
        fetch(of_hub(HUNG), timeout_s=3)
    assert f"had not fetched {HUNG} within 3 s (cluster.fetch_timeout_s): raise it" in str(told.value)

    def stopped() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        fetch(of_hub(HUNG), while_waiting=stopped)
    assert time.monotonic() - begin < 20


def test_a_folder_must_be_where_every_node_sees_it(caches, tmp_path):
    wanted = ModelsWanted.of(str(tmp_path), str(tmp_path), None)
    assert not fetch(wanted)
    tmp_path.rmdir()
    with pytest.raises(UserError, match=f"does not see the model folder {tmp_path}: put it on storage that every node"):
        fetch(wanted)


def test_a_model_that_is_made_here_is_made_on_every_node_in_the_same_place(caches):
    name = "miniature:student"
    assert not fetch(ModelsWanted.of(name, models.resolve(name), None))
    with pytest.raises(UserError, match="keeps the model miniature:student in .*student, but the driver has it in /x"):
        fetch(ModelsWanted.of(name, "/x", None))


def test_a_node_with_gpus_that_cannot_compile_kernels_is_named(caches):
    with pytest.raises(
        UserError, match="node .* has CC=/no/cc, which is no program there, and Triton compiles with it"
    ):
        require_compilers()


def test_where_ray_has_this_machine_alone_only_the_hub_is_asked(tmp_path):
    here = [ModelsWanted.of(str(tmp_path), str(tmp_path), None), ModelsWanted.of("smollm2", "/x", None)]
    assert [one.kind for one in here] == ["folder", "made"]
    assert not fetch_models(here, local=True, on_gpus=False, timeout_s=1)
