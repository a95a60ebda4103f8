# karst: see README.md. `make demo` and `make test` are the two commands to know; both install what is
# missing first (make deps).
BUILD   ?= build
PREFIX  ?= /usr/local
DESTDIR ?=
CC      ?= gcc
PYTHON  := /usr/bin/python3

PACKAGES := gcc libc6-dev pkg-config libelf-dev libdw-dev libjansson-dev libcairo2-dev libiberty-dev
CPPFLAGS += -D_GNU_SOURCE $(addprefix -Ihelper/,include target allocator runtime analysis report verb preload)
CFLAGS   ?= -O2 -g
WARNINGS := -std=c11 -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith
LIBRARIES = $(shell pkg-config --libs libelf libdw jansson cairo) -liberty
INCLUDES  = $(shell pkg-config --cflags libelf libdw jansson cairo)
ALL_CFLAGS = $(WARNINGS) -fPIC -fvisibility=hidden $(CPPFLAGS) $(INCLUDES) $(CFLAGS)

ENGINE_SOURCES := $(wildcard helper/target/*.c helper/allocator/*.c helper/runtime/*.c helper/analysis/*.c helper/report/*.c helper/verb/*.c)
# How traps are written, which the preload library has to know as well.
ENGINE_SOURCES += helper/preload/trap_spec.c helper/preload/nearest.c
ENGINE_OBJECTS := $(ENGINE_SOURCES:%.c=$(BUILD)/%.o)
CLI_OBJECTS    := $(patsubst %.c,$(BUILD)/%.o,$(wildcard helper/cli/*.c))
C_FILES        := $(shell git ls-files -co --exclude-standard -- '*.c' '*.h' '*.cc')

.PHONY: all clean format
all: $(BUILD)/karst $(BUILD)/libkarst.so $(BUILD)/libkarst.a $(BUILD)/libkarst-preload.so

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) -MMD -MP -c $< -o $@

$(BUILD)/libkarst.a: $(ENGINE_OBJECTS)
	@rm -f $@
	$(AR) rcs $@ $^

$(BUILD)/libkarst.so: $(ENGINE_OBJECTS)
	$(CC) $(CFLAGS) $(LDFLAGS) -shared -Wl,-soname,libkarst.so -Wl,-z,defs -Wl,--exclude-libs,libiberty.a -o $@ $^ $(LIBRARIES) -lm

$(BUILD)/karst: $(CLI_OBJECTS) $(BUILD)/libkarst.a
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBRARIES) -lm

# Goes into other programs: libc and nothing else, all of it bound at once, no sanitizers.
PRELOAD_OBJECTS := $(patsubst %.c,$(BUILD)/%.o,$(wildcard helper/preload/*.c))
$(BUILD)/helper/preload/%.o: ALL_CFLAGS = $(WARNINGS) -O2 -g -fPIC -fvisibility=hidden -fexceptions \
    $(if $(findstring clang,$(CC)),,-fno-crossjumping) -ftls-model=initial-exec $(CPPFLAGS)

$(BUILD)/libkarst-preload.so: $(PRELOAD_OBJECTS)
	$(CC) -g -shared -Wl,-soname,libkarst-preload.so -Wl,-z,defs -Wl,-z,now -o $@ $^

include tests/tests.mk

# What karst is good for, on real programs: a minute, set-up included.
.PHONY: demo docs docs-demo
demo:
	@.ci/deps $(PACKAGES) gdb python3
	@$(MAKE) --no-print-directory -s all
	@$(PYTHON) docs/demo/demo.py --build $(BUILD)

# The pages of the verbs; with what the demo shows, also README.md and the tour.
docs: all
	$(PYTHON) docs/generate.py --build $(BUILD)
	$(PYTHON) docs/gdb_sessions.py

docs-demo: demo
	$(PYTHON) docs/generate.py --build $(BUILD) --demo

# GDB reads what lies in /etc/gdb/gdbinit.d when it starts; PREFIX elsewhere: source .../gdb/karst.py yourself.
# drgn (0.0.31 and newer) finds plugins by the entry points of Python's packages; elsewhere: docs/drgn.md.
.PHONY: install uninstall
SCRIPTS   := $(shell find gdb drgn helper/python -name '*.py' 2>/dev/null)
PAGES     := README.md $(shell find docs -name '*.md' -o -name '*.png' -o -name '*.svg')
SHARE      = $(DESTDIR)$(PREFIX)/share
GDB_START := $(if $(filter /usr /usr/local,$(PREFIX)),$(DESTDIR)/etc/gdb/gdbinit.d/karst.gdb)
SITE_/usr       = /usr/lib/python3/dist-packages
SITE_/usr/local = $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' 2>/dev/null)
SITE           := $(if $(SITE_$(PREFIX)),$(DESTDIR)$(SITE_$(PREFIX)))
PACKAGE_INFO    = $(SITE)/karst_drgn-$(VERSION).dist-info
VERSION         = $(shell sed -n 's/^\#define KARST_VERSION "\(.*\)"/\1/p' helper/include/karst.h)

install: all
	install -D -m 755 $(BUILD)/karst $(DESTDIR)$(PREFIX)/bin/karst
	install -D -m 644 $(BUILD)/libkarst.so $(DESTDIR)$(PREFIX)/lib/libkarst.so
	install -D -m 644 $(BUILD)/libkarst-preload.so $(DESTDIR)$(PREFIX)/lib/libkarst-preload.so
	install -D -m 644 helper/include/karst.h $(DESTDIR)$(PREFIX)/include/karst.h
	install -D -m 644 helper/include/karst-abi.h $(DESTDIR)$(PREFIX)/include/karst-abi.h
	install -D -m 644 helper/cli/karst.bash $(SHARE)/bash-completion/completions/karst
	@for script in $(SCRIPTS); do install -D -m 644 $$script $(SHARE)/karst/$${script#helper/} || exit 1; done
	@for page in $(PAGES); do install -D -m 644 $$page $(SHARE)/doc/karst/$$page || exit 1; done
ifneq ($(GDB_START),)
	@mkdir -p $(dir $(GDB_START))
	echo 'source $(PREFIX)/share/karst/gdb/karst.py' > $(GDB_START)
endif
ifneq ($(SITE),)
	@mkdir -p $(PACKAGE_INFO)
	ln -sfn $(PREFIX)/share/karst/drgn/karst_drgn $(SITE)/karst_drgn
	printf '[drgn.plugins]\nkarst = karst_drgn.plugin\n' > $(PACKAGE_INFO)/entry_points.txt
	printf 'Metadata-Version: 2.1\nName: karst_drgn\nVersion: $(VERSION)\n' > $(PACKAGE_INFO)/METADATA
endif
	@[ -n "$(DESTDIR)" ] || ldconfig 2>/dev/null || true

uninstall:
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/,bin/karst lib/libkarst.so lib/libkarst-preload.so include/karst.h include/karst-abi.h) $(GDB_START)
	rm -rf $(SHARE)/karst $(SHARE)/doc/karst $(SHARE)/bash-completion/completions/karst $(if $(SITE),$(SITE)/karst_drgn $(SITE)/karst_drgn-*.dist-info)

clean:
	rm -rf $(BUILD)

format:
	@clang-format -i $(C_FILES)

include tests/tools.mk

-include $(shell find $(BUILD)/helper $(BUILD)/tests -name '*.d' -type f 2>/dev/null)
