import copy
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import PrivateAttr
from torch import Tensor

from gptkit.data.order import windows_of
from gptkit.errors import CheckpointError, DataError, DivergedError, PluginError
from gptkit.model.gpt import GPT
from gptkit.plugin import IGNORE, Callback, Data, Split, TokenFile, TrainState
from gptkit.recipe.codec_record import CodecRecord
from gptkit.recipe.options import AdamWOptions, GPTConfig, MuonOptions, TrainOptions
from gptkit.runs import checkpoint
from gptkit.runs.setup import read_snapshot, saver
from gptkit.testing import LetterCodec
from gptkit.training import snapshot
from gptkit.training.callbacks import Callbacks
from gptkit.training.device import resolve_device
from gptkit.training.evaluate import Evaluation, evaluate
from gptkit.training.trainer import Trainer

BLOCK, VOCAB = 8, 26
CPU = resolve_device(TrainOptions(device="cpu"))


class Acting(Callback):
    """Does what a test hands it, at the events that it names."""

    _acts: dict[str, Callable[[TrainState], None]] = PrivateAttr(default_factory=dict)

    def on_step_start(self, state: TrainState) -> None:
        self._acts.get("on_step_start", lambda state: None)(state)

    def on_backward_end(self, state: TrainState) -> None:
        self._acts.get("on_backward_end", lambda state: None)(state)

    def on_step_end(self, state: TrainState) -> None:
        self._acts.get("on_step_end", lambda state: None)(state)


def acting(**acts: Callable[[TrainState], None]) -> dict[str, Callback]:
    callback = Acting()
    callback._acts.update(acts)
    return {"acting": callback}


class Remembering(Callback):
    """Keeps a number, a list and a tensor."""

    _values: dict[str, Any] = PrivateAttr(default_factory=dict)

    def on_fit_start(self, state: TrainState) -> None:
        self._values.setdefault("losses", [])
        self._values.setdefault("mean", torch.zeros(2, dtype=torch.float64))

    def on_step_end(self, state: TrainState) -> None:
        self._values["losses"].append(state.loss.item())
        self._values["mean"] += torch.tensor([state.step, state.loss.item()])

    def on_eval_end(self, state: TrainState) -> None:
        self._values["best"] = min(self._values.get("best", math.inf), state.val_loss or math.inf)

    def state_dict(self) -> dict[str, Any]:
        return self._values

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._values.update(state)


