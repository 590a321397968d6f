"""Entry points to validated plugin objects. Only the plugin that is named gets imported."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from inspect import isabstract
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from gptkit.codec import Codec
from gptkit.errors import PluginError, Problem, closest
from gptkit.recipe import recipe as recipe_file
from gptkit.recipe.recipe import PluginSpec, Recipe

Kind = Literal["dataset", "callback", "codec"]

BASES: dict[Kind, EntryPoint] = {
    "dataset": EntryPoint("Dataset", "gptkit.plugin:Dataset", "gptkit.datasets"),
    "callback": EntryPoint("Callback", "gptkit.plugin:Callback", "gptkit.callbacks"),
    "codec": EntryPoint("Codec", "gptkit.codec:Codec", "gptkit.codecs"),
}
"""Each kind's base class, named rather than imported (the contract needs torch), and its group."""


@dataclass(frozen=True)
class Entry:
    """An installed plugin: announced by a distribution, perhaps never imported."""

    kind: Kind
    name: str
    distribution: str
    version: str
    point: EntryPoint

    def __str__(self) -> str:
        return f"{self.name} ({self.origin})"

    @property
    def origin(self) -> str:
        """The distribution and its version."""
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True)
class Plugins:
    """What a recipe's names stand for.

    Args:
        recipe: the recipe with every plugin's options spelled out.
        dataset: a `gptkit.plugin.Dataset`.
        callbacks: each `gptkit.plugin.Callback` under the name that errors give it, in order.
        entries: where they came from.
    """

    recipe: Recipe
    dataset: Any
    callbacks: Mapping[str, Any]
    entries: tuple[Entry, ...]


def installed(kind: Kind) -> list[Entry]:
    """Every installed plugin of a kind, sorted by name; imports none."""
    points = entry_points(group=BASES[kind].group)
    entries = {_entry(kind, point) for point in points}
    return sorted(entries, key=lambda entry: (entry.name, entry.distribution))


def find(kind: Kind, name: str) -> Entry:
    """The one installed plugin of that name.

    Raises:
        PluginError: there is none, or several distributions claim the name.
    """
    known = installed(kind)
    matches = [entry for entry in known if entry.name == name]
    if not matches:
        near = closest(name, [entry.name for entry in known])
        hint = f"installed: {', '.join(map(str, known)) or 'none'}"
        raise PluginError(
            f'no {kind} named "{name}"',
            hint=hint + (f'; did you mean "{near}"?' if near else "; pip install adds more"),
        )
    if len(matches) > 1:
        raise PluginError(
            f'the {kind} name "{name}" is claimed by {" and ".join(e.origin for e in matches)}',
            hint=f"pip uninstall all but one of {', '.join(e.distribution for e in matches)}",
        )
    return matches[0]


def find_any(name: str) -> list[Entry]:
    """The installed plugins of that name, of whatever kind: a data set and its codec, say.

    Raises:
        PluginError: there is none.
    """
    known = [entry for kind in BASES for entry in installed(kind)]
    matches = [entry for entry in known if entry.name == name]
    if not matches:
        near = closest(name, [entry.name for entry in known])
        hint = f"installed: {', '.join(map(str, known)) or 'none'}"
        raise PluginError(
            f'no plugin named "{name}"', hint=hint + (f'; did you mean "{near}"?' if near else "")
        )
    return matches


def check_all(name: str | None = None) -> list[tuple[Entry, PluginError | None]]:
    """Import the plugins of a name, or all of them, and say what is wrong with each."""
    known = find_any(name) if name else [e for kind in BASES for e in installed(kind)]
    return [(entry, _fault(entry)) for entry in known]


