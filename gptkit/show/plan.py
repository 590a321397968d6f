"""What `gptkit plan` found."""

import json
from typing import Any

from gptkit.analysis.plan import ENOUGH, TRIAL, Plan
from gptkit.memory import told
from gptkit.recipe import sizes
from gptkit.show.tables import print_rows
from gptkit.terminal import print_result


def print_plan(plan: Plan, *, as_json: bool) -> None:
    """Print a plan for people, or as JSON for machines."""
    if as_json:
        print(json.dumps(_values(plan)))
        return
    parts = sizes.parameters_by_part(plan.config)
    total = sum(parts.values())
    rows = [{"parameters": name, "number": f"{n:,}"} for name, n in parts.items()]
    rows.append({"parameters": "all", "number": f"{total:,}"})
    if plan.trained != sizes.all_trained(plan.config):
        rows.append({"parameters": "trained", "number": f"{plan.trained.all:,}"})
    print_rows(rows, ["parameters", "number"], as_json=False, right=["number"])
    flops = sizes.flops_per_token(plan.config, plan.trained)
    per_step = plan.options.batch_size * plan.config.block_size
    print(f"\nFLOPs   {flops:.3g} per token, {flops * per_step:.3g} per step")
    print(
        f"tokens  {plan.tokens:,} in {_steps(plan.steps)}, {_ratio(plan.tokens_per_parameter)} "
        f"per parameter; {ENOUGH} take {_steps(plan.steps_for_enough)}\n"
    )
    there = told(plan.memory) if plan.memory else "an unknown size"
    print_result(
        f"memory  {there} on {plan.run_device.device}, {told(plan.base)} taken without a model; "
        f"in {plan.run_device.dtype_name} at the peak:\n"
    )
    table = [{"training": v.change or "as in the recipe", "peak": told(v.peak)}
             for v in plan.variants]  # fmt: skip
    print_rows(table, ["training", "peak"], as_json=False, right=["peak"])
    print(f"\n{_trial(plan)}")


def _trial(plan: Plan) -> str:
    """What a few steps took, in words."""
    if plan.trial is None:
        return "It does not fit, so it was not tried."
    found, seconds = plan.trial, plan.trial.seconds
    peak = "" if found.peak is None else f", {told(found.peak)} at the peak"
    takes = "takes" if plan.steps == 1 else "take"
    per_second = plan.options.batch_size * plan.config.block_size / seconds
    return (
        f"{TRIAL} steps took {_time(seconds)} each: {per_second:,.0f} tokens/s, "
        f"{found.mfu:.0%} of the device's speed{peak}.\n"
        f"{_steps(plan.steps)} {takes} {_time(plan.steps * seconds)}, without evaluations.\n"
        f"Up to {found.largest:,} sequences fit into memory at once."
    )


def _steps(count: int) -> str:
    return f"{count:,} step{'' if count == 1 else 's'}"


def _ratio(value: float) -> str:
    """Two digits, and the whole number of a large one."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _time(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60), ("s", 1)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds * 1e3:,.0f} ms" if seconds >= 0.1 else f"{seconds * 1e3:.3g} ms"


def _values(plan: Plan) -> dict[str, Any]:
    """Everything as JSON values; memory in bytes, times in seconds."""
    parts = sizes.parameters_by_part(plan.config)
    trial = plan.trial and {
        "seconds_per_step": plan.trial.seconds,
        "seconds": plan.steps * plan.trial.seconds,
        "peak": plan.trial.peak,
        "mfu": plan.trial.mfu,
        "largest_micro_batch_size": plan.trial.largest,
    }
    return {
        "parameters": parts | {"all": sum(parts.values())},
        "trained": plan.trained.all,
        "vocab_size": plan.config.vocab_size,
        "block_size": plan.config.block_size,
        "flops_per_token": sizes.flops_per_token(plan.config, plan.trained),
        "steps": plan.steps,
        "tokens": plan.tokens,
        "tokens_per_parameter": plan.tokens_per_parameter,
        "steps_for_20_tokens_per_parameter": plan.steps_for_enough,
        "device": str(plan.run_device.device),
        "dtype": plan.run_device.dtype_name,
        "memory": plan.memory,
        "memory_without_model": plan.base,
        "peak": plan.peak,
        "peak_with": {v.change: v.peak for v in plan.variants[1:]},
        "trial": trial,
    }
