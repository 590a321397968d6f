"""Files are written whole or not at all, also by processes that are killed in between."""

import hashlib
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gptkit.errors import RunError
from gptkit.files import digest, lock, open_file, quote, read_file, write_atomically, write_json
from gptkit.staging import recover, remove_abandoned, remove_temporaries, staged


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def killed_at(rename: int, program: str, *arguments: object) -> None:
    """Run a program that kills itself before its nth rename."""
    sabotage = f"""
import os, pathlib, sys
from gptkit.files import write_atomically
from gptkit.staging import staged
left = {rename}
def audit(event, arguments):
    global left
    if event == "os.rename":
        left -= 1
        if left == 0:
            os.kill(os.getpid(), 9)
sys.addaudithook(audit)
target = pathlib.Path(sys.argv[1])
"""
    command = [sys.executable, "-c", sabotage + program, *map(str, arguments)]
    assert subprocess.run(command, check=False).returncode == -9


# write_atomically


def test_a_file_is_replaced_and_nothing_else_remains(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for contents in (b"first", b"", b"third" * 100_000):
        write_atomically(path, contents)
        assert path.read_bytes() == contents
    assert names(tmp_path) == ["a.txt"]


def test_a_file_has_the_mode_that_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a.txt", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def test_behind_a_link_the_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a.txt").write_text("before")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real/a.txt")
    write_atomically(tmp_path / "link.txt", b"after")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real/a.txt").read_text() == "after"


def test_a_device_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match="not a regular file"):
            write_atomically(tmp_path / name, b"new")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_link_that_leads_to_itself_is_an_error_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"):
        write_atomically(tmp_path / "loop", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]


def test_a_link_in_the_temporary_files_place_is_not_followed(tmp_path: Path) -> None:
    """Another user may guess a fixed name and put a link to a file of ours there."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".a.txt.tmp").symlink_to(victim)
    write_atomically(tmp_path / "a.txt", b"new")
    assert victim.read_text() == "precious"


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(OSError, match="is a folder, not a regular file"):
        write_atomically(tmp_path / "a.txt", b"new")
    assert names(tmp_path) == ["a.txt"]
    with pytest.raises(RunError, match=r"no/b\.json: cannot be written: No such file"):
        write_json(tmp_path / "no/b.json", {})


def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("before")
    killed_at(1, "write_atomically(target, b'after')", tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "before"


# staged


def fill(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "a").write_text(text)


def test_a_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with staged(target) as new:
        fill(new, "1")
        assert not target.exists()
        assert new.name == "target"
    assert (target / "a").read_text() == "1"
    assert names(tmp_path) == ["target"]


def test_a_file_can_be_staged_too(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("before")
    with staged(tmp_path / "f") as new:
        new.write_text("after")
        assert (tmp_path / "f").read_text() == "before"
    assert (tmp_path / "f").read_text() == "after"
    assert names(tmp_path) == ["f"]


@pytest.mark.parametrize(("replace", "text"), [(True, "2"), (False, "1")])
def test_a_folder_that_is_there_gives_way_or_stays(
    tmp_path: Path, replace: bool, text: str
) -> None:
    fill(tmp_path / "target", "1")
    (tmp_path / "target/only before").touch()
    with staged(tmp_path / "target", replace=replace) as new:
        fill(new, "2")
    assert (tmp_path / "target/a").read_text() == text
    assert (tmp_path / "target/only before").exists() == (not replace)
    assert names(tmp_path) == ["target"]


def test_an_error_inside_the_block_changes_nothing(tmp_path: Path) -> None:
    fill(tmp_path / "target", "1")
    with pytest.raises(ValueError, match="no"), staged(tmp_path / "target") as new:
        fill(new, "2")
        raise ValueError("no")
    assert (tmp_path / "target/a").read_text() == "1"
    assert names(tmp_path) == ["target"]


def test_nothing_staged_brings_back_what_was_there(tmp_path: Path) -> None:
    fill(tmp_path / "target", "1")
    with pytest.raises(OSError, match="No such file"), staged(tmp_path / "target"):
        pass
    assert (tmp_path / "target/a").read_text() == "1"
    assert names(tmp_path) == ["target"]


PROGRAM = """
with staged(target) as new:
    new.mkdir()
    (new / "a").write_text("2")
