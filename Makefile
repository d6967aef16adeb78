# make train   the environment, then a run on generated faces: two CPU ranks, or the GPUs there are (PORT=29501: beside another)
# make test    the environment, then all tests
# make soak    the environment, then MINUTES=5 of kills, signals, damage and full disks, each of which runs must survive, then runs
#              that go on on other numbers of ranks and other ZeRO stages, all ways (20 minutes on 2 cores; GRID= for none);
#              SEED= and ROUND= repeat a failure
# Each prints the plain command that it runs; `. .venv/bin/activate` makes these work by hand.

VENV ?= .venv
PYTHON ?= python3
RECIPE ?= launch/recipes/quickstart.yaml
PORT ?= 29500
MINUTES ?= 5
GRID ?= --grid
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export OMP_NUM_THREADS ?= 1

ON_GPU := $(shell nvidia-smi -L 2> /dev/null)
RANKS := $(if $(ON_GPU),,--num_accelerators 2)

.PHONY: train test test-golden soak clean

train: $(VENV)/ready
	deepspeed $(RANKS) --master_port $(PORT) launch/train.py --config $(RECIPE) --resume auto

test: $(VENV)/ready
	python -m pytest --numprocesses 2 --dist loadfile

test-golden: $(VENV)/ready
	@test -n "$(GOLDEN_DIR)$(MARGINS_DIR)" || { echo "make test-golden needs GOLDEN_DIR= or MARGINS_DIR=folder/with/traces"; exit 2; }
	python -m pytest tests/test_golden.py tests/test_margin_traces.py

soak: $(VENV)/ready
	python -m tests.soak --minutes $(MINUTES) $(and $(SEED),--seed $(SEED)) $(and $(ROUND),--round $(ROUND)) $(GRID)

$(VENV)/ready: setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	pip install --quiet --disable-pip-version-check -c constraints.txt torch setuptools wheel
	pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps insightface  # its own list wants a display
	touch $@

clean:
	rm -rf $(VENV)
