# Speed, sanitizers, damaged cores, fuzzing, lint: what proves more than `make test` has time for.
.PHONY: asan bench bench-heap bench-slabs bench-preload bench-detour test-attach test-mutated fuzz lint

# ---- speed: BLOCKS=300000 for a quick look -------------------------------------------------------
BLOCKS ?= 12000000
ROUNDS ?= 5

# All of it, one after the other; bench-kernel, which wants QEMU and kernels, is for who asks.
bench:
	@status=0; for part in heap slabs python preload detour; do \
	    $(MAKE) --no-print-directory bench-$$part || status=1; \
	done; exit $$status

$(BUILD)/bench/make_core: $(addprefix $(BUILD)/tests/bench/,make_core.o dump_core.o)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ -pthread

$(BUILD)/bench/bare_loop: $(BUILD)/tests/bench/bare_loop.o
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^

$(BUILD)/bench/count_blocks: $(BUILD)/tests/bench/count_blocks.o $(BUILD)/libkarst.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBRARIES) -lm

$(BUILD)/bench/find_blocks: $(BUILD)/tests/bench/find_blocks.o $(BUILD)/libkarst.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBRARIES) -lm

bench-heap: $(BUILD)/karst $(addprefix $(BUILD)/bench/,make_core bare_loop count_blocks find_blocks)
	$(PYTHON) tests/bench/bench.py --karst $(BUILD)/karst --tools $(BUILD)/bench --directory $(BUILD)/bench \
	    --blocks $(BLOCKS) --rounds $(ROUNDS)

# What the preload library costs a call; EVENTS=2000000 ROUNDS=3 for a quick look.
EVENTS ?= 20000000

$(BUILD)/bench/call_cost: $(BUILD)/tests/bench/call_cost.o
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ -pthread

$(BUILD)/bench/turns: $(BUILD)/tests/bench/turns.o
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ -pthread

bench-preload: all $(BUILD)/bench/call_cost $(BUILD)/bench/turns
	$(PYTHON) tests/bench/bench_preload.py --karst $(BUILD)/karst --program $(BUILD)/bench/call_cost --turns $(BUILD)/bench/turns \
	    --rounds $(ROUNDS) --events $(EVENTS)

# What a trap by a detour costs a call, against GDB's conditional breakpoint.
$(BUILD)/bench/phases: $(BUILD)/tests/bench/phases.o
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^

bench-detour: all $(BUILD)/bench/phases
	ROUNDS=$(ROUNDS) gdb -nx -q -batch -iex 'set debuginfod enabled off' -ex 'source gdb/karst.py' \
	    -ex 'source tests/gdb/bench_detour.py' $(BUILD)/bench/phases

# ---- traps and injection into programs that are all the time in the allocator -----------------------
# 100 times each program and way; `make test` does a slice of it.
CYCLES ?= 200

test-attach: all test-programs
	KARST_CYCLES=$(CYCLES) KARST_BUILD=$(abspath $(BUILD)) $(PYTHON) -m pytest -p no:cacheprovider $(PYTEST_ARGUMENTS) \
	    tests/gdb/test_gdb_detour.py tests/gdb/test_gdb_inject.py -k lives_on

# jemalloc: REGIONS=1000000 for a quick look.
REGIONS ?= 10000000

$(BUILD)/bench/make_slabs: $(addprefix $(BUILD)/tests/bench/,make_slabs.o dump_core.o)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^

$(BUILD)/bench/count_slabs: $(BUILD)/tests/bench/count_slabs.o $(BUILD)/libkarst.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBRARIES) -lm

bench-slabs: all $(addprefix $(BUILD)/bench/,make_slabs count_slabs)
	@.ci/deps libjemalloc2
	$(PYTHON) tests/bench/bench_slabs.py --karst $(BUILD)/karst --tools $(BUILD)/bench --directory $(BUILD)/bench \
	    --regions $(REGIONS) --rounds $(ROUNDS)

# A Python process of a million objects.
.PHONY: bench-python
bench-python: $(BUILD)/karst
	$(PYTHON) tests/bench/bench_python.py --karst $(BUILD)/karst --rounds $(ROUNDS)

# ---- sanitizers: the same sources again in a directory of their own ------------------------------
SANITIZED := $(BUILD)/asan
SANITIZE  := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all

asan:
	$(MAKE) BUILD=$(SANITIZED) CFLAGS='$(SANITIZE)' $(SANITIZED)/karst $(SANITIZED)/fuzz/mutate

# ---- damaged cores --------------------------------------------------------------------------------
# Case K of seed N again: build/asan/fuzz/mutate --seed N --case K build/fuzz/cores/*.core
SEED_CORES := $(addprefix $(BUILD)/fuzz/cores/,single.core threads.core mapped.core fragmented.core \
    two-libcs.core python.core jemalloc.core jemalloc-3.core jemalloc-4.core marked.core tiny.core tiny-threads.core)
CASES      ?= 100000
SEED       ?= 1
JOBS       ?= 2

$(BUILD)/fuzz/mutate: $(addprefix $(BUILD)/tests/fuzz/,mutate.o core_image.o) $(BUILD)/libkarst.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBRARIES) -lm

