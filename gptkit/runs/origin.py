"""The weights that a training begins with: another run's, or those of another program's model."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptkit.codec import Codec, TextCodec
from gptkit.contract.comparison import TOLERANCE
from gptkit.errors import CheckpointError, PluginError, RunError, UsageError
from gptkit.files import quote
from gptkit.model.gpt import GPT, evaluating
from gptkit.recipe import codec_record, formats
from gptkit.recipe.build import Plugins
from gptkit.recipe.codec_record import CodecRecord
from gptkit.recipe.options import GPTConfig, ModelOptions, ModelTable
from gptkit.recipe.phrases import shown
from gptkit.runs import checkpoint, history, run_folder
from gptkit.runs.history import Began
from gptkit.runs.importing import CheckedWeights, Expected, config_of
from gptkit.runs.run_folder import RunFolder
from gptkit.runs.weights import load_weights
from gptkit.training import finite
from gptkit.training.sharding import Sharded

ON_A_GPU = 1e-2
"""How far logits may be from those of another program there, whose products may be in TF32."""
WITHOUT_WEIGHTS = {"preset", "dropout"}
"""Fields of a model's description that change no weights."""
_SHAPE = set(ModelOptions.model_fields)
OF_TOKENS, OF_POSITIONS = ("wte.weight", "lm_head.weight"), "position.wpe.weight"
"""The weights with a row for each token id, and for each position."""


@dataclass(frozen=True)
class Origin:
    """The weights that a new run begins with, and the model that they are of."""

    place: str
    """Where the weights were named, for errors, such as "--from runs/a"."""
    told: str
    """What they are, such as "step 100 of runs/a"."""
    config: GPTConfig
    codec: CodecRecord
    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any]
    """What environment.json says of them."""
    tokens: str = ""
    """How a recipe gets the tokens of another program's model; "" for those of a run."""
    expected: Callable[[], Expected] | None = None
    """Says what another program's model computes, with which the loaded one is compared."""

    def __str__(self) -> str:
        return self.told

    def check(self, config: GPTConfig, codec: Codec) -> None:
        """Refuse a model of another shape, or a data set with other tokens.

        The vocabulary may have more tokens at its end, and a learned table of positions fewer rows.

        Raises:
            UsageError: names what differs.
        """
        if faults := list(self._codec_faults(codec)):
            raise UsageError(
                "\n".join(f"{self.place}: {fault}" for fault in faults),
                hint="its tokens are not those of the data set: "
                f"{self.tokens or 'take those of the run, which its recipe.toml names'}",
            )
        if faults := list(self._shape_faults(config)):
            raise UsageError(
                "\n".join(f"{self.place}: {fault}" for fault in faults),
                hint="make the recipe's like the run's, or train without "
                + self.place.partition(" ")[0],
            )

    def give(self, model: GPT) -> None:
        """Load the weights into a new model that fits. Under `shard = true` all ranks must.

        Raises:
            DivergedError: they are not finite.
            ExportError: the model computes something else than the one that they are of.
        """
        model.load_weights(Sharded(_Fitted(self.tensors, model), model))
        finite.check_loaded(model, self.place)
        if self.expected:
            self._compare(model, self.expected())

    def complete(self, plugins: Plugins) -> Plugins:
        """The recipe with sizes and parts of the model from here, where it does not set them.

        Raises:
            UsageError: it sets one differently.
        """
        model = plugins.recipe.model
        given = {name: getattr(model, name) for name in model.model_fields_set}
        config = GPTConfig.model_validate(
            {**self.config.model_dump(), **{k: v for k, v in given.items() if k in _SHAPE}}
        )
        if faults := list(self._shape_faults(config)):
            raise UsageError(
                "\n".join(f"{self.place}: {fault}" for fault in faults),
                hint="leave these fields of [model] out: they come from there",
            )
        shape = {name: getattr(config, name) for name in _SHAPE - WITHOUT_WEIGHTS}
        table = model.model_copy(update=shape)
        return replace(plugins, recipe=plugins.recipe.model_copy(update={"model": table}))

    def _compare(self, model: GPT, expected: Expected) -> None:
        device, rows = model.wte.weight.device, model.config.block_size
        tokens = torch.tensor([expected.ids[:rows]], device=device)
        with evaluating(model):
            found = model.logits(tokens)[0, :, : self.config.vocab_size].float().cpu().numpy()
        within = Expected(expected.ids[:rows], expected.logits[:rows])
        tolerance = TOLERANCE if device.type == "cpu" else ON_A_GPU
        within.compare(self.place, found, tolerance=tolerance)

    def _codec_faults(self, codec: Codec) -> list[str]:
        theirs, ours = self.codec, codec_record.record_codec(codec)
        if theirs.name != ours.name:
            return [f'its codec is "{theirs.name}", the recipe\'s data set has "{ours.name}"']
        if _begins_alike(theirs, codec):
            return []
        return list(_differences(theirs.options, ours.options, f"codec ({ours.name})."))

    def _shape_faults(self, config: GPTConfig) -> list[str]:
        theirs, ours = self.config.model_dump(), config.model_dump()
        equal = set(WITHOUT_WEIGHTS)
        if config.position == "rotary" or config.block_size < self.config.block_size:
            equal.add("block_size")
        if config.vocab_size > self.config.vocab_size:
            equal.add("vocab_size")
        for field, resolved in (
            ("n_kv_head", "kv_heads"),
            ("n_inner", "inner_size"),
            ("head_dim", "head_size"),
            ("qkv_bias", "has_qkv_bias"),
            ("window_pattern", "windows"),
        ):
            if getattr(self.config, resolved) == getattr(config, resolved):
                equal.add(field)
        return list(_differences(theirs, ours | {key: theirs[key] for key in equal}, ""))


