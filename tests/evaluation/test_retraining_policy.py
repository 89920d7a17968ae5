"""When the model in production is trained again."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.evaluation.retraining_policy import Errors, RetrainingPolicy, State, after_decision, should_retrain

REFERENCE = Errors(rows=500, mean=10.0, variance=100.0)
POLICY = RetrainingPolicy()


def state(mean: float, looks: int = 1, rows: int = 500, since: int = 1, tries: int = 0) -> State:
    return State(REFERENCE, Errors(rows, mean, 100.0), looks=looks, since_training=since, tries=tries)


@pytest.mark.parametrize(
    ("now", "retrains"),
    [
        (state(9.0), False),  # better
        (state(10.4), False),  # worse by less than the tolerance
        (state(12.5), True),
        (state(12.5, rows=10), False),  # a few rows show nothing
        (state(12.0), True),
        (state(12.0, looks=30), False),  # a later look needs more evidence
        (state(99.0, since=1, tries=1), True),  # a second try after one batch
        (state(99.0, since=1, tries=2), False),  # the third waits for two
        (state(99.0, since=2, tries=2), True),
    ],
)
def test_a_model_is_trained_again_when_its_error_is_significantly_worse(now: State, retrains: bool) -> None:
    reason = should_retrain(now, POLICY)
    assert (reason is not None) == retrains
    if reason is not None:
        assert f"{now.newest.mean:.4g}" in reason and "reference 10" in reason


def test_drift_is_a_reason_of_its_own_but_not_before_the_cooldown_is_over() -> None:
    policy = RetrainingPolicy(cooldown=3)
    drifted = State(REFERENCE, REFERENCE, looks=1, since_training=3, drifted=("age", "income"))
    assert should_retrain(drifted, policy) == "drift in age, income"
    assert should_retrain(State(REFERENCE, REFERENCE, looks=1, since_training=2, drifted=("age",)), policy) is None


def test_an_error_that_trainings_do_not_lower_becomes_normal() -> None:
    first = after_decision(state(15.0, looks=4), POLICY, trained=True, test=None)
    assert (first.reference, first.since_training, first.tries) == (REFERENCE, 0, 1)
    second = after_decision(state(15.0, looks=5, tries=1), POLICY, trained=True, test=Errors(500, 13.0, 100.0))
    assert (second.reference, second.tries) == (REFERENCE, 2), "promoted, and still above the reference"
    third = after_decision(state(15.0, looks=7, tries=2), POLICY, trained=True, test=None)
    assert (third.reference.mean, third.looks, third.tries) == (15.0, 0, 0)


def test_the_reference_follows_a_better_model_and_a_recovery() -> None:
    better = after_decision(state(15.0), POLICY, trained=True, test=Errors(500, 8.0, 100.0))
    assert (better.reference.mean, better.tries) == (8.0, 0)
    recovered = after_decision(state(10.2, tries=1), POLICY, trained=False, test=None)
    assert (recovered.reference.mean, recovered.tries) == (10.2, 0)
    calm = state(10.2, looks=9)
    assert after_decision(calm, POLICY, trained=False, test=None) == calm, "the reference does not creep upwards"


def test_batches_of_one_row_or_without_variance_are_no_error() -> None:
    def reason(reference: Errors, newest: Errors) -> str | None:
        return should_retrain(State(reference, newest, looks=1, since_training=1), POLICY)

    assert reason(REFERENCE, Errors.of(np.array([50.0]))) is None
    exact = Errors.of(np.zeros(20))
    assert reason(exact, exact) is None and reason(exact, Errors.of(np.ones(20))) is not None


def test_without_drift_the_chance_of_any_training_in_fifty_batches_stays_below_the_level() -> None:
    """The tolerance is 0, so that the test alone keeps the level: at most 5 % of 400 runs, plus three standard errors."""
    rng, runs = np.random.default_rng(3), 400
    policy = RetrainingPolicy(tolerance=0.0)

    def trains() -> bool:
        reference = Errors.of(rng.exponential(1.0, 300))
        batches = [Errors.of(rng.exponential(1.0, 200)) for _ in range(50)]
        states = [State(reference, batch, looks=1 + i, since_training=1 + i) for i, batch in enumerate(batches)]
        return any(should_retrain(one, policy) is not None for one in states)

    assert sum(trains() for _ in range(runs)) <= runs * (0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5)
