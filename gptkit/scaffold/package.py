"""The skeleton of a plugin: a pip package that installs, passes its test and can be filled in."""

import keyword
import re
import sys
import tempfile
from pathlib import Path
from string import Template

from gptkit.errors import RunError, UsageError
from gptkit.recipe import registry

KINDS = ("callback", "dataset")
TEMPLATES = Path(__file__).parent / "templates"


def write(name: str, kind: str, out: Path | None = None) -> Path:
    """Write a plugin's package into a new folder.

    Args:
        name: the word in recipes, and the name of the distribution.
        kind: "callback" or "dataset".
        out: the folder; one of the plugin's name, here, if left out.

    Returns:
        The folder.

    Raises:
        UsageError: the name or the kind will not do, or the folder is there.
        RunError: the folder cannot be written.
    """
    _check_name(name)
    if kind not in KINDS:
        raise UsageError(f'--kind: no kind "{kind}"', hint=f"there are {', '.join(KINDS)}")
    target = out or Path(name)
    if target.exists():
        raise UsageError(f"{target}: is there already", hint="choose another --out")
    module = name.replace("-", "_")
    values = {"name": name, "module": module, "class_name": name.title().replace("-", "")}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as scratch:
            stage = Path(scratch) / target.name
            stage.mkdir()
            for template in sorted((TEMPLATES / kind).iterdir()):
                file = template.name.removesuffix(".txt").replace("module", module)
                text = Template(template.read_text(encoding="utf-8")).substitute(values)
                (stage / file).write_text(text, encoding="utf-8")
            stage.rename(target)
    except OSError as error:
        raise RunError(f"{target}: cannot be written: {error.strerror}") from error
    return target


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise UsageError(
            f"{name}: not a plugin's name", hint="small letters and digits, in words joined by -"
        )
    module = name.replace("-", "_")
    if keyword.iskeyword(module) or module in sys.stdlib_module_names:
        raise UsageError(
            f"{name}: Python has a module or a word of that name", hint=f"my-{name}, say"
        )
    taken = [entry for kind in registry.BASES for entry in registry.installed(kind)]
    for entry in taken:
        if entry.name == name:
            raise UsageError(f"{name}: {entry} has that name", hint="choose another one")
