# make demo | make test work on a fresh machine with python3, make and a C++ compiler; `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=

.PHONY: help setup demo weights test test-long test-serve deploy-test label check fmt ops bench clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.installed  ## create .venv and install the tested set, torch first

# Debian's python3 comes without pip: where venv cannot bring it, Debian's own pip wheel is unpacked into the environment.
new_venv = @test -x $(1)/bin/pip || $(PYTHON) -m venv $(1) >/dev/null 2>&1 || \
    sh tools/venv_without_ensurepip.sh $(PYTHON) $(1)

$(VENV)/.installed: pyproject.toml constraints.txt
	$(call new_venv,$(VENV))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# AGI-Net and the ResUnet it is built on, the same but for `stages`, on phantoms; T2 is then moved by known distances.
DEMO := out/demo
RUN := $(BIN)/python -m monai.bundle run --bundle_root bundles/agi_net
OWN := $(RUN) --target PD
COMPACT = --config_file "['bundles/agi_net/configs/$(1).json','bundles/compact.json']"
TRACKED := --tracking mlflow --tracking_uri sqlite:///$(CURDIR)/$(DEMO)/mlruns.db --experiment_name demo
MOVED := --perturbations "[{'kind':'translate','contrast':'T2','levels':[0,1,2,3]}]"

demo: setup  ## phantoms -> train, evaluate, report, synthesise; shipped weights too: [SCANS=folder of real ones]
	rm -rf $(DEMO)
	$(BIN)/python -m monai_ext phantom --out $(DEMO)/phantoms --site healthy --subjects 14 --contrasts T1,T2,PD \
	    --jobs 2 --montage $(DEMO)/phantoms.png
	$(BIN)/python -m monai_ext index --root $(DEMO)/phantoms --out $(DEMO)/datalist.json --split 10/1/3
	$(BIN)/python -m monai_ext prepare --datalist $(DEMO)/datalist.json --out $(DEMO)/prepared --size 112 --jobs 2 --qc
	$(OWN) $(call COMPACT,train) --dataset_dir $(DEMO)/prepared $(TRACKED) --run_name AGI-Net \
	    --output_dir $(DEMO)/agi_net --weights $(DEMO)/agi_net/model.pt
	$(OWN) $(call COMPACT,train) --dataset_dir $(DEMO)/prepared $(TRACKED) --run_name ResUnet \
	    --output_dir $(DEMO)/resunet --weights $(DEMO)/resunet/model.pt --network_def#stages "[]"
	$(OWN) $(call COMPACT,evaluate) --dataset_dir $(DEMO)/prepared $(MOVED) --name AGI-Net \
	    --output_dir $(DEMO)/runs/agi_net --weights $(DEMO)/agi_net/model.pt
	$(OWN) $(call COMPACT,evaluate) --dataset_dir $(DEMO)/prepared $(MOVED) --name ResUnet \
	    --output_dir $(DEMO)/runs/resunet --weights $(DEMO)/resunet/model.pt --network_def#stages "[]"
	$(OWN) $(call COMPACT,inference) --datalist $(DEMO)/datalist.json --split test --quick_look true \
	    --output_dir $(DEMO)/synthetic --weights $(DEMO)/agi_net/model.pt
	$(RUN) --config_file bundles/agi_net/configs/inference.json --datalist $(DEMO)/datalist.json --split test \
	    --quick_look true --output_dir $(DEMO)/shipped
	$(if $(SCANS),$(BIN)/python tests/benchmarks/real.py --root $(SCANS) --bundle bundles/agi_net --out $(DEMO)/scans)
	$(BIN)/python -m monai_ext report --runs $(DEMO)/runs/agi_net $(DEMO)/runs/resunet --out $(DEMO)/report
	@echo "The report: $(DEMO)/report/index.html"
	@echo "Synthesised: $$(ls $(DEMO)/synthetic/*/*.nii.gz $(DEMO)/shipped/*/*.nii.gz | tr '\n' ' ')"

HOSTS := tests/serve tests/hostile/test_server.py
TESTS = $(BIN)/python -m pytest -n 2 --dist worksteal $(HOSTS:%=--ignore=%)

test: setup  ## the test suite, all but its slow part; ends with the slowest ten
	$(TESTS) -m "not long" --durations=10 $(PYTEST_ARGS)

