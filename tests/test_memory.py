"""What does not fit into memory is said in two lines, and nothing of it is allocated before."""

import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import Result

import gptkit.engine  # noqa: F401 - onnxruntime is there before a test limits memory
from gptkit import memory
from gptkit.errors import RunError
from gptkit.memory import Need
from gptkit.recipe import sizes
from gptkit.recipe.options import GPTConfig, TrainOptions
from gptkit.runs.train import train

Command = Callable[..., Result]
TinyRecipe = Callable[..., Path]

HUGE = [
    ("model.n_embd=1000000", "a smaller model: model.n_embd"),
    ("model.n_layer=2147483647", "a smaller model: model.n_embd"),
    ("model.n_inner=2147483647", "a smaller model: model.n_embd"),
    ("train.batch_size=2147483640", "fewer sequences at once: train.micro_batch_size"),
]


@pytest.fixture
def lack(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Little more address space than this process has already."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    monkeypatch.setattr(memory, "total", lambda: None)  # so that nothing is refused beforehand
    monkeypatch.setattr("gptkit.training.device.total", lambda: None)
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 27), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize(("setting", "hint"), HUGE)
def test_a_training_that_cannot_fit_is_refused_before_it_is_built(
    tiny_recipe: TinyRecipe, tmp_path: Path, cli: Command, setting: str, hint: str
) -> None:
    recipe = tiny_recipe()
    done = cli("train", recipe, "--set", setting, "--out", tmp_path / "r")
    assert done.exit_code == 1
    error, told = done.stderr.splitlines()
    assert error.startswith("error: this training needs more than ")
    assert told.startswith(f"hint:  {hint}")
    assert not (tmp_path / "r").exists()
    checked = cli("check", recipe, "--set", setting)
    assert checked.exit_code == 0
    assert "this training needs more than " in checked.stderr
    assert hint in checked.stderr


def test_check_says_nothing_of_a_training_that_fits(tiny_recipe: TinyRecipe, cli: Command) -> None:
    assert "memory" not in cli("check", tiny_recipe()).stderr


def test_check_does_not_know_the_memory_of_a_device_elsewhere(
    tiny_recipe: TinyRecipe, cli: Command
) -> None:
    elsewhere = "mps" if torch.cuda.is_available() else "cuda:7"
    done = cli("check", tiny_recipe(train={"device": elsewhere}, model={"n_embd": 10**6}))
    assert (done.exit_code, "memory" in done.stderr) == (0, False)


@pytest.mark.parametrize(
    ("setting", "limit"),
    [
        ("model.n_embd=4294967296", "at most 2147483647"),
        ("train.batch_size=2147483648", "at most 2147483647"),
        ("train.micro_batch_size=1000000000000", "at most 2147483647"),
    ],
)
def test_sizes_have_an_upper_limit(
    tiny_recipe: TinyRecipe, cli: Command, setting: str, limit: str
) -> None:
    done = cli("check", tiny_recipe(), "--set", setting)
    assert done.exit_code == 2
    assert limit in done.stderr


@pytest.mark.parametrize(
    "options", [{"n_embd": 4096, "n_layer": 4}, {"n_embd": 64, "n_layer": 1, "n_inner": 2000000}]
)
def test_memory_that_is_full_while_a_model_is_built(
    tiny_recipe: TinyRecipe, tmp_path: Path, cli: Command, lack: None, options: dict[str, int]
) -> None:
    done = cli("train", tiny_recipe(model=options), "--out", tmp_path / "r")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: too little memory for this training, which needs more")
    assert done.stderr.count("\n") == 2
    assert not (tmp_path / "r").exists()


def test_memory_that_is_full_in_the_first_step(
    tiny_recipe: TinyRecipe, tmp_path: Path, cli: Command, lack: None
) -> None:
    recipe = tiny_recipe(train={"batch_size": 1 << 16}, callbacks=[])
    done = cli("train", recipe, "--out", tmp_path / "r")
    assert done.exit_code == 1
    error, hint = done.stderr.splitlines()[-2:]
    assert error.startswith("error: too little memory for this training, which needs more than ")
    assert hint.startswith("hint:  fewer sequences at once: train.micro_batch_size")


def test_memory_that_is_full_in_sampling(
    tiny_recipe: TinyRecipe, tmp_path: Path, cli: Command, lack: None
) -> None:
    train(tiny_recipe(callbacks=[]), out=tmp_path / "r", report=print)
    # in torch: opening the first session of onnxruntime would be too much already
    done = cli("sample", "r", "--samples", 100_000, "--tokens", 8, "--engine", "torch")
    assert done.exit_code == 1
    assert "error: too little memory for 100,000 samples at once" in done.stderr
    assert "hint:  draw fewer at once: --samples" in done.stderr


