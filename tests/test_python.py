"""The Python way in: `gptkit.train`, `resume`, `trainer` and `Run`, in programs and threads."""

import inspect
import json
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import Result

import gptkit
from gptkit.errors import GptkitError, RecipeError, RunError, UsageError
from gptkit.files import digest
from gptkit.plugin import Callback, TrainState
from gptkit.sampling.model import Model
from tests.conftest import TINY

SIGNATURES = {
    "load": "(path=None, *, checkpoint='last', weights=None, device='auto', engine='auto')",
    "resume": "(path=None, overrides=(), *, callbacks=(), quiet=False)",
    "import_model": "(source, *, out=None, format=None, quiet=False, **options)",
    "train": "(recipe, overrides=(), *, callbacks=(), out=None, start=None, checkpoint='last', "
    "weights=None, quiet=False)",
    "trainer": "(recipe, overrides=(), *, data=None, callbacks=())",
    "dataset": "(recipe, overrides=())",
    "Run": "(path)",
    "Run.evaluate": "(self, *, checkpoint='last', weights=None, device='auto', classify=False)",
    "Run.export": "(self, path=None, *, to='onnx', checkpoint='last', weights=None, **options)",
    "Run.load": "(self, *, checkpoint='last', weights=None, device='auto', engine='auto')",
    "Run.metrics": "property",
    "Run.best": "property",
    "Run.last": "property",
    "Model.codec": "property",
    "Model.block_size": "property",
    "Model.vocab_size": "property",
    "Model.temperature": "property",
    "Model.provider": "property",
    "Model.sample": "(self, prompt='', *, tokens=None, seed=0, samples=None, temperature=None, "
    "top_k=0, top_p=1.0, keep=1.0, label=None, stop=None, ignore_stop=False)",
    "Model.stream": "(self, prompt='', *, tokens=None, seed=0, temperature=None, top_k=0, "
    "top_p=1.0, keep=1.0, stop=None, ignore_stop=False)",
    "Model.stream_tokens": "(self, ids, *, tokens=None, seed=0, temperature=None, top_k=0, "
    "top_p=1.0, stop_tokens=None)",
    "Model.logprobs": "(self, text)",
    "Model.embed": "(self, text)",
    "Model.draw": "(self, request, sampling, *, streaming=False)",
    "Model.draw_each": "(self, requests, sampling, seeds)",
    "Model.logits": "(self, tokens)",
    "Model.features": "(self, tokens)",
}
"""What programs rely on: a change of these lines is a change of the public interface."""


class Note(Callback):
    """Records a metric, and keeps a state."""

    contract = 1
    _seen: int = 0

    def on_step_end(self, state: TrainState) -> None:
        self._seen += 1
        state.metrics["seen"] = float(self._seen)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self._seen}

    def load_state_dict(self, state: Any) -> None:
        self._seen = state["seen"]


class Stop(Callback):
    """Ends training, or the step, with an exception."""

    contract = 1
    error: Any

    def on_step_end(self, state: TrainState) -> None:
        if state.step == 3:
            raise self.error


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> gptkit.Run:
    """A run of four steps."""
    return gptkit.train(TINY, out=tmp_path_factory.mktemp("python") / "run", quiet=True)


def weights(run: gptkit.Run) -> str:
    """The digest of the newest weights."""
    assert run.last
    return digest(run.path / f"checkpoints/step-{run.last.step:08d}/model.safetensors")


def parameters(function: Any) -> str:
    """The parameters of a function, without types."""
    if isinstance(function, property):
        return "property"
    signature = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))


def test_the_signatures_are_these() -> None:
    found = {}
    for name in gptkit.HOMES:
        public = getattr(gptkit, name)
        if not (isinstance(public, type) and issubclass(public, Exception)):
            found[name] = parameters(public)
        if public in (gptkit.Run, Model):
            members = {k: v for k, v in vars(public).items() if not k.startswith("_")}
            found |= {f"{name}.{k}": parameters(v) for k, v in members.items()}
    del found["Model"], found["Recipe"]
    assert found == SIGNATURES


