"""`score`: class and probabilities of every image, as Parquet."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from sft_mlflow.commands.observer import Notice, Observer, unobserved
from sft_mlflow.commands.surroundings import command_line, home, quieten_mlflow
from sft_mlflow.options import ScoreOptions
from sft_mlflow.scoring import inputs as scoring_inputs
from sft_mlflow.scoring.figures import labelled_figures
from sft_mlflow.scoring.score import ScoreEnded, ScoreStarted
from sft_mlflow.scoring.score import score as score_images
from sft_mlflow.tasks.classification.predictor import Predictor
from sft_mlflow.tracking import connection, fetch, runs
from sft_mlflow.training.precision import pick_device


def score(options: ScoreOptions, observer: Observer = unobserved) -> ScoreEnded:
    """What was scored and where it is; an interrupted call goes on where it stopped."""
    quieten_mlflow()
    client = connection.connect()
    device = pick_device(options.device)
    command = command_line("score", options)
    with runs.single(client, f"score {options.model}", command, options.as_text()) as run_id:
        model = fetch.fetch(client, options.model, into=home() / "models")
        observer(Notice(f"Scoring with {model.reference.label} on {device}"))
        predictor = Predictor.load(model.folder, str(device))
        classes = predictor.config.classes
        found = scoring_inputs.find(options.input, classes=classes, split=options.split or None)
        output = Path(options.output)
        for event in score_images(
            predictor,
            found,
            output,
            model_version=model.reference.label,
            overwrite=options.overwrite,
        ):
            observer(event)
            if isinstance(event, ScoreStarted):
                labelled = event.labelled
                runs.log_scored_input(client, run_id, options.input, event.input_digest)
            elif isinstance(event, ScoreEnded):
                ended = event
        figures = labelled_figures(ended.output, classes) if labelled else None
        values = {
            "images": float(ended.total),
            "errors": float(ended.errors),
            "images_per_second": ended.images_per_second,
            **({f"score/{k}": float(v) for k, v in asdict(figures).items()} if figures else {}),
        }
        runs.log_scored(client, run_id, model.reference, values)
        if figures is not None:
            observer(
                Notice(
                    f"On {figures.images} labelled images: accuracy {figures.accuracy:.4f}, "
                    f"macro F1 {figures.macro_f1:.4f}, ECE {figures.ece:.4f}"
                )
            )
    return ended