class _Fitted(Mapping[str, Tensor]):
    """Weights with as many rows for tokens and positions as a model has.

    New tokens get the mean of the rows that there are, as in transformers, without its noise.
    """

    def __init__(self, tensors: Mapping[str, Tensor], model: GPT) -> None:
        self._tensors, self._config = tensors, model.config

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        if name == OF_POSITIONS:
            return tensor[: self._config.block_size]
        more = self._config.vocab_size - len(tensor) if name in OF_TOKENS else 0
        if more <= 0:
            return tensor
        return torch.cat((tensor, tensor.float().mean(0, keepdim=True).expand(more, -1)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def find(
    path: Path, which: str | int = "last", weights: str | None = None, *, place: str | None = None
) -> Origin:
    """Read the weights of a run's checkpoint.

    Args:
        path: the run folder.
        which: "last", "best" or a step's number.
        weights: the name of a further set of weights; None: the model's own.
        place: where it was named, for errors; None: in `--from`.

    Raises:
        GptkitError: there is none, or it is damaged.
    """
    run = run_folder.open_run(path)
    state, tensors = run.read_step(which, lambda folder: load_weights(folder, weights))
    began = Began(
        run=str(run.path.resolve()),
        step=state.step,
        weights=weights,
        sha256=state.sha256[f"{checkpoint.weights_file(weights)}.safetensors"],
    )
    record = {"from": began.model_dump()}
    if imported := run.read_environment().get("imported"):
        record["imported"] = imported
    return Origin(
        place=place or f"--from {run.path}",
        told=f"step {state.step} of {run.path}",
        config=state.config,
        codec=state.codec,
        tensors=tensors,
        record=record,
    )


def find_init(model: ModelTable) -> Origin | None:
    """What `init` in the table `[model]` names; None if it names nothing.

    Raises:
        GptkitError: there is no such run or model, or it is damaged.
    """
    if model.init is None:
        return None
    place = f"model.init {model.init}"
    if (Path(model.init) / "recipe.toml").is_file():
        return find(Path(model.init), model.checkpoint, place=place)
    format_ = formats.make(formats.find_reader(model.init), {})
    imported = format_.read(model.init)
    config = config_of(imported, format_)
    return Origin(
        place=place,
        told=model.init,
        config=config,
        codec=codec_record.record_codec(imported.codec),
        tensors=CheckedWeights(model.init, imported, config),
        record={"imported": {"source": model.init, **imported.about}},
        tokens=f"gptkit import {quote(model.init)} makes a run whose recipe.toml names them",
        expected=partial(Expected.of, imported, config),
    )


def completed(plugins: Plugins) -> tuple[Plugins, Origin | None]:
    """A recipe with what `init` says of the model, and the weights that it names, if any."""
    begin = find_init(plugins.recipe.model)
    return (begin.complete(plugins) if begin else plugins), begin


def find_again(run: RunFolder, model: ModelTable) -> Origin | None:
    """What a run that has no checkpoint of its training yet begins with; None: random weights.

    Args:
        run: its environment.json may name another run; or it holds an imported model itself.
        model: the table `[model]` of its recipe.

    Raises:
        RunError: it is gone, or environment.json is damaged.
    """
    folder = run.checkpoints / checkpoint.step_name(0)
    if folder.is_dir() and checkpoint.load_state(folder).imported:
        return find(run.path, 0, place=str(run.path))
    environment = run.read_environment()
    try:
        began = history.began(environment)
    except ValueError:
        environment = {}
    if not environment:
        raise RunError(
            f"{run.environment}: damaged, so that the weights that the run began with are unknown",
            hint=f"train it again: gptkit train {quote(run.recipe)}, with --from if it had one",
        )
    if began is None:
        return find_init(model)
    with suppress(CheckpointError, RunError, UsageError):
        found = find(Path(began.run), began.step, began.weights)
        if found.record["from"]["sha256"] == began.sha256:
            return found
    raise RunError(
        f"{run.path}: the weights that it began with, {began}, are gone",
        hint=f"begin with others: gptkit train {quote(run.recipe)} --from RUN",
    )


def _begins_alike(record: CodecRecord, codec: Codec) -> bool:
    """Whether a text codec has all tokens of another one, and perhaps more after them."""
    try:
        earlier = codec_record.make_codec(record)
    except PluginError:
        return False
    if not (isinstance(earlier, TextCodec) and isinstance(codec, TextCodec)):
        return False
    theirs, ours = list(earlier.token_bytes), list(codec.token_bytes)
    return theirs == ours[: len(theirs)]


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], place: str) -> Iterator[str]:
    for key in dict.fromkeys([*theirs, *ours]):
        its, own = theirs.get(key), ours.get(key)
        if its != own:
            yield f"its {place}{key} is {shown(its)}, the recipe's {shown(own)}"
