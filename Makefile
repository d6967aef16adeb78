# make train   the environment, then a run on generated faces: two CPU ranks, or the GPUs there are (PORT=29501: beside another)
# make test    the environment, then all tests
# Each prints the plain command that it runs; `. .venv/bin/activate` makes these work by hand.

VENV ?= .venv
PYTHON ?= python3
RECIPE ?= launch/recipes/quickstart.yaml
PORT ?= 29500
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export OMP_NUM_THREADS ?= 1

ON_GPU := $(shell nvidia-smi -L 2> /dev/null)
RANKS := $(if $(ON_GPU),,--num_accelerators 2)

.PHONY: train test test-golden clean

train: $(VENV)/ready
	deepspeed $(RANKS) --master_port $(PORT) launch/train.py --config $(RECIPE) --resume auto

test: $(VENV)/ready
	python -m pytest --numprocesses 2 --dist loadfile

test-golden: $(VENV)/ready
	@test -n "$(GOLDEN_DIR)$(MARGINS_DIR)" || { echo "make test-golden needs GOLDEN_DIR= or MARGINS_DIR=folder/with/traces"; exit 2; }
	python -m pytest tests/test_golden.py tests/test_margin_traces.py

$(VENV)/ready: setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	pip install --quiet --disable-pip-version-check -c constraints.txt torch setuptools wheel
	pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps insightface  # its own list wants a display
	touch $@

clean:
	rm -rf $(VENV)
