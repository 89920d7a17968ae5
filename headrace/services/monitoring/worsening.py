"""The policy of retraining on the true answers of a served model: each block of them is a batch, as in `headrace simulate`.

The state is small, and each block counts once, in the order in which the answers came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from headrace.evaluation.retraining_policy import Errors, RetrainingPolicy, State, after_decision, next_state, should_retrain
from headrace.files import read_cached_json, write_json
from headrace.recipe.monitor import MonitorConfig
from headrace.services.monitoring.quality import BLOCK, Scored

STATE_VERSION = 1
Score = Callable[[Sequence[Any]], Iterable[Scored]]


class MetricState(BaseModel):
    """What is kept of one metric between two blocks, as in `State`."""

    reference: Errors
    newest: Errors
    looks: int = 0
    since_training: int = 0
    tries: int = 0
    reason: str | None = None
    """Why the model should be trained again, by the newest block."""

    def to_state(self) -> State:
        return State(self.reference, self.newest, self.looks, self.since_training, self.tries)

    @classmethod
    def of(cls, state: State, reason: str | None = None) -> MetricState:
        return cls(
            reference=state.reference,
            newest=state.newest,
            looks=state.looks,
            since_training=state.since_training,
            tries=state.tries,
            reason=reason,
        )


class PolicyState(BaseModel):
    """The state of a version."""

    schema_version: int = STATE_VERSION
    version: str
    after: int = 0
    """The number of the last true answer that was compared."""
    has_trained: bool = False
    """Whether a training has begun since, because the quality was worse."""
    metrics: dict[str, MetricState] = {}


def policy_of(monitor: MonitorConfig, metrics: int = 1) -> RetrainingPolicy:
    """Returns the policy of a recipe; several metrics share the error budget. The time between trainings is limited by
    `monitor.retrain` itself."""
    default = RetrainingPolicy()
    tolerance = monitor.retrain.tolerance if monitor.retrain else default.tolerance
    return replace(default, tolerance=tolerance, confidence=1 - (1 - default.confidence) / max(1, metrics))


def compare_blocks(
    version: str, pairs: Sequence[Any], score: Score, monitor: MonitorConfig, path: Path, *, is_training: bool = False
) -> list[str]:
    """Compares the complete blocks of true answers that are new with the errors on the test rows; returns why the model should
    be trained again, a sentence for each metric that is worse.

    Args:
        version: in production.
        pairs: its answers with true ones, in order, each with its `number`.
        score: the metrics of some of these pairs.
        path: the file of the state.
        is_training: whether a training has begun and not ended, so that it is not known yet whether its model serves.
    """
    references = {one.metric: one.reference_losses for one in score(pairs)} if pairs else {}
    known = {metric: errors for metric, errors in references.items() if errors is not None}
    policy = policy_of(monitor, len(known))
    stored = _read(path)
    if stored is not None and stored.has_trained and stored.version == version and is_training:
        return []
    state = _current(stored, version, known, policy)
    waiting = [one for one in pairs if one.number > state.after]
    for start in range(0, len(waiting) - BLOCK + 1, BLOCK):
        block = waiting[start : start + BLOCK]
        state = _after_block(state, block, score, policy)
    if stored != state and (pairs or stored is not None):
        _write(path, state)
    if state.has_trained:  # what became of the training is not known yet
        return []
    return [f"{metric}: {one.reason}" for metric, one in state.metrics.items() if one.reason]


def mark_trained(path: Path) -> None:
    """Records that a training begins because the quality is worse; the next comparison knows what became of it."""
    state = _read(path)
    if state is not None:
        _write(path, state.model_copy(update={"has_trained": True}))


def _current(stored: PolicyState | None, version: str, known: dict[str, Errors], policy: RetrainingPolicy) -> PolicyState:
    """Returns the state before new blocks: that of another version has ended, and a training has counted."""
    if stored is None or (stored.version != version and not stored.has_trained):
        after = 0 if stored is None else stored.after
        metrics = {metric: MetricState(reference=errors, newest=errors) for metric, errors in known.items()}
        return PolicyState(version=version, after=after, metrics=metrics)
    metrics = dict(stored.metrics)
    if stored.has_trained:
        is_promoted = stored.version != version
        if is_promoted and not known:  # the test errors of the new version come with its first true answers
            return stored
        for metric, one in metrics.items():
            test = known.get(metric) if is_promoted else None
            metrics[metric] = MetricState.of(after_decision(one.to_state(), policy, trained=True, test=test))
    added = {metric: MetricState(reference=errors, newest=errors) for metric, errors in known.items() if metric not in metrics}
    return PolicyState(version=version, after=stored.after, metrics={**metrics, **added})


def _after_block(state: PolicyState, block: Sequence[Any], score: Score, policy: RetrainingPolicy) -> PolicyState:
    metrics = dict(state.metrics)
    for one in score(block):
        if one.metric not in metrics or len(one.scores) < 2:
            continue
        now = next_state(metrics[one.metric].to_state(), one.losses(one.scores))
        reason = should_retrain(now, policy)
        kept = now if reason else after_decision(now, policy, trained=False, test=None)
        metrics[one.metric] = MetricState.of(kept, reason)
    return state.model_copy(update={"after": block[-1].number, "metrics": metrics})


def _read(path: Path) -> PolicyState | None:
    stored = read_cached_json(path)
    if not isinstance(stored, dict) or stored.get("schema_version") != STATE_VERSION:
        return None
    try:
        return PolicyState.model_validate(stored)
    except ValidationError:
        return None


def _write(path: Path, state: PolicyState) -> None:
    write_json(path, state.model_dump(mode="json"))
