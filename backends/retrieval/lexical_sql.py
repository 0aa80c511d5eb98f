"""BM25 in one SQL statement, for indexes that are too large to hold in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .hit import Hit
from .words import index_terms

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_SQL = """
WITH size AS (SELECT count(*)::DOUBLE AS n, avg(length) AS average FROM documents),
wanted AS (
  SELECT query, term, weight
  FROM (SELECT unnest($numbers::INTEGER[]) AS query, unnest($words::VARCHAR[]) AS word,
    unnest($weights::INTEGER[]) AS weight)
  JOIN terms USING (word)
),
matched AS (SELECT * FROM postings WHERE term IN (SELECT term FROM wanted)),
frequency AS (SELECT term, count(*) AS df FROM matched GROUP BY term),
weighted AS (
  SELECT term, doc,
    ln(1 + (n - df + 0.5) / (df + 0.5)) * count / (count + $k1 * (1 - $b + $b * length / average)) AS score
  FROM matched JOIN frequency USING (term) JOIN documents USING (doc), size
  WHERE NOT $chosen OR doc IN (SELECT unnest($docs::INTEGER[]))
),
scores AS (SELECT query, doc, sum(weight * score) AS score FROM wanted JOIN weighted USING (term) GROUP BY query, doc)
SELECT query, key, score FROM scores JOIN documents USING (doc)
QUALIFY row_number() OVER (PARTITION BY query ORDER BY score DESC, doc) <= $k
ORDER BY query, score DESC, doc
"""


def search_in_sql(
    connection: DuckDBPyConnection,
    queries: Sequence[str],
    language: str,
    settings: tuple[float, float, int],
    docs: Sequence[int] | None,
) -> list[list[Hit]]:
    """The best documents per query. settings: k1, b and k. docs: numbers of the documents that may be found."""
    numbers: list[int] = []
    words: list[str] = []
    weights: list[int] = []
    for number, query in enumerate(queries):
        for word, weight in Counter(index_terms(query, language)).items():
            numbers.append(number)
            words.append(word)
            weights.append(weight)
    found: list[list[Hit]] = [[] for _ in queries]
    if not words:
        return found
    k1, b, k = settings
    given: dict[str, Any] = {"numbers": numbers, "words": words, "weights": weights, "k1": k1, "b": b, "k": k}
    given |= {"chosen": docs is not None, "docs": list(docs or [])}
    for number, key, score in connection.execute(_SQL, given).fetchall():
        found[number].append(Hit(key, score))
    return found