class Pairs(Split):
    """Items with inputs and targets of their own."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.x[indices], self.y[indices]


def pairs(masked: Mapping[int, int]) -> Pairs:
    """Sixteen random items; item i has its first masked[i] targets masked."""
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randint(VOCAB, (2, 16, BLOCK), generator=generator)
    for item, targets in masked.items():
        y[item, :targets] = IGNORE
    return Pairs(x, y)


def stream(path: Path, text: str, *, start: int = 0, stop: int | None = None) -> TokenFile:
    tokens = np.array([ord(letter) - ord("a") for letter in text], dtype=np.uint8)
    tokens.tofile(path)
    return TokenFile(path, "uint8", start=start, stop=stop or len(tokens), block_size=BLOCK)


def data_of(train: Split, val: Split | None = None) -> Data:
    return Data(train, val or train, LetterCodec(), vocab_size=VOCAB, block_size=BLOCK)


@pytest.fixture
def data(tmp_path: Path) -> Data:
    """Words at random: 400 letters for training, 61 for validation."""
    generator = np.random.default_rng(0)
    text = "".join(generator.choice(["tobe", "ornot", "that", "isthe"], size=200))[:461]
    path = tmp_path / "letters"
    return data_of(stream(path, text, stop=400), stream(path, text, start=400))


def make(seed: int = 0, *, recompute: bool = False, **shape: Any) -> GPT:
    sizes = {"vocab_size": VOCAB, "block_size": BLOCK, "n_layer": 2, "n_head": 2, "n_embd": 16}
    return GPT(GPTConfig(**sizes | shape), seed=seed, recompute=recompute)


def trainer(
    data: Data,
    *,
    model: GPT | None = None,
    callbacks: Mapping[str, Callback] | None = None,
    save_to: Path | None = None,
    **options: Any,
) -> Trainer:
    model = model or make()
    chosen = TrainOptions(**{"steps": 4, "batch_size": 8, "device": "cpu"} | options)
    codec = CodecRecord(name="letters", distribution="gptkit-letters", options={})
    save = save_to and saver(save_to, keep=chosen.keep, dataset="letters", codec=codec)
    return Trainer(
        model, data, options=chosen, run_device=resolve_device(chosen), seed=3,
        callbacks=Callbacks(callbacks), save=save,
    )  # fmt: skip


def test_steps_are_those_of_fit_one_by_one(data: Data, tmp_path: Path) -> None:
    whole, stepwise = trainer(data), trainer(data, save_to=tmp_path, eval_every=2)
    whole.fit()
    losses = [(state.step, state.val_loss is not None) for state in stepwise.steps()]
    assert losses == [(1, False), (2, True), (3, True), (4, True)]
    assert same(weights(whole.state.model), weights(stepwise.state.model))
    assert [path.name for path in checkpoint.step_folders(tmp_path)][-1] == "step-00000004"


def test_steps_that_are_not_taken_to_the_end_close_the_callbacks(data: Data) -> None:
    ended = []

    class End(Callback):
        def on_fit_end(self, state: TrainState) -> None:
            ended.append(state.step)

    steps = trainer(data, callbacks={"end": End()}).steps()
    next(steps)
    steps.close()
    assert ended == [1]


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def gradients_and_loss(data: Data, micro_batch_size: int | None) -> tuple[dict[str, Tensor], float]:
    """What the first step finds before its update."""
    found: dict[str, Tensor] = {}

    def keep(state: TrainState) -> None:
        for name, parameter in state.model.named_parameters():
            assert parameter.grad is not None
            found[name] = parameter.grad.clone()

    made = trainer(
        data, callbacks=acting(on_backward_end=keep), micro_batch_size=micro_batch_size, steps=1
    )
    state = made.fit()
    return found, state.loss.item()


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "masked",
    [
        {},
        {0: 7, 1: 3, 2: 5, 5: 1, 7: 7, 10: 4, 14: 6},
        dict.fromkeys(range(15), 7),
        dict.fromkeys(range(0, 16, 2), BLOCK),  # whole items, so also whole micro-batches
    ],
    ids=["none", "unequal", "nearly-all", "whole-items"],
)
def test_accumulated_gradients_equal_those_of_the_full_batch(
    micro_batch_size: int, masked: dict[int, int]
) -> None:
    data = data_of(pairs(masked))
    expected, expected_loss = gradients_and_loss(data, None)
    found, loss = gradients_and_loss(data, micro_batch_size)
    assert loss == pytest.approx(expected_loss, abs=1e-6)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize("split", ["batch of step 1", "validation split"])
def test_a_batch_or_a_validation_without_a_single_target_is_refused(split: str) -> None:
    nothing, all_of_it = pairs(dict.fromkeys(range(16), BLOCK)), pairs({})
    data = data_of(nothing, all_of_it) if "batch" in split else data_of(all_of_it, nothing)
    with pytest.raises(DataError, match=rf"^the {split} of .*: every target is masked"):
        trainer(data, steps=1).fit()


def test_the_full_batch_counts_every_unmasked_target_alike() -> None:
    split = pairs({0: 7, 1: 3, 2: 5, 5: 1, 7: 7, 10: 4, 14: 6})
    x, y = split[split.indices(3, 0, 8)]
    expected = F.cross_entropy(make().logits(x)[y != IGNORE], y[y != IGNORE])
    _, loss = gradients_and_loss(data_of(split), 2)
    assert loss == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_training_equals_a_plain_torch_loop(data: Data, clip: float | None) -> None:
    model = make()
    twin = copy.deepcopy(model)

    def clip_norm(state: TrainState) -> None:
        if clip:
            torch.nn.utils.clip_grad_norm_(state.model.parameters(), clip)

    trainer(
        data,
        model=model,
        callbacks=acting(on_backward_end=clip_norm),
        optimizer=AdamWOptions(learning_rate=3e-3, betas=(0.8, 0.9), weight_decay=0.3),
        steps=6,
    ).fit()
    matrices = [p for p in twin.parameters() if p.dim() >= 2]
    vectors = [p for p in twin.parameters() if p.dim() < 2]
    plain = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.3}, {"params": vectors, "weight_decay": 0.0}],
        lr=3e-3, betas=(0.8, 0.9), foreach=False,
    )  # fmt: skip
    for step in range(6):
        x, y = data.train[data.train.indices(3, step, 8)]
        loss = F.cross_entropy(twin.logits(x).transpose(1, 2), y)
        plain.zero_grad()
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(twin.parameters(), clip)
        plain.step()
    expected = weights(twin)
    for name, weight in weights(model).items():
        torch.testing.assert_close(weight, expected[name], atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_repetitive_text_is_learned(tmp_path: Path, optimizer: str) -> None:
    split = stream(tmp_path / "letters", "gptkit" * 40)
    state = trainer(
        data_of(split), optimizer={"use": optimizer, "learning_rate": 0.01}, steps=60
    ).fit()
    assert state.val_loss is not None
    assert state.val_loss < 0.5  # from 3.3; a window's first letters stay uncertain


def test_training_in_bfloat16_follows_float32(data: Data) -> None:
    losses, models = {}, {}
    for dtype in ("float32", "bfloat16"):
        models[dtype] = make()
        state = trainer(data, model=models[dtype], dtype=dtype, steps=5).fit()
        losses[dtype] = state.val_loss
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=0.03)
    assert losses["bfloat16"] != losses["float32"]
    assert all(weight.dtype == torch.float32 for weight in models["bfloat16"].parameters())


def test_evaluations_do_not_change_the_training(data: Data) -> None:
    rare, often = make(dropout=0.3), make(dropout=0.3)
    torch.manual_seed(1)
    trainer(data, model=rare, eval_every=100).fit()
    torch.manual_seed(1)
    trainer(data, model=often, eval_every=1, micro_batch_size=8).fit()
    assert same(weights(rare), weights(often))


def test_the_seed_and_dropouts_generator_determine_the_run(data: Data) -> None:
    def final(seed: int) -> dict[str, Tensor]:
        model = make(dropout=0.3)
        torch.manual_seed(seed)
        trainer(data, model=model).fit()
        return weights(model)

    assert same(final(1), final(1))
    assert not same(final(1), final(2))


def test_documents_are_trained_and_measured_each_alone(data: Data) -> None:
    """As the model itself is told to; another loss than that of one long text."""
    separate = replace(data, document_start=4)
    model = make()
    twin = copy.deepcopy(model)
    state = trainer(separate, model=model, steps=1).fit()
    x, y = data.train[data.train.indices(3, 0, 8)]
    expected = twin(x, y, 4)
    assert state.loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert abs(expected - twin(x, y)) > 1e-4
    model.eval()
    x, y = data.val[torch.arange(0, len(data.val), BLOCK)]
    own, whole = (
        evaluate(model, data.val, run_device=CPU, batch_size=3, document_start=start).loss
        for start in (4, None)
    )
    assert state.val_loss == pytest.approx(own, abs=1e-6)
    assert abs(own - whole) > 1e-5


def test_the_mark_of_a_documents_end_is_in_no_other_document(data: Data) -> None:
    """Each target's loss is that of its document alone, from position 0 on."""
    model, end = make(), 4
    x, y = data.train[torch.tensor([0, 5])]
    x[x == end] = 5
    x[0, 1] = x[0, 5] = x[1, 3] = end
    parts = [(0, 0, 2), (0, 2, 6), (0, 6, BLOCK), (1, 0, 4), (1, 4, BLOCK)]
    alone = [model.token_losses(x[i : i + 1, a:b], y[i : i + 1, a:b]) for i, a, b in parts]
    expected = torch.cat(alone, dim=1).mean()
    assert model(x, y, None, end).item() == pytest.approx(expected.item(), abs=1e-6)
    assert abs(model(x, y, end).item() - expected.item()) > 1e-4
    marked = replace(data, document_end=end)
    twin = copy.deepcopy(model)
    state = trainer(marked, model=model, steps=1).fit()
    batch = data.train[data.train.indices(3, 0, 8)]
    assert state.loss.item() == pytest.approx(twin(*batch, None, end).item(), abs=1e-5)


