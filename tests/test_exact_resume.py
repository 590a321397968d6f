"""What callbacks may change survives a resume, bit for bit: weight sets, groups, batch sizes."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import PrivateAttr
from torch import Tensor

from gptkit.errors import CheckpointError, PluginError, PromptError, UsageError
from gptkit.model.gpt import GPT
from gptkit.plugin import Callback, Data, Split, TokenFile, TrainState
from gptkit.recipe.codec_record import CodecRecord
from gptkit.recipe.options import AdamWOptions, GPTConfig, MuonOptions, TrainOptions
from gptkit.runs import checkpoint
from gptkit.runs.setup import read_snapshot, saver
from gptkit.testing import LetterCodec, make_state
from gptkit.training import groups
from gptkit.training.callbacks import Callbacks
from gptkit.training.device import resolve_device
from gptkit.training.trainer import Trainer

STEPS, STOP = 9, 4
OPTIMIZERS = {"adamw": AdamWOptions(), "muon": MuonOptions()}


class Average(Callback):
    """Keeps a moving average, and in its state the sums of the gradients' norms, deep inside."""

    name: str = "ema"
    """Of the set."""
    _average: dict[str, Tensor] = PrivateAttr(default_factory=dict)
    _sums: list[Any] = PrivateAttr(default_factory=lambda: [{}, None])

    def on_fit_start(self, state: TrainState) -> None:
        for name, parameter in state.model.named_parameters():
            self._average.setdefault(name, parameter.detach().clone())

    def on_step_end(self, state: TrainState) -> None:
        for name, parameter in state.model.named_parameters():
            self._average[name].lerp_(parameter.detach(), 0.2)
        self._sums[0]["norms/~"] = self._sums[0].get("norms/~", 0) + (state.grad_norm or 0)

    def weights(self) -> Mapping[str, Mapping[str, Tensor]] | None:
        return {self.name: self._average}

    def load_weights(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._average = {name: tensor.clone() for name, tensor in weights[self.name].items()}

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self._sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sums = state["sums"]


class LayerRates(Callback):
    """Every layer has a rate of its own, smaller near the input."""

    def on_fit_start(self, state: TrainState) -> None:
        state.split_groups(layer)
        for group in state.optimizer.param_groups:
            group["initial_lr"] *= {"1": 1.0, "0": 0.5}.get(group["name"].split("/")[-1], 0.25)

    def on_step_start(self, state: TrainState) -> None:
        for group in state.optimizer.param_groups:
            group["lr"] = group["initial_lr"] / (1 + state.step)


class Scaled(Callback):
    """Changes the rates at the start, and is called again when training is resumed."""

    def on_fit_start(self, state: TrainState) -> None:
        state.split_groups(lambda name: "all")
        for group in state.optimizer.param_groups:
            group["lr"] *= 0.3


class ByHand(Callback):
    """Puts the biases of AdamW into a group of their own, with other betas, as torch's users do."""

    def on_fit_start(self, state: TrainState) -> None:
        decayed, plain = state.optimizer.param_groups
        names = {p: name for name, p in state.model.named_parameters()}
        biases = [p for p in plain["params"] if names[p].endswith("bias")]
        plain["params"] = [p for p in plain["params"] if not names[p].endswith("bias")]
        new = {**plain, "params": biases, "lr": 0.01, "betas": (0.5, 0.9)}
        state.optimizer.param_groups[:] = [new, decayed, plain]

    def on_step_end(self, state: TrainState) -> None:
        state.optimizer.param_groups[0]["lr"] *= 0.9


class Late(Callback):
    """Splits the groups in the middle of training."""

    def on_step_end(self, state: TrainState) -> None:
        if state.step == 3:
            state.split_groups(layer)
            state.optimizer.param_groups[-1]["lr"] *= 0.1
            state.optimizer.param_groups[0]["betas"] = (0.5, 0.8)


class Growing(Callback):
    """Doubles the batch now and then."""

    def on_step_start(self, state: TrainState) -> None:
        if state.step == 2:
            state.batch_size = 8

    def on_eval_end(self, state: TrainState) -> None:
        if state.step == STOP:
            state.batch_size = 12


class Starting(Callback):
    """Draws a random number and sets a batch size at the start; grows the batch later."""

    def on_fit_start(self, state: TrainState) -> None:
        torch.rand(())
        state.batch_size = 8

    def on_step_end(self, state: TrainState) -> None:
        if state.step == 3:
            state.batch_size = 12


def layer(name: str) -> str:
    found = re.match(r"h\.(\d+)\.", name)
    return found[1] if found else "outside"


@pytest.fixture
def data(tmp_path: Path) -> Data:
    path = tmp_path / "tokens"
    np.random.default_rng(0).integers(0, 26, 500).astype(np.uint8).tofile(path)
    parts = [
        TokenFile(path, "uint8", start=a, stop=b, block_size=8) for a, b in ((0, 400), (400, 500))
    ]
    return Data(*parts, LetterCodec(), vocab_size=26, block_size=8)


def make(
    data: Data,
    folder: Path,
    callbacks: Mapping[str, Callback],
    *,
    frozen: str = "-",
    **options: Any,
) -> Trainer:
    """A trainer that saves checkpoints; parameters that match `frozen` stand still."""
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "dropout": 0.1}
    model = GPT(GPTConfig(vocab_size=26, block_size=8, **shape))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not re.match(frozen, name))
    chosen = TrainOptions(
        **{"steps": STEPS, "batch_size": 4, "eval_every": 2, "keep": 99, "device": "cpu"} | options
    )
    codec = CodecRecord(name="letters", distribution="gptkit", options={})
    return Trainer(
        model, data, options=chosen, run_device=resolve_device(chosen), seed=3,
        callbacks=Callbacks(callbacks),
        save=saver(folder, keep=99, dataset="letters", codec=codec),
    )  # fmt: skip


