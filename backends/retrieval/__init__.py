"""Retrieval operators over one DuckDB file."""
