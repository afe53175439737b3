"""What the serving benchmark asks, and what it reads from the load generator's logs."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest
import requests
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from load.apart import Apart
from load.demand import demand, weights
from load.malformed import Sent
from load.tsung import percentile, read_load

DUMP = """#date;pid;id;http method;host;URL;HTTP status;size;duration;transaction;match;error;tag
100.0;<0.1.0>;1;post;127.0.0.1;/v1/classify;200;186;2.5;-;;;
101.0;<0.2.0>;2;post;127.0.0.1;/v1/classify;429;201;0.5;-;;;
105.0;<0.3.0>;3;post;127.0.0.1;/v1/classify;200;186;4.5;-;;;
110.0;<0.4.0>;4;post;127.0.0.1;/v1/classify;200;186;6.5;-;;;
"""
LOG = """# stats: dump at 1
stats: users_count 3 3
stats: error_connect_econnrefused 1 1
stats: session 3 3.2 0.9 11.6 2.5 0 0
# stats: dump at 2
stats: users_count 3 6
stats: error_connect_econnrefused 1 2
"""


def test_only_answers_have_a_latency_and_every_status_counts() -> None:
    load = read_load(DUMP, LOG)
    assert load.milliseconds == [2.5, 4.5, 6.5]
    assert load.statuses == Counter({"200": 3, "429": 1})
    assert load.percentiles()["p50"] == 4.5


def test_users_without_any_answer_are_counted_by_the_last_totals() -> None:
    load = read_load(DUMP, LOG)
    assert (load.started, load.unanswered) == (6, 2)
    assert load.errors == Counter({"error_connect_econnrefused": 2})


def test_the_rate_leaves_out_the_ends() -> None:
    assert read_load(DUMP, LOG).rate() == pytest.approx(1 / 8)


def test_another_dump_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a dump with the columns HTTP status and duration, got '#date;pid'"):
        read_load("#date;pid\n", LOG)


def test_percentiles() -> None:
    assert percentile([float(number) for number in range(101)], 95) == 95.0
    assert percentile([7.0], 99) == 7.0
    assert percentile([], 50) != percentile([], 50)


def test_zipf_asks_for_the_first_task_most_and_texts_do_not_depend_on_the_tasks() -> None:
    few = list(itertools.islice(demand(["a", "b", "c"], 2, "zipf", seed=1), 3000))
    many = list(itertools.islice(demand(["a", "b", "c"], 8, "zipf", seed=1), 3000))
    assert [request.text for request in few] == [request.text for request in many]
    counts = Counter(request.task for request in many)
    share = weights(8, "zipf")[0] / sum(weights(8, "zipf"))
    assert counts["0"] / 3000 == pytest.approx(share, abs=0.03)
    assert set(counts) == {str(task) for task in range(8)}


def test_an_unknown_mix_is_refused() -> None:
    with pytest.raises(ValueError, match="expected the mix uniform or zipf, got 'zipff'"):
        weights(2, "zipff")


def test_an_object_in_another_process_is_called_and_its_errors_come_back() -> None:
    with Apart(Counter, "aab") as apart:
        assert apart.call("most_common", 1) == [("a", 2)]
        with pytest.raises(RuntimeError, match="AttributeError: .*'least'"):
            apart.call("least")
        assert apart.call("total") == 3, "an error ends nothing"
    with pytest.raises(RuntimeError, match="ValueError: invalid literal for int"):
        Apart(int, "x")
    with Apart(import_module, "os") as apart, pytest.raises(RuntimeError, match=r"got the end of the process \(7\)"):
        apart.call("_exit", 7)


class Call:
    """Of schemathesis: a call whose answer is known."""

    def __init__(self, number: int) -> None:
        self.number = number

    def call(self, **given: object) -> requests.Response:
        if self.number == 0:
            raise requests.Timeout
        if self.number == 1:
            raise requests.ConnectionError
        answer = requests.Response()
        answer.status_code = self.number
        return answer


def test_every_answer_to_a_malformed_call_is_counted() -> None:
    sent = Sent()
    sent.make_up("/v1/classify", st.sampled_from([0, 1, 200, 422, 503]).map(Call), seed=1, number=200)
    found = sent.figures()
    assert set(found["statuses"]) == {"200", "422", "503", "hangs", "connection lost"}
    assert found["statuses_by_endpoint"] == {"/v1/classify": found["statuses"]}
    assert sent.refused == found["statuses"]["422"] and found["server_errors"] == found["statuses"]["503"]
    assert found["unanswered"] == found["statuses"]["hangs"] + found["statuses"]["connection lost"]
    assert found["sent"] == sum(found["statuses"].values())
