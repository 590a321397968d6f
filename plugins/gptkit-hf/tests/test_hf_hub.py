"""Models on the Hub, in and out: against a local server, each time in a process of its own."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

import gptkit
from gptkit.plugin import UsageError
from gptkit_hf.format import HuggingFace

pytest.importorskip("huggingface_hub")

COMMIT = "c0ffee" + "0" * 34


class Hub(BaseHTTPRequestHandler):
    """What the Hub's interface says of `me/model`, and takes for `me/new`."""

    files: ClassVar[dict[str, bytes]] = {}
    uploaded: ClassVar[dict[str, bytes]] = {}
    created: ClassVar[list[Any]] = []
    deleted: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if "/revision/v2" in path:
            self.answer(404, "", **{"X-Error-Code": "RevisionNotFound"})
        elif path.startswith("/api/models/me/model/revision/"):
            siblings = [{"rfilename": name} for name in self.files]
            self.answer(200, json.dumps({"id": "me/model", "sha": COMMIT, "siblings": siblings}))
        elif path.startswith("/api/models/me/pickled/revision/"):
            siblings = [{"rfilename": "pytorch_model.bin"}]
            self.answer(200, json.dumps({"id": "me/pickled", "sha": COMMIT, "siblings": siblings}))
        elif path == f"/api/models/me/model/tree/{COMMIT}":
            files = [
                {"type": "file", "path": name, "oid": name.encode().hex(), "size": len(contents)}
                for name, contents in self.files.items()
            ]
            self.answer(200, json.dumps(files))
        elif path.startswith(start := f"/me/model/resolve/{COMMIT}/"):
            name = path.removeprefix(start)
            self.answer(200, self.files[name], ETag=f'"{name.encode().hex()}"')
        elif path == "/api/models/me/new/tree/main":
            names = (".gitattributes", "model-00001-of-00002.safetensors", "mine.txt")
            files = [{"type": "file", "path": name, "oid": "0", "size": 1} for name in names]
            self.answer(200, json.dumps(files))
        elif path.startswith("/api/models/me/new"):
            self.answer(200, json.dumps({"id": "me/new", "sha": COMMIT, "siblings": []}))
        elif "gated" in path:
            self.answer(403, "", **{"X-Error-Code": "GatedRepo"})
        else:
            self.answer(404, "", **{"X-Error-Code": "RepoNotFound"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.split("?")[0]
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            self.answer(200, json.dumps({"url": f"http://{self.headers['Host']}/me/new"}))
        elif path == "/api/validate-yaml":
            self.answer(200, json.dumps({"errors": [], "warnings": []}))
        elif path == "/api/models/me/new/preupload/main":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer(200, json.dumps({"files": files}))
        elif path == "/api/models/me/new/commit/main":
            for line in body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "deletedFile":
                    self.deleted.append(value["path"])
                if entry["key"] == "file":
                    self.uploaded[value["path"]] = base64.b64decode(value["content"])
            url = f"http://{self.headers['Host']}/me/new/commit/1"
            told = {"commitUrl": url, "commitOid": COMMIT}
            self.answer(200, json.dumps({"success": True, **told}))
        else:
            self.answer(401, json.dumps({"error": "no token"}))

    def answer(self, status: int, body: str | bytes, **headers: str) -> None:
        contents = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        sent = {"Content-Length": str(len(contents)), "X-Repo-Commit": COMMIT, **headers}
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(contents)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, empty in (("files", {}), ("uploaded", {}), ("created", []), ("deleted", [])):
        monkeypatch.setattr(Hub, name, empty)
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def call(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-m", "gptkit", *map(str, arguments)],
        env=variables | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPTKIT_CACHE", str(tmp_path / "cache"))
    recipe = {
        "dataset": {"use": "text", "tokenizer": {"train": 300}, "block_size": 16},
        "model": {"n_layer": 1, "n_head": 2, "n_embd": 16},
        "train": {"steps": 1, "batch_size": 1, "device": "cpu", "eval_batches": 1},
        "callbacks": [],
    }
    return gptkit.train(recipe, out=tmp_path / "run", quiet=True).path


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    gptkit.Run(run).export(tmp_path / "folder", to="hf", onnx=False)
    return tmp_path / "folder"


def test_a_model_of_the_hub_comes_in(
    endpoint: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir()} | {"other.bin": b"\0"}
    files["README.md"] = b"---\nlicense: mit\n---\n"
    monkeypatch.setattr(Hub, "files", files)
    home = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": endpoint}
    done = call("import", "me/model@v1", "--out", tmp_path / "in", **home)
    assert done.returncode == 0, done.stderr
    noted = json.loads((tmp_path / "in" / "environment.json").read_text())["imported"]
    assert noted["source"] == "me/model@v1"
    assert (noted["revision"], noted["license"]) == (COMMIT, "mit")
    assert not list((tmp_path / "home").rglob("other.bin"))

    offline = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = call("import", "me/model@v1", "--out", tmp_path / "offline", **offline)
    assert done.returncode == 0, done.stderr
    done = call("import", "me/other", "--out", tmp_path / "absent", **offline)
    assert done.returncode == 2
    assert "HF_HUB_OFFLINE is set" in done.stderr
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    ("name", "code", "fault"),
    [
        ("me/none", 2, "no such file or folder here; no such model on the Hub, or a private one"),
        ("me/gated", 2, "may be read only by those who accepted its terms"),
        ("me/model@v2", 2, "it has no revision 'v2'"),
        ("me/pickled", 2, "has its weights only in pytorch_model.bin"),
        ("me/model", 2, "has no model.safetensors"),
    ],
)
def test_what_cannot_be_had_is_told(
    name: str, code: int, fault: str, endpoint: str, tmp_path: Path
) -> None:
    home = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": endpoint}
    done = call("import", name, "--out", tmp_path / "in", **home)
    assert done.returncode == code
    assert fault in done.stderr
    assert not (tmp_path / "in").exists()


def test_no_network_is_a_download_error(tmp_path: Path) -> None:
    home = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = call("import", "me/model", "--out", tmp_path / "in", **home)
    assert done.returncode == 1
    assert "me/model: cannot be downloaded" in done.stderr


def test_an_export_is_uploaded_after_its_proof(endpoint: str, run: Path, tmp_path: Path) -> None:
    home = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_secret"}
    sets = ("--set", "onnx=false", "--set", "push=me/new")
    export = ("export", run, "--to", "hf", "--out", tmp_path / "out", *sets)
    done = call(*export, "--set", "dry_run=true", **home)
    assert done.returncode == 0, done.stderr
    assert "dry run: 6 files would be uploaded to me/new" in done.stderr
    assert "model.safetensors: " in done.stderr
    assert not Hub.created
    assert not Hub.uploaded

    done = call(*export, "--set", "private=true", **home)
    assert done.returncode == 0, done.stderr
    assert "/me/new/commit/1" in done.stderr
    (created,) = Hub.created  # older versions of the library say it in the other way
    assert created.get("visibility") == "private" or created["private"] is True
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert Hub.uploaded == written
    assert Hub.deleted == ["model-00001-of-00002.safetensors"]  # of an earlier upload
    assert b"hf_secret" not in b"".join(written.values())
    assert '"me/new"' in written["README.md"].decode()


def test_an_upload_that_fails_is_told(endpoint: str, run: Path, tmp_path: Path) -> None:
    home = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_secret"}
    sets = ("--set", "onnx=false", "--set", "push=me/elsewhere")
    done = call("export", run, "--to", "hf", "--out", tmp_path / "out", *sets, **home)
    assert done.returncode == 1
    assert "me/elsewhere: cannot be uploaded: " in done.stderr
    assert "hint:  the folder stays." in done.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()  # it was proven


@pytest.mark.parametrize("name", ["me", "me/a/b", "me/model@v1", ""])
def test_a_name_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not the name of a model"):
        HuggingFace(push=name).check(tmp_path / "out")


def test_the_package_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match="needs the package huggingface_hub") as caught:
        HuggingFace().read("me/model")
    assert caught.value.hint == 'pip install "gptkit-hf[hub]"'
    with pytest.raises(UsageError, match="needs the package huggingface_hub"):
        HuggingFace(push="me/model").check(tmp_path / "out")
