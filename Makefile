# Every target sets up what it needs; `make` alone lists them.
PYTHON ?= python3
BIN := .venv/bin
export PYTHONPATH := $(CURDIR)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1
# One thread a process: two can be ten times slower on a busy machine.
export OMP_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1
export MKL_NUM_THREADS := 1

.DEFAULT_GOAL := help
.PHONY: help book serve test run lib check bench release grade clean

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

book: .venv/site ## build the site into _build/html (sets up first)
	@$(BIN)/python -m tools.site

serve: book ## build the site, then serve it on this machine only
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html 8000

test: .venv/all book ## run every test: library, notebooks, site
	@$(BIN)/python -m tools.test

run: .venv/all ## execute changed notebooks and store their outputs
	@$(BIN)/python -m tools.run $(ARGS)

lib: .venv/all ## write normlab's modules from the chapters
	@$(BIN)/python -m tools.lib

check: .venv/all ## the quick gate, in seconds
	@$(BIN)/python -m tools.check

bench: .venv/all ## speed and accuracy beside peers, into records/
	@$(BIN)/python -m benchmarks $(ARGS)

# A teacher's own masters and course folder are named on the command line:
# make grade ASSIGNMENT=a1-layer SUBS=handed-in.zip MASTERS=../private COURSE=../course
ASSIGNMENT ?=
SUBS ?=
MASTERS ?= coursework/sample
COURSE ?= _course

release: .venv/all ## assignments for students and markers (ASSIGNMENT=name, or all)
	@$(BIN)/python -m coursework.make release "$(COURSE)" "$(MASTERS)" "$(ASSIGNMENT)"

grade: .venv/all ## grade ASSIGNMENT=name SUBS=folder; results in COURSE
	@$(BIN)/python -m coursework.make grade "$(COURSE)" "$(MASTERS)" "$(ASSIGNMENT)" "$(SUBS)" $(ARGS)

clean: ## remove what was built, the environment too
	rm -rf .venv .cache _build book/assets/vendor

.venv/python: tools/setup.sh
	@sh tools/setup.sh venv $(PYTHON)

.venv/site: .venv/python requirements/site.txt requirements/constraints.txt requirements/package-lock.json
	@sh tools/setup.sh site

.venv/all: .venv/site requirements.txt requirements/lab.txt requirements/frameworks.txt requirements/kernels.txt requirements/coursework.txt requirements/test.txt pyproject.toml
	@sh tools/setup.sh all
