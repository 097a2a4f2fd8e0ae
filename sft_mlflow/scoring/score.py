"""Batch scoring as a generator of events; an interrupted job goes on where it stopped.

job = what is scored, by what, into which columns
<output>.partial/_job.json, part-000000.parquet, part-000001.parquet, ...   each appears whole
<output>                                                                 appears last, and whole
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice, tee
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from sft_mlflow.data.ordered import THREADS
from sft_mlflow.data.pixels import Batch, stream
from sft_mlflow.errors import DataError, OptionsError
from sft_mlflow.scoring.events import BatchScored, ScoreEnded, ScoreEvent, ScoreStarted
from sft_mlflow.scoring.inputs import InputImage, Inputs, Survey, survey
from sft_mlflow.sources.model_folder import ModelConfig
from sft_mlflow.tasks.base import Answer
from sft_mlflow.tasks.predictor import Predictor
from sft_mlflow.whole_file import make_folder_of, take_place

FORMAT = 2
# What a crash costs at most, and what a row group of the output is of. A multiple of what passes
# through a network at once, so that a job that goes on makes the same parts as one that never
# stopped.
PART_IMAGES = 2048
# A mask may have a hundred kilobytes.
_READ_ROWS = 1024

_JOB = "_job.json"
_LOCK = "_lock"
_METADATA = b"sft.job"
_SINGLE_FILE = (".parquet", ".pq")
# Who gives such a name means no folder.
_OTHER_FORMATS = frozenset((".csv", ".tsv", ".json", ".jsonl", ".txt", ".xlsx", ".feather"))
# "_": readers of a folder pass such names over.
_PART, _WHOLE = "_part.partial", "_whole.partial"
# What a job that was killed before its first part may have left.
_WORK = frozenset((_LOCK, f"{_JOB}.partial", _PART))


def score(
    predictor: Predictor,
    inputs: Inputs,
    output: Path,
    *,
    model_version: str,
    overwrite: bool = False,
    threads: int = THREADS,
) -> Iterator[ScoreEvent]:
    """Events of scoring every input into a Parquet file (.parquet, .pq) or a folder of them.

    In the order of the inputs, one row an image, or a box where boxes are found, with the columns

    - `path`: absolute;
    - those of the model's task, null where the image could not be read: of a classifier `label`,
      the true class where it is known, `prediction` and `probability_<class>`; of boxes `width`
      and `height` of the image, `boxes`, how many it has, `label`, `score`, `xmin`, `ymin`, `xmax`,
      `ymax` in pixels, and one row without them for an image that has none; of masks `segments`
      (see the task's modules);
    - `model_version`: as given; `error`: why the image could not be read, else null.

    Images are decoded by threads while the model works on earlier ones; memory does not grow with
    their number. Killed at any point, the same call goes on after the last whole part, and the
    output is the same to the byte. An output of the same job is left as it is: same images, by
    path, label, size and time of change, and same model. overwrite: score again and replace another
    output or Parquet file; drop what another job has begun.
    Raises OptionsError where the output is another job's, or another process is writing it; and
    whatever is said, where it is the input, or a folder of other things than scores.
    """
    output = Path(os.path.abspath(output.expanduser()))
    if output.suffix.lower() in _OTHER_FORMATS:
        raise OptionsError(
            f"output: {output.name}: rows are written as Parquet. Give a name that ends in "
            ".parquet, or one of a folder."
        )
    found = survey(inputs)
    job = _job(predictor.config, inputs, found, model_version)
    partial = output.with_name(f"{output.name}.partial")
    _refuse_losses(output, partial, inputs)
    if not overwrite:
        _refuse_others(output, partial, job)
    if not overwrite and _is_output_of(output, job):
        errors = sum(_errors(path) for path in _parts_of(output))
        yield ScoreStarted(found.images, found.images, found.labelled, found.digest)
        yield ScoreEnded(output, found.images, errors, 0, 0.0, 0.0, already_there=True)
        return
    make_folder_of(output, "output:")
    partial.mkdir(exist_ok=True)
    lock = FileLock(partial / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OptionsError(
            f"output: another process is scoring to {output}. Wait for it, or choose another."
        ) from error
    try:
        yield from _scored(predictor, inputs, found, output, partial, job, threads)
    finally:
        lock.release()
        if not any(name for name in _names(partial) if name != _LOCK):
            shutil.rmtree(partial, ignore_errors=True)


def _scored(
    predictor: Predictor,
    inputs: Inputs,
    found: Survey,
    output: Path,
    partial: Path,
    job: dict[str, str],
    threads: int,
) -> Iterator[ScoreEvent]:
    if _read_job(partial) != job:
        _clear(partial)
        _write_job(partial, job)
    parts = _finished_parts(partial)
    earlier = min(len(parts) * PART_IMAGES, found.images)
    done, errors = earlier, sum(_errors(part) for part in parts)
    started = time.perf_counter()
    yield ScoreStarted(found.images, done, found.labelled, found.digest)

    schema = _schema(predictor, job)
    rows: list[pa.RecordBatch] = []
    in_part = 0
    remaining = islice(inputs, done, None)
    for images, batch in _batches(remaining, predictor.config, threads):
        rows.append(_answers(predictor, images, batch, job["model_version"], schema))
        done += len(images)
        errors += len(batch.errors)
        in_part += len(images)
        if in_part == PART_IMAGES:
            parts.append(_write_part(partial, len(parts), rows, schema))
            rows, in_part = [], 0
        seconds = time.perf_counter() - started
        yield BatchScored(done, found.images, errors, (done - earlier) / seconds)
    if rows:
        parts.append(_write_part(partial, len(parts), rows, schema))
    if done != found.images:
        raise DataError(
            f"{inputs.uri}: {found.images} images were listed at the start and {done} at the end. "
            "Start again, with --overwrite yes, when it does not change any more."
        )
    _publish(output, partial, parts, schema)
    seconds = time.perf_counter() - started
    scored = done - earlier
    yield ScoreEnded(output, done, errors, scored, seconds, scored / seconds, already_there=False)


def read_scores(output: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a finished output, file or folder, in the order of the inputs, some at a time.

    columns: only these; None for all.
    """
    for part in _parts_of(output):
        with pq.ParquetFile(part) as file:
            yield from file.iter_batches(_READ_ROWS, columns=columns)


def _batches(
    images: Iterator[InputImage], config: ModelConfig, threads: int
) -> Iterator[tuple[list[InputImage], Batch]]:
    spec = config.preprocessing.pixels
    assert PART_IMAGES % spec.together == 0
    # The copy runs ahead of the other by what is being decoded, which is bounded.
    kept, decoded = tee(images)
    for batch in stream((image.path for image in decoded), spec, spec.together, threads=threads):
        yield list(islice(kept, len(batch.paths))), batch


def _answers(
    predictor: Predictor,
    images: list[InputImage],
    batch: Batch,
    model_version: str,
    schema: pa.Schema,
) -> pa.RecordBatch:
    answers: list[Answer | None] = [None] * len(images)
    sizes: list[tuple[int, int] | None] = [None] * len(images)
    found = predictor.answers(batch.pixels, batch.sizes)
    for at, answer, size in zip(batch.readable, found, batch.sizes, strict=True):
        answers[at], sizes[at] = answer, size
    labels = [image.label for image in images]
    rows, columns = predictor.task.answering.rows(answers, labels, sizes, predictor.frame)
    # A path that is no text keeps the bytes that UTF-8 has no letters for as escapes.
    paths = [_text(image.path) for image in images]
    return pa.RecordBatch.from_arrays(
        [
            pa.array([paths[row] for row in rows], pa.string()),
            *columns,
            pa.array([model_version] * len(rows), pa.string()),
            pa.array([batch.errors.get(row) for row in rows.tolist()], pa.string()),
        ],
        schema=schema,
    )


def _text(path: Path) -> str:
    return str(path).encode(errors="surrogateescape").decode(errors="backslashreplace")


def _schema(predictor: Predictor, job: dict[str, str]) -> pa.Schema:
    return pa.schema(
        [
            ("path", pa.string()),
            *predictor.task.answering.columns(predictor.frame.classes),
            ("model_version", pa.string()),
            ("error", pa.string()),
        ],
        metadata={_METADATA: json.dumps(job)},
    )


def _job(config: ModelConfig, inputs: Inputs, found: Survey, model_version: str) -> dict[str, str]:
    """What decides every byte of the output, by the words that a message names it with."""
    model = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode()).hexdigest()
    return {
        "format": str(FORMAT),
        "input": inputs.uri,
        "images": found.digest,
        "model_version": model_version,
        "model": model,
    }


