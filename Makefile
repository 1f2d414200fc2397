# make demo       从剧本到聊天页 / from the script to the chat page, on port 7860
# make character  同上，不开页面 / the same without the page
# make test       测试 / tests          make test-slow  浏览器与长流程 / browser and the long path
# make lint       ruff + pyright        make bench-text 转换器速度 / the converter's speed

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

VENV ?= .venv
# The first Python here that the pinned packages support.
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && { echo $$p; break; }; done)
UV_VERSION := 0.13.9
BIN := $(abspath $(VENV))/bin
# A change of the lock file asks for a new set-up; an interrupted one leaves no stamp.
READY := $(VENV)/.ready-$(shell cat requirements.lock pyproject.toml | cksum | cut -d' ' -f1)
# Nothing is compiled on a CPU; importing the compiler would start worker processes all the same.
export TORCHINDUCTOR_COMPILE_THREADS ?= 1
# `xtuner train` starts `python` from PATH.
export PATH := $(BIN):$(PATH)

BASE := models/tiny-internlm2
DEMO := models/huanhuan-demo
DATA := data/huanhuan/train.jsonl data/huanhuan/val.jsonl
RECIPE := configs/huanhuan_qlora_demo.py
WORK := work_dirs/huanhuan_qlora_demo
SOURCES := $(wildcard data/huanhuan/script/*) data/huanhuan/persona.toml

.PHONY: setup demo character base test test-slow lint format lock bench-text clean
.DEFAULT_GOAL := help

.PHONY: help
help:
	@sed -n 's/^# //p' Makefile | head -4

setup: $(READY)

$(READY):
	@test -n "$(PYTHON)" || { echo "错误 / error: 需要 Python 3.10–3.12 / Python 3.10 to 3.12 is needed: install one, or make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "准备环境（首次约 2–5 分钟）/ setting up $(VENV) (2 to 5 minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check uv==$(UV_VERSION)
	@$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --no-deps -r requirements.lock
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps -e .
	@rm -f $(VENV)/.ready-*
	@touch $@

# Grouped targets need make 4.3, so the files of one command hang on the first of them.
data/huanhuan/train.jsonl: $(SOURCES) | $(READY)
	$(BIN)/python tools/dialogue_to_jsonl.py data/huanhuan/script --persona data/huanhuan/persona.toml --out data/huanhuan
data/huanhuan/val.jsonl: data/huanhuan/train.jsonl

# After the data: the held-out scenes, which pretraining leaves out, are those of val.jsonl.
base: $(BASE)/config.json
$(BASE)/config.json: $(SOURCES) $(DATA) $(wildcard huanhuan/training/tiny_*.py huanhuan/training/*pre*.py huanhuan/training/demo_base.py) | $(READY)
	$(BIN)/python tools/make_tiny_base.py --out $(BASE) --overwrite

character: $(DEMO)/config.json
$(DEMO)/config.json: $(BASE)/config.json $(DATA) $(RECIPE) $(wildcard configs/_base_/*.py) configs/huanhuan_qlora.py | $(READY)
	@rm -f $(WORK)/last_checkpoint
	HUANHUAN_BASE=$(abspath $(BASE)) xtuner train $(RECIPE) --work-dir $(WORK)
	@test -s $(WORK)/last_checkpoint || { echo "错误 / error: $(WORK): 训练没有写出检查点 / training wrote no checkpoint: read the log above" >&2; exit 1; }
	$(BIN)/python tools/merge_hf.py $(RECIPE) --work-dir $(WORK) --base $(BASE) --out $(DEMO) --overwrite
	@echo "角色已就绪 / the character is ready: $(DEMO)"

demo: character
	@echo "聊天页 / chat page: http://localhost:7860 （Ctrl-C 结束 / to stop)"
	@env -u HUANHUAN_API_BASE HUANHUAN_MODEL=$(DEMO) HUANHUAN_ENGINE=transformers $(BIN)/python app.py

test: $(READY)
	$(BIN)/python -m pytest -m "not slow" --durations=10

test-slow: character
	$(BIN)/python -m pytest -m slow --durations=10

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# After editing a requirements file.
lock: $(READY)
	$(BIN)/uv pip compile --universal --python-version 3.10 --override overrides.txt --no-header --no-emit-index-url -q \
		requirements-dev.txt -o requirements.lock

bench-text: $(READY)
	$(BIN)/python bench/text.py

clean:
	rm -rf work_dirs $(BASE) $(DEMO)