test-long: setup  ## the slow part; test-serve has what needs a host's own environment
	$(TESTS) -m long --durations=10 $(PYTEST_ARGS)

# MONAI Label needs other versions of some packages than we do: an environment of its own.
LABEL_VENV := .venv-label
LABEL_SET := monai_ext/serve/label_app/constraints.txt

$(LABEL_VENV)/.installed: pyproject.toml $(LABEL_SET)
	$(call new_venv,$(LABEL_VENV))
	$(LABEL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LABEL_SET) torch
	PIP_CONSTRAINT=$(LABEL_SET) SAM2_BUILD_CUDA=0 $(LABEL_VENV)/bin/python -m pip install --quiet \
	    --disable-pip-version-check monailabel -e .
	@touch $@

label: $(LABEL_VENV)/.installed  ## serve a bundle to MONAI Label's clients: make label BUNDLE=agi_net STUDIES=folder
	GOMP_SPINCOUNT=$${GOMP_SPINCOUNT:-10000} PATH=$(CURDIR)/$(LABEL_VENV)/bin:$$PATH monailabel start_server --app monai_ext/serve/label_app \
	    --studies $(or $(STUDIES),$(error say with STUDIES= where the studies are)) --conf bundles bundles/$(BUNDLE) \
	    --host $(or $(HOST),127.0.0.1)

# MONAI Deploy runs on Holoscan, which is large: an environment of its own. Without highdicom monai itself does not import.
DEPLOY_VENV := .venv-deploy

$(DEPLOY_VENV)/.installed: pyproject.toml constraints.txt
	$(call new_venv,$(DEPLOY_VENV))
	$(DEPLOY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(DEPLOY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	    monai-deploy-app-sdk==4.0.0 highdicom SimpleITK -e '.[dicom]'
	@touch $@

deploy-test: setup $(DEPLOY_VENV)/.installed  ## the MONAI Deploy application's tests, run by Holoscan on a CPU
	$(BIN)/python -m pytest tests/serve/test_deploy.py $(PYTEST_ARGS)

test-serve: setup $(LABEL_VENV)/.installed $(DEPLOY_VENV)/.installed  ## the tests of the hosts, in their environments
	$(BIN)/python -m pytest $(HOSTS) $(PYTEST_ARGS)

check: setup  ## ruff, format, mypy, clang-format, hadolint, JSON, and nvcc where it is found
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files -z '*.cpp' '*.cu' '*.h' | xargs -0 $(BIN)/clang-format --dry-run --Werror
	$(BIN)/hadolint Dockerfile
	$(BIN)/python tools/check_json.py
	sh tools/check_cuda.sh

fmt: setup  ## format Python and C++ in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files -z '*.cpp' '*.cu' '*.h' | xargs -0 $(BIN)/clang-format -i

WEIGHTS := out/weights

weights: setup  ## train a bundle on phantoms and pack what it learnt: make weights BUNDLE=agi_net [ANATOMY=dir LESIONS=dir FLAIR_ECHO=130 T2_ECHO=45 MINUTES=9]
	$(BIN)/python -m monai_ext weights $(or $(BUNDLE),$(error say with BUNDLE= which)) --work $(WEIGHTS) \
	    $(if $(ANATOMY),--anatomy $(ANATOMY)) $(if $(LESIONS),--lesions $(LESIONS)) \
	    $(if $(FLAIR_ECHO),--flair_echo $(FLAIR_ECHO)) $(if $(T2_ECHO),--t2_echo $(T2_ECHO)) $(if $(MINUTES),--minutes $(MINUTES))

ops: setup  ## compile the operators now and say which kernel each one uses
	$(BIN)/python -m monai_ext ops

bench: setup  ## every operator and bundle against what one would take instead, in one table of twelve minutes at most [BENCH_ARGS=--quick]
	$(BIN)/python cuda_ops/bench.py $(BENCH_ARGS)
	@if $(BIN)/python -c "import torch; raise SystemExit(not torch.cuda.is_available())"; then \
	    $(BIN)/python cuda_ops/bench.py --device cuda $(BENCH_ARGS); fi

clean:  ## remove .venv and what tools left behind
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
