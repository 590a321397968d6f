"""[lora]: what is trained, saved, resumed, merged and exported; PEFT is the referee."""

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import Result

import gptkit
from gptkit.errors import ExportError, RecipeError, UsageError
from gptkit.model import initial
from gptkit.model.gpt import GPT
from gptkit.model.lora import adapted
from gptkit.recipe import adapters, sizes, training_memory, tuning
from gptkit.recipe import recipe as recipe_file
from gptkit.recipe.options import GPTConfig, LoraOptions, ModelTable, TrainOptions
from gptkit.runs import merge_proof
from gptkit.runs.loaded import load_checkpoint
from gptkit.training.merging import merged
from tests.conftest import TINY

Command = Callable[..., Result]
TinyRecipe = Callable[..., Path]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, for PEFT

LLAMA: dict[str, Any] = {
    "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32, "norm": "rmsnorm",
    "position": "rotary", "mlp": "swiglu", "bias": False,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen3, gate and up are one": LLAMA | {"mlp": "relu2", "qk_norm": True},
    "arcee": LLAMA | {"mlp": "relu2"},
    "gpt2": {"n_layer": 2, "n_head": 4, "n_embd": 32, "mlp": "gelu_tanh"},
}
"""Models that transformers has, too."""
PAGE = Path(__file__).parents[1] / "docs/finetuning.md"
OTHER = {"n_layer": 1, "n_head": 2, "n_embd": 16, "qk_norm": True}
"""A model that transformers does not have."""
one_model = pytest.mark.parametrize("trained", ["llama"], indirect=True)
CALLBACKS = [{"use": "ema", "decay": 0.5}, {"use": "log", "every": 1, "sample_tokens": 0}]
LAST = Path("checkpoints/last")


def recipe_of(model: Mapping[str, Any], **lora: Any) -> dict[str, Any]:
    return TINY | {"model": dict(model), "callbacks": CALLBACKS, "lora": {"rank": 3} | lora}


def trained_base(folder: Path, model: Mapping[str, Any]) -> Path:
    """A run of the plain model, whose weights are then far from where they began."""
    recipe = TINY | {"model": dict(model), "callbacks": []}
    return gptkit.train(recipe, {"train.steps": 2}, out=folder / "base", quiet=True).path


@pytest.fixture(scope="module", params=MODELS, ids=str)
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cache: Path
) -> tuple[str, Path, Path]:
    """The name of a model, a run of it, and a run of four steps that trains adapters beside it."""
    folder = tmp_path_factory.mktemp("lora")
    base = trained_base(folder, MODELS[request.param])
    recipe = recipe_of(MODELS[request.param], rank=3, alpha=12.0, dropout=0.1)
    recipe["train"] = recipe["train"] | {"optimizer": {"use": "adamw", "learning_rate": 0.02}}
    run = gptkit.train(recipe, start=base, out=folder / "r", quiet=True).path
    return request.param, base, run


def config_of(model: Mapping[str, Any]) -> GPTConfig:
    return GPTConfig.model_validate({"vocab_size": 65, "block_size": 32} | dict(model))


def transformers_model(config: GPTConfig, weights: Mapping[str, Tensor]) -> Any:
    """The model of transformers with the weights of one of ours."""
    hf = pytest.importorskip("transformers")
    shared = {
        "vocab_size": config.vocab_size, "num_hidden_layers": config.n_layer,
        "hidden_size": config.n_embd, "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads, "intermediate_size": config.inner_size,
        "head_dim": config.head_size, "max_position_embeddings": config.block_size,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }  # fmt: skip
    if config.norm == "layernorm":
        model = hf.GPT2LMHeadModel(hf.GPT2Config(
            n_layer=config.n_layer, n_head=config.n_head, n_embd=config.n_embd,
            vocab_size=config.vocab_size, n_positions=config.block_size,
        ))  # fmt: skip
        found = of_gpt2(config, weights)
    else:
        if config.mlp == "swiglu":
            model = hf.LlamaForCausalLM(hf.LlamaConfig(**shared))
        elif config.qk_norm:
            model = hf.Qwen3ForCausalLM(hf.Qwen3Config(**shared, hidden_act="relu"))
        else:
            model = hf.ArceeForCausalLM(hf.ArceeConfig(**shared, hidden_act="relu2"))
        found = of_llama(config, weights)
    result = model.load_state_dict(found, strict=False)
    assert not result.unexpected_keys
    assert set(result.missing_keys) <= {"lm_head.weight"}
    model.tie_weights()
    return model.eval()


