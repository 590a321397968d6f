"""Data sets on the Hub: against a local server, each time in a process of its own."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub")

COMMIT = "c0ffee" + "0" * 34
FILES = {
    "README.md": b"# About the data",
    "data/train.jsonl": b'{"text": "one"}\n',
    "data/test.txt": b"two",
    "notes/more.md": b"three",
    "weights.bin": b"\0" * 10,
}
REVISIONS = {f"/api/datasets/me/set/revision/{name}" for name in ("main", "v1", "refs%2Fpr%2F1")}
FETCH = """
import json, os, sys
import gptkit
from gptkit_text.files import ENDINGS
from gptkit_text.hub import fetch_dataset
endings = os.environ.get("ENDINGS", "").split() or ENDINGS
for name in sys.argv[1:]:
    try:
        files = fetch_dataset(name, endings)
        told = [file.as_posix().split("/snapshots/")[1][41:] for file in files]
    except gptkit.GptkitError as error:
        told = [type(error).__name__, str(error), error.hint]
    print(json.dumps(told))
"""
RESUME = """
import json, sys
import gptkit
out, *names = sys.argv[1:]
data = {"use": "text", "hf": "me/set", "tokenizer": "byte", "documents": "join",
        "block_size": 1, "val_fraction": 0.4}
gptkit.train({"dataset": data, "model": {"n_layer": 1, "n_head": 1, "n_embd": 8}, "callbacks": [],
              "train": {"steps": 2, "batch_size": 1}}, out=out, quiet=True)
for steps, name in enumerate(names, start=3):
    try:
        run = gptkit.resume(out, {"dataset.hf": name, "train.steps": steps}, quiet=True)
        told = [run.last.step]
    except gptkit.GptkitError as error:
        told = [type(error).__name__, str(error)]
    print(json.dumps(told))
"""


class Hub(BaseHTTPRequestHandler):
    """What the Hub's interface says of `me/set`, which has FILES, and of `me/gated`."""

    lost: Sequence[str] = ()
    """Files that are told, and never come."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if "/revision/v2" in path:
            self.answer(404, "", **{"X-Error-Code": "RevisionNotFound"})
        elif path in REVISIONS:
            siblings = [{"rfilename": name} for name in (*FILES, *self.lost)]
            self.answer(200, json.dumps({"id": "me/set", "sha": COMMIT, "siblings": siblings}))
        elif path == f"/api/datasets/me/set/tree/{COMMIT}":
            files = [
                {"type": "file", "path": name, "oid": name.encode().hex(), "size": len(contents)}
                for name, contents in FILES.items()
            ]
            self.answer(200, json.dumps(files))
        elif path.startswith(start := f"/datasets/me/set/resolve/{COMMIT}/"):
            name = path.removeprefix(start)
            self.answer(200, FILES[name], ETag=f'"{name.encode().hex()}"')
        elif "gated" in path:
            self.answer(403, "", **{"X-Error-Code": "GatedRepo"})
        else:
            self.answer(404, "", **{"X-Error-Code": "RepoNotFound"})

    def answer(self, status: int, body: str | bytes, **headers: str) -> None:
        contents = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        sent = {"Content-Length": str(len(contents)), "X-Repo-Commit": COMMIT, **headers}
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(contents)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def fetch(*names: str, **environment: str) -> list[list[str]]:
    return run(FETCH, *names, **environment)


def run(code: str, *arguments: str, **environment: str) -> list[list[str]]:
    """What a program prints, a list as JSON in each line."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | environment
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=variables, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_the_files_of_a_data_set_and_what_goes_wrong(endpoint: str, tmp_path: Path) -> None:
    home, wanted = str(tmp_path), ["data/test.txt", "data/train.jsonl", "notes/more.md"]
    names = ["me/set/data", "me/set", "me/none", "me/gated", "m e", "me/set/images"]
    below, every, none, gated, unnamed, empty = fetch(*names, HF_HOME=home, HF_ENDPOINT=endpoint)
    assert below == wanted[:2]
    assert every == wanted
    assert none[:2] == [
        "DataError",
        "hf = 'me/none': no such data set on the Hub, or a private one",
    ]
    assert "HF_TOKEN" in none[2]
    assert gated[1] == "hf = 'me/gated': may be read only by those who accepted its terms"
    assert unnamed[1:] == ["hf = 'm e': not the name of a data set", 'write it as "owner/name"']
    assert "no file of the data set ends in one of .txt, .md" in empty[1]
    offline, absent = fetch("me/set", "me/other", HF_HOME=home, HF_HUB_OFFLINE="1")
    assert offline == wanted
    assert absent[0] == "DataError"
    assert "HF_HUB_OFFLINE" in absent[1]


def test_a_revision_is_named_and_told(endpoint: str, tmp_path: Path) -> None:
    names = ["me/set@v1", "me/set@refs/pr/1/data", "me/set@v2/data"]
    at_tag, at_ref, none = fetch(*names, HF_HOME=str(tmp_path), HF_ENDPOINT=endpoint)
    assert at_tag == ["data/test.txt", "data/train.jsonl", "notes/more.md"]
    assert at_ref == at_tag[:2]
    assert none[1] == "hf = 'me/set': it has no revision 'v2'"


def test_endings_choose_the_files_of_a_data_set(endpoint: str, tmp_path: Path) -> None:
    (found,) = fetch("me/set", HF_HOME=str(tmp_path), HF_ENDPOINT=endpoint, ENDINGS=".jsonl .bin")
    assert found == ["data/train.jsonl", "weights.bin"]


def test_a_part_of_a_data_set_is_not_taken_for_all(endpoint: str, tmp_path: Path) -> None:
    home = str(tmp_path)
    fetch("me/set/data", HF_HOME=home, HF_ENDPOINT=endpoint)
    (told,) = fetch("me/set", HF_HOME=home, HF_ENDPOINT="http://127.0.0.1:9")
    assert told[0] == "DownloadError"
    (offline,) = fetch("me/set", HF_HOME=home, HF_HUB_OFFLINE="1")
    assert offline[0] == "DataError"


def test_a_file_that_does_not_come_is_missed(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hub, "lost", ["data/lost.jsonl"])
    (told,) = fetch("me/set", HF_HOME=str(tmp_path), HF_ENDPOINT=endpoint)
    assert told[:2] == [
        "DownloadError",
        "hf = 'me/set': cannot be downloaded: data/lost.jsonl did not come",
    ]


def test_no_network_is_a_download_error(tmp_path: Path) -> None:
    (told,) = fetch("me/set", HF_HOME=str(tmp_path), HF_ENDPOINT="http://127.0.0.1:9")
    assert told[:2] == ["DownloadError", told[1]]
    assert told[1].startswith("hf = 'me/set': cannot be downloaded: ")


def test_the_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptkit.plugin import DataError
    from gptkit_text.hub import fetch_dataset

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DataError, match="needs the package huggingface_hub") as caught:
        fetch_dataset("me/set")
    assert caught.value.hint == 'pip install "gptkit-text[hub]"'


def test_a_resumed_training_takes_the_same_data_from_another_name(
    endpoint: str, tmp_path: Path
) -> None:
    resume = RESUME, str(tmp_path / "run"), "me/set@v1", "me/set/data"
    same, less = run(*resume, HF_HOME=str(tmp_path / "home"), HF_ENDPOINT=endpoint)
    assert same == [3]
    assert less[0] == "RunError"
    assert "the training data is not the data that this run started with" in less[1]
