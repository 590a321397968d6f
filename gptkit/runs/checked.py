"""Read a step folder and check that it holds what its own state.json describes.

Digests show that nothing was damaged; they do not show that it was gptkit that wrote it. So nothing
is restored, and no model is built, before names, shapes and types of all tensors are known to fit.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from gptkit.contract import state_tree
from gptkit.recipe import adapters, sizes
from gptkit.runs import checkpoint
from gptkit.runs.checkpoint import Checkpoint, adapters_file, damaged, weights_file
from gptkit.runs.state import State
from gptkit.runs.tensor_file import Entry, TensorFile
from gptkit.runs.weights import Shapes, check_weights, expected_shapes, fault_of
from gptkit.training.optimizer import MOMENTS
from gptkit.training.snapshot import GENERATORS


def load(step_folder: Path) -> Checkpoint:
    """Read all of a step folder.

    Raises:
        CheckpointError: it is damaged, incomplete or of a newer format, or its parts do not fit.
    """
    state, files = checkpoint.load(step_folder)
    shapes = expected_shapes(step_folder, state, files["model"])
    for weights in (None, *state.weights):
        check_weights(step_folder, files[weights_file(weights)], shapes, weights)
        if state.lora:
            check_adapters(step_folder, state, files[adapters_file(weights)], weights)
    if state.lora:  # only these are trained
        shapes = adapters.parameter_shapes(state.config, state.lora)
    path = step_folder / "optimizer.safetensors"
    for fault in _optimizer_faults(files["optimizer"], state, shapes):
        raise damaged(path, fault)
    path = step_folder / "callbacks.safetensors"
    for name in _misplaced(files["callbacks"], state) if "callbacks" in files else ():
        raise damaged(path, f"{name[:80]} has no place in the state of a callback")
    return Checkpoint(state, files)


def check_adapters(
    step_folder: Path, state: State, tensors: TensorFile, weights: str | None
) -> None:
    """Raise a CheckpointError if adapters are not those that state.json describes."""
    assert state.lora
    path = step_folder / f"{adapters_file(weights)}.safetensors"
    shapes = adapters.parameter_shapes(state.config, state.lora)
    expected = adapters.to_peft(state.config, state.lora, shapes)
    for name in expected.keys() - tensors.keys():
        raise damaged(path, f"{name} is missing")
    for name, entry in tensors.entries.items():
        if name not in expected:
            raise damaged(path, f"{name[:80]} is no matrix of these adapters")
        if fault := fault_of(entry, expected[name]):
            raise damaged(path, f"{name} {fault}")


def _optimizer_faults(tensors: TensorFile, state: State, shapes: Shapes) -> Iterator[str]:
    """What is wrong with generator states and moments."""
    for key, device in GENERATORS.items():
        if key in tensors and not _is_generator_state(tensors[key], device):
            yield f"{key} is no state of a generator"
    if "generator:cpu" not in tensors:
        yield "generator:cpu is missing"
    moments: dict[str, dict[str, Entry]] = {}
    for key in tensors.keys() - GENERATORS.keys():
        name, _, kind = key.rpartition(":")
        moments.setdefault(name, {})[kind] = tensors.entries[key]
    groups = (group for group in state.optimizer_groups if "params" in group)  # not in format 1
    optimizers = {name: group.get("optimizer", "") for group in groups for name in group["params"]}
    for name, found in moments.items():
        kinds = [MOMENTS.get(optimizers[name], ())] if name in optimizers else [*MOMENTS.values()]
        if name not in shapes or sorted(found) not in map(sorted, kinds):
            yield f"{name[:80]} has {', '.join(sorted(found))[:80]}, which its optimizer has not"
        else:
            yield from _moment_faults(name, found, shapes[name])


def _moment_faults(name: str, moments: Mapping[str, Entry], shape: sizes.Shape) -> Iterator[str]:
    for kind, moment in moments.items():
        if fault := fault_of(moment, () if kind == "step" else shape):
            yield f"{name}:{kind} {fault}"


def _misplaced(tensors: TensorFile, state: State) -> set[str]:
    """The paths of callbacks' tensors that state.json has no null for; format 1 has no paths."""
    if isinstance(state.callbacks, list):
        return set()
    placed: dict[str, Tensor] = {}
    named = {path: torch.empty(0) for path in tensors if path}  # "" would be all of them
    for name, tree in state_tree.join(state.callbacks, named).items():
        placed |= state_tree.separate(tree, name=name, place=name)[1]
    return tensors.keys() - placed.keys()


def _is_generator_state(tensor: Tensor, device: str) -> bool:
    if device != "cpu":
        return tensor.dtype == torch.uint8 and tensor.shape == (16,)  # seed and offset
    try:
        torch.Generator().set_state(tensor)
    except (RuntimeError, TypeError):
        return False
    return True
