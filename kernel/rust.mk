# SPDX-License-Identifier: GPL-2.0-only
# What the builds of Rust for the kernel have in common: the compiler, and `core`, `abi` and the accounting as libraries.
#
# They need a rustc with the sources of its library: Debian's rustc-web and rust-web-src, or a rustup toolchain with the
# component rust-src. The first that fits is taken; KERNEL_RUSTC chooses another.
#
# Who includes this sets TOP, RUST_OUT, RUST to the compiler with its target and options, and LIBRARY to what libraries want besides.

sources_of = $(wildcard $(shell $(1) --print sysroot 2>/dev/null)/lib/rustlib/src/rust/library/core/src/lib.rs)
ifndef KERNEL_RUSTC
KERNEL_RUSTC := $(firstword $(foreach rustc,$(RUSTC) rustc /usr/bin/rustc,$(if $(call sources_of,$(rustc)),$(rustc))))
endif
CORE := $(if $(KERNEL_RUSTC),$(call sources_of,$(KERNEL_RUSTC)))

# Unstable flags are needed: on a stable compiler, as the kernel itself does it.
export RUSTC_BOOTSTRAP = 1

rust_sources = $(shell find $(1) -name '*.rs')

.PHONY: compiler
compiler:
	@test -n "$(CORE)" || { echo "no rustc with library sources: install Debian's rustc-web and rust-web-src (./setup does), or rustup's component rust-src" >&2; exit 1; }

# Which compiler made the objects: a file that changes only when it does.
$(RUST_OUT)/compiler: compiler
	@mkdir -p $(RUST_OUT)
	@$(KERNEL_RUSTC) -vV | cmp -s - $@ || $(KERNEL_RUSTC) -vV > $@

# An empty stand-in: `core` wants a compiler_builtins, and the kernel brings memcpy and its kin.
$(RUST_OUT)/libcore.rlib: $(RUST_OUT)/compiler $(MAKEFILE_LIST)
	@echo "  RUSTC   core (from source, once per compiler)"
	@$(RUST) --crate-name core $(LIBRARY) --crate-type rlib --cap-lints allow --cfg no_fp_fmt_parse $(CORE) -o $@
	@echo '#![feature(compiler_builtins)] #![compiler_builtins] #![no_std]' | $(RUST) --cap-lints allow --crate-name compiler_builtins $(LIBRARY) --crate-type rlib - -o $(RUST_OUT)/libcompiler_builtins.rlib

$(RUST_OUT)/libexitscope_abi.rlib: $(RUST_OUT)/libcore.rlib $(call rust_sources,$(TOP)/abi/src)
	@echo "  RUSTC   abi"
	@$(RUST) --crate-name exitscope_abi $(LIBRARY) --crate-type rlib $(TOP)/abi/src/lib.rs -o $@

$(RUST_OUT)/libexitscope_core.rlib: $(RUST_OUT)/libexitscope_abi.rlib $(call rust_sources,$(TOP)/core/src)
	@echo "  RUSTC   core accounting"
	@$(RUST) --crate-name exitscope_core $(LIBRARY) --crate-type rlib --extern exitscope_abi $(TOP)/core/src/lib.rs -o $@