def test_the_types_that_editors_see_are_those_of_the_names() -> None:
    text = Path(gptkit.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    seen = re.findall(r"^from (\S+) import (\w+) as \2$", text, flags=re.MULTILINE)
    assert {name: module for module, name in seen} == gptkit.HOMES
    assert set(dir(gptkit)) == {"__version__", *gptkit.HOMES}


def test_importing_gptkit_imports_no_torch_and_nothing_else() -> None:
    program = "import sys, gptkit; gptkit.GptkitError; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    loaded = {name for name in done.stdout.split() if name.startswith(("gptkit", "torch", "numpy"))}
    assert loaded == {"gptkit", "gptkit.errors"}


def test_a_file_a_recipe_and_its_tables_train_the_same_weights(
    cli: Callable[..., Result], tiny_recipe: Callable[..., Path], run: gptkit.Run
) -> None:
    assert cli("train", tiny_recipe(), "--out", "cli").exit_code == 0
    recipe = gptkit.Recipe.model_validate(TINY)
    runs = [
        gptkit.Run(Path("cli")),
        gptkit.train(tiny_recipe(), "train.steps=4", out="file", quiet=True),
        gptkit.train(recipe, {"train.steps": 4}, out=Path("recipe"), quiet=True),
    ]
    assert {weights(found) for found in runs} == {weights(run)}
    assert all((found.path / "recipe.toml").is_file() for found in runs)


def test_a_run_tells_its_metrics_and_checkpoints(run: gptkit.Run) -> None:
    evaluations = {m["step"]: m["val_loss"] for m in run.metrics if "val_loss" in m}
    assert list(evaluations) == [2, 4]
    assert run.last == (4, evaluations[4])
    best = min(evaluations, key=evaluations.__getitem__)
    assert run.best == (best, evaluations[best])


def test_a_run_is_opened_by_its_path(run: gptkit.Run) -> None:
    for path in (str(run.path), run.path, run):
        opened = gptkit.Run(path)
        assert opened == run
        assert (opened.best, opened.last, opened.metrics) == (run.best, run.last, run.metrics)


@pytest.mark.parametrize(("name", "fault"), [("none", "no such run"), ("empty", "not a run")])
def test_what_is_no_run_is_refused_when_it_is_used(name: str, fault: str) -> None:
    Path("empty").mkdir()
    opened = gptkit.Run(name)
    for use in (lambda: opened.best, lambda: opened.last, lambda: opened.metrics, opened.load):
        with pytest.raises(UsageError, match=f"^{name}: {fault}"):
            use()


def test_a_run_without_checkpoints_and_metrics_says_so(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").touch()
    empty = gptkit.Run(tmp_path)
    assert empty.best is empty.last is None
    assert empty.metrics == []


def test_a_record_that_a_kill_left_unfinished_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").touch()
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2, "lo\xc3')
    assert gptkit.Run(tmp_path).metrics == [{"step": 1}]


def test_a_run_is_evaluated_and_exported_as_by_the_commands(
    run: gptkit.Run, cli: Callable[..., Result]
) -> None:
    exported = run.export("half.onnx", dtype="float16", checkpoint="2")
    assert exported == Path("half.onnx")
    with pytest.raises(UsageError, match=r"onnx.*dtipe"):
        run.export("half.onnx", dtipe="float16")
    described = gptkit.load(exported, device="cpu").metadata
    assert (described.dtype, described.step) == ("float16", 2)
    said, found = json.loads(cli("eval", run.path, "--json").stdout), run.evaluate()
    assert said["loss"] == found.loss
    assert said["bits_per_byte"] == found.bits_per_byte


def test_callbacks_of_the_program_run_before_the_log_and_go_on_in_a_resumed_run(
    capfd: pytest.CaptureFixture[str],
) -> None:
    first = gptkit.train(TINY, {"callbacks.log.every": 1}, callbacks=[Note(), Note()], out="notes")
    assert [m["seen"] for m in first.metrics if "loss" in m] == [1, 2, 3, 4]
    again = gptkit.resume(first, {"train.steps": 6}, callbacks=Note())
    assert again == first
    assert [m["seen"] for m in first.metrics if "loss" in m] == [1, 2, 3, 4, 5, 6]
    assert "callbacks changed since the checkpoint: removed Note-2" in capfd.readouterr().err


def test_quiet_shows_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    gptkit.train(TINY, out="loud")
    assert "step 4/4" in capfd.readouterr().err
    gptkit.train(TINY, out="quiet", quiet=True)
    assert capfd.readouterr() == ("", "")


def test_a_checkpoint_is_also_named_by_its_number(run: gptkit.Run) -> None:
    model = gptkit.load(run, checkpoint=2)
    assert model.sample(tokens=9) == run.load(checkpoint="2").sample(tokens=9)
    assert run.evaluate(checkpoint=2).loss == run.evaluate(checkpoint="2").loss
    assert gptkit.load(run.export(checkpoint=2)).metadata.step == 2
    fork = gptkit.train(TINY, {"train.steps": 1}, start=run, checkpoint=2, out="fork", quiet=True)
    assert json.loads((fork.path / "environment.json").read_bytes())["from"]["step"] == 2
    with pytest.raises(RunError, match="no checkpoint 3"):
        gptkit.load(run, checkpoint=3)


def test_a_run_begins_with_the_weights_of_another(run: gptkit.Run) -> None:
    options = {"train.steps": 1, "train.optimizer.learning_rate": 1e-9}
    fork = gptkit.train(TINY, options, start=run, checkpoint="2", out="fork", quiet=True)
    a, b = run.load(checkpoint="2"), fork.load()
    np.testing.assert_allclose(a.logprobs("thou art"), b.logprobs("thou art"), atol=1e-6)


def test_errors_are_gptkits_and_name_the_run_if_there_is_one(run: gptkit.Run) -> None:
    with pytest.raises(RecipeError, match=r"train.stepz: unknown key; did you mean \"steps\"\?"):
        gptkit.train(TINY, {"train.stepz": 3})
    with pytest.raises(RecipeError, match=r"^recipe: train\.stepz: unknown key"):
        gptkit.train({**TINY, "train": {"stepz": 3}})
    with pytest.raises(UsageError, match="train: is a table") as table:
        gptkit.train(TINY, {"train": {"steps": 3}})
    assert table.value.run is None
    with pytest.raises(UsageError, match=r"^callbacks should be a Callback or a list of"):
        gptkit.train(TINY, callbacks=[Note])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="already exists"):
        gptkit.train(TINY, out=run.path)
    with pytest.raises(GptkitError, match="out of order") as failed:
        gptkit.train(TINY, callbacks=[Stop(error=RunError("out of order"))], out="failed")
    assert failed.value.run == gptkit.Run(Path("failed"))
    assert failed.value.run.last.step == 3  # saved first
    with pytest.raises(ZeroDivisionError) as bug:
        gptkit.train(TINY, callbacks=[Stop(error=ZeroDivisionError())], out="bug")
    assert bug.value.__notes__ == [
        "raised by Stop in on_step_end at step 3",
        "step 3 is saved: gptkit resume continues after it",
    ]
    assert not Path("runs").exists()


@pytest.mark.parametrize("overrides", [None, 3, b"train.steps=3", [3], ("train.steps", 3)])
def test_overrides_are_texts_or_values_by_key(overrides: Any, run: gptkit.Run) -> None:
    for call in (gptkit.train, gptkit.trainer):
        with pytest.raises(UsageError, match=r"^overrides should be a list of texts or a dict"):
            call(TINY, overrides)
    with pytest.raises(UsageError, match=r"^overrides should be"):
        gptkit.resume(run, overrides)
    assert not Path("runs").exists()


@pytest.mark.parametrize("value", [None, ["a", None]])
def test_none_is_no_value_of_an_override(value: Any) -> None:
    with pytest.raises(UsageError, match=r"^train\.steps: None is no value of TOML$"):
        gptkit.trainer(TINY, {"train.steps": value})


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.uint64])
def test_token_ids_may_be_integers_of_any_kind(kind: Any, run: gptkit.Run) -> None:
    model, ids = run.load(), np.arange(4)
    ids.flags.writeable = False
    assert (model.logits(ids.astype(kind)) == model.logits(ids)).all()


