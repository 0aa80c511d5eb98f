# Two commands matter: `make demo` and `make test`. Both set up what they need in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test lint types unit parses benchmark clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	mkdir -p .typing && ln -sfn .. .typing/still
	touch $(STAMP)

demo: setup
	$(BIN)/still demo

test: lint types unit

lint: setup
	$(BIN)/ruff check .

types: setup
	MYPYPATH=.typing $(BIN)/mypy --strict -p still

# A file's tests stay together: they share models. One thread each, or the two processes wait for each other's threads.
unit: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -q -n 2 --dist loadfile

# 200 questions through each of dspy's adapters and ours: minutes, so the tests take 8.
parses: setup
	STILL_INPUTS=200 $(BIN)/python -m pytest tests/test_typed_dspy.py -q

# Measures what docs/benchmarks.md reports, cell by cell, over hours; what was measured before is not measured again.
benchmark: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[benchmarks]"
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/formats.py
	$(BIN)/python benchmarks/adapters.py
	$(BIN)/python benchmarks/typed.py
	$(BIN)/python benchmarks/compile.py
	$(BIN)/python benchmarks/weights.py
	$(BIN)/python benchmarks/retrieval.py

clean:
	rm -rf $(VENV) .typing build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
