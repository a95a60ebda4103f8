# Building and running the tests; included by the Makefile.
TEST_PACKAGES := g++ libtcmalloc-minimal4 libmimalloc2.0 strace gdbserver libjemalloc2 libjemalloc-dev libc6-dbg gdb python3-pytest python3-drgn git perl xz-utils sqlite3

TEST_BUILD    := $(BUILD)/tests
TEST_CFLAGS   := -std=gnu11 -O1 -g -Wall -Wextra -Werror -Wshadow -D_GNU_SOURCE -pthread
TEST_PROGRAMS := $(patsubst tests/programs/%.c,$(TEST_BUILD)/%,$(wildcard tests/programs/*.c)) \
                 $(patsubst tests/programs/%.cc,$(TEST_BUILD)/%,$(wildcard tests/programs/*.cc)) \
                 $(TEST_BUILD)/ledger-static $(TEST_BUILD)/ledger-jemalloc $(TEST_BUILD)/callers-static $(TEST_BUILD)/catalogue
UNIT_TESTS    := $(patsubst tests/unit/%.c,$(TEST_BUILD)/unit/%,$(wildcard tests/unit/*.c))

.PHONY: deps test test-programs test-distros run-tests
deps:
	@.ci/deps $(PACKAGES) $(TEST_PACKAGES)

# In two steps: what is built depends on what deps installs.
test: deps
	@.ci/unpack $(TEST_BUILD)/nginx nginx || true
	@.ci/unpack $(TEST_BUILD)/redis redis-tools libjemalloc2 liblzf1 libatomic1 || true
	@$(MAKE) --no-print-directory -s all test-programs
	@$(MAKE) --no-print-directory -s run-tests

test-programs: $(TEST_PROGRAMS) $(UNIT_TESTS)

# PYTEST_ARGUMENTS: what else to give to pytest (-k WORD, -x ...).
run-tests:
	@status=0; \
	for unit in $(UNIT_TESTS); do \
	    echo "$$unit"; timeout 600 "$$unit" || status=1; \
	done; \
	KARST_BUILD=$(abspath $(BUILD)) $(PYTHON) -m pytest -p no:cacheprovider $(PYTEST_ARGUMENTS) \
	    --ignore=tests/distros --ignore=tests/kernel --ignore=tests/preload tests || status=1; \
	exit $$status

$(TEST_BUILD)/%: tests/programs/%.c $(wildcard tests/programs/*.h)
	@mkdir -p $(@D)
	$(CC) $(TEST_CFLAGS) $< -o $@

$(TEST_BUILD)/%: tests/programs/%.cc
	@mkdir -p $(@D)
	$(CXX) -std=gnu++17 -O0 -g -Wall -Wextra -Werror $< -o $@

$(TEST_BUILD)/ledger-static: tests/programs/ledger.c
	@mkdir -p $(@D)
	$(CC) $(TEST_CFLAGS) -DLEDGER_STATIC -static $< -o $@

$(TEST_BUILD)/callers-static: tests/programs/callers.c
	@mkdir -p $(@D)
	$(CC) $(TEST_CFLAGS) -static $< -o $@

# jemalloc linked into the program, and no trace of it left but what the program needs.
$(TEST_BUILD)/ledger-jemalloc: tests/programs/ledger.c
	@mkdir -p $(@D)
	$(CC) $(TEST_CFLAGS) $< -Wl,--strip-all -l:libjemalloc.a -lm -lstdc++ -o $@

$(TEST_BUILD)/catalogue: $(wildcard tests/corruption/*.c tests/corruption/*.h)
	@mkdir -p $(@D)
	$(CC) $(TEST_CFLAGS) $(filter %.c,$^) -o $@

$(TEST_BUILD)/unit/%: tests/unit/%.c $(BUILD)/libkarst.a
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $< $(BUILD)/libkarst.a $(LDFLAGS) $(LIBRARIES) -lm -o $@

# A jemalloc under test, by path: make test-jemalloc JEMALLOC=/path/libjemalloc.so (3.5 to 5.3); with
# KARST_JEMALLOC_PATCHED=1 one whose structs are known by its debug info alone.
.PHONY: test-jemalloc
test-jemalloc: all test-programs
	@[ -e "$(JEMALLOC)" ] || { echo "say which: make test-jemalloc JEMALLOC=/path/libjemalloc.so" >&2; exit 1; }
	KARST_BUILD=$(abspath $(BUILD)) KARST_JEMALLOC=$(abspath $(JEMALLOC)) $(PYTHON) -m pytest -p no:cacheprovider \
	    $(PYTEST_ARGUMENTS) tests/integration/test_jemalloc.py

# Builds that Debian ships none of, from its sources: with a prefix and private names, linked into a program; with a
# layout that no table has; with use-after-free detection. Needs the network, and five minutes, the first time.
JEMALLOC_BUILDS   := 5.1.0-prefixed 5.3.0-prefixed 5.3.0-moved 5.3.0-stashing
JEMALLOC_PREFIXED := $(filter %-prefixed,$(JEMALLOC_BUILDS))
.PHONY: test-jemalloc-builds
test-jemalloc-builds: deps
	@for build in $(JEMALLOC_BUILDS); do \
	    tests/distros/build-jemalloc $${build%-*} $${build#*-} $(BUILD)/jemalloc/$$build || exit; \
	done
	@$(MAKE) --no-print-directory -s all test-programs $(JEMALLOC_PREFIXED:%=$(BUILD)/jemalloc/%/ledger)
	KARST_BUILD=$(abspath $(BUILD)) $(PYTHON) -m pytest -p no:cacheprovider $(PYTEST_ARGUMENTS) \
	    tests/distros/test_jemalloc_builds.py

$(BUILD)/jemalloc/%/ledger: tests/programs/ledger.c
	$(CC) $(TEST_CFLAGS) -DLEDGER_PREFIXED $< $(@D)/libjemalloc.a -lm -o $@

# Real programs with the preload library in them, as without: half an hour, or an hour on a busy machine.
PRELOAD_TEST_PACKAGES := libpython3.11-testsuite redis-tools
.PHONY: test-preload
test-preload: deps
	@.ci/deps $(PRELOAD_TEST_PACKAGES)
	@command -v redis-server >/dev/null || .ci/unpack $(TEST_BUILD)/redis redis-server
	@$(MAKE) --no-print-directory -s all test-programs
	PATH="$$PATH:$(abspath $(TEST_BUILD))/redis/usr/bin" KARST_BUILD=$(abspath $(BUILD)) \
	    $(PYTHON) -m pytest -p no:cacheprovider $(PYTEST_ARGUMENTS) tests/preload

# The same on the glibc of other Debian suites: 2.31, 2.41, 2.43 (and DISTROS=experimental: 2.44); the plugin in
# their GDBs: 10 with Python 3.9, 16 with 3.13; and karst on other Pythons. Needs the network the first time.
DISTROS          := bullseye trixie sid
GDB_DISTROS      := bullseye trixie
JEMALLOC_DISTROS := bullseye trixie
DRGN_DISTROS     := trixie sid
OLD_PROGRAMS     := $(addprefix $(BUILD)/distros/bullseye/programs/,ledger catalogue hammer stepped)
CATALOGUE_PIECES := $(patsubst tests/corruption/%.c,$(TEST_BUILD)/old/%.o,$(wildcard tests/corruption/*.c))

test-distros: deps
	@for suite in $(DISTROS); do tests/distros/get-libc $$suite $(BUILD)/distros/$$suite || exit; done
	@$(MAKE) --no-print-directory -s all test-programs $(OLD_PROGRAMS)
	@for suite in $(GDB_DISTROS); do tests/distros/get-gdb $$suite $(BUILD)/distros/gdb-$$suite || exit; done
	KARST_BUILD=$(abspath $(BUILD)) $(PYTHON) -m pytest -p no:cacheprovider $(PYTEST_ARGUMENTS) \
	    --ignore=tests/distros/test_other_pythons.py tests/distros
	@$(MAKE) --no-print-directory -s test-pythons
	@for suite in $(JEMALLOC_DISTROS); do \
	    echo "jemalloc of Debian $$suite"; \
	    tests/distros/get-jemalloc $$suite $(BUILD)/distros/jemalloc-$$suite && \
	        $(MAKE) --no-print-directory -s test-jemalloc JEMALLOC=$(BUILD)/distros/jemalloc-$$suite/libjemalloc.so.2 || exit; \
	done
	@for suite in $(GDB_DISTROS); do \
	    echo "GDB of Debian $$suite"; \
	    KARST_BUILD=$(abspath $(BUILD)) KARST_GDB=$(abspath $(BUILD))/distros/gdb-$$suite/gdb \
	        $(PYTHON) -m pytest -p no:cacheprovider $(PYTEST_ARGUMENTS) tests/gdb || exit; \
	done
	@for suite in $(DRGN_DISTROS); do \
	    tests/distros/get-drgn $$suite $(BUILD)/distros/drgn-$$suite || exit; \
	    echo "drgn of Debian $$suite"; \
	    KARST_BUILD=$(abspath $(BUILD)) KARST_DRGN=$(abspath $(BUILD))/distros/drgn-$$suite/drgn \
	        $(PYTHON) -m pytest -p no:cacheprovider $(PYTEST_ARGUMENTS) \
	        tests/integration/test_drgn.py tests/integration/test_python_drgn.py || exit; \
	done

# karst on the Pythons of other suites: 3.9, 3.13, 3.14 and 3.15. Needs the network the first time; then three minutes.
# KARST_PYTHONS=PATH:PATH names more to look into. 3.10, 3.12 and 3.14.0, which no suite of Debian has any more, from Ubuntu's
# archive, by the keys that Debian has of it: make test-pythons PYTHONS="jammy-3.10 noble-3.12 questing-3.14".
PYTHONS ?= bullseye-3.9 trixie-3.13 sid-3.14 sid-3.15

.PHONY: test-pythons
test-pythons: deps
	@for python in $(PYTHONS); do \
	    tests/distros/get-python $${python%-*} $${python#*-} $(BUILD)/distros/python-$$python || exit; \
	done
	@$(MAKE) --no-print-directory -s all test-programs
	KARST_BUILD=$(abspath $(BUILD)) KARST_MINORS="$(foreach python,$(PYTHONS),$(lastword $(subst ., ,$(python))))" \
	    $(PYTHON) -m pytest -p no:cacheprovider $(PYTEST_ARGUMENTS) tests/distros/test_other_pythons.py

# 2.31 lacks symbol versions that the system's libc has: what runs on it is linked with it.
$(TEST_BUILD)/old/%.o: tests/programs/%.c
	@mkdir -p $(@D)
	$(CC) $(TEST_CFLAGS) -fPIE -c $< -o $@

$(TEST_BUILD)/old/%.o: tests/corruption/%.c tests/corruption/catalogue.h
	@mkdir -p $(@D)
	$(CC) $(TEST_CFLAGS) -fPIE -c $< -o $@

$(BUILD)/distros/bullseye/programs/ledger: $(TEST_BUILD)/old/ledger.o
$(BUILD)/distros/bullseye/programs/hammer: $(TEST_BUILD)/old/hammer.o
$(BUILD)/distros/bullseye/programs/stepped: $(TEST_BUILD)/old/stepped.o
$(BUILD)/distros/bullseye/programs/catalogue: $(CATALOGUE_PIECES)
$(OLD_PROGRAMS):
	@mkdir -p $(@D)
	tests/distros/link-old $(BUILD)/distros/bullseye $@ $^

# Kernels under QEMU: what karst says of a dump against what the guest said of itself. Needs the network the first time
# (1.5 GB), and 4 GB of disk; then about five minutes. KERNELS=trixie tries one.
KERNELS       ?= bullseye bookworm trixie sid
NAMED_KERNEL  := noble # Ubuntu's: Debian's have no names for anonymous memory
KERNEL_BUILD  := $(BUILD)/kernel

.PHONY: test-kernel get-kernels
get-kernels:
	@.ci/deps $(PACKAGES) $(TEST_PACKAGES) cpio util-linux
	@tests/kernel/get-qemu $(KERNEL_BUILD)/qemu
	@.ci/unpack $(KERNEL_BUILD)/busybox busybox-static
	@.ci/unpack $(KERNEL_BUILD)/makedumpfile makedumpfile liblzo2-2
	@for suite in $(KERNELS) $(NAMED_KERNEL); do tests/kernel/get-kernel $$suite $(KERNEL_BUILD)/$$suite || exit; done
	@$(MAKE) --no-print-directory -s all $(TEST_BUILD)/ledger $(TEST_BUILD)/kernel/pages

test-kernel: get-kernels
	KARST_BUILD=$(abspath $(BUILD)) KARST_KERNELS="$(KERNELS)" \
	    $(PYTHON) -m pytest -p no:cacheprovider $(PYTEST_ARGUMENTS) tests/kernel

$(TEST_BUILD)/kernel/%: tests/kernel/%.c
	@mkdir -p $(@D)
	$(CC) $(TEST_CFLAGS) $< -o $@