@pytest.mark.parametrize("name", ["document_start", "document_end"])
def test_the_mark_of_a_document_is_a_token(data: Data, name: str) -> None:
    with pytest.raises(PluginError, match=rf"Data\.{name} should hold ids below vocab_size"):
        replace(data, **{name: data.vocab_size})


def test_what_a_split_counts_is_logged(data: Data) -> None:
    class Counting(TokenFile):
        def metrics(self, seed: int, step: int, batch_size: int) -> dict[str, float]:
            return {"tokens_of_seed": seed * step * batch_size}

    split = data.train
    assert isinstance(split, TokenFile)
    counting = Counting(split.path, "uint8", stop=split.stop, block_size=BLOCK)
    seen = []
    trainer(
        replace(data, train=counting),
        callbacks=acting(on_step_end=lambda state: seen.append(state.record())),
        steps=3,
    ).fit()
    assert [record["tokens_of_seed"] for record in seen] == [24, 48, 72]


@torch.no_grad()
def by_hand(model: GPT, text: Tensor) -> tuple[float, int]:
    """The summed loss over a stream's targets: windows of BLOCK, the last one ending at its end."""
    total = 0.0
    for target in range(1, len(text)):
        start = (target - 1) // BLOCK * BLOCK
        start = min(start, len(text) - 1 - BLOCK)
        log_p = model.logits(text[None, start:target])[0, -1].log_softmax(-1)
        total -= log_p[text[target]].item()
    return total, len(text) - 1