def of_gpt2(config: GPTConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = {"attn.qkv": "attn.c_attn", "attn.proj": "attn.c_proj", "mlp.up": "mlp.c_fc",
             "mlp.proj": "mlp.c_proj"}  # fmt: skip
    found = {}
    for name, tensor in weights.items():
        theirs = name.replace("position.wpe", "wpe")
        for ours, its in names.items():
            if f".{ours}.weight" in name:
                tensor = tensor.T  # Conv1D
            theirs = theirs.replace(f".{ours}.", f".{its}.")
        found[f"transformer.{theirs}"] = tensor.contiguous()
    return found


def of_llama(config: GPTConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {"model.embed_tokens.weight": weights["wte.weight"],
             "model.norm.weight": weights["ln_f.weight"]}  # fmt: skip
    for i in range(config.n_layer):
        ours, its = f"h.{i}", f"model.layers.{i}"
        found[f"{its}.input_layernorm.weight"] = weights[f"{ours}.ln_1.weight"]
        found[f"{its}.post_attention_layernorm.weight"] = weights[f"{ours}.ln_2.weight"]
        qkv = weights[f"{ours}.attn.qkv.weight"].split(config.qkv_sizes)
        for part, tensor in zip("qkv", qkv, strict=True):
            found[f"{its}.self_attn.{part}_proj.weight"] = tensor
        found[f"{its}.self_attn.o_proj.weight"] = weights[f"{ours}.attn.proj.weight"]
        up = weights[f"{ours}.mlp.up.weight"]
        gate, up = up.chunk(2) if config.mlp == "swiglu" else (up, up)
        found[f"{its}.mlp.up_proj.weight"] = up
        if config.mlp == "swiglu" or config.qk_norm:
            found[f"{its}.mlp.gate_proj.weight"] = gate
        found[f"{its}.mlp.down_proj.weight"] = weights[f"{ours}.mlp.proj.weight"]
        if config.qk_norm:
            for norm in ("q_norm", "k_norm"):
                found[f"{its}.self_attn.{norm}.weight"] = torch.ones(config.head_size)
    return found


def tokens_of(config: GPTConfig) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(config.vocab_size, (3, config.block_size), generator=generator)


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max())


# PEFT


@torch.no_grad()
def test_peft_opens_the_adapters_and_computes_the_same(trained: tuple[str, Path, Path]) -> None:
    peft = pytest.importorskip("peft")
    _, _, run = trained
    ours = load_checkpoint(run, device="cpu").model
    tokens = tokens_of(ours.config)
    expected = ours.logits(tokens)
    base = transformers_model(ours.config, load_file(run / "base.safetensors"))
    before = base(tokens).logits
    model = peft.PeftModel.from_pretrained(base, run / LAST).eval()
    assert difference(expected, model(tokens).logits) < 1e-5
    assert difference(expected, model.merge_and_unload()(tokens).logits) < 1e-5
    assert difference(expected, before) > 1e-3  # the adapters do something


def with_adapters(config: GPTConfig, lora: LoraOptions, seed: int = 0) -> GPT:
    """A model whose adapters are random, the second matrices, too."""
    model = GPT(config, seed=seed, linear=adapted(config, lora))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
            parameter.requires_grad_(adapters.is_adapter(name))
    return model


@pytest.mark.parametrize("name", ["llama", "arcee", "gpt2"])
@pytest.mark.parametrize("targets", [None, ("attn.k", "mlp.up"), ("attn.proj",)], ids=str)
def test_peft_trains_the_same_from_step_to_step(
    name: str, targets: tuple[str, ...] | None, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    if name == "gpt2" and targets:
        targets = tuple(target.replace("attn.k", "attn.qkv") for target in targets)
    config = config_of(MODELS[name])
    lora = LoraOptions(rank=3, alpha=5.0, targets=targets)
    model = with_adapters(config, lora)
    own = {n: p.detach() for n, p in model.named_parameters() if adapters.is_adapter(n)}
    save_file(adapters.to_peft(config, lora, own), tmp_path / "adapter_model.safetensors")
    about = json.dumps(adapters.peft_config(config, lora))
    (tmp_path / "adapter_config.json").write_text(about)
    plain = {n: p for n, p in model.weights().items() if not adapters.is_adapter(n)}
    theirs = peft.PeftModel.from_pretrained(
        transformers_model(config, plain), tmp_path, is_trainable=True
    )
    trained = {n: p for n, p in theirs.named_parameters() if p.requires_grad}
    names = adapters.peft_names(config, lora)
    assert len(trained) == sum(map(len, names.values()))
    tokens = tokens_of(config)
    x, y = tokens[:, :-1], tokens[:, 1:]
    rates = {"lr": 0.5}
    ours = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], **rates)
    other = torch.optim.SGD(trained.values(), **rates)
    losses = []
    for _ in range(4):
        loss = model(x, y)
        logits = theirs(x).logits
        its = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
        assert loss.item() == pytest.approx(its.item(), rel=1e-5)
        ours.zero_grad()
        other.zero_grad()
        loss.backward()
        its.backward()
        for own_name, (their_name,) in names.items():
            mine = model.get_parameter(own_name).grad
            found = trained[their_name.replace(".weight", ".default.weight")].grad
            assert mine is not None
            assert found is not None
            assert difference(found, mine) < 1e-4, own_name
        ours.step()
        other.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_adapters_begin_as_those_of_peft() -> None:
    rows = initial.rows("h.0.attn.qkv.q.lora_A.weight", (64, 400), n_layer=2, seed=1)
    assert rows.abs().max() <= 1 / math.sqrt(400)
    assert rows.std() == pytest.approx(1 / math.sqrt(3 * 400), rel=0.02)
    part = initial.rows(
        "h.0.attn.qkv.q.lora_A.weight", (64, 400), n_layer=2, seed=1, first=9, last=31
    )
    assert part.equal(rows[9:31])
    assert not initial.rows("h.0.attn.qkv.q.lora_B.weight", (64, 8), n_layer=2, seed=1).any()
    config, lora = config_of(LLAMA), LoraOptions(rank=3)
    tokens = tokens_of(config)
    with torch.no_grad():
        plain, model = GPT(config), GPT(config, linear=adapted(config, lora))
        assert model.logits(tokens).equal(plain.logits(tokens))