def _refuse_losses(output: Path, partial: Path, inputs: Inputs) -> None:
    """What could not be made again is never replaced, whatever is said."""
    for path in (output, partial):
        if not path.exists():
            continue
        if inputs.root.exists() and path.samefile(inputs.root):
            why = "is what is scored"
        elif path.is_dir() and _read_job(path) is None and not _WORK.issuperset(_names(path)):
            why = "is a folder of other things than scores"
        elif path.is_file() and path.suffix.lower() not in _SINGLE_FILE:
            why = "is a file, and no Parquet one"
        else:
            continue
        raise OptionsError(f"output: {path} {why}, and is never replaced. Choose another output.")


def _refuse_others(output: Path, partial: Path, job: dict[str, str]) -> None:
    empty = output.is_dir() and not any(output.iterdir())
    if output.exists() and not empty and not _is_output_of(output, job):
        raise OptionsError(
            f"output: {output} exists and is not the result of this job. Choose another output, "
            "or say --overwrite yes."
        )
    begun = _read_job(partial)
    if begun is not None and begun != job:
        differing = [key for key in job if begun.get(key) != job[key]]
        raise OptionsError(
            f"output: {partial} holds an unfinished job of another "
            f"{' and '.join(differing).replace('_', ' ')} "
            f"({begun.get('input')} scored by {begun.get('model_version')}). Finish it with the "
            "command that began it, choose another output, or say --overwrite yes to drop it."
        )


