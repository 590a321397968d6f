import math
import os
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from gptkit.errors import GptkitError, Problem, RecipeError, UsageError
from gptkit.recipe import build, recipe
from gptkit.recipe.overriding import HINT
from gptkit.recipe.recipe import Recipe

SMALLEST = '[dataset]\nuse = "char-text"\n'
TWO_DECAYS = """
seed = 3
[dataset]
use = "char-text"
[[callbacks]]
use = "lr-decay"
[[callbacks]]
use = "grad-clip"
[[callbacks]]
use = "lr-decay"
"""

Read = Callable[..., Recipe]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads a text, as if it stood in r.toml."""

    def call(text: str, overrides: Sequence[str] = (), **options: Any) -> Recipe:
        path = tmp_path / "r.toml"
        path.write_text(text, encoding="utf-8")
        return recipe.read(path, overrides, **options)

    return call


@pytest.fixture
def problems(read: Read) -> Callable[..., dict[str, str]]:
    """What is wrong with a text: the fault by place."""

    def call(text: str, overrides: Sequence[str] = ()) -> dict[str, str]:
        with pytest.raises(RecipeError) as caught:
            read(text, overrides)
        return {problem.place: problem.fault for problem in caught.value.problems}

    return call


def test_the_smallest_recipe_gets_every_default(read: Read) -> None:
    found = read(SMALLEST)
    assert found.dataset.use == "char-text"
    assert (found.seed, found.train.steps, found.model.n_layer) == (1337, 1000, 6)
    assert found.callbacks == ()


FULL = {
    "seed": 2**63 - 1,
    "dataset": {"use": "own", "title": 'Ω "quoted"\n\\', "sizes": [1, 2],
                "deep": {"a": [{"b": 1}]}},
    "model": {"preset": "gpt-nano", "n_head": 4, "n_kv_head": 2, "n_inner": 7, "mlp": "swiglu",
              "norm": "rmsnorm", "position": "rotary", "embed_norm": True, "qk_norm": True,
              "head_dim": 6, "norm_eps": 1e-6, "rope_theta": 1e6, "qk_norm_scale": True,
              "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.5,
                               "high_freq_factor": 4.5, "original_max_position_embeddings": 9},
              "window": 5, "window_pattern": "SSL", "qkv_bias": True, "logit_softcap": 15.0,
              "bias": False, "tie_embeddings": False, "dropout": 0.25,
              "checkpoint": "last", "freeze": ["wte", "h.0-1"]},
    "train": {"steps": 7, "batch_size": 6, "micro_batch_size": 3,
              "recompute": True, "shard": False, "eval_every": 3, "eval_batches": 2,
              "save_every": 5, "keep": 9,
              "device": "cuda:3", "dtype": "bfloat16", "compile": True,
              "optimizer": {"use": "muon", "learning_rate": 1e-7, "muon_learning_rate": 1 / 3,
                            "muon_momentum": 0.5, "betas": [0.0, 0.999], "weight_decay": 0.0}},
    "callbacks": [{"use": "a", "on_error": "warn"}, {"use": "b", "on_error": "stop", "x": 0.1},
                  {"use": "a", "on_error": "stop", "y": False}],
}  # fmt: skip


@pytest.mark.parametrize("text", [SMALLEST, TWO_DECAYS, tomli_w.dumps(FULL)])
def test_what_is_written_reads_back_equal(read: Read, text: str) -> None:
    found = read(text)
    assert read(found.to_toml()) == found
    assert read(found.to_toml()).to_toml() == found.to_toml()


def test_nothing_that_was_written_gets_lost(read: Read) -> None:
    again = tomllib.loads(read(tomli_w.dumps(FULL)).to_toml())
    assert again == FULL | {"model": {"n_layer": 3, "n_embd": 48} | FULL["model"]}


def test_every_problem_comes_at_once_with_its_place(problems: Callable[..., Any]) -> None:
    text = """