@pytest.mark.parametrize(
    ("call", "arguments", "said"),
    [
        (gptkit.train, {"recipe": 3}, "recipe should be a text, a path, a Recipe or a dict, got 3"),
        (gptkit.train, {"recipe": None}, "recipe should be a text, a path, a Recipe or a dict"),
        (gptkit.train, {"recipe": TINY, "out": 3}, "out should be a text, a path or None, got 3"),
        (gptkit.train, {"recipe": "a\0b"}, "recipe has a null character"),
        (gptkit.train, {"recipe": {}, "out": "\ud800"}, "out has characters that no path has"),
        (gptkit.load, {"path": Path("x" * 300)}, "path is too long: "),
        (gptkit.train, {"recipe": TINY, "quiet": 1}, "quiet should be True or False, got 1"),
        (gptkit.resume, {"path": ["r"]}, "path should be a text, a path or None, got ['r']"),
        (gptkit.load, {"path": 3}, "path should be a text, a path or None, got 3"),
        (gptkit.load, {"path": "r", "device": None}, "device should be a text, got None"),
        (gptkit.load, {"path": "r", "checkpoint": True}, "checkpoint should be a text or a whole"),
        (gptkit.Run, {"path": 3}, "path should be a text or a path, got 3"),
        (gptkit.trainer, {"recipe": TINY, "data": 3}, "data should be a Data or None, got 3"),
    ],
)
def test_arguments_of_other_types_are_refused_in_words(
    call: Callable[..., Any], arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(said)}"):
        call(**arguments)


