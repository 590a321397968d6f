"""An area: sizes that are valid and absurd, with which no computer can train."""

from pathlib import Path
from random import Random

from tests.hostile.harness import Case

HUGE = [10**8, 2**31 - 1, 2**31, 10**12, 2**63 - 1, 2**63, 10**30]
MODEL = ["n_layer", "n_head", "n_kv_head", "n_embd", "n_inner"]
TRAIN = ["batch_size", "micro_batch_size"]
COUNTS = ["steps", "tokens", "epochs", "eval_every", "eval_batches", "save_every", "keep"]
CHOICES = [
    "model.position=rotary",
    "model.mlp=swiglu",
    "model.norm=rmsnorm",
    "train.recompute=true",
]
CHOICES += ["train.optimizer.use=muon", "train.dtype=bfloat16", "model.tie_embeddings=false"]
RUN = ["sample --samples", "sample --tokens", "probe --items", "sample --top-k", "sample --seed"]


def prepare(base: Path) -> None:
    """A recipe, its data and its run."""
    from gptkit.runs import train

    (base / "a.txt").write_text("Shall I compare thee to a summer's day?\n" * 20)
    (base / "tiny.toml").write_text(
        f'seed = 1\n[dataset]\nuse = "char-text"\nblock_size = 16\npath = "{base}/a.txt"\n'
        "[model]\nn_layer = 1\nn_head = 2\nn_embd = 8\n"
        '[train]\nsteps = 1\nbatch_size = 2\neval_batches = 1\ndevice = "cpu"\n'
    )
    train.train(base / "tiny.toml", out=base / "run", report=lambda line: None)


def case(random: Random, base: Path, folder: Path) -> Case:
    """One or two such sizes, in a recipe or in an option of a command."""
    if random.random() < 0.2:
        command, option = random.choice(RUN).split()
        drawn = option == "--tokens"  # fewer would be drawn
        number = random.choice([*HUGE[2:], "9" * 5000] if drawn else [*HUGE, -1, 0, "9" * 5000])
        return Case([command, base / "run", option, number], expect=_must_fail if drawn else None)
    tables = [
        f"model.{random.choice(MODEL)}",
        f"train.{random.choice(TRAIN)}",
        "dataset.block_size",
    ]
    chosen = random.sample(tables, random.randint(1, 2))
    sets = [f"{key}={random.choice(HUGE)}" for key in chosen]
    command = "train"
    if random.random() < 0.3:
        command = "check"
        sets.append(f"train.{random.choice(COUNTS)}={random.choice(HUGE)}")
    sets += random.sample(CHOICES, random.randint(0, 2))
    options = [word for text in sets for word in ("--set", text)]
    expect = _must_fail if command == "train" else None
    return Case([command, base / "tiny.toml", *options], about=" ".join(sets), expect=expect)


def _must_fail(code: int, out: str, err: str) -> str | None:
    return None if code in (1, 2) else "nothing can hold that"
