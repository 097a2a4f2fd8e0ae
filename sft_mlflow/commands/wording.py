"""Decisions in plain text."""

from __future__ import annotations

from sft_mlflow.tracking.promotion import Decision


def decision_lines(decision: Decision) -> list[str]:
    """What was decided, on which images, and every condition with its figures."""
    name = f"models:/{decision.model_name}/{decision.version}"
    before = f"version {decision.champion}" if decision.champion else "none"
    lines = [f"{name}: {decision.outcome} (champion before: {before})"]
    if decision.test is not None:
        test = decision.test
        lines.append(
            f"Judged on {test.images} test images of {test.name}; left out: {test.broken} broken, "
            f"{test.seen_by_challenger} seen by the challenger, {test.seen_by_champion} by the "
            f"champion"
        )
    if decision.verdict is not None:
        for condition in decision.verdict.conditions:
            mark = "ok" if condition.passed else "FAILED"
            lines.append(f"  {mark:6} {condition.name}: {condition.message}")
    return lines
