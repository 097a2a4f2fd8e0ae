"""`score`: classes, boxes or masks of every image, as Parquet."""

from __future__ import annotations

from pathlib import Path

from sft_mlflow.commands.observer import Notice, Observer, Progress, unobserved
from sft_mlflow.commands.surroundings import command_line, quieten_mlflow
from sft_mlflow.home import home
from sft_mlflow.options import ScoreOptions
from sft_mlflow.report.wording import metric
from sft_mlflow.scoring import exports
from sft_mlflow.scoring import inputs as scoring_inputs
from sft_mlflow.scoring.events import ScoreEnded, ScoreStarted
from sft_mlflow.scoring.score import read_scores
from sft_mlflow.scoring.score import score as score_images
from sft_mlflow.tasks.predictor import Predictor
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
        predictor = Predictor.load(model.folder, str(device), least_score=options.least_score)
        classes = predictor.config.classes
        found = scoring_inputs.find(options.input, classes=classes, split=options.split or None)
        output = Path(options.output)
        wanted = exports.targets(
            {"coco": options.coco, "masks": options.masks},
            predictor.task,
            found,
            output,
            overwrite=options.overwrite,
        )
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
        for target in wanted:
            for done in exports.write(target, found, ended.output, classes):
                observer(Progress(f"Writing {target.path}", done, ended.total - ended.errors))
            observer(Notice(f"{target.path}: written"))
        judging = predictor.task.judging
        judged = judging.of_scores(read_scores(ended.output), classes) if labelled else None
        figures = {}
        if judged is not None:
            known, unknown, found_figures = judged
            figures = {"images": known, "unknown": unknown, **found_figures}
        values = {
            "images": float(ended.total),
            "errors": float(ended.errors),
            "images_per_second": ended.images_per_second,
            **{f"score/{name}": float(value) for name, value in figures.items()},
        }
        runs.log_scored(client, run_id, model.reference, values)
        if judged is not None:
            spoken = (f"{metric(name)} {value:.4f}" for name, value in found_figures.items())
            observer(Notice(f"On {known} labelled images: {', '.join(spoken)}"))
    return ended