@torch.no_grad()
@pytest.mark.parametrize("shape", [*MODELS.values(), OTHER], ids=str)
def test_merged_weights_compute_the_same(shape: dict[str, Any]) -> None:
    config = config_of(shape)
    for targets in (None, tuple(adapters.known(config))[1:2]):
        model = with_adapters(config, LoraOptions(rank=2, targets=targets))
        plain = GPT(config, seed=None)
        plain.load_weights(merged(model, model.weights()))
        tokens = tokens_of(config)
        assert difference(model.logits(tokens), plain.logits(tokens)) < 1e-5


# What is trained and saved


def weights(run: Path, name: str = "model", step: str = "last") -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / step / f"{name}.safetensors")


def test_only_adapters_are_trained_and_the_weights_are_merged(
    trained: tuple[str, Path, Path],
) -> None:
    _, base, run = trained
    before, kept, after = weights(base), load_file(run / "base.safetensors"), weights(run)
    assert all(tensor.equal(before[name]) for name, tensor in kept.items())
    assert kept.keys() == before.keys() == after.keys()
    linear = (".attn.qkv.weight", ".attn.proj.weight", ".mlp.up.weight", ".mlp.proj.weight")
    for name, tensor in after.items():
        assert tensor.equal(before[name]) != name.endswith(linear), name
    names = {key.rpartition(":")[0] for key in weights(run, "optimizer")} - {"generator"}
    state = json.loads((run / LAST / "state.json").read_text())
    config = GPTConfig.model_validate_json(json.dumps(state["config"]))
    lora = LoraOptions.model_validate_json(json.dumps(state["lora"]))
    assert names == adapters.parameter_shapes(config, lora).keys()
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        "adapter_model.ema.safetensors",
    } <= (state["sha256"].keys())