"""


@pytest.mark.parametrize("name", ["target", "a [b] *"])
@pytest.mark.parametrize("rename", [1, 2])
def test_a_kill_between_the_renames_can_be_undone(tmp_path: Path, rename: int, name: str) -> None:
    target = tmp_path / name
    fill(target, "1")
    killed_at(rename, PROGRAM, target)
    assert target.exists() == (rename == 1)
    recover(target)
    assert (target / "a").read_text() == "1"
    assert names(tmp_path) == [name]


def test_recovering_where_nothing_happened_changes_nothing(tmp_path: Path) -> None:
    fill(tmp_path / "target", "1")
    (tmp_path / ".target.tmp").mkdir()  # not ours
    recover(tmp_path / "target")
    assert names(tmp_path) == [".target.tmp", "target"]


def test_abandoned_folders_are_removed_after_a_day(tmp_path: Path) -> None:
    target = tmp_path / "target [1]"
    killed_at(1, PROGRAM, target)
    (left,) = tmp_path.iterdir()
    remove_abandoned(tmp_path)
    assert left.exists()  # its process may still be writing
    for path in (left, *left.rglob("*")):
        os.utime(path, (0, 0))
    remove_abandoned(tmp_path)
    assert names(tmp_path) == []


def test_what_killed_writers_left_is_removed_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples/kept.tmp").touch()
    killed_at(1, "write_atomically(target, b'after')", tmp_path / "samples/a.txt")
    killed_at(1, PROGRAM, tmp_path / "target")
    assert len(names(tmp_path)) == len(names(tmp_path / "samples")) == 2
    remove_temporaries(tmp_path)
    assert names(tmp_path) == ["samples"]
    assert names(tmp_path / "samples") == ["kept.tmp"]


# lock, digest


def test_a_lock_is_held_against_other_processes_until_its_holder_dies(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    program = f"""
import sys
from pathlib import Path
from gptkit.files import lock
with lock(Path({str(path)!r})):
    print("held", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", program]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as holder:  # type: ignore[call-overload]
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match="taken"), lock(path, busy=RunError("taken")):
            pass
        holder.kill()
        holder.wait()
        with lock(path, busy=RunError("taken")):
            pass


def test_a_digest_is_of_the_whole_file_or_its_beginning(tmp_path: Path) -> None:
    contents = os.urandom(3_000_000)
    (tmp_path / "f").write_bytes(contents)
    assert digest(tmp_path / "f") == hashlib.sha256(contents).hexdigest()
    for size in (0, 1, 1 << 20, (1 << 20) + 1, 3_000_000, 4_000_000):
        assert digest(tmp_path / "f", size) == hashlib.sha256(contents[:size]).hexdigest()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
@pytest.mark.timeout(10)
def test_pipes_are_read_where_they_are_wanted_and_never_wait_for_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(OSError, match="is a pipe, not a regular file"):
        open_file(path)
    assert read_file(path, limit=100, pipes=True) == b""

    reader, writer = os.pipe()
    later = threading.Timer(0.1, lambda: (os.write(writer, b"late"), os.close(writer)))
    later.start()
    assert read_file(Path(f"/dev/fd/{reader}"), limit=100, pipes=True) == b"late"
    later.join()
    os.close(reader)
    for name, kind in {"/dev/zero": "a device", str(tmp_path): "a folder"}.items():
        with pytest.raises(OSError, match=f"is {kind}, not a regular file"):
            read_file(Path(name), limit=100, pipes=True)


def test_a_link_that_looks_like_a_temporary_folder_is_not_followed(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    (foreign / "old").mkdir(parents=True)
    (tmp_path / ".model.onnx.1.tmp").symlink_to(foreign, target_is_directory=True)
    recover(tmp_path / "model.onnx")
    assert (foreign / "old").is_dir()
    assert not (tmp_path / "model.onnx").exists()
    remove_temporaries(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["foreign"]
    assert (foreign / "old").is_dir()


def test_ctrl_c_between_the_renames_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old.txt").write_text("old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), staged(target) as new:
        new.mkdir()
        monkeypatch.setattr(Path, "replace", interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert (target / "old.txt").read_text() == "old"


@pytest.mark.parametrize(
    "name",
    ["plain", "a b", "it's", "-x", "--help", "a\nb", "$HOME", "\u202eevil", "caf\udce9", "\\"],
)
def test_a_quoted_path_can_be_pasted_into_a_shell(name: str) -> None:
    command = quote(Path(name))
    assert not command.startswith("-") and "\n" not in command and "\u202e" not in command
    done = subprocess.run(["bash", "-c", f"printf %s {command}"], capture_output=True, check=True)
    assert done.stdout.removeprefix(b"./") == os.fsencode(name)
