# Two commands are enough: `make train` (environment, made data, a trained translator under runs/) and
# `make test` (environment, every unflagged test). Everything else is here for people who edit the notebooks.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
WORKERS ?= 1
READY  := $(VENV)/.ready
HEADS  := $(abspath $(VENV))/heads

.PHONY: help env train test smoke experiments export format html clean
help:
	@echo "make train   make the environment, train CDTSDE on made brains, write runs/phantom-cdtsde (again: go on, or say that it is finished)"
	@echo "make test    make the environment, run every unflagged test"
	@echo "make smoke   the main job in its smallest form (well under a minute)"
	@echo "make experiments  every stored result from nothing, a day of one core (WORKERS=2: two at once; again: go on)"
	@echo "make format  ruff over notebooks and tests, 100 columns; make test asks that it changes nothing"
	@echo "make export  notebooks -> xmodal/*.py and README.md, outputs cleaned of noise"

env: $(READY)
$(READY): constraints.txt settings.ini setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,docs]'
	@touch $(READY)

train: $(READY)
	@mkdir -p runs/phantom-cdtsde
	@$(BIN)/python -m xmodal.job --name phantom-cdtsde --resume || \
	$(BIN)/papermill nbs/train.ipynb runs/phantom-cdtsde/train.ipynb --progress-bar -p name phantom-cdtsde -p resume True
	@echo 'written: runs/phantom-cdtsde/ (model, figures, metrics.json, log.csv, train.ipynb)'

smoke: $(READY)
	@mkdir -p runs/smoke
	$(BIN)/papermill nbs/train.ipynb runs/smoke/train.ipynb --no-progress-bar -p name smoke -p smoke True -p overwrite True

# both halves ask for the same few simulated heads again and again: each is computed once
test: $(READY)
	@rm -rf $(HEADS)
	OMP_NUM_THREADS=1 XMODAL_HEADS=$(HEADS) $(BIN)/nbdev_test --n_workers 2
	XMODAL_HEADS=$(HEADS) $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder tests

export: $(READY)
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python tests/make_readme.py
	$(BIN)/python tests/make_cards.py
	$(BIN)/python tests/make_recipe.py
	$(BIN)/python tests/make_gallery.py

format: $(READY)
	$(BIN)/ruff format .

experiments: $(READY)
	$(BIN)/python nbs/experiments/run_queue.py --workers $(WORKERS)

html: $(READY)
	$(BIN)/python tests/make_site.py

clean:
	rm -rf runs build dist _docs _proc *.egg-info
