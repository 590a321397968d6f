"""Words of other tools, and gptkit's."""

COMMANDS = {
    "evaluate": "eval",
    "finetune": "train",
    "fit": "train",
    "generate": "sample",
    "init": "plugins new",
    "ls": "runs list",
    "pretrain": "train",
    "run": "train",
    "test": "eval",
    "validate": "check",
}
"""Other tools' names of commands."""

FIELDS = {
    "attn_pdrop": "model.dropout",
    "batch_size": "train.batch_size",
    "block_size": "dataset.block_size",
    "context_length": "dataset.block_size",
    "d_model": "model.n_embd",
    "epochs": "train.epochs",
    "eval_interval": "train.eval_every",
    "eval_iters": "train.eval_batches",
    "eval_steps": "train.eval_every",
    "hidden_size": "model.n_embd",
    "learning_rate": "train.optimizer.learning_rate",
    "lr": "train.optimizer.learning_rate",
    "max_iters": "train.steps",
    "max_steps": "train.steps",
    "model_type": "model.preset",
    "num_attention_heads": "model.n_head",
    "num_hidden_layers": "model.n_layer",
    "num_train_epochs": "train.epochs",
    "optimizer": "train.optimizer.use",
    "per_device_train_batch_size": "train.micro_batch_size",
    "save_steps": "train.save_every",
    "seed": "seed",
    "save_total_limit": "train.keep",
    "weight_decay": "train.optimizer.weight_decay",
}
"""Where a recipe has what other tools set by an option of their own."""

OPTIONS = {
    "config": "RECIPE",
    "recipe": "RECIPE",
    "model": "[RUN]",
    "run": "[RUN]",
    "format": "--to",
    "out-dir": "--out",
    "output-dir": "--out",
    "max-new-tokens": "--tokens",
    "max-length": "--tokens",
    "num-samples": "--samples",
    "num-return-sequences": "--samples",
    "start": "--prompt",
}
"""Other tools' options: ours, or the argument that takes their value."""
