"""`samr1 data difficulty`: how often a policy's sampled answers to each row of a file succeed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samr1_verl.cli.options import (
    BatchSizeOption,
    LimitOption,
    MergeOption,
    ModelOption,
    ParallelOption,
    PolicyOption,
    RecipeOption,
    RestartOption,
    ServerOption,
    SetOption,
    check_one_policy,
    errors_end_the_command,
    progress_bar,
    safe_name,
    sampling_temperature,
    table_console,
)

if TYPE_CHECKING:
    from samr1_verl.policies.inference_config import InferenceConfig


def difficulty(
    file: Annotated[Path, typer.Argument(help="parquet file of rows")],
    policy: PolicyOption = None,
    server: ServerOption = None,
    model: ModelOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    merge: MergeOption = False,
    samples: Annotated[int, typer.Option(min=2, max=256, help="number of sampled answers a row")] = 16,
    group: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="number of answers of a group whose rewards are compared; default: the recipe's rollouts a prompt",
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="LOW..HIGH",
            help="write kept.parquet, the rows whose share of answers with a mask IoU above 0.5 lies in this range, "
            "ends included, such as 0.1..0.9; default: no such file",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder of the results; default: outputs/difficulty/POLICY.FOLDER.FILE")
    ] = None,
    limit: LimitOption = None,
    batch_size: BatchSizeOption = 16,
    parallel: ParallelOption = 16,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="sampling temperature, above 0; default: the recipe's rollouts'")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of the sampling")] = 0,
    restart: RestartOption = False,
) -> None:
    """Measure the difficulty of every row for a policy. After an interruption the same command resumes.

    Results: rows.parquet, the rows with two more columns. success_rate is the share of the sampled answers with a mask
    IoU above 0.5. gradient_chance is the chance that the rewards in a group of answers are not all equal: a group of
    equal rewards teaches nothing. samr1.keep_rows trains on the rows within bounds of these columns.
    """
    from transformers.utils import logging as transformers_logging

    from samr1_verl.evaluation.difficulty import kept_of, measure, parse_bounds, results_of
    from samr1_verl.evaluation.difficulty_table import show_difficulty
    from samr1_verl.evaluation.poll import Poll
    from samr1_verl.evaluation.run import Evaluation, store_results
    from samr1_verl.policies.load import PolicyChoice, config_for
    from samr1_verl.rows.measured import check_out, store_measured
    from samr1_verl.scoring.recipe_reward import RecipeReward

    check_one_policy(policy, server, model, merge)
    transformers_logging.disable_progress_bar()
    folder = out or Path("outputs/difficulty") / safe_name(model or server or policy or "recipe", file)
    with errors_end_the_command():
        bounds = None if keep is None else parse_bounds(keep)
        check_out(file, folder)
        config = config_for(policy, recipe, set_ or [], server is not None)
        size = _group(group, config, samples)
        drawn_at = sampling_temperature(temperature, config.sampling.temperature, f"--samples {samples}")
        choice = PolicyChoice(config, policy, server, model, merge, drawn_at, parallel)
        block = batch_size if server is None else 1
        reward = RecipeReward(config.reward)
        poll = Poll(Evaluation(file, choice, config, limit, block=block, seed=seed), samples, reward)
        with progress_bar("answers") as progress:
            rows = poll.ask(folder, restart, progress)
        found = measure(rows, reward.thresholds, size)
        kept = None if bounds is None else found.within(*bounds)
        results = results_of(found, [answer for row in rows for answer in row], poll.fingerprint())
        results["kept"] = None if bounds is None or kept is None else kept_of(found, bounds, kept)
        written = [*store_measured(file, folder, found.columns, kept), store_results(results, folder)]
    show_difficulty(results, found.success_rate, table_console())
    typer.echo("\n".join(map(str, written)))
    typer.echo(json.dumps(results))


def _group(chosen: int | None, config: InferenceConfig, samples: int) -> int:
    """The number of answers of a group. Raises ConfigError: it is 1, or larger than the number of samples."""
    from samr1_verl.config import ConfigError

    group, source = (config.group, "actor_rollout_ref.rollout.n") if chosen is None else (chosen, "--group")
    if group < 2:
        raise ConfigError(
            "group_too_small",
            source,
            f"found {group}, expected at least 2: one reward has nothing to differ from. Set --group to the number of "
            "rollouts a prompt of the training",
        )
    if samples < group:
        raise ConfigError(
            "too_few_samples",
            "--samples",
            f"found {samples}, expected at least {group}, the answers of a group ({source}). Ask for more samples, or "
            "set a smaller --group",
        )
    return group
