# `make` explains the targets.
PYTHON ?= python3
AWS ?= local
DATASET ?=
OTHERS ?=
TESTS ?=
# More than there are processors: tests mostly wait for processes of their own.
WORKERS ?= 3
PIP_ARGS ?=
ENV ?= dev
FROM ?= dev
TO ?= prod
VERSION ?=
CONFIRM ?=
IMAGE ?= scones-runner:1

# What a person gives is never expanded by make, nor by the shell: recipes read it from the environment, in quotes.
GIVEN := AWS DATASET OTHERS TESTS WORKERS ENV FROM TO VERSION CONFIRM IMAGE BUILD
$(foreach name,$(GIVEN),$(eval override $(name) := $$(value $(name))))
export $(GIVEN)

VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python

.DEFAULT_GOAL := help
.PHONY: help setup demo cost demo-review review test test-unit test-ray coverage bench-model bench-evaluation bench-bulk bench-nights bench-own-images bench-report bench-review bench-sagemaker bench-serving fuzz conformance deploy drift promote remove image up down status logs lint format check schemas lock clean

help: ## explain the targets
	@echo "Scones Unlimited: an image-classification workflow on AWS, run by Prefect."
	@echo
	@grep -hE '^[a-z-]+:.*## ' Makefile | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'
	@echo
	@echo "  make demo DATASET=PATH-OR-NAME   a folder of images, an archive, 'cifar100' or 'generated'"
	@echo "  make up AWS=real                 Prefect server and worker only, for your own AWS account"
	@echo "  make test TESTS=tests/unit       a part of the tests"
	@echo "  make setup PIP_ARGS='...'        arguments for pip, such as PyTorch's CPU index (see README)"

# PyTorch last and without hashes: its files differ by index and by kind of machine.
$(VENV)/.installed: requirements.lock torch.lock local_sagemaker/pyproject.toml
	@test -e $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(RUN) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --require-hashes --no-deps -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r torch.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e ./local_sagemaker
	@touch $@

$(VENV)/bin/scones: $(VENV)/.installed
	@ln -sf ../../scones $@

setup: $(VENV)/bin/scones ## virtual environment with the locked requirements

# Before anything is installed for it.
.PHONY: check-dataset
check-dataset:
	@case "$$DATASET" in ''|cifar100|generated) ;; *) test -e "$$DATASET" || { \
	  printf 'error: DATASET=%s is neither cifar100, generated, a file nor a folder\n' "$$DATASET" >&2; exit 1; } ;; esac

demo: check-dataset setup ## run the whole pipeline on this machine and show what came of it
	@$(RUN) demo.py $${DATASET:+--dataset "$$DATASET"}

test-unit: setup ## run the tests that need no services
	@$(BIN)/pytest -q -n 2 tests/unit

test: setup ## run every test
	@$(BIN)/pytest -q -p no:randomly $${TESTS:--n "$$WORKERS"}

# Ray Serve brings its own versions of what the rest has.
RAY := .venv-ray
$(RAY)/.installed: tests/ray_serve/requirements.lock torch.lock
	@test -e $(RAY)/bin/python || $(PYTHON) -m venv $(RAY)
	$(RAY)/bin/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --require-hashes --no-deps -r $<
	$(RAY)/bin/pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r torch.lock
	@touch $@

test-ray: setup $(RAY)/.installed ## run the test that serves a model with Ray Serve (downloads about 1.4 GB)
	@RAY_PYTHON=$(CURDIR)/$(RAY)/bin/python $(BIN)/pytest -q tests/ray_serve

coverage: setup ## run every test and show the branch coverage of what ships
	@$(BIN)/pytest -q -p no:randomly -n "$$WORKERS" --cov --cov-report=term

bench-model: setup ## measure the classifier: accuracy, images of no class, time (about an hour)
	@$(RUN) -m benchmarks.model $${DATASET:+--dataset "$$DATASET"} $${OTHERS:+--others "$$OTHERS"}

bench-review: setup ## measure what answers about unsure images are worth, and certificates (about half an hour)
	@$(RUN) -m benchmarks.review $${DATASET:+--dataset "$$DATASET"}

bench-serving: setup ## measure what one network serves faster than ten (about four minutes)
	@$(RUN) -m benchmarks.serving

bench-evaluation: setup ## measure the nightly evaluation, also under faults (about an hour)
	@$(RUN) -m benchmarks.evaluation

bench-bulk: setup ## measure many images in batches, also under faults (about two hours)
	@$(RUN) -m benchmarks.bulk

bench-nights: setup ## thirty scheduled nights in fast motion, most of them interrupted (about an hour)
	@$(RUN) -m benchmarks.nights

bench-own-images: setup ## measure own images of several numbers and sizes: time, memory (about an hour)
	@$(RUN) -m benchmarks.own_images