def resumed(data: Data, folder: Path, callbacks: Mapping[str, Callback], **options: Any) -> Trainer:
    """A new trainer that continues from the checkpoint of `STOP`."""
    trainer = make(data, folder.with_name("resumed"), callbacks, **options)
    torch.manual_seed(99)
    trainer.load(read_snapshot(folder / checkpoint.step_name(STOP)))
    return trainer


def files(folder: Path) -> dict[str, bytes]:
    """The contents of the last checkpoint's files."""
    last = checkpoint.step_folders(folder)[-1]
    assert last.name == checkpoint.step_name(STEPS)
    return {path.name: path.read_bytes() for path in last.iterdir()}


Kinds = Mapping[str, type[Callback]]
CHANGES: list[Kinds] = [
    {"ema": Average},
    {"rates": LayerRates},
    {"scaled": Scaled},
    {"late": Late},
    {"growing": Growing},
    {"starting": Starting},
    {"ema": Average, "rates": LayerRates, "late": Late, "growing": Growing},
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kinds", CHANGES, ids="+".join)
def test_a_resumed_training_writes_the_same_bytes(
    data: Data, tmp_path: Path, kinds: Kinds, optimizer: str
) -> None:
    def new() -> dict[str, Callback]:
        return {name: kind() for name, kind in kinds.items()}

    chosen = OPTIMIZERS[optimizer]
    whole = make(data, tmp_path / "whole", new(), optimizer=chosen)
    whole.fit()
    again = resumed(data, tmp_path / "whole", new(), optimizer=chosen)
    again.fit()
    assert files(tmp_path / "resumed") == files(tmp_path / "whole")
    assert again.state.tokens == whole.state.tokens
    assert again.state.val_losses == whole.state.val_losses
    assert again.state.checkpoint == tmp_path / "resumed" / checkpoint.step_name(STEPS)


class Failing(Callback):
    """Fails once, in an event of step `STOP`, before the other callbacks learn of it."""

    event: str = ""

    def on_step_start(self, state: TrainState) -> None:
        self._fail("on_step_start", state)

    def on_backward_end(self, state: TrainState) -> None:
        self._fail("on_backward_end", state)

    def on_step_end(self, state: TrainState) -> None:
        self._fail("on_step_end", state)

    def on_eval_end(self, state: TrainState) -> None:
        self._fail("on_eval_end", state)
        if self.event == "preview" and state.step == STOP:
            state.sample(8, 1, prompt="?")

    def _fail(self, event: str, state: TrainState) -> None:
        if event == self.event and state.step == STOP:
            raise LookupError(event)


class Damaged(Split):
    """A split that fails at a call."""

    def __init__(self, whole: Split, at: int) -> None:
        self.whole, self.stride, self.at, self.calls = whole, whole.stride, at, 0

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        if self.calls == self.at:
            raise OSError("the disk is gone")
        return self.whole[indices]


@pytest.mark.parametrize(
    "where", ["on_step_start", "on_step_end", "on_eval_end", "preview", "train", "val"]
)
def test_what_fails_between_two_steps_saves_first_and_is_resumed_exactly(
    where: str, data: Data, tmp_path: Path
) -> None:
    def new(event: str = "") -> dict[str, Callback]:
        return {"failing": Failing(event=event), "ema": Average(), "rates": LayerRates()}

    make(data, tmp_path / "whole", new(), save_every=5).fit()
    splits = {"train": data.train, "val": data.val}
    if where in splits:  # an evaluation reads two batches for each of two sets of weights
        splits[where] = Damaged(splits[where], at=STOP + 1 if where == "train" else 6)
    damaged = Data(**splits, codec=data.codec, vocab_size=26, block_size=8)
    failing = make(damaged, tmp_path / "failing", new(where), save_every=5, eval_batches=2)
    with pytest.raises((LookupError, OSError, PromptError)) as caught:
        failing.fit()
    assert caught.value.__notes__[-1] == "step 4 is saved: gptkit resume continues after it"
    assert failing.state.error is caught.value
    assert [path.name for path in checkpoint.step_folders(tmp_path / "failing")] == [
        checkpoint.step_name(STOP)
    ]
    resumed(data, tmp_path / "failing", new(), save_every=5).fit()
    assert files(tmp_path / "resumed") == files(tmp_path / "whole")


def test_half_a_step_is_never_saved(data: Data, tmp_path: Path) -> None:
    failing = {"failing": Failing(event="on_backward_end")}
    with pytest.raises(LookupError):
        make(data, tmp_path / "run", failing, save_every=3).fit()
    assert [path.name for path in checkpoint.step_folders(tmp_path / "run")] == [
        checkpoint.step_name(3)
    ]


def test_what_cannot_be_saved_does_not_hide_what_failed(data: Data, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("no folder")
    failing = {"failing": Failing(event="on_step_end")}
    with pytest.raises(LookupError) as caught:
        make(data, tmp_path / "run", failing, save_every=5).fit()
    assert caught.value.__notes__[-1].startswith("step 4 was not saved: ")


@pytest.mark.parametrize("kinds", CHANGES, ids="+".join)
def test_a_loop_that_was_left_by_a_break_goes_on_exactly(
    data: Data, tmp_path: Path, kinds: Kinds
) -> None:
    parts = make(data, tmp_path / "parts", {name: kind() for name, kind in kinds.items()})
    for state in parts.steps():
        if state.step == STOP:
            break
    parts.fit()
    make(data, tmp_path / "whole", {name: kind() for name, kind in kinds.items()}).fit()
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_groups_that_a_callback_edits_by_hand_come_back(data: Data, tmp_path: Path) -> None:
    whole = make(data, tmp_path / "whole", {"by-hand": ByHand()})
    whole.fit()
    again = resumed(data, tmp_path / "whole", {"by-hand": ByHand()})
    again.fit()
    assert files(tmp_path / "resumed") == files(tmp_path / "whole")
    first = again.state.optimizer.param_groups[0]
    assert first["betas"] == (0.5, 0.9)
    assert first["lr"] == pytest.approx(0.01 * 0.9**STEPS)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_split_groups_are_as_before_if_nothing_splits_them_again(
    data: Data, tmp_path: Path, optimizer: str
) -> None:
    chosen = OPTIMIZERS[optimizer]
    whole = make(data, tmp_path / "whole", {"rates": LayerRates()}, optimizer=chosen)
    whole.fit()
    found = []

    class Look(Callback):
        def on_step_start(self, state: TrainState) -> None:
            found.append(groups.describe(state.optimizer, state.model))

    resumed(data, tmp_path / "whole", {"look": Look()}, optimizer=chosen).fit()
    saved = read_snapshot(tmp_path / "whole" / checkpoint.step_name(STOP)).optimizer_groups
    assert json.loads(json.dumps(found[0])) == saved
    names = [name for group in saved for name in group["params"]]
    assert sorted(names) == sorted(whole.model.weights())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_rates_that_a_changed_option_sets_count_and_others_are_as_saved(
    data: Data, tmp_path: Path, optimizer: str
) -> None:
    class Rates(LayerRates):
        factor: float = 0.5
        """Of the rates of layer 0."""

        def on_fit_start(self, state: TrainState) -> None:
            state.split_groups(layer)
            for group in state.optimizer.param_groups:
                group["initial_lr"] *= self.factor if group["name"].endswith("/0") else 1.0

        def on_step_end(self, state: TrainState) -> None:
            for group in state.optimizer.param_groups:
                if state.step == 1 and group["name"].endswith("/1"):
                    group["initial_lr"] = 0.125

    def rates(trainer: Trainer) -> dict[str, float]:
        return {g["name"]: g["initial_lr"] for g in trainer.state.optimizer.param_groups}

    chosen = OPTIMIZERS[optimizer]
    whole = make(data, tmp_path / "whole", {"rates": Rates()}, optimizer=chosen)
    whole.fit()
    again = resumed(data, tmp_path / "whole", {"rates": Rates(factor=0.25)}, optimizer=chosen)
    again.fit()
    expected = {n: r / 2 if n.endswith("/0") else r for n, r in rates(whole).items()}
    assert rates(again) == pytest.approx(expected)
    assert 0.125 in rates(again).values()
    once_more = make(data, tmp_path / "more", {"rates": Rates(factor=0.25)}, optimizer=chosen)
    once_more.load(read_snapshot(tmp_path / "resumed" / checkpoint.step_name(STEPS)))
    once_more.state.steps += 1
    once_more.fit()
    assert rates(once_more) == pytest.approx(expected)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("frozen", ["wte", r"(?!h\.\d\.mlp\.up\.weight)"])
def test_frozen_parameters_are_in_no_group(
    data: Data, tmp_path: Path, optimizer: str, frozen: str
) -> None:
    def new(name: str) -> Trainer:
        return make(data, tmp_path / name, {}, frozen=frozen, optimizer=OPTIMIZERS[optimizer])

    trainer, again = new("whole"), new("resumed")
    before = {name: p.detach().clone() for name, p in trainer.model.weights().items()}
    trainer.fit()
    moved = {n for n, p in trainer.model.weights().items() if not torch.equal(p, before[n])}
    assert moved == {name for name in before if not re.match(frozen, name)}
    described = groups.describe(trainer.state.optimizer, trainer.model)
    assert {name for group in described for name in group["params"]} == moved

    again.load(read_snapshot(tmp_path / "whole" / checkpoint.step_name(STOP)))
    again.fit()
    assert files(tmp_path / "resumed") == files(tmp_path / "whole")


def test_a_model_without_anything_to_train_is_refused(data: Data, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is nothing to train"):
        make(data, tmp_path, {}, frozen="")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_group_with_the_rate_zero_stands_still(
    data: Data, tmp_path: Path, optimizer: str
) -> None:
    class Still(Callback):
        def on_fit_start(self, state: TrainState) -> None:
            state.split_groups(layer)
            for group in state.optimizer.param_groups:
                group["lr"] *= not group["name"].endswith("/0")

    trainer = make(data, tmp_path, {"still": Still()}, optimizer=OPTIMIZERS[optimizer])
    before = {name: p.detach().clone() for name, p in trainer.model.weights().items()}
    trainer.fit()
    still = {name for name, p in trainer.model.weights().items() if torch.equal(p, before[name])}
    assert still == {name for name in before if layer(name) == "0"}


def test_splitting_twice_changes_nothing(data: Data, tmp_path: Path) -> None:
    state = make(data, tmp_path, {}, optimizer=MuonOptions()).state
    state.split_groups(layer)
    names = ["decayed/outside", "plain/0", "plain/1", "plain/outside", "hidden/0", "hidden/1"]
    assert sorted(g["name"] for g in state.optimizer.param_groups) == sorted(names)
    before = groups.describe(state.optimizer, state.model)
    state.split_groups(layer)
    assert groups.describe(state.optimizer, state.model) == before
    state.split_groups(lambda name: "head" if name == "wte.weight" else "rest")
    assert "decayed/outside/head" in [g["name"] for g in state.optimizer.param_groups]


def test_a_split_with_equal_rates_trains_as_without(data: Data, tmp_path: Path) -> None:
    class Split(Callback):
        def on_fit_start(self, state: TrainState) -> None:
            state.split_groups(layer)

    plain = make(data, tmp_path / "a", {}, optimizer=MuonOptions()).fit()
    split = make(data, tmp_path / "b", {"split": Split()}, optimizer=MuonOptions()).fit()
    pairs = zip(plain.model.parameters(), split.model.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


def test_a_group_with_parameters_of_both_optimizers_is_an_error(data: Data, tmp_path: Path) -> None:
    trainer = make(data, tmp_path, {}, optimizer=MuonOptions())
    first, *_, last = trainer.state.optimizer.param_groups
    first["params"] += last["params"]
    with pytest.raises(ValueError, match="parameters of AdamW or of Muon alone"):
        trainer.fit()


@pytest.mark.parametrize(("saved", "other"), [("adamw", "muon"), ("muon", "adamw")])
def test_groups_of_another_optimizer_are_refused(
    data: Data, tmp_path: Path, saved: str, other: str
) -> None:
    split: Callable[[], dict[str, Callback]] = lambda: {"rates": LayerRates()}  # noqa: E731
    make(data, tmp_path / "whole", split(), optimizer=OPTIMIZERS[saved]).fit()
    with pytest.raises(CheckpointError, match="parameter groups are not those"):
        resumed(data, tmp_path / "whole", split(), optimizer=OPTIMIZERS[other])


def test_tokens_are_those_that_were_read(data: Data, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    class Watch(Callback):
        def on_backward_end(self, state: TrainState) -> None:
            state.batch_size = 2 * (state.step + 2)  # of the next step

        def on_step_end(self, state: TrainState) -> None:
            seen.append((state.tokens, state.tokens_per_step))

    trainer = make(data, tmp_path, {"watch": Watch()}, steps=3)
    sizes = []
    read = trainer.reader.read
    trainer.reader.read = lambda *a, **k: (lambda b: (sizes.append(len(b[0])), b)[1])(read(*a, **k))  # type: ignore[method-assign]
    trainer.fit()
    assert sizes == [4, 4, 6]
    assert seen == [(32, 32), (64, 48), (112, 64)]


@pytest.mark.parametrize("size", [0, -4, 2.0, True])
def test_an_impossible_batch_size_is_refused(data: Data, tmp_path: Path, size: Any) -> None:
    class Wrong(Callback):
        def on_step_start(self, state: TrainState) -> None:
            state.batch_size = size

    said = rf"state\.batch_size should be a whole number above 0, a callback set it to {size}"
    with pytest.raises(PluginError, match=said) as caught:
        make(data, tmp_path, {"fine": Callback(), "wrong": Wrong()}).fit()
    assert caught.value.__notes__ == ["raised by wrong in on_step_start at step 0"]


def test_labels_are_texts_or_whole_numbers() -> None:
    state = make_state()
    with pytest.raises(PluginError, match=r"split_groups: the label of weight is None"):
        state.split_groups(lambda name: None)  # type: ignore[arg-type, return-value]
    state.split_groups(lambda name: 0 if name == "bias" else 1)
    names = {group["name"] for group in state.optimizer.param_groups}
    assert names == {"decayed/0", "decayed/1"}
    state.split_groups(lambda name: 0 if name == "bias" else 1)
    assert {group["name"] for group in state.optimizer.param_groups} == names


@pytest.mark.parametrize("size", [0, 2.0])
def test_an_impossible_batch_size_is_not_saved(data: Data, tmp_path: Path, size: Any) -> None:
    class Wrong(Callback):
        def on_step_end(self, state: TrainState) -> None:
            state.batch_size = size if state.step == 2 else 4

    with pytest.raises(PluginError, match=r"state\.batch_size .* a callback set it to"):
        make(data, tmp_path, {"wrong": Wrong()}).fit()
    assert checkpoint.step_folders(tmp_path) == []


def test_evaluations_do_not_depend_on_the_batch_size_of_training(
    data: Data, tmp_path: Path
) -> None:
    class Resize(Callback):
        def on_fit_start(self, state: TrainState) -> None:
            before = state.evaluate(batches=2)
            state.batch_size = 12
            assert state.evaluate(batches=2) == before

        def on_step_end(self, state: TrainState) -> None:
            assert state.evaluate("train", batches=1) != state.evaluate()
            state.stop = True

    assert make(data, tmp_path, {"resize": Resize()}).fit().step == 1


@pytest.mark.parametrize(("split", "batches"), [("test", None), ("val", 0), ("train", -1)])
def test_nothing_to_evaluate_is_an_error(
    data: Data, tmp_path: Path, split: Any, batches: int | None
) -> None:
    with pytest.raises(PluginError, match="no such split, or no batch"):
        make(data, tmp_path, {}).measure(split, batches=batches)


def test_the_losses_of_a_set_are_those_of_its_weights(data: Data, tmp_path: Path) -> None:
    average = Average()
    trainer = make(data, tmp_path, {"ema": average}, steps=2)
    state = trainer.fit()
    before = {name: p.detach().clone() for name, p in trainer.model.weights().items()}
    own = trainer.measure()
    assert (own, trainer.state.val_step) == (state.val_loss, 2)
    trainer.model.load_weights(average._average)
    assert trainer.measure() == state.val_losses["ema"] != own
    assert all(torch.equal(checkpointed, before[name]) for name, checkpointed in
               read_snapshot(tmp_path / "step-00000002").tensors["model"].items())  # fmt: skip


@pytest.mark.parametrize(
    ("sets", "fault"),
    [
        ({"Big": {}}, r"mine: weights\(\): 'Big' cannot name a set of weights"),
        ({"model": {}}, "'model' cannot name a set of weights"),
        ({"ema": {"wte.weight": torch.zeros(1)}}, r"weights\(\)\['ema'\] has no h\.0\.attn"),
        ({"ema": None}, "should be None or sets of tensors by name"),
        ([1], r"should be None or sets of tensors by name, got list"),
    ],
)
def test_weights_that_do_not_fit_name_their_callback(
    data: Data, tmp_path: Path, sets: Any, fault: str
) -> None:
    class Mine(Callback):
        def weights(self) -> Any:
            return sets

    with pytest.raises(PluginError, match=fault) as caught:
        make(data, tmp_path, {"mine": Mine()}).fit()
    assert caught.value.__notes__ == ["raised by mine in weights at step 2"]


def test_two_callbacks_cannot_offer_sets_of_one_name(data: Data, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r'b: weights.*"ema" is also a set of a'):
        make(data, tmp_path, {"a": Average(), "b": Average()}).fit()
    two = {"a": Average(), "b": Average(name="slow")}
    make(data, tmp_path, two).fit()
    state = checkpoint.load_state(checkpoint.step_folders(tmp_path)[-1])
    assert state.weights == {"ema": "a", "slow": "b"}
