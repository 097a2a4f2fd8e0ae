"""`promote`: champion against challenger, and the alias that moves."""

from __future__ import annotations

from sft_mlflow.commands.observer import Notice, Observer, unobserved
from sft_mlflow.commands.surroundings import command_line, quieten_mlflow
from sft_mlflow.data.truth import ignored_values
from sft_mlflow.home import home
from sft_mlflow.options import PromoteOptions
from sft_mlflow.tracking import connection, promotion, runs
from sft_mlflow.tracking.gate import Gate
from sft_mlflow.tracking.promotion import Decision
from sft_mlflow.training.precision import pick_device


def promote(options: PromoteOptions, observer: Observer = unobserved) -> Decision:
    """The decision; a refusal is one too, and names the conditions that were not met."""
    quieten_mlflow()
    client = connection.connect()
    device = pick_device(options.device)
    command = command_line("promote", options)
    with runs.single(client, f"promote {options.model_name}", command, options.as_text()) as run_id:
        if options.rollback:
            return promotion.rollback(client, model_name=options.model_name, run_id=run_id)
        observer(Notice(f"Comparing on the test images, on {device}"))
        return promotion.promote(
            client,
            model_name=options.model_name,
            run_id=run_id,
            cache=home(),
            candidate=options.model,
            data=options.data,
            ignored=ignored_values(options.ignore_index),
            gate=Gate(
                metric=options.metric,
                minimum=options.minimum,
                min_improvement=options.min_improvement,
                max_p_value=options.max_p_value,
                max_class_drop=options.max_class_drop,
            ),
            device=str(device),
        )