$(BUILD)/fuzz/seeds: $(addprefix $(BUILD)/tests/,fuzz/seeds.o bench/dump_core.o)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ -pthread

$(BUILD)/fuzz/cores/.made: $(BUILD)/fuzz/seeds $(BUILD)/libkarst-preload.so
	@mkdir -p $(@D)
	@.ci/deps libjemalloc2
	cd $(@D) && ../seeds && LD_PRELOAD=libjemalloc.so.2 ../seeds && \
	    LD_PRELOAD=$(abspath $(BUILD))/libkarst-preload.so KARST_MARK=1 KARST_RECORDER=64K ../seeds
	$(PYTHON) tests/lib/karst_jemalloc_image.py $(@D)
	@touch $@

test-mutated: asan $(BUILD)/fuzz/cores/.made
	cd $(BUILD)/fuzz && $(abspath $(SANITIZED))/fuzz/mutate --seed $(SEED) -n $(CASES) --jobs $(JOBS) \
	    $(abspath $(SEED_CORES))

# ---- fuzzing, guided by coverage: clang's libFuzzer ------------------------------------------------
# A finding stays as build/fuzzer/crash-*; build/fuzzer/fuzz/fuzz_core FILE runs it again.
FUZZED       := $(BUILD)/fuzzer
FUZZ         := -O1 -g -fno-omit-frame-pointer -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all
FUZZ_SECONDS ?= 300

$(BUILD)/fuzz/fuzz_%: $(BUILD)/tests/fuzz/fuzz_%.o $(BUILD)/tests/fuzz/run_verbs.o $(BUILD)/libkarst.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(LDFLAGS) -fsanitize=fuzzer -o $@ $^ $(LIBRARIES) -lm

$(BUILD)/fuzz/corpus/.made: $(BUILD)/fuzz/cores/.made tests/fuzz/cut_seeds.py
	$(PYTHON) tests/fuzz/cut_seeds.py $(@D) $(addprefix $(BUILD)/fuzz/cores/,tiny.core tiny-threads.core)
	@touch $@

fuzz: $(BUILD)/fuzz/corpus/.made
	$(MAKE) CC=clang BUILD=$(FUZZED) CFLAGS='$(FUZZ)' $(FUZZED)/fuzz/fuzz_core $(FUZZED)/fuzz/fuzz_glibc
	for kind in core glibc; do \
	    mkdir -p $(FUZZED)/corpus/$$kind; \
	    $(FUZZED)/fuzz/fuzz_$$kind -max_total_time=$(FUZZ_SECONDS) -max_len=262144 -timeout=20 -rss_limit_mb=2048 \
	        -artifact_prefix=$(FUZZED)/ $(FUZZED)/corpus/$$kind $(BUILD)/fuzz/corpus/$$kind || exit 1; \
	done

# ---- lint -------------------------------------------------------------------------------------------
LINT_PACKAGES := clang clang-format clang-tidy cppcheck mypy pyflakes3
SCRIPT_PLACES  = $(wildcard gdb drgn helper/python docs tests .ci)

# clang-tidy is for C, and not for docs/demo, whose programs do what it warns of.
lint:
	@.ci/deps $(LINT_PACKAGES)
	@clang-format --dry-run -Werror $(C_FILES)
	@echo 'clang-tidy on all sources'
	@printf '%s\n' $(filter helper/%.c tests/%.c,$(C_FILES)) | xargs -P $(JOBS) -n 3 sh -c \
	    'clang-tidy --quiet "$$@" -- -std=gnu11 $(CPPFLAGS) $(INCLUDES) 2>/dev/null' clang-tidy
	@cppcheck --quiet --std=c11 --enable=warning,portability --inline-suppr --error-exitcode=1 \
	    --suppressions-list=tests/cppcheck.txt -j $(JOBS) -Ihelper/include $(addprefix -I,helper/target helper/allocator helper/runtime helper/analysis helper/report helper/verb) helper
	$(PYTHON) -m compileall -q $(SCRIPT_PLACES)
	pyflakes3 $(SCRIPT_PLACES)
	@for script in $(wildcard helper/python/*.py tests/bench/*.py tests/fuzz/*.py docs/*.py); do \
	    MYPYPATH=helper/python mypy --python-version 3.9 --ignore-missing-imports --no-error-summary \
	        --cache-dir=$(BUILD)/mypy $$script || exit 1; \
	done
	@for plugin in gdb drgn; do \
	    (cd $$plugin && MYPYPATH=.:../helper/python mypy --python-version 3.9 --ignore-missing-imports \
	        --no-error-summary --cache-dir=$(abspath $(BUILD))/mypy -p karst_$$plugin) || exit 1; \
	done

# ---- how fast a task's heap is read out of a vmcore; the guest is that of `make test-kernel` -----------------------
.PHONY: bench-kernel
bench-kernel:
	@$(MAKE) --no-print-directory -s get-kernels KERNELS=trixie
	$(PYTHON) tests/bench/vmcore.py --build $(BUILD) --suite trixie
