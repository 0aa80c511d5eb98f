"""Questions that a ledger answers by itself: views in its file, by the names `still ledger NAME` knows.

Scores and errors are those of the run they stand beside, by its metric; an evaluation that failed counts as 0. Intervals are
the normal approximation at 95 %.
"""

from __future__ import annotations

# Evaluations belong to whoever needs them, not to the run that wrote them: what a run made of one is in `scores`.
_SCORED = """
  SELECT s.run_id, s.candidate_id, c.name, c.origin, c.created_at AS proposed_at, s.split, s.example_id, s.score, s.error,
    coalesce(e.calls, 0) AS calls, coalesce(e.prompt_tokens + e.decoded_tokens, 0) AS tokens,
    coalesce(e.seconds, 0) AS seconds, e.created_at, s.evaluation_id
  FROM scores s JOIN candidates c USING (run_id, candidate_id) LEFT JOIN evaluations e USING (evaluation_id)"""

VIEWS: dict[str, tuple[str, str]] = {
    "scored": ("Every evaluation beside each run and candidate that it counts for", _SCORED),
    "run_summary": (
        "Every run with its status, duration in seconds, candidates and evaluations written",
        """
  SELECT run_id, program, level, model, status, started_at,
    round(epoch(finished_at - started_at), 1) AS seconds,
    (SELECT count(*) FROM candidates c WHERE c.run_id = r.run_id) AS candidates,
    (SELECT count(*) FROM evaluations e WHERE e.run_id = r.run_id) AS evaluations,
    (SELECT count(*) FROM calls l WHERE l.run_id = r.run_id) AS calls
  FROM runs r ORDER BY started_at""",
    ),
    "candidate_scores": (
        "Mean score of every candidate per split, with a 95 % interval",
        """
  SELECT run_id, name, origin, split, count(*) AS n, avg(score) AS score,
    greatest(0, avg(score) - 1.96 * stddev_samp(score) / sqrt(count(*))) AS low,
    least(1, avg(score) + 1.96 * stddev_samp(score) / sqrt(count(*))) AS high,
    count(error) AS errors, candidate_id
  FROM scored GROUP BY ALL ORDER BY run_id, split, score DESC, name""",
    ),
    "best_so_far": (
        "How the best score on dev rose with what was spent, candidate by candidate in the order they were proposed",
        """
  WITH candidate AS (
    SELECT run_id, candidate_id, name, min(proposed_at) AS proposed_at, count(*) AS n, avg(score) AS score,
      sum(calls) AS calls, sum(tokens) AS tokens
    FROM scored WHERE split = 'dev' GROUP BY run_id, candidate_id, name),
  whole AS (SELECT run_id, max(n) AS n FROM candidate GROUP BY run_id)
  SELECT c.run_id, c.name, c.n, c.score, c.n = w.n AS on_all,
    max(CASE WHEN c.n = w.n THEN c.score END) OVER so_far AS best, sum(c.calls) OVER so_far AS calls,
    sum(c.tokens) OVER so_far AS tokens, c.candidate_id
  FROM candidate c JOIN whole w USING (run_id)
  WINDOW so_far AS (PARTITION BY c.run_id ORDER BY c.proposed_at, c.candidate_id)
  ORDER BY c.run_id, c.proposed_at, c.candidate_id""",
    ),
    "racing_savings": (
        "Evaluations on dev that every run made, and those that racing and the cache made needless",
        """
  WITH seen AS (
    SELECT run_id, candidate_id, count(*) AS n FROM scored WHERE split = 'dev' GROUP BY run_id, candidate_id),
  written AS (SELECT run_id, count(*) AS n FROM evaluations WHERE split = 'dev' GROUP BY run_id)
  SELECT s.run_id, count(*) AS candidates, max(s.n) AS dev_examples, sum(s.n) AS evaluated,
    count(*) * max(s.n) - sum(s.n) AS raced_away, sum(s.n) - coalesce(any_value(w.n), 0) AS from_earlier_runs
  FROM seen s LEFT JOIN written w USING (run_id) GROUP BY s.run_id ORDER BY s.run_id""",
    ),
    "failures": (
        "Evaluations that raised an error or scored 0, newest first",
        """
  SELECT s.run_id, s.candidate_id, s.example_id, s.split, s.score, s.error, e.prediction
  FROM scores s LEFT JOIN evaluations e USING (evaluation_id) WHERE s.error IS NOT NULL OR s.score = 0
  ORDER BY e.created_at DESC NULLS FIRST, s.evaluation_id, s.run_id""",
    ),
    "errors": (
        "What went wrong, by kind, most frequent first",
        """
  SELECT run_id, regexp_extract(error, '^[A-Za-z_.]+') AS kind, count(*) AS times, any_value(error) AS example
  FROM scores WHERE error IS NOT NULL GROUP BY ALL ORDER BY times DESC, run_id, kind""",
    ),
    "slowest": (
        "The hundred evaluations that took longest",
        """
  SELECT run_id, candidate_id, example_id, split, seconds, calls, prompt_tokens, cached_tokens, decoded_tokens
  FROM evaluations ORDER BY seconds DESC, evaluation_id LIMIT 100""",
    ),
    "costs": (
        "Calls, tokens and seconds that every run spent on each split",
        """
  SELECT run_id, split, count(*) AS evaluations, sum(calls) AS calls, sum(prompt_tokens) AS prompt_tokens,
    sum(cached_tokens) AS cached_tokens, sum(decoded_tokens) AS decoded_tokens, round(sum(seconds), 3) AS seconds
  FROM evaluations GROUP BY ALL ORDER BY run_id, split""",
    ),
    "call_costs": (
        "Requests, tokens and seconds by what they were for, predictor and model; hit_rate: share of prompt tokens cached",
        """
  SELECT run_id, purpose, predictor, model, count(*) AS calls, sum(prompt_tokens) AS prompt_tokens,
    round(sum(cached_tokens) / greatest(1, sum(prompt_tokens)), 3) AS hit_rate, sum(decoded_tokens) AS decoded_tokens,
    round(avg(seconds), 4) AS mean_seconds
  FROM calls GROUP BY ALL ORDER BY run_id, purpose, predictor, model""",
    ),
    "wins": (
        "Every candidate against its run's first one, example by example",
        """
  WITH mean AS (
    SELECT run_id, candidate_id, name, split, example_id, avg(score) AS score FROM scored GROUP BY ALL),
  first AS (
    SELECT run_id, arg_min(candidate_id, (created_at, candidate_id)) AS candidate_id
    FROM candidates GROUP BY run_id)
  SELECT s.run_id, s.name, s.split, count(*) AS pairs,
    count(*) FILTER (s.score > b.score) AS wins, count(*) FILTER (s.score = b.score) AS ties,
    count(*) FILTER (s.score < b.score) AS losses, avg(s.score - b.score) AS mean_difference, s.candidate_id
  FROM mean s JOIN first USING (run_id)
  JOIN mean b ON b.run_id = s.run_id AND b.candidate_id = first.candidate_id AND b.split = s.split
    AND b.example_id = s.example_id
  WHERE s.candidate_id <> first.candidate_id
  GROUP BY ALL ORDER BY s.run_id, s.split, mean_difference DESC, s.name""",
    ),
    "saved": (
        "Artifacts, newest first",
        "\n  SELECT path, name, score, digest, run_id, created_at FROM artifacts ORDER BY created_at DESC, path",
    ),
}
"""By name: what it answers, and its SQL."""

SCHEMA = "".join(f"CREATE VIEW {name} AS {sql};\n" for name, (_, sql) in VIEWS.items())

_COMMANDS = {
    "runs": "run_summary",
    "candidates": "candidate_scores",
    "best": "best_so_far",
    "savings": "racing_savings",
    "failures": "failures",
    "errors": "errors",
    "slow": "slowest",
    "cost": "costs",
    "calls": "call_costs",
    "wins": "wins",
    "artifacts": "saved",
}
READY_QUERIES = {name: (VIEWS[view][0], f"SELECT * FROM {view}") for name, view in _COMMANDS.items()}
"""By the name `still ledger` knows: what it answers, and its SQL."""