@pytest.mark.parametrize("tokens", [BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 1, 2 * BLOCK + 2, 61])
def test_an_evaluation_is_the_mean_over_all_tokens(tmp_path: Path, tokens: int) -> None:
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    generator = np.random.default_rng(1)
    text = "".join(generator.choice(list("abcxyz"), size=tokens))
    split = stream(tmp_path / "letters", text)
    total, counted = by_hand(model, torch.tensor([ord(letter) - ord("a") for letter in text]))
    for batch_size in (1, 2, 3, 100):
        result = evaluate(model, split, run_device=CPU, batch_size=batch_size)
        assert result.tokens == counted
        assert result.loss == pytest.approx(total / counted, abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 5, 16])
def test_an_evaluation_leaves_out_masked_targets(batch_size: int) -> None:
    split = pairs({0: BLOCK, 3: 2, 4: BLOCK, 15: 7})  # in batches of one, two are empty
    model = make().eval()
    kept = split.y != IGNORE
    with torch.no_grad():
        expected = F.cross_entropy(model.logits(split.x)[kept], split.y[kept]).item()
    result = evaluate(model, split, run_device=CPU, batch_size=batch_size)
    assert result.tokens == 16 * BLOCK - 25
    assert result.loss == pytest.approx(expected, abs=1e-5)


def test_an_evaluation_is_without_dropout_and_gives_the_mode_back(data: Data) -> None:
    plain, dropping = make().eval(), make(dropout=0.5).train()
    expected = evaluate(plain, data.val, run_device=CPU, batch_size=4)
    assert evaluate(dropping, data.val, run_device=CPU, batch_size=4) == expected
    assert dropping.training
    assert not plain.training


def spread(split: Split, count: int) -> Tensor:
    """Where `count` windows begin that are spread evenly over a split."""
    return torch.arange(count) * windows_of(split) // count * BLOCK


def test_an_evaluation_can_be_limited_to_a_few_batches(data: Data) -> None:
    model = make()
    limited = evaluate(model, data.val, run_device=CPU, batch_size=2, batches=3)
    assert limited.tokens == 3 * 2 * BLOCK
    x, y = data.val[spread(data.val, 6)]
    assert limited.loss == pytest.approx(model(x, y).item(), abs=1e-6)


