"""An area: `--set` with texts that nobody means."""

from pathlib import Path
from random import Random

from tests.hostile.harness import Case

KEYS = ["seed", "train.steps", "train.optimizer.learning_rate", "model.n_embd", "dataset.path"]
KEYS += ["dataset.use", "callbacks", "callbacks.log.every", "callbacks.²", "callbacks.9" * 3]
KEYS += ["model", "train.device", "", ".", "a" * 5000, "train." * 2000, "train.optimizer.use"]
VALUES = ["", "1", "-1", "1e400", "nan", "inf", "9" * 5000, "0x" + "f" * 5000, "true", "True"]
VALUES += ["[" * 3000, "{a=" * 3000, "2024-01-01", "\x1b]0;owned\x07", "\u202e", "a" * 10000]
VALUES += ["None", "[1, 2]", "{use = 1}", '"\\u0000"', "'", "\ud800", ".5", "1.", "(0.9,0.99)"]


def prepare(base: Path) -> None:
    """A recipe."""
    (base / "tiny.toml").write_text(
        'seed = 1\n[dataset]\nuse = "char-text"\nblock_size = 16\n[[callbacks]]\nuse = "log"\n'
    )


def case(random: Random, base: Path, folder: Path) -> Case:
    """One or two of them."""
    sets = [f"{random.choice(KEYS)}={random.choice(VALUES)}" for _ in range(random.randint(1, 2))]
    options = [word for text in sets for word in ("--set", text)]
    return Case(["check", base / "tiny.toml", *options], about=ascii(sets)[:300])
