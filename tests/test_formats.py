"""Formats of plugins: `gptkit export --to NAME`."""

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from gptkit.runs.loaded import load_checkpoint
from gptkit.testing import check_format

Command = Callable[..., Result]
RUN = Path(__file__).parent / "data/v0.1/text"
NPZ = """
    import json
    from typing import ClassVar

    import numpy as np
    from gptkit.plugin import ExportError, Format
    from pydantic import Field

    class Npz(Format):
        \"\"\"Weights as numpy arrays.\"\"\"

        contract = 1
        suffix: ClassVar[str] = ".npz"

        digits: int = Field(default=9, ge=1)
        \"\"\"Decimal places to keep.\"\"\"
        broken: bool = False
        \"\"\"Fail in the middle.\"\"\"

        def write(self, model, path):
            rounded = {n: w.numpy().round(self.digits) for n, w in model.weights.items()}
            about = {"config": dict(model.config), "dataset": model.dataset, "step": model.step,
                     "start": model.codec.encode("A"), "val": len(model.load_data().val)}
            np.savez(path, about=json.dumps(about), **rounded)
            if self.broken:
                raise ExportError("npz: not equal to the checkpoint")
"""


@pytest.fixture
def r(distribution: Callable[..., Path], tmp_path: Path) -> Path:
    """A run in the working directory; the format npz is installed."""
    distribution("acme-npz", NPZ, formats="npz = Npz")
    return shutil.copytree(RUN, tmp_path / "r")


def test_a_plugin_writes_the_model(cli: Command, r: Path, tmp_path: Path) -> None:
    done = cli("export", r, "--to", "npz")
    assert (done.exit_code, done.stdout) == (0, "model.npz\n"), done.stderr
    found = np.load(tmp_path / "model.npz")
    loaded = load_checkpoint(r, device="cpu")
    for name, weight in loaded.model.weights().items():
        assert np.array_equal(found[name], weight.detach().numpy().round(9))
    about = str(found["about"])
    assert '"n_embd": 32' in about
    assert '"dataset": "char-text", "step": 40' in about

    named = cli("export", r, "--to", "acme-npz:npz", "--out", "w/m.npz", "--set", "digits=1")
    assert (named.exit_code, named.stdout) == (0, "w/m.npz\n"), named.stderr
    weights = np.load(tmp_path / "w/m.npz")["wte.weight"]
    assert np.array_equal(weights, weights.round(1))
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "site") == ["model.npz", "r", "w"]


def test_what_fails_leaves_what_was_there(cli: Command, r: Path, tmp_path: Path) -> None:
    (tmp_path / "model.npz").write_text("an earlier file")
    done = cli("export", r, "--to", "npz", "--set", "broken=true")
    assert (done.exit_code, done.stdout) == (4, "")
    assert done.stderr == "error: npz: not equal to the checkpoint\n"
    assert (tmp_path / "model.npz").read_text() == "an earlier file"
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("arguments", "said", "hint"),
    [
        (["--dtype", "int8"], "npz.dtype: unknown key; known: broken, digits",
         "gptkit plugins show npz lists its options"),
        (["--set", "digts=3", "--set", "broken=1"],
         "--set broken: should be true or false, in small letters, got 1\n"
         'error: --set digts: unknown key; did you mean "digits"?',
         "gptkit plugins show npz lists its options"),
        (["--set", "digits"], "--set digits: not of the form option=value",
         "for example --set dtype=float16"),
        (["--dtype", "int8", "--set", "dtype=int4"],
         "--set dtype=int4: --dtype int8 is given, too", "give one of them"),
        (["--out", "r"], "r: already exists", "choose another place: --out PATH"),
    ],
)  # fmt: skip
def test_what_a_format_does_not_take(
    cli: Command, r: Path, arguments: list[str], said: str, hint: str
) -> None:
    done = cli("export", r, "--to", "npz", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"error: {said}\nhint:  {hint}\n"


def test_an_unknown_format_names_the_installed(cli: Command, r: Path) -> None:
    done = cli("export", r, "--to", "npy")
    assert done.exit_code == 2
    assert 'error: no format named "npy"\n' in done.stderr
    assert "npz (acme-npz 1.2), onnx (gptkit 0.6.0)" in done.stderr
    assert 'did you mean "npz"?' in done.stderr


def test_onnx_takes_its_options_in_both_ways(cli: Command, r: Path, tmp_path: Path) -> None:
    files = []
    for i, option in enumerate((["--dtype", "float16"], ["--set", "dtype=float16"])):
        done = cli("export", r, "--to", "onnx", "--out", f"{i}.onnx", *option)
        assert done.exit_code == 0, done.stderr
        files.append((tmp_path / f"{i}.onnx").read_bytes())
    assert len(files[0]) == len(files[1])
    shown = cli("plugins", "show", "onnx").stdout
    for name in ("dtype", "device", "web"):
        assert name in shown


def test_the_contract_of_formats(
    distribution: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution("acme-npz", NPZ, formats="npz = Npz")
    npz: Any = importlib.import_module("acme_npz").Npz
    written = check_format(npz(), tmp_path / "site")
    assert "wte.weight" in np.load(written)

    def untouched(self: Any, model: Any, path: Path) -> None: ...

    def two(self: Any, model: Any, path: Path) -> None:
        path.write_text("a")
        path.with_name("readme").write_text("b")

    def scaling(self: Any, model: Any, path: Path) -> None:
        path.write_text("a")
        model.weights["wte.weight"].mul_(2)

    def folder(self: Any, model: Any, path: Path) -> None:
        path.mkdir()
        (path / "weights").write_text("a")

    for write, fault in (
        (untouched, r"must write the path that it is given, model\.npz"),
        (two, "nothing beside its path, but wrote readme"),
        (scaling, r"must not change the model: wte\.weight"),
        (folder, "must let it replace what it wrote"),
    ):
        monkeypatch.setattr(npz, "write", write)
        (tmp_path / write.__name__).mkdir()
        with pytest.raises(AssertionError, match=fault):
            check_format(npz(), tmp_path / write.__name__)


def test_a_format_without_write_is_refused(
    cli: Command, distribution: Callable[..., Any], r: Path
) -> None:
    source = """
        from gptkit.plugin import Format
        class Half(Format):
            contract = 1
    """
    distribution("acme-half", source, formats="half = Half")
    assert "acme_half:Half lacks write" in cli("export", r, "--to", "half").stderr
    checked = cli("plugins", "check")
    assert "format half (acme-half 1.2)" in checked.stdout
    assert "format npz (acme-npz 1.2): ok" in checked.stdout