@pytest.mark.parametrize("micro_batch_size", [4, 2, 1])
def test_eval_batches_are_of_batch_size_whatever_the_micro_batch(
    micro_batch_size: int, data: Data
) -> None:
    options = {"steps": 1, "batch_size": 4, "eval_batches": 1}
    state = trainer(data, micro_batch_size=micro_batch_size, **options).fit()
    whole = trainer(data, **options).fit()
    x, y = data.val[spread(data.val, 4)]
    assert state.val_loss == pytest.approx(whole.val_loss, abs=1e-6)
    assert state.val_loss == pytest.approx(state.model(x, y).item(), abs=1e-6)


def test_perplexity_and_bits_follow_from_the_loss() -> None:
    result = Evaluation(math.log(8), 100)
    assert result.perplexity == pytest.approx(8)
    assert result.bits_per_token == pytest.approx(3)
    assert math.isfinite(Evaluation(1e6, 1).perplexity)


def poison(name: str, *, at_step: int) -> dict[str, Callback]:
    """From a step on, the gradient of one parameter is not a number."""

    def act(state: TrainState) -> None:
        if state.step == at_step:
            state.model.get_parameter(name).register_hook(lambda grad: grad * math.nan)

    return acting(on_step_start=act)


@pytest.mark.parametrize("micro_batch_size", [8, 2])
def test_a_bad_gradient_stops_before_the_weights_change(
    data: Data, tmp_path: Path, micro_batch_size: int
) -> None:
    folder, model = tmp_path / "checkpoints", make()
    made = trainer(
        data, model=model, save_to=folder, save_every=1, micro_batch_size=micro_batch_size,
        callbacks=poison("h.1.mlp.up.weight", at_step=2),
    )  # fmt: skip
    fault = r"^step 3: the gradient of h\.1\.mlp\.up\.weight is not finite$"
    with pytest.raises(DivergedError, match=fault) as caught:
        made.fit()
    assert caught.value.exit_code == 3
    assert caught.value.hint
    assert made.state.step == 2
    last = checkpoint.step_folders(folder)[-1]
    state, files = checkpoint.load(last)
    assert state.step == 2
    assert same(weights(model), files["model"])


def test_of_several_bad_gradients_the_first_is_named(data: Data) -> None:
    callbacks = poison("h.1.mlp.up.weight", at_step=0)
    callbacks["second"] = poison("h.0.attn.qkv.bias", at_step=0)["acting"]
    with pytest.raises(DivergedError, match=r"^step 1: the gradient of h\.0\.attn\.qkv\.bias is"):
        trainer(data, callbacks=callbacks).fit()


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_bad_loss_is_named(data: Data, value: float) -> None:
    def spoil(state: TrainState) -> None:
        if state.step == 1:
            state.model.get_parameter("ln_f.weight").data.fill_(value)

    model = make()
    before: dict[str, Tensor] = {}
    callbacks = acting(on_step_start=spoil)
    callbacks["watching"] = acting(on_step_start=lambda s: before.update(weights(s.model)))[
        "acting"
    ]
    with pytest.raises(DivergedError, match=r"^step 2: the loss and the gradient of wte\.weight "):
        trainer(data, model=model, callbacks=callbacks).fit()
    for name, weight in weights(model).items():
        assert torch.equal(weight.nan_to_num(), before[name].nan_to_num()), name


