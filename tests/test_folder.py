"""`find_files`: hidden names, endings, links, loops, and what is no file."""

import os
import socket
from pathlib import Path

import pytest

from gptkit.data.progress import silent
from gptkit.plugin import DataError, find_files

Said = pytest.CaptureFixture[str]


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def found(folder: Path, *parts: str, in_folders: bool = False) -> list[str]:
    folders = [folder / part for part in parts] or [folder]
    files = find_files(*folders, endings=(".txt", ".md"), in_folders=in_folders)
    return [file.relative_to(folder).as_posix() for file in files]


def test_files_are_found_at_any_depth_in_any_case_in_the_order_of_their_paths(
    tmp_path: Path, capsys: Said
) -> None:
    write(tmp_path, "b.txt", "a/z.TXT", "a/deep/er.Md", "a-b.txt")
    assert found(tmp_path) == ["a-b.txt", "a/deep/er.Md", "a/z.TXT", "b.txt"]
    assert capsys.readouterr() == ("", "")


def test_an_ending_may_have_two_parts(tmp_path: Path) -> None:
    write(tmp_path, "a.md.gz", "b.MD.GZ", "c.gz", "d.tar.gz", "e.md")
    files = find_files(tmp_path, endings=(".md.gz",))
    assert [file.name for file in files] == ["a.md.gz", "b.MD.GZ"]


def test_what_is_left_out_is_said_in_one_line(tmp_path: Path, capsys: Said) -> None:
    write(tmp_path, "a.txt", ".b.txt", "c/.ipynb_checkpoints/c.txt", "c/c.csv", "d.csv", "no")
    assert found(tmp_path) == ["a.txt"]
    told = capsys.readouterr().err
    assert told == f"note: {tmp_path}: 2 hidden, 3 with other endings (.csv, none): skipped\n"
    with silent(True):
        found(tmp_path)
    assert capsys.readouterr().err == ""


def test_a_hidden_folder_that_is_asked_for_is_read(tmp_path: Path) -> None:
    assert found(write(tmp_path / ".cache", "a.txt")) == ["a.txt"]


def test_links_are_followed_once_and_loops_never(tmp_path: Path, capsys: Said) -> None:
    folder = write(tmp_path / "folder", "b/real.txt")
    outside = write(tmp_path / "outside", "x.txt", "deep/y.txt")
    for name, target in {
        "a.txt": "b/real.txt",  # sorted before the file itself, which counts
        "b/self": ".",
        "b/up": "..",
        "c": "../outside",
        "d": "../outside/deep",
        "e.txt": "../outside/x.txt",
        "f.txt": "nowhere",
        "g.txt": "g.txt",
        "h": str(outside),
    }.items():
        (folder / name).symlink_to(target)
    (outside / "back").symlink_to(folder)
    assert found(folder) == ["b/real.txt", "c/deep/y.txt", "c/x.txt"]
    told = capsys.readouterr().err
    assert "7 linked twice, 2 linked to nothing" in told


def test_a_file_in_a_linked_folder_is_in_one_split_alone(tmp_path: Path, capsys: Said) -> None:
    write(tmp_path, "val/a/1.txt", "train/a/2.txt")
    (tmp_path / "train/a/1.txt").symlink_to(tmp_path / "val/a/1.txt")
    assert found(tmp_path, "train", "val") == ["train/a/2.txt", "val/a/1.txt"]
    assert capsys.readouterr().err == f"note: {tmp_path}: 1 linked twice: skipped\n"


def test_files_outside_of_class_folders_are_counted(tmp_path: Path, capsys: Said) -> None:
    write(tmp_path, "a/1.txt", "2.txt")
    assert found(tmp_path, in_folders=True) == ["a/1.txt"]
    assert "1 not in a folder: skipped" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_what_is_no_file_is_left_out(
    tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket.txt")
    for name, target in {
        "zero.txt": "/dev/zero",
        "memory.txt": "/proc/self/mem",
        "s": "/sys",
    }.items():
        (tmp_path / name).symlink_to(target)
    assert found(tmp_path) == []
    assert "5 neither file nor folder" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "seteuid") or os.geteuid() != 0, reason="needs root")
def test_a_folder_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "a.txt", "secret/b.txt")
    (tmp_path / "secret").chmod(0o700)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    os.seteuid(65534)
    try:
        with pytest.raises(DataError, match=r"secret: cannot be read: Permission denied"):
            find_files(Path(), endings=(".txt",))
    finally:
        os.seteuid(0)


def test_names_that_are_not_utf8_or_steer_a_terminal(tmp_path: Path, capsys: Said) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    Path(os.fsdecode(name)).write_text("x")
    (tmp_path / "a.\x1b[31m").write_text("x")
    assert find_files(tmp_path, endings=(".txt",)) == [Path(os.fsdecode(name))]
    assert "(.\ufffd[31m)" in capsys.readouterr().err
