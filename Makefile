# build: everything, optimised.  test: all tests, after installing what they need.
# install: the program and its plugins below PREFIX.  uninstall: takes them out again.

PREFIX ?= /usr/local
CARGO ?= cargo
DESTDIR ?=
PROFILE ?= release

# What is needed beside Rust, as `program:package` or `file:package` of Debian and its relatives.
NEEDED = cc:gcc perl:perl sshd:openssh-server ssh:openssh-client \
	fish:fish zsh:zsh tcsh:tcsh mksh:mksh bash:bash dash:dash openssl:openssl setsid:util-linux ip:iproute2 python3:python3 /usr/lib/python3/dist-packages/paramiko:python3-paramiko git:git useradd:passwd /usr/bin/rustc:rustc \
	srun:slurm-client slurmctld:slurmctld slurmd:slurmd podman:podman runc:runc dockerd:docker.io \
	krb5kdc:krb5-kdc kadmin.local:krb5-admin-server kinit:krb5-user softhsm2-util:softhsm2 /usr/include/openssl/evp.h:libssl-dev \
	ps:procps mount:mount mosh-server:mosh

.PHONY: build test test-tools install uninstall

build:
	$(CARGO) build --profile $(PROFILE) --locked

test: test-tools
	@rm -f "$${CARGO_TARGET_DIR:-target}/figures.txt"
	$(CARGO) test --workspace --locked --no-fail-fast
	@echo "figures of this run:"; cat "$${CARGO_TARGET_DIR:-target}/figures.txt"

# A test that lacks its program fails, it is never left out: so they are all here first.
test-tools:
	@set -eu; PATH="$$PATH:/usr/sbin:/sbin"; missing=; \
	for pair in $(NEEDED); do \
		command -v "$${pair%%:*}" >/dev/null || [ -e "$${pair%%:*}" ] || missing="$$missing $${pair#*:}"; \
	done; \
	[ -n "$$missing" ] || exit 0; \
	echo "the tests need these packages:$$missing"; \
	command -v apt-get >/dev/null || { echo "error: no apt-get here; install them by hand" >&2; exit 1; }; \
	[ "$$(id -u)" = 0 ] || { echo "error: run as root: apt-get install$$missing" >&2; exit 1; }; \
	DEBIAN_FRONTEND=noninteractive; export DEBIAN_FRONTEND; \
	apt-get -o DPkg::Lock::Timeout=300 -qq update; \
	apt-get -o DPkg::Lock::Timeout=300 -qq install -y --no-install-recommends $$missing >/dev/null

# Each file is put in place by a rename, so that a manager which runs from there is not disturbed.
# Root may have no cargo, and installs what somebody else has built.
install:
	@if command -v "$(CARGO)" >/dev/null 2>&1; then $(MAKE) --no-print-directory build; \
	elif ! [ -x "$${CARGO_TARGET_DIR:-target}/$(subst dev,debug,$(PROFILE))/distant" ]; then \
		echo "error: there is no $(CARGO) here and nothing is built; \`make build\` first" >&2; exit 1; fi
	install -d "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)$(PREFIX)/lib/distant/plugins"
	@set -eu; put() { install -m 755 "$$1" "$$2/.$$(basename "$$1").new"; \
		mv -f "$$2/.$$(basename "$$1").new" "$$2/$$(basename "$$1")"; echo "$$2/$$(basename "$$1")"; }; \
	folder="$${CARGO_TARGET_DIR:-target}/$(subst dev,debug,$(PROFILE))"; \
	put "$$folder/distant" "$(DESTDIR)$(PREFIX)/bin"; \
	for plugin in "$$folder"/libdistant_plugin_*.so "$$folder"/libdistant_plugin_*.dylib; do \
		case "$$plugin" in *\**|*_faulty.*) continue;; esac; \
		put "$$plugin" "$(DESTDIR)$(PREFIX)/lib/distant/plugins"; \
	done

# What others have put there stays.
uninstall:
	rm -f "$(DESTDIR)$(PREFIX)/bin/distant"
	@set -eu; folder="$(DESTDIR)$(PREFIX)/lib/distant/plugins"; \
	for plugin in ssh2 libssh openssh manager_local; do \
		rm -fv "$$folder/libdistant_plugin_$$plugin.so" "$$folder/libdistant_plugin_$$plugin.dylib"; \
	done; \
	rmdir "$$folder" "$${folder%/plugins}" 2>/dev/null || true