def load(entry: Entry) -> type[BaseModel]:
    """Import a plugin's class.

    Raises:
        PluginError: the import fails, or what it gives is no plugin of that kind.
    """
    try:
        plugin = entry.point.load()
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{entry.kind} {entry} cannot be imported: {type(error).__name__}: {error}",
            hint=f"gptkit plugins check {entry.name} shows where; "
            f"reinstall or remove {entry.distribution}",
        ) from error
    base = BASES[entry.kind].load()
    if not (isinstance(plugin, type) and issubclass(plugin, base)):
        raise PluginError(
            f"{entry.kind} {entry}: {entry.point.value} is not a subclass of {base.__name__}",
            hint=f"tell the authors of {entry.distribution}",
        )
    if isabstract(plugin):
        lacking = ", ".join(sorted(getattr(plugin, "__abstractmethods__", ())))
        raise PluginError(
            f"{entry.kind} {entry}: {entry.point.value} lacks {lacking}",
            hint=f"tell the authors of {entry.distribution}",
        )
    return plugin


def read_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """`recipe.read`, with the plugins' options checked too: every problem at once."""
    return recipe_file.read(path, overrides, check=check_plugin)


def check_plugin(kind: str, spec: PluginSpec, place: str) -> list[Problem]:
    """What is wrong with a plugin as a recipe names it."""
    try:
        plugin = load(find(_kind(kind), spec.use))
    except PluginError as error:
        return [Problem(f"{place}.use", str(error), error.hint)]
    try:
        plugin.model_validate(spec.options)
    except ValidationError as error:
        hint = f"gptkit plugins show {spec.use} lists its options"
        found = recipe_file.problems_of(error, plugin, f"{place} ({spec.use})")
        return [Problem(problem.place, problem.fault, hint) for problem in found]
    return []


def build(recipe: Recipe) -> Plugins:
    """Make the objects that a checked recipe names. Nothing heavy happens yet."""
    dataset_entry, dataset, dataset_spec = _make("dataset", recipe.dataset)
    made = [_make("callback", spec) for spec in recipe.callbacks]
    complete = recipe.model_copy(
        update={"dataset": dataset_spec, "callbacks": tuple(spec for _, _, spec in made)}
    )
    callbacks = {
        f"callbacks[{i}] ({entry.name}, {entry.origin})": callback
        for i, (entry, callback, _) in enumerate(made)
    }
    entries = (dataset_entry, *(entry for entry, _, _ in made))
    return Plugins(complete, dataset, callbacks, entries)


def codec_entry(codec: Codec) -> Entry:
    """The entry point under which a codec's class is announced; sampling will need it.

    Raises:
        PluginError: no distribution announces the class in the group `gptkit.codecs`.
    """
    value = f"{type(codec).__module__}:{type(codec).__qualname__}"
    for entry in installed("codec"):
        if entry.point.value == value:
            return entry
    raise PluginError(
        f"the codec {value} is not announced by any distribution",
        hint=f'its pyproject.toml needs [project.entry-points."gptkit.codecs"] NAME = "{value}"',
    )


def make_codec(name: str, distribution: str, options: Mapping[str, Any]) -> Codec:
    """The codec that a checkpoint or an exported model names.

    Raises:
        PluginError: its distribution is not installed, or it does not take these options.
    """
    if name not in {entry.name for entry in installed("codec")}:
        raise PluginError(
            f'the codec "{name}" that this model needs is not installed',
            hint=f"pip install {distribution}",
        )
    codec = load(find("codec", name))
    try:
        made = codec.model_validate(options)
    except ValidationError as error:
        raise PluginError(
            f'the codec "{name}" does not accept what the model stored: {error}',
            hint=f"install the version of {distribution} that the model was trained with",
        ) from None
    assert isinstance(made, Codec)
    return made


def _fault(entry: Entry) -> PluginError | None:
    try:
        load(find(entry.kind, entry.name))
    except PluginError as error:
        return error
    return None


def _make(kind: Kind, spec: PluginSpec) -> tuple[Entry, Any, PluginSpec]:
    entry = find(kind, spec.use)
    plugin = load(entry).model_validate(spec.options)
    options = plugin.model_dump(mode="json", exclude_none=True)
    return entry, plugin, PluginSpec.model_validate({"use": spec.use, **options})


def _entry(kind: Kind, point: EntryPoint) -> Entry:
    name, version = (point.dist.name, point.dist.version) if point.dist else ("unknown", "?")
    return Entry(kind, point.name, name, version, point)


def _kind(text: str) -> Kind:
    return "dataset" if text == "dataset" else "callback"
