"""What a training trains: all of a model, all but its frozen parts, or adapters alone."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from gptkit.errors import Problem, UsageError, closest
from gptkit.recipe import adapters, sizes
from gptkit.recipe.options import GPTConfig, LoraOptions, ModelTable
from gptkit.recipe.phrases import short, shown
from gptkit.recipe.sizes import Trained

BLOCKS = re.compile(r"h(?:\.(\d{1,9})(?:-(\d{1,9}))?)?(?:\.(?=[^\d])(.+))?")
"""An entry of `freeze` that names blocks: first and last one, and a part of them."""


@dataclass(frozen=True)
class Frozen:
    """The parameters that an entry of `freeze` names."""

    names: frozenset[str]
    """In each of the blocks; outside of them if there are none."""
    blocks: range | None = None


@dataclass(frozen=True)
class Tuning:
    """What is trained of a model."""

    config: GPTConfig
    frozen: tuple[Frozen, ...] = ()
    lora: LoraOptions | None = None
    """Complete; None trains no adapters."""

    def freezes(self, name: str) -> bool:
        """Whether a parameter of the model stays as it is."""
        if self.lora:
            return not adapters.is_adapter(name)
        inside = re.fullmatch(r"h\.(\d+)\.(.+)", name)
        if inside is None:
            return any(name in f.names for f in self.frozen if f.blocks is None)
        layer, inner = int(inside[1]), inside[2]
        return any(layer in (f.blocks or ()) and inner in f.names for f in self.frozen)

    def trained(self) -> Trained:
        """How much of the model is trained."""
        config, all_trained = self.config, sizes.all_trained(self.config)
        if self.lora:
            added = config.n_layer * sizes.count(adapters.block_shapes(config, self.lora).values())
            return Trained(0, added, added, added, config.n_layer, added)
        if not self.frozen:
            return all_trained
        outer = sizes.outer_shapes(config)
        fixed = {name for f in self.frozen if f.blocks is None for name in f.names}
        free = {name: shape for name, shape in outer.items() if name not in fixed}
        tables = sizes.tables(config)
        multiplied = sizes.count(shape for name, shape in free.items() if name not in tables)
        blocks = matrices = layers = 0
        for span, names in self._spans():
            left = [s for name, s in sizes.block_shapes(config).items() if name not in names]
            blocks += len(span) * sizes.count(left)
            matrices += len(span) * sizes.count(s for s in left if len(s) == 2)
            if left or layers:  # gradients pass through what is behind a trained part
                layers += len(span)
        if free.keys() & {"wte.weight", "position.wpe.weight"}:
            layers = config.n_layer
        outside = sizes.count(free.values())
        return Trained(outside, blocks, matrices, 0, layers, multiplied + blocks)

    def _spans(self) -> Iterator[tuple[range, set[str]]]:
        """Neighbouring blocks in which the same parameters are frozen, with their names."""
        inside = [(f.blocks, f.names) for f in self.frozen if f.blocks is not None]
        ends = {end for blocks, _ in inside for end in (blocks.start, blocks.stop)}
        for first, stop in pairwise(sorted(ends | {0, self.config.n_layer})):
            names = [names for blocks, names in inside if first in blocks]
            yield range(first, stop), set().union(*names)


def find(model: ModelTable, lora: LoraOptions | None, config: GPTConfig) -> Tuning:
    """What a recipe trains of a model.

    Raises:
        UsageError: it names parts that the model does not have, or all of them.
    """
    if found := problems(model, lora, config):
        raise UsageError("\n".join(f"{p.place}: {p.fault}" for p in found), hint=found[0].hint)
    frozen = tuple(_named(entry, config) for entry in model.freeze)
    return Tuning(config, frozen, adapters.resolved(config, lora) if lora else None)


def problems(
    model: ModelTable, lora: LoraOptions | None, config: GPTConfig | None = None
) -> list[Problem]:
    """What is wrong with the names in `freeze` and in `targets`.

    Args:
        model: the recipe's table `[model]`.
        lora: its table `[lora]`, if it has one.
        config: of the model; None makes it from the recipe. Its vocabulary does not count.
    """
    if not model.freeze and lora is None:
        return []
    if lora and model.freeze:
        fault = "should be left out: with [lora] all weights are frozen"
        return [Problem("model.freeze", fault, key=("model", "freeze"))]
    if config is None and model.init:  # the parts are those of another model, not known yet
        return []
    config = config or GPTConfig(**model.shape(), vocab_size=1, block_size=1)
    if lora:
        return list(_target_problems(lora.targets or (), config))
    found = list(_freeze_problems(model.freeze, config))
    if not found and model.freeze:
        frozen = tuple(_named(entry, config) for entry in model.freeze)
        trained = Tuning(config, frozen).trained()
        if not trained.outer + trained.blocks:
            fault = "names all parts of the model: there is nothing to train"
            found.append(Problem("model.freeze", fault, key=("model", "freeze")))
    return found


def _freeze_problems(entries: Sequence[str], config: GPTConfig) -> Iterator[Problem]:
    for i, entry in enumerate(entries):
        if fault := _entry_fault(entry, config):
            yield Problem(f"model.freeze[{i}]", fault, key=("model", "freeze", i))


def _target_problems(targets: Sequence[str], config: GPTConfig) -> Iterator[Problem]:
    known = list(adapters.known(config))
    for i, target in enumerate(targets):
        place, key = f"lora.targets[{i}]", ("lora", "targets", i)
        if target not in known:
            near = closest(target, known)
            meant = f'did you mean "{near}"? ' if near else ""
            fault = f"no linear layer {shown(target)}; {meant}there are {', '.join(known)}"
            yield Problem(place, fault, key=key)
        elif target in targets[:i]:
            yield Problem(place, f"{shown(target)} is given twice", key=key)


def _entry_fault(entry: str, config: GPTConfig) -> str | None:
    """What is wrong with an entry of `freeze`."""
    blocks = _range_of(entry, config)
    if blocks is not None and not (blocks.start < blocks.stop <= config.n_layer):
        last = config.n_layer - 1
        return f"{shown(entry)}: the model has the blocks h.0 to h.{last}"
    if _named(entry, config).names:
        return None
    if (inside := BLOCKS.fullmatch(entry)) and inside[3]:
        parts = _parts(sizes.block_shapes(config))
        place = entry.removesuffix(inside[3])
        return _unknown(entry, [place + part for part in parts])
    return _unknown(entry, [*_parts(sizes.outer_shapes(config)), "h", f"h.0-{config.n_layer - 1}"])


def _unknown(entry: str, known: list[str]) -> str:
    near = closest(entry, known)
    meant = f'did you mean "{near}"? ' if near else ""
    return f"no part {shown(entry)}; {meant}there are {short(', '.join(known), 400)}"


def _parts(names: Sequence[str] | dict[str, sizes.Shape]) -> list[str]:
    """The names of parameters and of the parts that they are in."""
    found: dict[str, None] = {}
    for name in names:
        pieces = name.split(".")
        found |= dict.fromkeys(".".join(pieces[:n]) for n in range(1, len(pieces)))
    return list(found)


def _range_of(entry: str, config: GPTConfig) -> range | None:
    """The blocks that an entry names; None if it names what is outside of them."""
    found = BLOCKS.fullmatch(entry)
    if found is None:
        return None
    if found[1] is None:
        return range(config.n_layer)
    return range(int(found[1]), int(found[2] or found[1]) + 1)


def _named(entry: str, config: GPTConfig) -> Frozen:
    """The parameters that an entry names, perhaps none; a tied head is the embedding."""
    blocks, found = _range_of(entry, config), BLOCKS.fullmatch(entry)
    part = found[3] if found else entry
    if config.tie_embeddings and part in ("lm_head", "lm_head.weight"):
        part = "wte"
    shapes = sizes.outer_shapes(config) if blocks is None else sizes.block_shapes(config)
    within = {n for n in shapes if part is None or n == part or n.startswith(f"{part}.")}
    return Frozen(frozenset(within), blocks)