@one_model
def test_a_set_of_weights_is_merged_from_its_own_adapters(trained: tuple[str, Path, Path]) -> None:
    _, _, run = trained
    merged_, average = weights(run), weights(run, "model.ema")
    a, b = weights(run, "adapter_model"), weights(run, "adapter_model.ema")
    assert any(not tensor.equal(b[name]) for name, tensor in a.items())
    assert any(not tensor.equal(average[name]) for name, tensor in merged_.items())
    load_checkpoint(run, weights="ema", device="cpu")


@one_model
def test_everything_goes_on_as_for_a_plain_run(
    trained: tuple[str, Path, Path], cli: Command, tmp_path: Path
) -> None:
    _, _, run = trained
    shutil.copytree(run, "r", symlinks=True)
    for command in (
        ["sample", "r", "--tokens", "8"],
        ["eval", "r", "--weights", "ema"],
        ["export", "r", "--out", "m.onnx"],
        ["runs", "show", "r"],
        ["train", "r/recipe.toml", "--from", "r", "--out", "again"],
    ):
        assert cli(*command).exit_code == 0, command
    kept = load_file(tmp_path / "again" / "base.safetensors")
    assert all(tensor.equal(weights(run)[name]) for name, tensor in kept.items())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_resumed_run_goes_on_bit_for_bit_without_its_origin(
    optimizer: str, recompute: bool, tmp_path: Path
) -> None:
    base = trained_base(tmp_path, LLAMA)
    recipe = recipe_of(LLAMA, dropout=0.2)
    options = {"optimizer": {"use": optimizer}, "recompute": recompute}
    recipe["train"] = recipe["train"] | options
    whole = gptkit.train(recipe, start=base, out=tmp_path / "whole", quiet=True).path
    shutil.rmtree(base)
    part = shutil.copytree(whole, tmp_path / "part", symlinks=True)
    shutil.rmtree(part / "checkpoints" / "step-00000004")
    gptkit.resume(part, quiet=True)
    assert_same(part, whole)
    shutil.rmtree(part / "checkpoints")  # before its first checkpoint
    gptkit.resume(part, quiet=True)
    assert_same(part, whole)


