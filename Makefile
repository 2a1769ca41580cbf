# make demo | make test work on a fresh machine with python3, make and a C++ compiler; `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=

.PHONY: help setup demo test check fmt ops bench clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/.installed  ## create .venv and install the tested set, torch first

# Debian's python3 comes without pip: where venv cannot bring it, Debian's own pip wheel is unpacked into .venv.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || sh tools/venv_without_ensurepip.sh $(PYTHON) $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup  ## build the operators and show their speed; make, index and prepare phantom data
	$(BIN)/python -m monai_ext ops
	$(BIN)/python cuda_ops/bench.py --quick
	rm -rf out/demo
	$(BIN)/python -m monai_ext phantom --out out/demo/phantoms --site glioma --subjects 4 --jobs 2 \
	    --misalign 6,4 --montage out/demo/phantoms.png
	$(BIN)/python -m monai_ext index --root out/demo/phantoms --out out/demo/datalist.json --split 2/1/1
	$(BIN)/python -m monai_ext prepare --datalist out/demo/datalist.json --out out/demo/prepared \
	    --preset pmm --brain-mask otsu --register rigid --jobs 2 --qc
	@echo "Look at out/demo/phantoms.png and at the pictures under out/demo/prepared"

test: setup  ## the whole test suite
	$(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

check: setup  ## ruff, format, mypy, clang-format, JSON, and nvcc where it is found
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files -z '*.cpp' '*.cu' '*.h' | xargs -0 $(BIN)/clang-format --dry-run --Werror
	$(BIN)/python tools/check_json.py
	sh tools/check_cuda.sh

fmt: setup  ## format Python and C++ in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files -z '*.cpp' '*.cu' '*.h' | xargs -0 $(BIN)/clang-format -i

ops: setup  ## compile the operators now and say which kernel each one uses
	$(BIN)/python -m monai_ext ops

bench: setup  ## every operator against PyTorch: median ms, peak MB, ratio to the floor
	$(BIN)/python cuda_ops/bench.py
	@if $(BIN)/python -c "import torch; raise SystemExit(not torch.cuda.is_available())"; then \
	    $(BIN)/python cuda_ops/bench.py --device cuda; else echo "CUDA: no device here, not run"; fi

clean:  ## remove .venv and what tools left behind
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
