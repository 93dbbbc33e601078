# What a person types. `make` alone says what there is.
# Everything that a target needs is installed by it, from Debian's packages and the Rust registry.

SHELL := /bin/bash
CARGO ?= cargo
LAB := target/debug/phalanx-lab
TOPOLOGY ?= figure-1
NAME ?= death
MINUTES ?= 30

.PHONY: help demo test lab scenario soak bench bench-logs check setup tools test-tools package package-release

help:
	@echo 'make demo               a web and a mail cluster, load balanced, alive, on this machine (ARGS=--once: ends by itself)'
	@echo 'make test               everything that proves it: lints, unit tests, scenarios on real hosts'
	@echo 'make lab                a shell into a running topology (TOPOLOGY=$(TOPOLOGY))'
	@echo 'make scenario NAME=...  one scenario of the lab, such as NAME=$(NAME)'
	@echo 'make soak               killed, fenced and drained mail nodes under load (MINUTES=$(MINUTES)), then queues on real NFS: ten minutes more'
	@echo 'make bench              the benchmarks; tables, and target/bench/*.json (ARGS=mail: one of them)'
	@echo 'make bench-logs         access logs merged, beside sort -m and logresolvemerge: 5 GB of lines, 11 GB of disk (ARGS=--logs-mb=500: less)'
	@echo 'make check              format, lints, house rules'

demo: setup package-release
	$(LAB) demo $(ARGS)

test: test-tools setup check package
	$(LAB) guests
	$(CARGO) nextest run --workspace --profile ci

check: test-tools
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --quiet -- -D warnings
	$(CARGO) nextest run --package phalanx-lab --test tidy

# Inside, `phalanx-lab sh web1`, `kill web2` and so on mean this lab; leaving the shell ends it.
lab: setup package
	PATH="$(CURDIR)/target/debug:$$PATH" $(LAB) up $(TOPOLOGY) --name lab --exec 'phalanx-lab provision && phalanx-lab sh cp phalanx status && phalanx-lab --help | sed -n "/Commands/,/^$$/p" && exec bash'

scenario: test-tools setup package
	$(CARGO) nextest run --package phalanx-lab --test scenarios --profile ci --no-capture -- $(NAME)

# Nextest would end it; the test harness does not.
soak: test-tools setup package
	PHALANX_SOAK_MINUTES=$(MINUTES) $(CARGO) test --package phalanx-lab --test scenarios -- --nocapture a_mailbox_is_open_on_one_node
	$(LAB) guests
	$(CARGO) test --package phalanx-lab --test scenarios -- --nocapture --ignored mail_nfs

bench: setup package-release
	$(LAB) bench $(ARGS)

# Needs no hosts. What it reads back and compares is many times what it measures, so that the lab's own program is an optimised one here.
bench-logs: tools
	$(CARGO) build --release --package phalanx-cli --package phalanx-lab
	target/release/phalanx-lab setup
	target/release/phalanx-lab bench logs $(ARGS)

# The lab's own tools, the hosts' base image, and what the product is packed with.
setup: tools
	$(CARGO) build --quiet --package phalanx-lab
	$(LAB) setup
	$(LAB) base

tools:
	@packaging/tools

test-tools:
	@packaging/tools test

# The package that the lab's hosts install. The test run packs the binaries that the tests were built with; the demo and
# the benchmarks pack optimised ones.
package:
	$(CARGO) build --quiet --package phalanx-cli --package phalanx-proxy
	packaging/build debug

package-release:
	$(CARGO) build --release --package phalanx-cli --package phalanx-proxy
	packaging/build release
