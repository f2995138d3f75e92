# The door.  CMake and its presets do the work; this file remembers the commands.
#
# Every target installs the Debian packages it lacks first (scripts/setup; quick when none is
# missing), so that `make test` and `make demo` work on a bare machine.

PRESET ?= dev
PREFIX ?= /usr/local
SECONDS ?= 600

.PHONY: build help setup test demo bench soak fuzz asan tsan cross format check-format tidy deb test-deb install clean

build: setup
	@mkdir -p build
	@cmake --preset $(PRESET) --log-level=WARNING >build/configure.log || { cat build/configure.log; exit 1; }
	@cmake --build --preset $(PRESET)

help:
	@echo 'make              build into build/dev (PRESET=release, asan, tsan: into build/PRESET)'
	@echo 'make test         build and run all tests; the last line counts them'
	@echo 'make demo         a prompt process hands its KV cache to a decoder process'
	@echo 'make bench        measure transfers beside plain copies, about three minutes (BENCH=--help)'
	@echo 'make soak         random calls and faults for SECONDS=600, every byte checked (SOAK=--seed=N)'
	@echo 'make fuzz         every parser for SECONDS=600 under libFuzzer (FUZZ="stream conn")'
	@echo 'make asan, tsan   the tests under the address+undefined and the thread sanitizer'
	@echo 'make cross        compile for 64-bit Arm'
	@echo 'make format       format the sources; make check-format only looks'
	@echo 'make tidy         clang-tidy over the sources'
	@echo 'make deb          Debian packages, in build/deb'
	@echo 'make test-deb     install them in a clean Debian 12, made for the purpose, and try them'
	@echo 'make install      install the release build below PREFIX=$(PREFIX) (and DESTDIR)'
	@echo 'make setup        install the Debian packages that the build needs'
	@echo 'make clean        remove build/'

setup:
	@scripts/setup

test: build
	@scripts/run-tests $(PRESET)

asan tsan:
	@$(MAKE) --no-print-directory test PRESET=$@

demo:
	@$(MAKE) --no-print-directory build PRESET=release
	@build/release/bin/llm-datadist demo

bench:
	@$(MAKE) --no-print-directory build PRESET=release
	@build/release/bin/llm-datadist bench $(BENCH)

soak: build
	@tests/soak/run $(PRESET) $(SECONDS) $(SOAK)

fuzz:
	@scripts/setup build fuzz
	@tests/fuzz/run $(SECONDS) $(FUZZ)

cross:
	@scripts/setup build cross
	@scripts/cross-compile

format:
	@scripts/setup check
	@scripts/format

check-format:
	@scripts/setup check
	@scripts/format --check

tidy: build
	@scripts/setup check
	@git ls-files 'src/*.c' 'tools/*.c' 'examples/*.c' ':!tools/bench_ucx.c' | xargs -n 4 -P 2 clang-tidy -quiet -p build/$(PRESET)

deb:
	@scripts/setup build deb
	@scripts/make-deb

test-deb:
	@scripts/setup build deb
	@tests/deb/deb_test.sh

install:
	@$(MAKE) --no-print-directory build PRESET=release
	@DESTDIR='$(DESTDIR)' cmake --install build/release --prefix '$(PREFIX)'

clean:
	rm -rf build
