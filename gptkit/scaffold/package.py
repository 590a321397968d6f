"""Write the package of a new plugin, which installs and passes its test as it is."""

import keyword
import re
import sys
from pathlib import Path
from string import Template

from gptkit.errors import UsageError
from gptkit.files import writing
from gptkit.recipe import registry
from gptkit.staging import staged

KINDS = ("callback", "dataset")
TEMPLATES = Path(__file__).parent / "templates"


def write(name: str, kind: str, out: Path | None = None) -> Path:
    """Write a plugin's package into a new folder.

    Args:
        name: of the plugin in recipes, and of the distribution.
        kind: "callback" or "dataset".
        out: the folder; None takes the plugin's name, in the working directory.

    Returns:
        The folder.

    Raises:
        UsageError: the name or the kind is invalid, or the folder exists.
        RunError: the folder cannot be written.
    """
    _check_name(name)
    if kind not in KINDS:
        raise UsageError(f'--kind: no kind "{kind}"', hint=f"kinds: {', '.join(KINDS)}")
    target = out or Path(name)
    if target.exists():
        raise UsageError(f"{target}: already exists", hint="choose another folder: --out DIR")
    module = name.replace("-", "_")
    values = {"name": name, "module": module, "class_name": name.title().replace("-", "")}
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with staged(target) as new:
            new.mkdir()
            for template in sorted((TEMPLATES / kind).iterdir()):
                file = template.name.removesuffix(".txt").replace("module", module)
                text = Template(template.read_text(encoding="utf-8")).substitute(values)
                (new / file).write_text(text, encoding="utf-8")
    return target


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise UsageError(
            f"{name}: not a plugin's name",
            hint="use lower-case letters and digits, in words joined by -",
        )
    module = name.replace("-", "_")
    if keyword.iskeyword(module) or module in sys.stdlib_module_names:
        raise UsageError(
            f"{name}: the name of a Python module or keyword", hint=f"for example my-{name}"
        )
    for entry in registry.all_installed():
        if entry.name == name:
            raise UsageError(
                f"{name}: {entry.kind} {entry} has that name", hint="choose another name"
            )