bench-report: setup ## measure the report: reading captures, metrics, charts (about 8 minutes)
	@$(RUN) -m benchmarks.report

bench-sagemaker: setup ## measure the SageMaker server against its goals (about 5 minutes)
	@$(RUN) -m benchmarks.sagemaker

up: setup ## start Prefect server, worker and the embedded AWS, and deploy prefect.yaml
	@$(RUN) deploy.py --aws "$$AWS"

deploy: setup ## bring the stacks and deployments of ENV=dev or ENV=prod to environments/ENV.env (AWS=real for an account)
	@$(RUN) environment.py --aws "$$AWS" deploy "$$ENV" $(if $(BUILD),--build)

drift: setup ## show what was changed by hand in the stacks of ENV
	@$(RUN) environment.py --aws "$$AWS" drift "$$ENV"

promote: setup ## make VERSION of the environment FROM an approved version of TO
	@$(RUN) environment.py --aws "$$AWS" promote "$$VERSION" --source "$$FROM" --target "$$TO"

remove: setup ## delete everything that ENV has in AWS, if CONFIRM is the name of its stack
	@$(RUN) environment.py --aws "$$AWS" remove "$$ENV" $${CONFIRM:+--confirm "$$CONFIRM"}

image: ## build the image of flow runs on ECS as IMAGE=REPOSITORY:TAG (takes Docker)
	docker build --platform linux/amd64 --tag "$$IMAGE" .

down: ## stop them; what they hold is kept
	@test ! -x $(RUN) || $(RUN) -m local_aws down

review: setup ## serve the page on which people look at unsure images (AWS=real for your account)
	@$(RUN) review.py --aws "$$AWS"

demo-review: setup ## classify generated images without labels, and serve the page on those that wait for a person
	@$(RUN) review.py demo

cost: setup ## what the installation costs a month on AWS, by its settings and last runs (AWS=real for your account's)
	@$(RUN) cost.py --aws "$$AWS"

status: ## what runs and where, settings that differ from the defaults, schedules
	@if test -x $(RUN); then $(RUN) status.py; else echo "Nothing is set up. \`make up\` or \`make demo\` does it."; fi

logs: setup ## follow the logs of all services
	@$(RUN) -m local_aws logs

fuzz: setup ## try every parser of what comes from outside with changed inputs (five minutes)
	@$(RUN) -m testing.fuzz

conformance: setup ## compare the answers of the embedded AWS, or with AWS=real of your account, with what is expected
	@$(RUN) -m conformance --aws "$$AWS"

# Its requirements and those of the rest exclude each other.
CHECKOV := .venv-checkov
$(CHECKOV)/.installed: infrastructure/checkov.lock
	@test -e $(CHECKOV)/bin/python || $(PYTHON) -m venv $(CHECKOV)
	$(CHECKOV)/bin/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --require-hashes --no-deps -r $<
	@touch $@

lint: setup $(CHECKOV)/.installed ## ruff, mypy, and cfn-lint, checkov and AWS's reference of permissions on the templates
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/cfn-lint infrastructure/*.yaml
	@$(CHECKOV)/bin/checkov --directory infrastructure --framework cloudformation --compact --quiet --skip-download
	@$(CHECKOV)/bin/python infrastructure/check_policies.py infrastructure/*.yaml

format: setup ## let ruff reformat
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

check: ## all that CI runs: the demo on generated images, linters, types, tests
	@$(MAKE) --no-print-directory demo DATASET=generated
	@$(MAKE) --no-print-directory down
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory test

schemas: setup ## write docs/schemas/ anew from the types
	@$(RUN) -m tasks.schemas

COMPILE := $(BIN)/pip-compile --quiet --generate-hashes --strip-extras --unsafe-package torch --unsafe-package pip \
  --no-emit-index-url --no-emit-find-links --no-header --no-annotate
lock: setup ## renew what is locked from pyproject.toml and the other lists
	@sed -nE 's/^ *"(torch==[0-9.]+)",.*/\1/p' pyproject.toml > torch.lock
	@$(COMPILE) --extra local --extra dev --output-file requirements.lock pyproject.toml local_sagemaker/pyproject.toml
	@$(COMPILE) --constraint requirements.lock --output-file infrastructure/runner.lock pyproject.toml
	@$(COMPILE) --output-file infrastructure/checkov.lock infrastructure/checkov.in
	@$(COMPILE) --constraint torch.lock --output-file tests/ray_serve/requirements.lock tests/ray_serve/requirements.in

clean: ## stop everything and remove what setup, services and reports left
	@test ! -x $(RUN) || $(RUN) -m local_aws clean
	@rm -rf .scones/cache .mypy_cache .pytest_cache .ruff_cache
	@find reports -mindepth 1 -maxdepth 1 ! -name README.md -exec rm -rf {} +
	@rm -rf $(VENV) $(CHECKOV) $(RAY)
