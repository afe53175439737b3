"""Which runs a comparison has, and when each may start."""

from __future__ import annotations

import dataclasses

from peft_aot.compare.plan import Plan, best_run
from peft_aot.compare.records import Run, RunRecord
from records import record

POINTS = {
    "aot": [{"learning_rate": 1e-3}, {"learning_rate": 1e-2}],
    "lora": [{"learning_rate": 1e-4}, {"learning_rate": 3e-4}],
}
PLAN = Plan(("short", "long"), POINTS, {("long", "lora"): "cannot"}, seeds=3)


def finish(run: Run, score: float | None) -> RunRecord:
    status = "failed" if score is None else "done"
    return record(run.task, score, run.method, run.trial, run.seed, run.settings, status=status)


def test_the_search_gives_every_method_a_trial_before_anyone_gets_another() -> None:
    found = [(run.trial, run.task, run.method) for run in PLAN.search()]
    assert found == [
        (0, "short", "aot"),
        (0, "short", "lora"),
        (0, "long", "aot"),
        (1, "short", "aot"),
        (1, "short", "lora"),
        (1, "long", "aot"),
    ]
    assert all(run.seed == 0 and run.settings == POINTS[run.method][run.trial] for run in PLAN.search())


def test_the_total_counts_search_and_seeds_but_no_excluded_pair() -> None:
    assert PLAN.total == 3 * (2 + 2)


def test_every_run_is_run_once_and_the_best_settings_with_every_seed() -> None:
    scores = {("aot", 1e-3): 0.4, ("aot", 1e-2): 0.6, ("lora", 1e-4): 0.9, ("lora", 3e-4): 0.9}
    records: list[RunRecord] = []
    for _ in range(100):
        startable = PLAN.startable(records)
        if not startable:
            break
        assert not {run.key for run in startable} & {entry.run.key for entry in records}
        run = startable[0]
        records.append(finish(run, scores[run.method, run.settings["learning_rate"]]))
    assert len(records) == PLAN.total
    again = {(r.task, r.method, r.settings["learning_rate"], r.seed) for r in records if r.seed}
    assert again == {
        (task, method, rate, seed)
        for task, method, rate in (("short", "aot", 1e-2), ("long", "aot", 1e-2), ("short", "lora", 1e-4))
        for seed in (1, 2)
    }


def test_seeds_wait_for_the_whole_search_of_their_method_and_task_only() -> None:
    records = [finish(run, 0.5) for run in PLAN.search() if (run.task, run.method) == ("short", "aot")]
    seeds = [(run.task, run.method, run.seed) for run in PLAN.startable(records) if run.seed]
    assert seeds == [("short", "aot", 1), ("short", "aot", 2)]


def test_failed_runs_are_not_run_again_and_a_search_that_failed_has_no_seeds() -> None:
    records = [finish(run, None) for run in PLAN.search()]
    assert PLAN.startable(records) == []
    assert all(PLAN.is_hopeless(records, *pair) for pair in PLAN.pairs)
    assert not any(PLAN.is_hopeless(records[:-1], *pair) for pair in PLAN.pairs[-1:])
    assert best_run(records) is None
    assert best_run([]) is None


def test_the_best_may_be_negative_and_the_first_of_equals_wins() -> None:
    first, second = [run for run in PLAN.search() if (run.task, run.method) == ("short", "aot")]
    assert best_run([finish(first, -0.3), finish(second, -0.1)]) == second
    assert best_run([finish(first, 0.0), finish(second, -0.1)]) == first
    assert best_run([finish(first, 0.2), finish(second, 0.2)]) == first
    assert best_run([finish(first, None), finish(second, -0.9)]) == second


def test_a_method_that_the_backbone_refuses_is_left_out() -> None:
    left = PLAN.without({"aot": "no blocks"})
    assert left.pairs == [("short", "lora")]
    assert left.excluded["long", "aot"] == "no blocks" and left.excluded["long", "lora"] == "cannot"


def test_more_trials_later_keep_what_was_run() -> None:
    records = [finish(run, 0.5) for run in PLAN.search()]
    points = {method: [{"learning_rate": 7.0}, *tried] for method, tried in POINTS.items()}
    more = dataclasses.replace(PLAN, points=points, seeds=1)
    assert {run.settings["learning_rate"] for run in more.startable(records)} == {7.0}