def test_a_rate_that_is_too_high_diverges_and_leaves_good_checkpoints(
    data: Data, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"

    def explode(state: TrainState) -> None:
        state.optimizer.param_groups[0]["lr"] = 1e-3 if state.step == 0 else 1e20

    made = trainer(
        data, callbacks=acting(on_step_start=explode), save_to=folder, save_every=1, eval_every=100
    )
    with pytest.raises(DivergedError, match=r"^step 2: the loss is not finite$"):
        made.fit()
    (only,) = checkpoint.step_folders(folder)
    _, files = checkpoint.load(only)
    assert all(weight.isfinite().all() for weight in files["model"].values())
    assert made.state.step == 2


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("stopped_at", [2, 4])
def test_a_resumed_run_ends_with_the_same_bits(
    data: Data, tmp_path: Path, optimizer: str, stopped_at: int
) -> None:
    options: dict[str, Any] = {
        "optimizer": {"use": optimizer}, "steps": 6, "micro_batch_size": 2,
        "eval_every": 2, "keep": 9,
    }  # fmt: skip
    shape = {"dropout": 0.3, "tie_embeddings": False}

    def halve(state: TrainState) -> None:  # a schedule, so that rates must come back too
        for group in state.optimizer.param_groups:
            group["lr"] *= 0.8

    whole = trainer(
        data, model=make(**shape), save_to=tmp_path / "whole",
        callbacks=acting(on_step_start=halve) | {"memory": Remembering()}, **options,
    )  # fmt: skip
    whole.fit()
    resumed = trainer(
        data, model=make(seed=99, **shape), save_to=tmp_path / "resumed",
        callbacks=acting(on_step_start=halve) | {"memory": Remembering()}, **options,
    )  # fmt: skip
    resumed.load(read_snapshot(tmp_path / "whole" / f"step-{stopped_at:08d}"))
    assert resumed.state.step == stopped_at
    resumed.fit()
    assert same(weights(resumed.state.model), weights(whole.state.model))
    for name in ("model.safetensors", "optimizer.safetensors", "callbacks.safetensors"):
        files = [tmp_path / run / "step-00000006" / name for run in ("whole", "resumed")]
        assert files[0].read_bytes() == files[1].read_bytes(), name
    states = [checkpoint.load_state(tmp_path / r / "step-00000006") for r in ("whole", "resumed")]
    assert states[0] == states[1]


def test_without_the_generators_state_dropout_would_differ(data: Data, tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 4, "eval_every": 2}
    whole = trainer(data, model=make(dropout=0.3), save_to=tmp_path, **options)
    whole.fit()
    resumed = trainer(data, model=make(dropout=0.3), **options)
    resumed.load(read_snapshot(tmp_path / "step-00000002"))
    torch.manual_seed(0)
    resumed.fit()
    assert not same(weights(resumed.state.model), weights(whole.state.model))


def test_a_loaded_state_knows_its_last_evaluation(data: Data, tmp_path: Path) -> None:
    trainer(data, save_to=tmp_path, steps=3, eval_every=2, save_every=1, keep=9).fit()
    first = read_snapshot(tmp_path / "step-00000001")
    assert (first.val_loss, first.val_step) == (None, None)
    made, second = trainer(data), read_snapshot(tmp_path / "step-00000002")
    made.load(second)
    assert (made.state.step, made.state.val_loss, made.state.val_step) == (2, second.val_loss, 2)
    assert made.state.val_loss is not None


def test_states_of_callbacks_come_back_to_each_its_own(data: Data, tmp_path: Path) -> None:
    def remembering() -> dict[str, Callback]:
        return {"first": Remembering(), "plain": Callback(), "second": Remembering()}

    callbacks = remembering()
    callbacks["first"].load_state_dict({"named": "first", "own": torch.tensor([1, 2])})
    callbacks["second"].load_state_dict({"nested": {"a": [None, True]}, "x:y": torch.tensor(0.5)})
    trainer(data, callbacks=callbacks, save_to=tmp_path, steps=2).fit()
    again = remembering()
    trainer(data, callbacks=again).load(read_snapshot(tmp_path / "step-00000002"))
    for name in ("first", "second"):
        expected, found = callbacks[name].state_dict(), again[name].state_dict()
        assert found.keys() == expected.keys() >= {"losses", "mean", "best"}
        for key, value in expected.items():
            if isinstance(value, Tensor):
                assert torch.equal(found[key], value)
                assert found[key].dtype == value.dtype
            else:
                assert found[key] == value
    assert "own" not in again["second"].state_dict()
    assert again["plain"].state_dict() == {}


def test_a_checkpoint_holds_what_callbacks_learned_from_its_evaluation(
    data: Data, tmp_path: Path
) -> None:
    state = trainer(data, callbacks={"a": Remembering()}, save_to=tmp_path, steps=2).fit()
    saved = checkpoint.load_state(tmp_path / "step-00000002")
    assert saved.callbacks["a"]["best"] == saved.val_loss == state.val_loss


def steps_saved(folder: Path) -> list[int]:
    return [checkpoint.load_state(path).step for path in checkpoint.step_folders(folder)]


@pytest.mark.parametrize(
    ("options", "saved"),
    [
        ({"eval_every": 2}, [2, 4, 5]),
        ({"eval_every": 100}, [5]),
        ({"eval_every": 100, "save_every": 3}, [3, 5]),
        ({"eval_every": 1, "save_every": 4}, [4, 5]),
        ({"eval_every": 100, "save_every": 1, "keep": 2}, [4, 5]),
    ],
)
def test_checkpoints_are_saved_when_due(
    data: Data, tmp_path: Path, options: dict[str, int], saved: list[int]
) -> None:
    trainer(data, save_to=tmp_path, **{"steps": 5, "keep": 9} | options).fit()
    assert steps_saved(tmp_path) == saved


def test_the_best_checkpoint_survives_the_newest(data: Data, tmp_path: Path) -> None:
    def run_off(state: TrainState) -> None:
        for group in state.optimizer.param_groups:
            group["lr"] = 1e-3 if state.step < 3 else 0.5

    trainer(
        data, save_to=tmp_path, callbacks=acting(on_step_start=run_off), steps=8, eval_every=1,
        keep=2,
    ).fit()  # fmt: skip
    assert steps_saved(tmp_path) == [3, 7, 8]
    assert checkpoint.best(tmp_path) == tmp_path / "step-00000003"


def test_stopping_saves_that_very_step(data: Data, tmp_path: Path) -> None:
    def stop(state: TrainState) -> None:
        state.stop = state.step == 3

    made = trainer(
        data, save_to=tmp_path, callbacks=acting(on_step_end=stop), steps=9, eval_every=2
    )
    made.fit()
    assert steps_saved(tmp_path) == [2, 3]
    assert same(checkpoint.load(tmp_path / "step-00000003")[1]["model"], weights(made.state.model))


def test_without_a_record_nothing_is_written(data: Data, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    trainer(data).fit()
    assert sorted(tmp_path.iterdir()) == before


def test_a_checkpoint_of_another_model_is_refused(data: Data, tmp_path: Path) -> None:
    trainer(data, save_to=tmp_path, steps=1).fit()
    other = trainer(data, model=make(n_embd=32))
    with pytest.raises(CheckpointError, match="weights do not fit the model"):
        other.load(read_snapshot(tmp_path / "step-00000001"))


def test_states_of_callbacks_come_back_by_name(data: Data, tmp_path: Path) -> None:
    first, second = Remembering(), Remembering()
    first._values["mine"], second._values["mine"] = "a", "b"
    trainer(data, callbacks={"a": first, "b": second}, save_to=tmp_path, steps=1).fit()
    saved = read_snapshot(tmp_path / "step-00000001")

    moved, new = Remembering(), Remembering()
    other = trainer(data, callbacks={"new": new, "b": moved})
    other.load(saved)
    assert moved._values["mine"] == "b"
    assert torch.equal(moved._values["mean"], second._values["mean"])
    assert new._values == {}
    change = "callbacks changed since the checkpoint: added new; removed a"
    assert snapshot.describe_changes(saved, other.callbacks) == change
    assert snapshot.describe_changes(saved, {"b": moved, "a": first}) is None


def test_a_checkpoint_of_another_optimizer_is_refused(data: Data, tmp_path: Path) -> None:
    trainer(data, optimizer=AdamWOptions(), save_to=tmp_path, steps=1).fit()
    other = trainer(data, optimizer=MuonOptions())
    with pytest.raises(CheckpointError, match="optimizer"):
        other.load(read_snapshot(tmp_path / "step-00000001"))


@pytest.mark.parametrize(
    ("value", "fault", "hint"),
    [
        (np.int64(3), r"\['strange'\] is a numpy\.int64", r"use \.item\(\)"),
        (np.float64(3), r"\['strange'\] is a numpy\.float64", r"use float\(\.\.\.\)"),
        ({"a": [{1, 2}]}, r"\['strange'\]\['a'\]\[0\] is a set", "use a sorted list"),
        ([(1, torch.ones(2))], r"\['strange'\]\[0\] is a tuple", "use a list"),
        ({1: 2}, r"\['strange'\] has the key 1, an int", 'use "1"'),
        (
            [torch.ones(1, dtype=torch.complex128)],
            r"\['strange'\]\[0\] is a tensor of torch.complex128",
            "a dense tensor",
        ),
        (torch.eye(2).to_sparse(), r"\['strange'\] is a tensor of torch.sparse_coo", "dense"),
    ],
    ids=["numpy", "numpy-float", "set", "tuple", "key", "complex128", "sparse"],
)
def test_a_state_that_is_neither_json_nor_tensor_names_its_callback(
    data: Data, tmp_path: Path, value: object, fault: str, hint: str
) -> None:
    odd = Remembering()
    odd.load_state_dict({"strange": value})
    made = trainer(data, callbacks={"a": Callback(), "odd": odd}, save_to=tmp_path / "checkpoints")
    with pytest.raises(PluginError, match=rf"^odd: state_dict\(\){fault}") as caught:
        made.fit()
    assert re.search(hint, caught.value.hint or "")
    assert list((tmp_path / "checkpoints").glob("*")) == []


def test_a_state_that_is_no_dict_names_its_callback(data: Data, tmp_path: Path) -> None:
    class Listing(Callback):
        def state_dict(self) -> Any:
            return [1]

    made = trainer(data, callbacks={"odd": Listing()}, save_to=tmp_path)
    with pytest.raises(PluginError, match=r"^odd: state_dict\(\) should be a dict, got list"):
        made.fit()


def test_batches_follow_the_step_and_the_seed_alone(data: Data) -> None:
    made = trainer(data, micro_batch_size=2)
    made.state.step = 17
    x = torch.cat([x for x, _, _ in made.micro_batches()])
    expected, _ = data.train[data.train.indices(3, 17, 8)]
    assert torch.equal(x, expected)
    assert [len(x) for x, _, _ in made.micro_batches()] == [2, 2, 2, 2]


def saved_bytes(trainer: Trainer) -> int:
    """What the forward pass of one batch keeps for its backward pass, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in trainer.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = [trainer.loss(x, y) for x, y, _ in trainer.micro_batches()]
    assert all(loss.requires_grad for loss in losses)
    return sum(kept.values())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputing_changes_no_bit_of_the_training(data: Data, dropout: float) -> None:
    models = {}
    for recompute in (False, True):
        models[recompute] = make(dropout=dropout, recompute=recompute)
        torch.manual_seed(1)
        trainer(data, model=models[recompute], micro_batch_size=4).fit()
    assert same(weights(models[True]), weights(models[False]))


def test_recomputing_keeps_a_fraction_for_the_backward_pass(data: Data) -> None:
    shape = {"n_layer": 8, "n_embd": 64}
    whole = saved_bytes(trainer(data, model=make(**shape)))
    recomputed = saved_bytes(trainer(data, model=make(**shape, recompute=True)))
    assert recomputed < whole / 5


@pytest.mark.parametrize("micro_batch_size", [8, 2])
def test_callbacks_get_the_norm_of_the_whole_gradient(data: Data, micro_batch_size: int) -> None:
    norms: list[tuple[Tensor | None, Tensor]] = []

    def look(state: TrainState) -> None:
        gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
        norms.append((state.grad_norm, torch.nn.utils.get_total_norm(gradients)))

    trainer(data, callbacks=acting(on_backward_end=look), micro_batch_size=micro_batch_size).fit()
    assert len(norms) == 4
    assert all(found is not None and torch.equal(found, own) for found, own in norms)


def test_the_state_counts_tokens(data: Data) -> None:
    state = trainer(data, steps=3).fit()
    assert (state.tokens_per_step, state.tokens) == (64, 192)