sed = 3
seed = -1
[dataset]
path = "x"
[model]
n_layers = 3
norm = "batchnorm"
[train]
stpes = 4
qqqqqqqq = 4
steps = "many"
[train.optimizer]
use = "adamw"
learning_rat = 1
learning_rate = 0
betas = [0.9]
muon_momentum = 0.9
[[callbacks]]
use = "grad-clip"
on_error = "go on"
[[callbacks]]
max = 1
[[callbacks]]
use = ""
"""
    found = problems(text)
    unknown = found.pop("train.qqqqqqqq")
    assert unknown.startswith("unknown key; known: batch_size, compile, ")
    assert unknown.endswith("steps, tokens")
    assert found == {
        "train.steps": "should be a whole number, got 'many'",
        "sed": 'unknown key; did you mean "seed"?',
        "seed": "should be at least 0, got -1",
        "dataset.use": "is required",
        "model.n_layers": 'unknown key; did you mean "n_layer"?',
        "model.norm": "should be 'layernorm' or 'rmsnorm', got 'batchnorm'",
        "train.stpes": 'unknown key; did you mean "steps"?',
        "train.optimizer.learning_rat": 'unknown key; did you mean "learning_rate"?',
        "train.optimizer.learning_rate": "should be greater than 0, got 0",
        "train.optimizer.betas[1]": "is required",
        "train.optimizer.muon_momentum": 'is an option of "muon"; remove it, or set use = "muon"',
        "callbacks[0].on_error": "should be 'stop' or 'warn', got 'go on'",
        "callbacks[1].use": "is required",
        "callbacks[2].use": "is empty",
    }


def test_the_plugins_problems_stand_beside_the_cores(read: Read) -> None:
    def check(kind: str, spec: recipe.PluginSpec, place: str) -> list[Problem]:
        return [Problem(place, f"{kind} {spec.use} {spec.options}", f"hint for {kind}s")]

    text = 'callbacks = [{use = "a"}, 3, {use = ""}, {use = "b", x = 1}]\n' + SMALLEST
    with pytest.raises(RecipeError) as caught:
        read(text, ["train.steps=0"], check=check)
    assert [problem.place for problem in caught.value.problems] == [
        "train.steps", "callbacks[1]", "callbacks[2].use", "dataset", "callbacks[0]", "callbacks[3]"
    ]  # fmt: skip
    assert caught.value.problems[-1].fault == "callback b {'x': 1}"
    lines = str(caught.value).splitlines()
    assert len(lines) == 6
    assert lines[0] == "--set train.steps: should be greater than 0, got 0"
    assert all("r.toml: " in line for line in lines[1:])
    assert caught.value.hint == "hint for datasets\nhint for callbacks"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "dataset"),
        ("dataset = 3", "dataset"),
        ("[dataset]\nuse = 3", "dataset.use"),
        (f"model = 3\n{SMALLEST}", "model"),
        (f"callbacks = 3\n{SMALLEST}", "callbacks"),
        (f"callbacks = [3]\n{SMALLEST}", "callbacks[0]"),
        (f"seed = 1.5\n{SMALLEST}", "seed"),
        (f"seed = true\n{SMALLEST}", "seed"),
        (f"[train.optimizer]\nbetas = 0.9\n{SMALLEST}", "train.optimizer.betas"),
        (f"[train]\noptimizer = 3\n{SMALLEST}", "train.optimizer"),
        (f"[train.optimizer]\nuse = 3\n{SMALLEST}", "train.optimizer.use"),
        (f"[model]\nn_head = {{a = 1}}\n{SMALLEST}", "model.n_head"),
        (f"seed = 9223372036854775808\n{SMALLEST}", "seed"),
    ],
)
def test_the_wrong_shape_is_named(problems: Callable[..., Any], text: str, place: str) -> None:
    assert list(problems(text)) == [place]


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("train.steps=7", "train.steps", 7),
        (" train.steps = 7 ", "train.steps", 7),
        ("seed=4", "seed", 4),
        ("train.optimizer.learning_rate=1e-2", "train.optimizer.learning_rate", 0.01),
        ("train.optimizer.betas=[0.8, 0.9]", "train.optimizer.betas", (0.8, 0.9)),
        ("train.optimizer.use=muon", "train.optimizer.use", "muon"),
        ("callbacks.grad-clip.on_error=warn", "callbacks.1.on_error", "warn"),
        ("train.compile=false", "train.compile", False),
        ("train.compile=auto", "train.compile", "auto"),
        ('train.device="cuda:1"', "train.device", "cuda:1"),
        ("dataset.use=other", "dataset.use", "other"),
        ("dataset.source=two words", "dataset.source", "two words"),
        ("dataset.path=a=b.txt", "dataset.path", "a=b.txt"),
        ('dataset.path=""', "dataset.path", ""),
        ("dataset.path='007'", "dataset.path", "007"),
        ("dataset.deep.er=1", "dataset.deep", {"er": 1}),
        ("callbacks.grad-clip.max_norm=0.5", "callbacks.1.max_norm", 0.5),
        ("callbacks.1.max_norm=0.5", "callbacks.1.max_norm", 0.5),
        ("callbacks[2].decay=linear", "callbacks.2.decay", "linear"),
        ("callbacks[0].use=log", "callbacks.0.use", "log"),
        ("callbacks=[]", "callbacks", ()),
    ],
)
def test_set_reaches_every_field(read: Read, override: str, place: str, value: object) -> None:
    found: Any = read(TWO_DECAYS, [override])
    for part in place.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("2024", "2024"), ("1e5", "1e5"), ("true", "true"), ("[1, 2]", "[1, 2]"), ("a#b", "a#b"),
     ("2024-01-01", "2024-01-01"), ("inf", "inf"), ("'7'", "7"), ("0x1f", "0x1f"),
     ("9" * 30, "9" * 30), ("{a = 1}", "{a = 1}")],
)  # fmt: skip
def test_a_set_is_read_by_the_type_of_its_field(text: str, value: str, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(SMALLEST + '[[callbacks]]\nuse = "log"\n')
    found = build.read(recipe, [f"dataset.path={text}", "callbacks.log.sample_seed=3"])
    assert build.build(found).dataset.path == Path(value).absolute()  # type: ignore[attr-defined]
    assert found.callbacks[0].options == {"sample_seed": 3}
    assert build.read(recipe, [f"dataset.path={value!r}"]).dataset.options["path"] == value


def test_an_empty_set_is_refused(read: Read) -> None:
    for text in ("", " "):
        with pytest.raises(UsageError, match=r"^--set dataset\.path: is empty$"):
            read(SMALLEST, [f"dataset.path={text}"])


def test_what_a_set_makes_wrong_names_the_set_and_what_the_file_has_wrong_the_file(
    read: Read,
) -> None:
    text = SMALLEST + "[model]\nn_embd = 10\nn_head = 3\n[train]\nsteps = 0\n"
    with pytest.raises(RecipeError) as caught:
        read(text, ["model.bias=true", "train.keep=no", "train={eval_every = 0}", "sed=1"])
    lines = [line.partition("/r.toml: ")[2] or line for line in str(caught.value).splitlines()]
    assert lines == [
        "model: n_embd 10 should be divisible by n_head 3",
        "--set train: train.eval_every: should be greater than 0, got 0",
        '--set sed: unknown key; did you mean "seed"?',
    ]
    with pytest.raises(RecipeError, match=r"^--set model\.n_head: model: n_embd 384 should be"):
        read(SMALLEST, ["model.n_head=5"])


def test_another_optimizer_drops_what_only_the_recipes_takes(read: Read) -> None:
    muon = SMALLEST + '[train.optimizer]\nuse = "muon"\nmuon_momentum = 0.5\nweight_decay = 0.3\n'
    optimizer = read(muon, ["train.optimizer.use=adamw"]).train.optimizer
    assert (optimizer.use, optimizer.weight_decay) == ("adamw", 0.3)
    with pytest.raises(RecipeError, match=r"^--set train\.optimizer\.muon_momentum: is an option"):
        read(muon, ["train.optimizer.use=adamw", "train.optimizer.muon_momentum=0.1"])


def test_a_later_set_wins_over_an_earlier_one(read: Read) -> None:
    found = read(SMALLEST, ["train.steps=1", "train={keep=3}", "train.steps=2"])
    assert (found.train.steps, found.train.keep) == (2, 3)


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("train.steps", "not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("train..steps=3", "not of the form key=value"),
        ("train steps=3", "not of the form key=value"),
        ("seed.x=1", "seed is no table"),
        ("seed.x.y=1", "seed is no table"),
        ("callbacks[1]=1", "callbacks[1] is not an option"),
        ("callbacks.log.every=1", '"log" is not in the recipe'),
        ("callbacks[3].x=1", '"3" is not in the recipe'),
        ("callbacks.lr-decay.x=1", '"lr-decay" appears twice; address it by position'),
    ],
)
def test_a_set_that_makes_no_sense_is_refused(read: Read, override: str, fault: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(TWO_DECAYS, [override])
    assert str(caught.value) == f"--set {override}: {fault}"
    in_recipe = "callbacks in the recipe: lr-decay, grad-clip, lr-decay"
    assert caught.value.hint in (in_recipe, HINT)
    assert (caught.value.hint == in_recipe) == override.startswith(("callbacks.", "callbacks[3]"))


def test_a_set_of_an_unknown_key_names_the_closest(problems: Callable[..., Any]) -> None:
    assert problems(SMALLEST, ["train.stpes=3", "trian.steps=3"]) == {
        "train.stpes": 'unknown key; did you mean "steps"?',
        "trian": 'unknown key; did you mean "train"?',
    }


def test_the_flat_fields_are_the_keys_of_set(read: Read) -> None:
    text = TWO_DECAYS.replace('use = "grad-clip"', 'use = "grad-clip"\nmax_norm = 2.0')
    fields = read(text, ["dataset.path=x", "model.preset=gpt-nano"]).flat()
    assert fields["callbacks.grad-clip.max_norm"] == 2.0
    assert (fields["seed"], fields["dataset.path"], fields["model.n_embd"]) == (3, "x", 48)
    literals = {key: tomli_w.dumps({"value": value}) for key, value in fields.items()}
    overrides = [f"{k}={text.partition('=')[2].strip()}" for k, text in literals.items()]
    assert read(text, overrides) == read(text, ["dataset.path=x", "model.preset=gpt-nano"])


def test_the_flat_fields_tell_callbacks_of_one_name_apart(read: Read) -> None:
    found = read(TWO_DECAYS, ["callbacks[0].warmup_steps=5", "callbacks[2].warmup_steps=7"])
    warmups = [v for k, v in found.flat().items() if k.endswith(".warmup_steps")]
    assert sorted(warmups) == [5, 7]


def test_an_unknown_preset_is_refused_with_the_known_ones(problems: Callable[..., Any]) -> None:
    assert "'gpt2-xl'" in problems(SMALLEST, ["model.preset=gpt3"])["model.preset"]
    assert "'gpt2-xl'" in problems(SMALLEST, ["model.preset=3"])["model.preset"]


@pytest.mark.parametrize(
    ("overrides", "place", "said"),
    [
        (["model.n_embd=10", "model.n_head=3"], "model",
         "n_embd 10 should be divisible by n_head 3"),
        (["train.batch_size=4", "train.micro_batch_size=3"], "train",
         "batch_size 4 should be a multiple of micro_batch_size 3"),
        (["train.optimizer.betas=[0.9, 1.0]"], "train.optimizer",
         "betas should be below 1, got [0.9, 1.0]"),
        (["train.optimizer.betas=[-0.1, 0.9]"], "train.optimizer.betas[0]",
         "should be at least 0"),
        (["train.optimizer.use=sgd"], "train.optimizer.use",
         "should be 'adamw' or 'muon', got 'sgd'"),
        (["train.optimizer.learning_rate=inf"], "train.optimizer.learning_rate",
         "should be a finite number"),
        (["model.dropout=1.0"], "model.dropout", "should be less than 1"),
        (["model.mlp=elu"], "model.mlp", "should be 'gelu', 'gelu_tanh', 'relu2' or 'swiglu'"),
        (["train.device=gpu"], "train.device",
         "should be auto, cpu, mps, cuda or cuda:N, got 'gpu'"),
    ],
)  # fmt: skip
def test_a_limit_is_named_with_its_place(
    problems: Callable[..., Any], overrides: list[str], place: str, said: str
) -> None:
    found = problems(SMALLEST, overrides)
    assert list(found) == [place]
    assert said in found[place]


def test_a_syntax_error_names_its_line(problems: Callable[..., Any]) -> None:
    assert "line 3" in problems("seed = 1\n[dataset]\nuse = char-text\n")[""]


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("use = “log”", "U+201C in it is LEFT DOUBLE QUOTATION MARK: delete it or type it anew"),
        ("use\u00a0= 1", "U+00A0 in it is NO-BREAK SPACE: delete it or type it anew"),
        ("use = 1\0", "U+0000 in it is a control character: delete it or type it anew"),
        (r'path = "C:\Users\me"', "in double quotes \\ has a meaning of its own: put a path in"),
        ("bias = True", "write true, in small letters"),
        ("path = None", "leave the line out"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_toml_is_shown_with_what_was_meant(
    tmp_path: Path, line: str, meant: str
) -> None:
    path = tmp_path / "r.toml"
    path.write_text(f"seed = 1\r\n{line}\r\n", encoding="utf-8", newline="")
    with pytest.raises(UsageError) as caught:
        recipe.read(path)
    assert "(at line 2, column " in str(caught.value)
    shown, said = (caught.value.hint or "").split("\n")
    assert shown.startswith("line 2 is: ") and line[:3] in shown
    assert said.startswith(meant)


def test_a_missing_file_names_the_closest(tmp_path: Path) -> None:
    (tmp_path / "shakespeare.toml").write_text(SMALLEST)
    with pytest.raises(UsageError) as caught:
        recipe.read(tmp_path / "shakespear.toml")
    assert str(caught.value) == f"{tmp_path / 'shakespear.toml'}: no such recipe"
    assert caught.value.hint == f'did you mean "{tmp_path / "shakespeare.toml"}"?'
    with pytest.raises(UsageError, match="no such recipe"):
        recipe.read(tmp_path / "no folder" / "x.toml")


@pytest.mark.parametrize(
    ("contents", "fault", "hint"),
    [
        (b"\xff\xfes\0", "cannot be read: it is UTF-16, not UTF-8", "iconv -f UTF-16 -t UTF-8 "),
        ("a = 1".encode("utf-32"), "cannot be read: it is UTF-32", "iconv -f UTF-32 -t UTF-8 "),
        (b"PK\3\4\xff\0", "cannot be read: it is not UTF-8: bad byte 0xff", "name a TOML file"),
        (b"a = '\xe9'", "cannot be read: it is not UTF-8: bad byte 0xe9 at offset 5", "LATIN1"),
        (b"#" * (1 << 20 | 1), "cannot be read: is larger than 1,048,576 bytes", ""),
        (b"a = " + b"[" * 100_000, "is nested too deeply", ""),
        (b"a = " + b"[" * 40 + b"]" * 40, "a: is nested too deeply", ""),
        (b"a" + b".a" * 100_000 + b" = 1", "not valid TOML: a key of 1,000 parts", ""),
        (b"a = {" + b"a." * 50_000 + b"a = 1}", "not valid TOML: a key of 1,000 parts", ""),
        (b"a = " + b"9" * 5000, "not valid TOML: a whole number beyond 64 bits", ""),
        (b"a = 0x" + b"f" * 5000, "a: is beyond 64 bits, in which TOML has whole numbers", ""),
        (b"[callbacks]\n[[callbacks]]", "not valid TOML: Cannot overwrite a value", ""),
        (b"[callbacks]\n[callbacks]", "not valid TOML: Cannot declare [callbacks] twice", "[[call"),
        (b"a = 1\n" * 2, "not valid TOML: Cannot overwrite a value", ""),
    ],
)
def test_a_hostile_text_is_refused_at_once_in_a_short_line(
    tmp_path: Path, contents: bytes, fault: str, hint: str
) -> None:
    path = tmp_path / "r.toml"
    path.write_bytes(contents)
    with pytest.raises(UsageError) as caught:
        recipe.read(path)
    assert str(caught.value).startswith(f"{path}: {fault}")
    assert len(str(caught.value)) < 300
    assert hint in (caught.value.hint or "")


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(SMALLEST, encoding="utf-8-sig")
    assert recipe.read(tmp_path / "r.toml").dataset.use == "char-text"


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "r.toml")
    for path in (tmp_path / "r.toml", Path("/dev/zero")):
        with pytest.raises(UsageError, match=r"cannot be read: .*not a regular file"):
            recipe.read(path)


@pytest.mark.parametrize("text", ['callbacks = ["log"]', '[callbacks]\nuse = "log"'])
def test_callbacks_that_are_no_list_of_tables_are_told_of_the_brackets(
    problems: Callable[..., Any], text: str
) -> None:
    ((place, fault),) = problems(f"{text}\n{SMALLEST}").items()
    assert place.startswith("callbacks")
    assert fault.endswith("; write [[callbacks]], with two brackets, and use = NAME below")


def test_a_broken_recipe_of_thousands_of_lines_has_a_short_error(read: Read) -> None:
    lines = "".join(f"k{i} = 1\n" for i in range(20_000))
    with pytest.raises(RecipeError) as caught:
        read(lines + SMALLEST)
    assert len(str(caught.value).splitlines()) == 21
    assert str(caught.value).endswith("r.toml: has more problems")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"a = '\xe9'")
    for path in (tmp_path, tmp_path / "latin.toml", tmp_path / "latin.toml" / "below"):
        with pytest.raises(GptkitError, match=r"cannot be read|no such") as caught:
            recipe.read(path)
        assert caught.value.exit_code == 2


def test_a_recipe_cannot_be_changed(read: Read) -> None:
    found = read(SMALLEST)
    with pytest.raises(ValueError, match="frozen"):
        found.seed = 2  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        found.train.optimizer.learning_rate = math.pi  # type: ignore[misc]
    found.dataset.options["path"] = "elsewhere"
    assert "path" not in found.dataset.options