def _is_output_of(output: Path, job: dict[str, str]) -> bool:
    if output.is_dir():
        return _read_job(output) == job
    if not output.is_file():
        return False
    try:
        metadata = pq.read_schema(output).metadata or {}
    except (pa.ArrowInvalid, OSError):
        return False
    return bool(metadata.get(_METADATA) == json.dumps(job).encode())


def _parts_of(output: Path) -> list[Path]:
    return sorted(output.glob("part-*.parquet")) if output.is_dir() else [output]


def _read_job(folder: Path) -> dict[str, str] | None:
    try:
        loaded: dict[str, str] = json.loads((folder / _JOB).read_text())
    except (OSError, ValueError):
        return None
    return loaded


def _write_job(folder: Path, job: dict[str, str]) -> None:
    beside = folder / f"{_JOB}.partial"
    beside.write_text(json.dumps(job))
    beside.replace(folder / _JOB)


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def _clear(partial: Path) -> None:
    for name in _names(partial):
        if name != _LOCK:
            (partial / name).unlink()


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:06d}.parquet"


def _finished_parts(partial: Path) -> list[Path]:
    """The parts from the first on without a gap."""
    parts: list[Path] = []
    while _part(partial, len(parts)).is_file():
        parts.append(_part(partial, len(parts)))
    return parts


def _write_part(partial: Path, number: int, rows: list[pa.RecordBatch], schema: pa.Schema) -> Path:
    beside = partial / _PART
    pq.write_table(pa.Table.from_batches(rows, schema), beside)
    _flush(beside)
    return beside.replace(_part(partial, number))


def _errors(part: Path) -> int:
    column = pq.read_table(part, columns=["error"]).column("error")
    return int(pc.count(column, mode="only_valid").as_py())


def _publish(output: Path, partial: Path, parts: list[Path], schema: pa.Schema) -> None:
    if output.suffix.lower() in _SINGLE_FILE:
        whole = partial / _WHOLE
        with pq.ParquetWriter(whole, schema) as writer:
            for part in parts:
                # One row group a part, however the part was made.
                table = pq.read_table(part)
                writer.write_table(table, row_group_size=max(1, table.num_rows))
        _flush(whole)
        take_place(whole, output)
        _clear(partial)
    else:
        for name in _names(partial):
            if name != _JOB and not name.startswith("part-"):
                (partial / name).unlink()
        take_place(partial, output)


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
