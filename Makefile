# The project's commands. `make lab` and `make test` install what is missing, from Debian's packages.

# Debian's cargo may be an old one beside the current cargo-web; a rustup toolchain on the PATH is used as it is.
CARGO ?= cargo

PREFIX ?= /usr/local
PROGRAM = $(or $(CARGO_TARGET_DIR),target)/x86_64-unknown-linux-gnu/release/exitscope

.PHONY: lab benchmarks program program-path install uninstall test test-kernel-debug test-package prepush module package fuzz miri clean setup

# Boots a stock kernel with KVM in an emulated machine, runs a guest with our module loaded, prints its exits.
lab: setup
	@$(CARGO) run --release --bin exitscope -- lab run

# The program itself: one static file.
program: setup
	@$(CARGO) build --release --bin exitscope

program-path:
	@echo $(abspath $(PROGRAM))

# Puts the program into DESTDIR/PREFIX/bin. Under sudo the tree's owner builds it, whose login shell finds rustup's cargo.
# Only that shell knows where it has put it.
BUILDER = $(filter-out root,$(filter $(shell stat -c %U .),$(SUDO_USER)))
AS_BUILDER = $(if $(BUILDER),sudo -iu $(BUILDER) --) $(MAKE) -s -C "$(CURDIR)"
install:
	@$(AS_BUILDER) program
	@install -D -m 755 "$$($(AS_BUILDER) program-path | tail -n 1)" "$(DESTDIR)$(PREFIX)/bin/exitscope"
	@echo "$(DESTDIR)$(PREFIX)/bin/exitscope"

uninstall:
	@rm -f "$(DESTDIR)$(PREFIX)/bin/exitscope"

# All checks and tests.
test: setup
	@$(CARGO) xtask prepush

prepush: test

# The tests of the whole on a kernel with KASAN, lockdep, kmemleak and others of its own checkers; it is built once.
test-kernel-debug:
	@./setup --debug-kernel
	@$(CARGO) xtask test-kernel-debug

# Measures what observing exits costs, on both lanes: the tables of docs/benchmarks.md.
benchmarks: setup
	@mkdir -p target
	@sed '/^## /,$$d' docs/benchmarks.md > target/benchmarks.md
	@$(CARGO) run --release -q --bin exitscope -- lab bench --markdown >> target/benchmarks.md
	@echo >> target/benchmarks.md
	@$(CARGO) run --release -q --bin exitscope -- lab bench --vendor intel --markdown >> target/benchmarks.md
	@mv target/benchmarks.md docs/benchmarks.md

# Builds the kernel module for the kernel whose build tree is KDIR: target/module/RELEASE/exitscope.ko.
module: setup
	@$(MAKE) --no-print-directory -C kernel/module $(if $(KDIR),KDIR=$(abspath $(KDIR))) report

# Packs the module's sources for DKMS: target/package/exitscope-dkms_VERSION_all.deb.
package:
	@kernel/dkms/build

# Installs the package, upgrades kernels and removes it, in fresh Debian 12 and 13 trees. Needs root.
test-package:
	@kernel/dkms/test

# Fuzzes each target for SECONDS (60).
fuzz: setup
	@$(CARGO) xtask fuzz $(SECONDS)

# Runs the tests of abi and core under Miri.
miri:
	@$(CARGO) xtask miri

setup:
	@./setup

clean:
	rm -rf target