@pytest.mark.parametrize("draw", ["sample", "stream"])
@pytest.mark.parametrize(
    ("option", "value", "words"),
    [("tokens", 2.5, "a whole number or None"), ("tokens", True, "a whole number or None"),
     ("seed", "1", "a whole number"), ("temperature", "hot", "a number or None"),
     ("top_k", 0.5, "a whole number"), ("top_p", None, "a number"), ("keep", "all", "a number"),
     ("ignore_stop", 1, "True or False")],
)  # fmt: skip
def test_options_of_samples_of_other_types_are_refused(
    draw: str, option: str, value: object, words: str, run: gptkit.Run
) -> None:
    with pytest.raises(UsageError, match=f"^{option} should be {words}, got "):
        getattr(run.load(), draw)(**{option: value})


def test_a_recipe_in_python_may_have_paths_and_numbers_of_numpy(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("to be or not to be\n" * 40)
    dataset = {**TINY["dataset"], "path": tmp_path / "a.txt", "block_size": np.int64(8)}
    trainer = gptkit.trainer({**TINY, "dataset": dataset, "seed": np.int32(3)})
    assert trainer.model.config.block_size == 8
    for wrong, said in (
        ({3: 1}, "recipe: has a key of the type int; keys are texts"),
        ({**TINY, "seed": {3}}, "recipe: seed: is of the type set, which TOML has not"),
        ({**TINY, "seed": 2**63}, "recipe: seed: is beyond 64 bits"),
        ({**TINY, "dataset": {"use": "caf\udce9"}}, "recipe: dataset.use: is not UTF-8"),
    ):
        with pytest.raises(RecipeError, match=f"^{re.escape(said)}"):
            gptkit.trainer(wrong)


def test_numbers_of_numpy_are_numbers() -> None:
    values = {
        "train.steps": np.int64(3),
        "train.optimizer.learning_rate": np.float32(0.5),
        "train.optimizer.betas": [np.float64(0.5), np.float32(0.25)],
        "model.dropout": np.float64(0.125),
        "model.bias": False,
    }
    trainer = gptkit.trainer(TINY, values)
    options = trainer.options
    assert (options.steps, options.optimizer.learning_rate) == (3, 0.5)
    assert options.optimizer.betas == (0.5, 0.25)
    assert (trainer.model.config.dropout, trainer.model.config.bias) == (0.125, False)


def test_tokens_may_be_written_with_an_exponent() -> None:
    for recipe, overrides in (({**TINY, "train": {"tokens": 1e6}}, ()), (TINY, "train.tokens=1e6")):
        options = gptkit.trainer(recipe, overrides).options
        assert (options.tokens, type(options.tokens)) == (1_000_000, int)
    for wrong in (0.5, float("inf"), float("nan"), -1e6, 0.0, True, "1e6"):
        with pytest.raises(RecipeError, match=r"train\.tokens: should be"):
            gptkit.trainer(TINY, {"train.tokens": wrong})


def test_the_trainer_of_a_recipe_writes_nothing_and_trains_the_same(run: gptkit.Run) -> None:
    trainer = gptkit.trainer(TINY)
    steps = [state.step for state in trainer.steps()]
    assert (steps, list(Path().iterdir())) == ([1, 2, 3, 4], [])
    trained = run.load(engine="torch")
    for name, tensor in trained.model.weights().items():
        assert torch.equal(trainer.model.weights()[name], tensor)


def test_a_sample_ends_at_a_text_at_several_or_at_none(run: gptkit.Run) -> None:
    model = run.load()
    whole = model.sample(tokens=40)
    assert isinstance(whole, str)
    for stop in (None, (), []):
        assert model.sample(tokens=40, stop=stop) == whole
    end = whole[20]
    for stop in (end, [end], (end,)):
        assert model.sample(tokens=40, stop=stop) == whole[: whole.index(end, 1)]
        assert "".join(model.stream(tokens=40, stop=stop)) == whole[: whole.index(end, 1)]


@pytest.mark.parametrize("draw", ["sample", "stream"])
def test_prompts_and_stop_texts_of_other_types_are_refused(draw: str, run: gptkit.Run) -> None:
    call = getattr(run.load(), draw)
    for stop in (5, b"END", [5], ["END", None], {"END": 1}):
        with pytest.raises(UsageError, match=r"^stop should be a text, a list of texts or None"):
            call(stop=stop)
    for prompt in (["the"], b"the", None, Path("the.png")):
        with pytest.raises(UsageError, match=r"^prompt should be a text, got"):
            call(prompt)


def test_a_temperature_below_0_is_refused(cli: Callable[..., Result], run: gptkit.Run) -> None:
    fault = "temperature should be 0 (the likeliest token) or more, and finite, got -1.0"
    with pytest.raises(UsageError, match=re.escape(fault)):
        run.load().sample(temperature=-1.0)
    said = cli("sample", run.path, "--temperature=-1")
    assert (said.exit_code, fault in said.stderr) == (2, True)


# What belongs to the program.


@pytest.fixture
def own_state() -> Iterator[Callable[[], list[Any]]]:
    """The state of the process that a program may rely on, to be compared."""

    def state() -> list[Any]:
        kind, keys, *rest = np.random.get_state()
        return [
            random.getstate(),
            (kind, keys.tolist(), *rest),
            torch.get_rng_state().tolist(),
            [x.tolist() for x in torch.cuda.get_rng_state_all()]
            if torch.cuda.is_available()
            else [],
            torch.get_num_threads(),
            [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        ]

    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    return state


class Careless(Callback):
    """Changes what belongs to the program."""

    contract = 1

    def on_step_end(self, state: TrainState) -> None:
        random.seed(7)
        np.random.seed(7)
        torch.manual_seed(7)
        torch.set_num_threads(torch.get_num_threads() + 1)


def test_random_numbers_threads_and_signal_handlers_stay_the_programs(
    own_state: Callable[[], list[Any]],
) -> None:
    before = own_state()
    run = gptkit.train(TINY, callbacks=[Careless()], out="run", quiet=True)
    assert own_state() == before
    gptkit.resume(run, {"train.steps": 5}, quiet=True)
    assert own_state() == before
    with pytest.raises(RunError):
        gptkit.train(TINY, callbacks=[Careless(), Stop(error=RunError(""))], out="b", quiet=True)
    assert own_state() == before
    run.load().sample(tokens=3)
    run.evaluate()
    run.export()
    gptkit.trainer(TINY)
    assert own_state() == before


def test_training_works_in_another_thread(run: gptkit.Run) -> None:
    found: list[gptkit.Run] = []

    def train() -> None:
        found.append(gptkit.train(TINY, out="thread", quiet=True))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert [weights(trained) for trained in found] == [weights(run)]


class CtrlC(Callback):
    """Presses Ctrl-C at step 3."""

    contract = 1
    times: int = 1

    def on_step_end(self, state: TrainState) -> None:
        for _ in range(self.times if state.step == 3 else 0):
            signal.raise_signal(signal.SIGINT)


def test_the_second_ctrl_c_ends_training_at_once(own_state: Callable[[], list[Any]]) -> None:
    before = own_state()
    with pytest.raises(KeyboardInterrupt):
        gptkit.train(TINY, callbacks=[CtrlC(times=2)], out="twice", quiet=True)
    assert own_state() == before
    last = gptkit.Run(Path("twice")).last
    assert last and last.step == 2


def test_a_handler_of_the_programs_own_is_not_replaced() -> None:
    pressed: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda signum, frame: pressed.append(signum))
    try:
        run = gptkit.train(TINY, callbacks=[CtrlC()], out="own", quiet=True)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert (pressed, run.last and run.last.step) == ([signal.SIGINT], 4)


SCRIPT = """
import signal
import gptkit
from gptkit.plugin import Callback

class Tell(Callback):
    def on_step_end(self, state):
        print("step", flush=True)

try:
    gptkit.train({recipe}, callbacks=[Tell()], out="stopped", quiet=True)
except gptkit.GptkitError as error:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    print(type(error).__name__, error.run.path, error.run.last.step, error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a process gets no SIGINT there")
def test_ctrl_c_in_a_script_leaves_a_run(tmp_path: Path) -> None:
    endless = {**TINY, "train": {**TINY["train"], "steps": 10**6, "eval_every": 10**6}}
    (tmp_path / "script.py").write_text(SCRIPT.format(recipe=endless), encoding="utf-8")
    command = [sys.executable, "script.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "step\n"
        process.send_signal(signal.SIGINT)
        *steps, told = process.stdout.read().splitlines()
    assert process.returncode == 0
    step = len(steps) + 1
    assert told == f"StoppedError stopped {step} stopped by SIGINT at step {step}, checkpoint saved"
    assert gptkit.resume("stopped", {"train.steps": step + 1}, quiet=True).last


def test_the_data_set_of_a_recipe_needs_no_callbacks(tiny_recipe: Callable[..., Path]) -> None:
    recipe = tiny_recipe(callbacks=[{"use": "of-somebody-else"}])
    found = gptkit.dataset(recipe, {"dataset.block_size": 7})
    assert found.block_size == 7
    assert found.load().block_size == 7
    with pytest.raises(gptkit.RecipeError, match="did you mean"):
        gptkit.dataset(recipe, "dataset.block_sise=7")