def test_recompute_draws_the_same_dropout(tmp_path: Path) -> None:
    base = trained_base(tmp_path, LLAMA)
    runs = [
        gptkit.train(recipe_of(LLAMA, dropout=0.4), {"train.recompute": again}, start=base,
                     out=tmp_path / str(again), quiet=True).path
        for again in (False, True)
    ]  # fmt: skip
    a, b = map(weights, runs)
    assert all(tensor.equal(b[name]) for name, tensor in a.items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compile_gives_nearly_the_same(dtype: str, tmp_path: Path) -> None:
    torch.compiler.reset()  # what other tests compiled in this process
    base = trained_base(tmp_path, LLAMA)
    recipe = recipe_of(LLAMA, targets=["attn.k", "mlp.up", "mlp.proj"])
    runs = [
        gptkit.train(recipe, {"train.compile": how, "train.dtype": dtype}, start=base,
                     out=tmp_path / str(how), quiet=True).path
        for how in (False, True)
    ]  # fmt: skip
    a, b = map(weights, runs)
    for name, tensor in a.items():
        torch.testing.assert_close(b[name], tensor, atol=5e-4, rtol=1e-3)


def assert_same(run: Path, other: Path) -> None:
    for file in (other / LAST).glob("*.safetensors"):
        assert (run / LAST / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no kill -9")
def test_kill_9_and_resume_end_as_one_training(
    gptkit: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, tiny_recipe: TinyRecipe
) -> None:
    steps = {"steps": 300, "save_every": 5, "eval_every": 150}
    start = tiny_recipe().rename(tmp_path / "start.toml")
    path = tiny_recipe(lora={"rank": 2, "dropout": 0.1}, train=steps, callbacks=CALLBACKS[:1])
    assert gptkit("train", start, "--out", "start").returncode == 0
    command = ["train", path, "--from", "start", "--out"]
    assert gptkit(*command, "whole").returncode == 0
    program = [sys.executable, "-m", "gptkit", *map(str, command), "part"]
    with subprocess.Popen(program, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        while not [*(tmp_path / "part" / "checkpoints").glob("step-*")]:
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    shutil.rmtree(tmp_path / "start")
    assert not (tmp_path / "part/checkpoints/step-00000300").exists()
    done = gptkit("resume", "part")
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "part", tmp_path / "whole")


# Proof


@one_model
def test_export_refuses_merged_weights_that_are_not_those_of_the_adapters(
    trained: tuple[str, Path, Path], monkeypatch: pytest.MonkeyPatch, cli: Command, tmp_path: Path
) -> None:
    _, _, run = trained
    shutil.copytree(run, "r", symlinks=True)

    def other(model: GPT, tensors: Mapping[str, Tensor]) -> None:
        real(model, {n: t * (1.5 if ".lora_B." in n else 1) for n, t in tensors.items()})

    real = GPT.load_weights
    with monkeypatch.context() as patch:
        patch.setattr(merge_proof.GPT, "load_weights", other)
        result = cli("export", "r", "--out", "m.onnx")
    assert result.exit_code == ExportError.exit_code == 4
    assert ", merged: is not equal to the model: logits differ by" in result.stderr
    assert not (tmp_path / "m.onnx").exists()
    assert cli("export", "r", "--out", "m.onnx").exit_code == 0


@one_model
def test_a_base_that_is_damaged_or_gone_ends_resume_and_export_by_name(
    trained: tuple[str, Path, Path], tmp_path: Path, cli: Command
) -> None:
    _, _, run = trained
    for damage in ("other", "gone"):
        copy = shutil.copytree(run, tmp_path / damage, symlinks=True)
        base = copy / "base.safetensors"
        if damage == "gone":
            base.unlink()
        else:
            tensors = load_file(base)
            save_file({name: tensor * 2 for name, tensor in tensors.items()}, base)
        for command in (
            ["resume", damage, "--set", "train.steps=6"],
            ["export", damage, "--out", "m.onnx"],
        ):
            result = cli(*command)
            assert result.exit_code == 1
            assert f"{damage}/base.safetensors: damaged" in result.stderr
        assert cli("sample", damage, "--tokens", "4").exit_code == 0


@one_model
def test_damaged_adapters_are_skipped_as_any_damaged_checkpoint(
    trained: tuple[str, Path, Path], tmp_path: Path
) -> None:
    _, _, run = trained
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        copy = shutil.copytree(run, tmp_path / name, symlinks=True)
        path = copy / LAST / name
        path.write_bytes(path.read_bytes()[:-1])
        gptkit.resume(copy, quiet=True)
        assert_same(copy, run)


# Recipes


@pytest.mark.parametrize(
    ("model", "lora", "place", "fault"),
    [
        (LLAMA, {"targets": ["attn.q", "attn.qkv"]}, "lora.targets[1]",
         "no linear layer 'attn.qkv'; did you mean"),
        (MODELS["arcee"], {"targets": ["mlp.gate"]}, "lora.targets[0]", "there are attn.q, attn.k"),
        (MODELS["gpt2"], {"targets": ["attn.q"]}, "lora.targets[0]", "attn.qkv, attn.proj, mlp.up"),
        (LLAMA, {"targets": ["attn.q", "attn.q"]}, "lora.targets[1]", "is given twice"),
        (LLAMA, {"targets": []}, "lora.targets", "should have at least 1 item"),
        (LLAMA, {"rank": 0}, "lora.rank", "should be greater than 0"),
        (LLAMA, {"alpha": 0.0}, "lora.alpha", "should be greater than 0"),
        (LLAMA, {"dropout": 1.0}, "lora.dropout", "should be less than 1"),
        (LLAMA, {"r": 8}, "lora.r", "unknown key"),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_table_is_refused_by_field(
    model: dict[str, Any], lora: dict[str, Any], place: str, fault: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_file.read(TINY | {"model": model, "lora": lora})
    (problem,) = caught.value.problems
    assert problem.place == place
    assert fault in problem.fault


@pytest.mark.parametrize("part", re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.S))
def test_the_recipes_of_the_page_are_recipes(part: str) -> None:
    found = recipe_file.read(TINY | tomllib.loads(part))
    assert found.model.init == "runs/base"
    if found.lora:
        lora = adapters.resolved(config_of(LLAMA), found.lora)
        assert lora.targets == ("attn.q", "attn.v", "mlp.up")


def test_adapters_need_weights_to_begin_with(cli: Command, tiny_recipe: TinyRecipe) -> None:
    result = cli("train", tiny_recipe(lora={}), "--out", "r")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "there are no weights beside which adapters could be trained" in result.stderr
    assert "--from RUN, or set model.init" in result.stderr
    assert not Path("r").exists()


def test_init_gives_the_weights_and_the_shape(tmp_path: Path) -> None:
    base = trained_base(tmp_path, LLAMA)
    recipe = recipe_of({"init": str(base)}, targets=["mlp.gate"])
    run = gptkit.train(recipe, out=tmp_path / "r", quiet=True).path
    shutil.rmtree(base)
    shutil.rmtree(run / "checkpoints/step-00000004")
    gptkit.resume(run, quiet=True)
    kept, after = load_file(run / "base.safetensors"), weights(run)
    differing = {name for name, tensor in after.items() if not tensor.equal(kept[name])}
    assert differing == {f"h.{i}.mlp.up.weight" for i in range(2)}
    changed = weights(run)["h.0.mlp.up.weight"] - kept["h.0.mlp.up.weight"]
    half = len(changed) // 2
    assert changed[:half].any()
    assert not changed[half:].any()


def test_names_are_checked_against_the_model_of_init(tmp_path: Path) -> None:
    base = trained_base(tmp_path, LLAMA)
    for tables, place in (
        (
            {"model": {"init": str(base), "freeze": ["h.2"]}},
            r"model\.freeze\[0\]: 'h\.2': the model has",
        ),
        ({"model": {"init": str(base)}, "lora": {"targets": ["attn.qkv"]}}, r"lora\.targets\[0\]"),
    ):
        with pytest.raises(UsageError, match=place):
            gptkit.train(TINY | tables, out=tmp_path / "r", quiet=True)
        assert not (tmp_path / "r").exists()


def test_set_makes_the_table(cli: Command, tiny_recipe: TinyRecipe) -> None:
    path = tiny_recipe()
    assert cli("train", path, "--out", "a").exit_code == 0
    options = ["--set", "lora.rank=2", "--set", 'lora.targets=["mlp.up"]']
    assert cli("train", path, "--from", "a", *options, "--out", "b").exit_code == 0
    about = json.loads(Path("b", LAST, "adapter_config.json").read_text())
    assert (about["r"], about["lora_alpha"], about["target_modules"]) == (2, 4, ["mlp.c_fc"])
    assert about["fan_in_fan_out"]


def test_layers_that_transformers_does_not_have_keep_their_names() -> None:
    config = config_of(OTHER)
    found = adapters.peft_names(config, LoraOptions())
    assert ["base_model.model.h.0.attn.q.lora_A.weight"] in found.values()
    assert adapters.peft_config(config, LoraOptions())["target_modules"] == [
        *adapters.known(config)
    ]


def test_counts_are_those_of_the_model() -> None:
    for shape in (*MODELS.values(), OTHER):
        config, lora = config_of(shape), LoraOptions(rank=3)
        model = with_adapters(config, lora)
        shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if p.requires_grad}
        assert shapes == adapters.parameter_shapes(config, lora)
        table = ModelTable(**shape)
        trained = tuning.find(table, lora, config).trained()
        assert trained.all == sum(map(math.prod, shapes.values()))
        options, how = TrainOptions(), training_memory.setting(TrainOptions())
        whole = sizes.to_train(config, options).size
        less = sizes.to_train(config, options, trained=trained).size
        assert whole is not None
        assert less is not None
        assert less < whole
        peak = training_memory.peak(config, options, how, trained)
        assert peak < training_memory.peak(config, options, how)
        assert sizes.flops_per_token(config, trained) < sizes.flops_per_token(config)
