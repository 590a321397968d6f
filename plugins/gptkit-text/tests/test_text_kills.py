"""kill -9 before every file operation of encoding: it goes on, and never to other tokens."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("no fork, no kill -9", allow_module_level=True)

PROGRAM = '''
import os, shutil, signal, sys
from hashlib import sha256
from pathlib import Path

from gptkit_text import encode, writer
from gptkit_text.codec import TokenizerCodec
from gptkit_text.documents import Reader
from gptkit_text.files import find
from gptkit_text.shards import encoded

corpus, disk, first, stride = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
os.environ["GPTKIT_CACHE"] = str(disk)
encode.EVERY, encode.SHARE, encode.BLOCK, writer.SHARD = 0.0, float("inf"), 1 << 10, 3000


def run(die_at):
    """How a process ends that dies before a file operation on the disk."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = [die_at]

    def count_down(event, args):
        changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")
        if changes or (event == "open" and str(args[0]).startswith(str(disk))):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count_down)
    code = 70  # of a traceback
    try:
        codec = TokenizerCodec(tokenizer="", end=256)
        encoded(Reader(find([corpus])), codec, val_fraction=0.2, processes=1)
        code = 0
    finally:
        os._exit(code)


def files():
    # A kill right after the end leaves the journal, which nobody reads then.
    kinds = [path for path in disk.rglob("*") if path.is_file()]
    found = [path for path in kinds if path.name != "journal.npz" or ".part" in str(path)]
    return {str(path.relative_to(disk)): sha256(path.read_bytes()).hexdigest() for path in found}


assert run(0) == 0
whole, die_at = files(), first
while True:
    shutil.rmtree(disk)
    died = run(die_at)
    assert run(2 * die_at) in (0, -9)  # killed again, somewhere else
    assert run(0) == 0
    assert files() == whole, (die_at, sorted(files().keys() ^ whole.keys()))
    if died == 0:
        break
    assert died == -9
    die_at += stride
print(die_at)
'''


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rows = [json.dumps({"text": f"document {i} " * (i % 7)}) + "\n" for i in range(150)]
    (tmp_path / "corpus.jsonl").write_text("".join(rows))
    return tmp_path / "corpus.jsonl"


def kill_at(corpus: Path, *, first: int, stride: int) -> int:
    """Kill at every `stride`-th operation; how many there are, about."""
    command = [sys.executable, "-c", PROGRAM, corpus, corpus.parent / "disk", first, stride]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout)


def test_a_kill_before_some_file_operations(corpus: Path) -> None:
    assert kill_at(corpus, first=2, stride=6) > 30


@pytest.mark.slow
def test_a_kill_before_every_file_operation(corpus: Path) -> None:
    assert kill_at(corpus, first=1, stride=1) > 30