def test_more_samples_than_fit_are_refused_before_the_first(
    tiny_recipe: TinyRecipe, tmp_path: Path, cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny_recipe(callbacks=[]), out=tmp_path / "r", report=print)
    monkeypatch.setattr("gptkit.training.device.total", lambda: 1 << 20)
    monkeypatch.setattr(memory, "total", lambda: 1 << 20)
    for engine in ("onnx", "torch"):
        done = cli("sample", "r", "--samples", 100_000, "--engine", engine)
        assert done.exit_code == 1
        assert "error: 100,000 samples at once needs more than" in done.stderr


@pytest.mark.parametrize("option", ["--samples", "--tokens"])
def test_samples_and_tokens_have_an_upper_limit(
    tiny_recipe: TinyRecipe, tmp_path: Path, cli: Command, option: str
) -> None:
    train(tiny_recipe(callbacks=[]), out=tmp_path / "r", report=print)
    for number in (10**10, 2**63, 10**30):
        done = cli("sample", "r", option, number)
        assert done.exit_code == 2, done.output
        assert option.removeprefix("--") in done.stderr


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("std::bad_alloc"),
    ],
    ids=repr,
)
def test_every_kind_of_full_memory_is_explained(error: Exception) -> None:
    error.add_note("step 4 is saved")
    with pytest.raises(RunError, match=r"^too little memory for this test, .* 2 GB") as caught:
        with Need("this test", "less", 2 * 10**9).explained():
            raise error
    assert (caught.value.hint, caught.value.__notes__) == ("less", ["step 4 is saved"])


@pytest.mark.parametrize("inner", ["/", "/slurm/job", "/slurm/job/gone"])
def test_the_limit_of_a_control_group_holds_for_those_below(
    inner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a container's, Slurm's or systemd's, in both versions of control groups."""
    job = tmp_path / "groups/slurm/job"
    job.mkdir(parents=True)
    for folder, limit, taken in ((job, "max", 1), (job.parent, "50000", 20000)):
        (folder / "limit").write_text(limit)
        (folder / "taken").write_text(f"{taken}")
        (folder / "memory.stat").write_text("inactive_file 5\ntotal_inactive_file 700\n")
    for controller in ("", "memory"):
        files = (tmp_path / "groups", "limit", "taken")
        monkeypatch.setattr(memory, "CGROUPS", {controller: files})
        own = tmp_path / "own"
        own.write_text(f"4:cpu:/other\n3:{controller}:{inner}\n")
        monkeypatch.setattr(memory, "OWN_CGROUPS", own)
        found = (memory.total(), memory.free())
        assert (found == (50000, 30700)) == (inner != "/")


def test_other_errors_stay_as_they_are() -> None:
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), Need("a", "b").explained():
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (25.3e9, "25.3 GB"), (3e20, "300 EB")],
)
def test_a_number_of_bytes_in_words(size: float, words: str) -> None:
    assert memory.told(size) == words


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_a_training_takes_what_its_sizes_say_and_not_much_more(recompute: bool) -> None:
    """Peak of the memory of a real step, in a process of its own."""
    from multiprocessing import get_context

    with get_context("spawn").Pool(1) as pool:
        needed, taken = pool.apply(_train_once, (recompute,))
    assert needed <= taken < 3 * needed + (1 << 28)  # torch imports more of itself, too


def _train_once(recompute: bool) -> tuple[int, int]:
    """Bytes that a training needs by its sizes, and what a step of it took."""
    from gptkit.model.gpt import GPT
    from gptkit.training.optimizer import make_optimizer

    torch.set_num_threads(1)
    config = GPTConfig(vocab_size=1000, block_size=128, n_layer=4, n_head=4, n_embd=384)
    options = TrainOptions(batch_size=16, recompute=recompute)
    before = _peak()
    model = GPT(config, recompute=recompute)
    optimizer = make_optimizer(model, options.optimizer)
    x = torch.zeros(16, 128, dtype=torch.int64)
    model(x, x).backward()
    optimizer.step()
    needed = sizes.to_train(config, options).size
    assert needed
    return needed, _peak() - before


def _peak() -> int:
    """Of this process alone; `getrusage` would count its parent, too."""
    (line,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) * 1024
