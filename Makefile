# make demo    install into .venv and run the main example
# make test    install the development set into .venv; run all tests, ruff and mypy --strict
# make bench   the benchmarks, each beside its bare C twin
# make reference  rewrite the parts of docs/ that are made from the code
# make native  rebuild the C parts in place
# make lint    ruff and mypy only
# make sanitize  the suites with every native piece under AddressSanitizer and UndefinedBehaviorSanitizer
# make lab-svm, make lab-aarch64   what a backend is judged by, in an emulated machine of that kind (docs/lab.md)
# make lab-ci  the part of both that CI runs
# make lab-all every test in both
# make clean   remove what the others made

.PHONY: demo test bench reference native lint clean dev sanitize lab-svm lab-aarch64 lab-ci lab-all
PYTEST_ARGS ?=

demo:
	@tools/bootstrap.sh demo
	@.venv/bin/rift run examples/hello/rift.toml || { \
	    status=$$?; .venv/bin/rift doctor; exit $$status; }

dev:
	@tools/bootstrap.sh dev

test: dev lint
	.venv/bin/python -m pytest $(PYTEST_ARGS)

lint: dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/python tools/typecheck.py

bench: dev
	.venv/bin/python -m benchmarks

sanitize: dev
	.venv/bin/python tools/sanitize.py -q

reference: dev
	.venv/bin/python tools/reference.py

lab-svm lab-aarch64: dev
	tests/lab/suite $(@:lab-%=%) suites $(PYTEST_ARGS)

lab-ci: dev
	tests/lab/ci $(PYTEST_ARGS)

lab-all: dev
	tests/lab/suite svm all $(PYTEST_ARGS)
	tests/lab/suite aarch64 all $(PYTEST_ARGS)

native: dev
	for plugin in plugins/*/setup.py; do \
	    (cd $$(dirname $$plugin) && ../../.venv/bin/python setup.py -q build_ext --inplace) || exit 1; done

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf rift_core/build plugins/*/build rift_core/src/*.egg-info plugins/*/src/*.egg-info
	rm -f plugins/*/src/*/_native.c plugins/*/src/*/*.so plugins/*/src/*/*.o
