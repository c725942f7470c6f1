# Two commands: `make run` starts a server for trying things out, `make test` checks everything CI checks.
SHELL := /bin/bash

.PHONY: run test

# Builds the release binary and starts both halves on loopback; data stays in ./data. Ctrl-C drains and stops.
run:
	@.ci/machine clang
	cargo build --release --workspace
	exec "$${CARGO_TARGET_DIR:-target}/release/gimbal" serve --dev --data ./data

# Format, lints, licences, tests of every crate and of the Python client. The last line counts them.
test:
	@.ci/machine clang lints python valgrind
	@.ci/check
