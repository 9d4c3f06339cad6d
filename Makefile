# certdrop: what there is to make.  "make help" explains, README.md shows the two commands that matter.

# The version stands in one place.
VERSION := $(shell sed -n 's/^VERSION = "\(.*\)"/\1/p' lib/certdrop/__init__.py)
SHELL = /bin/bash
PYTHON = /usr/bin/python3
DESTDIR =
PREFIX = /usr/local
SYSCONFDIR = /etc
STAGE = tests/stage/stage
DEB = dist/certdrop_$(VERSION)_all.deb

# Where things go.
SBINDIR = $(DESTDIR)$(PREFIX)/sbin
BINDIR = $(DESTDIR)$(PREFIX)/bin
SHAREDIR = $(DESTDIR)$(PREFIX)/share/certdrop
MANDIR = $(DESTDIR)$(PREFIX)/share/man
DOCDIR = $(DESTDIR)$(PREFIX)/share/doc/certdrop
UNITDIR = $(DESTDIR)/usr$(if $(filter /usr,$(PREFIX)),,/local)/lib/systemd/system
TMPFILESDIR = $(DESTDIR)/usr$(if $(filter /usr,$(PREFIX)),,/local)/lib/tmpfiles.d
BASHDIR = $(DESTDIR)$(PREFIX)/share/bash-completion/completions
ZSHDIR = $(DESTDIR)$(PREFIX)/share/zsh/$(if $(filter /usr,$(PREFIX)),vendor-completions,site-functions)
FISHDIR = $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
# Our configuration; what sudo, cron, logrotate, nginx and AppArmor read lies where they look for it.
ETCDIR = $(DESTDIR)$(SYSCONFDIR)/certdrop
THEIRS = $(DESTDIR)/etc

# What there is.  Programs that do not exist yet are passed over.
ROOT_PROGRAMS = certdrop certdrop-install certdrop-issue certdrop-account certdrop-watch certdrop-import
USER_PROGRAMS = certdrop-status certdrop-nginx certdrop-check
# of the package certdrop-fleet
FLEET_PROGRAMS = certdrop-courier certdrop-desk certdrop-fleet
SBIN = $(foreach name,$(ROOT_PROGRAMS),$(wildcard bin/$(name)))
BIN = $(foreach name,$(USER_PROGRAMS),$(wildcard bin/$(name)))
PACKAGES = $(filter-out %__pycache__/,$(sort $(wildcard lib/certdrop/*/ lib/certdrop/*/*/)))
FLEET_MODULES = $(sort $(wildcard lib/certdrop/fleet/*.py))
MODULES = $(filter-out $(FLEET_MODULES),$(sort $(wildcard lib/certdrop/*.py $(addsuffix *.py,$(PACKAGES)))))
SNIPPETS = nginx/certdrop-challenge.conf nginx/certdrop-tls.conf
FLEET_MAN = $(foreach name,$(FLEET_PROGRAMS),$(wildcard man/$(name).8))
MAN = $(filter-out $(FLEET_MAN),$(sort $(wildcard man/*.[158])))
UNITS = $(sort $(wildcard systemd/*))
PROFILES = $(sort $(wildcard apparmor.d/usr.* apparmor.d/certdrop-*))
SERVICES = $(sort $(wildcard services.d/*))
SCRIPTS = $(SBIN) $(BIN) $(addprefix bin/,$(FLEET_PROGRAMS)) $(wildcard tests/stage/stage tests/demo/demo tests/demo/demo-fleet bench/fleet tests/distcheck/distcheck tests/distcheck/life tests/matrix/matrix tests/mutants/mutants tests/second_ca/serve .ci/root-lines completions/make share/certspotter/mail-foreign docs/picture)
SHELL_SCRIPTS = tests/second_ca/fetch setup/setup setup/setup-fleet .ci/closed .ci/package .ci/release .ci/run .ci/test $(wildcard debian/tests/main-job tests/distcheck/boot debian/postinst debian/certdrop-fleet.postinst debian/certdrop-fleet.postrm debian/postrm debian/prerm debian/preinst)

# What building, linting and the unit tests need, as Debian 12 and 13 name it.
DEPS = acme-tiny adduser apparmor ca-certificates debhelper dh-apparmor dh-python dpkg-dev fakeroot fish flake8 gcc git iproute2 libc6-dev lintian make mandoc mount \
	mypy python3 python3-cryptography python3-dnspython python3-hypothesis python3-idna python3-openssl python3-pip python3-prometheus-client python3-pytest python3-seccomp \
	python3-structlog shellcheck spin systemd ucf util-linux zsh

ROOT_LINES_AIM = 700
SECONDS_OF_FUZZING = 3600

# What is made with -j, too, begins with deps and ends with what rests on it; .ci/test has lanes of its own.
.NOTPARALLEL:

.PHONY: help deps check root-lines readme-lines unit mutants test demo demo-fleet bench-fleet torture fuzz bench model deb source lint-deb release distcheck test-matrix install install-files install-fleet install-snippets install-units uninstall clean

help:
	@echo "make deps       install what building and linting needs (apt)"
	@echo "make demo       the main job, shown step by step on a stage; nothing on this machine changes"
	@echo "make demo-fleet three hosts, two desks, two databases and a CA, each a machine; some are lost on the way"
	@echo "make test       everything: check, unit tests, the package, system tests on the stage"
	@echo "make check      lint and types, manual pages, and how much code runs as root"
	@echo "make root-lines, readme-lines   that count file by file; write it into README.md"
	@echo "make unit       the unit tests alone"
	@echo "make torture    kill and fail the keeper at every single point, on the stage (long)"
	@echo "make bench      certdrop beside other clients, on the stage: bench/RESULTS.md"
	@echo "make model      the recovery table, model-checked (spin, gcc)"
	@echo "make mutants    change the code that decides, one place at a time, and see whether the unit tests notice: MUTANTS=\"--count 20\" (long)"
	@echo "make fuzz       every reader of hostile input, for SECONDS_OF_FUZZING=$(SECONDS_OF_FUZZING) seconds"
	@echo "make deb        $(DEB), and certdrop-fleet beside it"
	@echo "make source     the source package; make lint-deb: lintian on both, pedantic"
	@echo "make distcheck  fresh roots of Debian 12, 13 and testing: docs/distcheck.md (long)"
	@echo "make test-matrix   unit tests with every acme-tiny, and the libraries of Debian 12, 13 and the newest"
	@echo "make release TO=VERSION   version, changelogs, tag, tarball and packages"
	@echo "make install    without the package: PREFIX=$(PREFIX) SYSCONFDIR=$(SYSCONFDIR) DESTDIR=$(DESTDIR); make uninstall undoes it"
	@echo "make clean"

deps:
	@missing=; for name in $(DEPS); do \
		dpkg-query -W -f '$${db:Status-Status}' $$name 2>/dev/null | grep -qx installed || missing="$$missing $$name"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ]; then echo "make deps: needs root to install$$missing; run it as root" >&2; exit 77; fi; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get install -y -q --no-install-recommends $$missing 2>/dev/null || \
		{ apt-get update -q && apt-get install -y -q --no-install-recommends $$missing; }

check:
	flake8 lib tests $(SCRIPTS)
	mypy lib/certdrop
	mandoc -Tlint -Wwarning $(MAN) $(FLEET_MAN)
	@if command -v shellcheck >/dev/null; then echo shellcheck $(SHELL_SCRIPTS); shellcheck $(SHELL_SCRIPTS); fi
	@if [ -x /usr/sbin/visudo ]; then echo visudo -c -s -f sudoers.d/certdrop; /usr/sbin/visudo -c -s -q -f sudoers.d/certdrop; fi
	@dpkg-parsechangelog -S Version | grep -qx '$(VERSION)' || { echo "debian/changelog is not about version $(VERSION)" >&2; exit 1; }
	@[ ! -e bench/results.json ] || bench/bench --check
	@.ci/root-lines $(ROOT_LINES_AIM)

root-lines:
	@.ci/root-lines -v $(ROOT_LINES_AIM)

readme-lines:
	@.ci/root-lines -u $(ROOT_LINES_AIM)

unit:
	$(PYTHON) -m pytest -q tests/unit $(wildcard tests/fuzz)

# Whether the unit tests notice what is changed in the code that decides: MUTANTS="--count 20 signer/policy.py".
mutants:
	@tests/mutants/mutants $(MUTANTS)

test: deps
	@MAKE='$(MAKE)' DEB='$(DEB)' .ci/test

demo: deps deb
	@$(STAGE) fetch
	@$(STAGE) run --deb $(DEB) -- tests/demo/demo

demo-fleet: deps deb
	@$(STAGE) fetch --with fleet
	@$(STAGE) run --with fleet --deb $(DEB) --deb $(DEB:dist/certdrop_%=dist/certdrop-fleet_%) -- tests/demo/demo-fleet

# Every point at which the keeper can be killed or fail; "make test" takes a sample.
torture: deps deb
	@$(STAGE) fetch
	@$(STAGE) run --deb $(DEB) -- tests/torture/torture --all

# Beside the other clients, on the stage; writes bench/RESULTS.md. Wants a quiet machine.
bench: deps deb
	@bench/bench
	@CERTDROP_ROTATIONS=200 $(STAGE) run --keep-env --deb $(DEB) -- $(PYTHON) -m pytest -q tests/system/test_handshakes.py

# What a fleet costs, and how that grows: the tables of docs/fleet.md. Takes ten minutes.
bench-fleet: deps deb
	@bench/fleet

# The recovery table, model-checked; needs spin and gcc.
model:
	@model/check

fuzz: deps deb
	@tests/fuzz/run $(SECONDS_OF_FUZZING)
	@$(STAGE) fetch
	@$(STAGE) run --deb $(DEB) -- $(PYTHON) tests/ways/compare.py $$(($(SECONDS_OF_FUZZING) / 10)) $$RANDOM

deb:
	@.ci/package binary

source:
	@.ci/package source

# Version in its one place, changelogs, tag, tarball, packages: make release TO=1.2.3
release:
	@MAKE='$(MAKE)' .ci/release '$(TO)'

# Fresh roots of Debian 12, 13 and testing; DISTCHECK="--suite trixie --step life" for a part.
distcheck: deps
	@tests/distcheck/distcheck $(DISTCHECK)

# The contract with acme-tiny, cryptography, pyOpenSSL and structlog, in the versions of Debian 12 and 13 and the newest.
test-matrix:
	@$(MAKE) --no-print-directory -s deps
	@tests/matrix/matrix $(MATRIX)

lint-deb: deb source
	lintian --allow-root --pedantic -I --fail-on error,warning $(DEB) $(subst certdrop_,certdrop-fleet_,$(DEB)) dist/certdrop_$(VERSION).dsc

install: install-files install-fleet install-snippets install-units
	@if [ -n "$(DESTDIR)" ]; then \
		echo "On the machine itself, run $(PREFIX)/share/certdrop/setup as root: it makes the users and directories."; \
	elif [ "$$(id -u)" = 0 ]; then $(PREFIX)/share/certdrop/setup && $(PREFIX)/share/certdrop/fleet/setup-fleet; \
	else echo "Now run $(PREFIX)/share/certdrop/setup as root: it makes the users and directories."; fi

install-files:
	install -d $(SBINDIR) $(BINDIR) $(SHAREDIR)/certdrop $(SHAREDIR)/nginx $(DOCDIR)/examples $(BASHDIR) $(ZSHDIR) $(FISHDIR)
	install -D -m 644 share/prometheus/certdrop.rules.yml $(SHAREDIR)/prometheus/certdrop.rules.yml
	install -D -m 755 share/certspotter/mail-foreign $(SHAREDIR)/certspotter/mail-foreign
	install -D -m 644 share/grafana/certdrop.json $(SHAREDIR)/grafana/certdrop.json
	install -d $(ETCDIR)/services.d $(THEIRS)/apparmor.d/abstractions $(THEIRS)/sudoers.d $(THEIRS)/cron.d $(THEIRS)/logrotate.d
	install -m 755 $(SBIN) $(SBINDIR)
	install -m 755 $(BIN) $(BINDIR)
	ln -sf ../bin/certdrop-check $(SBINDIR)/certdrop-check    # where it was
	install -m 755 setup/setup $(wildcard setup/migrate-*) $(SHAREDIR)
	install -m 644 setup/layout $(SHAREDIR)
	for module in $(MODULES); do install -D -m $$([ -x $$module ] && echo 755 || echo 644) $$module $(SHAREDIR)/$${module#lib/} || exit 1; done
	install -m 644 $(SNIPPETS) $(SHAREDIR)/nginx
	for page in $(MAN); do install -D -m 644 $$page $(MANDIR)/man$${page##*.}/$${page##*/} || exit 1; done
	completions/make completions/table $(BASHDIR) $(ZSHDIR) $(FISHDIR)
	rm -f $(addprefix $(BASHDIR)/,$(FLEET_PROGRAMS)) $(addsuffix .fish,$(addprefix $(FISHDIR)/,$(FLEET_PROGRAMS)))
	install -m 644 etc/certdrop.toml etc/site.toml docs/examples/sshd-certdrop.conf $(DOCDIR)/examples
	install -m 644 README.md SECURITY.md DESIGN.md CONTRIBUTING.md $(DOCDIR)
	install -D -t $(DOCDIR)/docs -m 644 $(sort $(wildcard docs/*.md)) docs/page.png
	install -m 644 $(SERVICES) $(ETCDIR)/services.d
	install -D -t $(DOCDIR)/examples/services.d -m 644 $(SERVICES)
	install -m 440 sudoers.d/certdrop $(THEIRS)/sudoers.d
	install -m 644 cron.d/certdrop $(THEIRS)/cron.d
	install -m 644 logrotate.d/certdrop $(THEIRS)/logrotate.d
	install -D -m 644 tmpfiles.d/certdrop.conf $(TMPFILESDIR)/certdrop.conf
	install -m 644 apparmor.d/abstractions/certdrop $(THEIRS)/apparmor.d/abstractions
	install -m 644 $(PROFILES) $(THEIRS)/apparmor.d
	[ "$(PREFIX)" = /usr ] || sed -i 's#/usr/{local/,}#$(PREFIX)/#g' $(addprefix $(THEIRS)/,$(PROFILES)) $(THEIRS)/apparmor.d/abstractions/certdrop
	[ "$(PREFIX)$(SYSCONFDIR)" = /usr/etc ] || sed -i 's#/usr/\(sbin\|bin\|share\)/certdrop#$(PREFIX)/\1/certdrop#g; s#/etc/certdrop#$(SYSCONFDIR)/certdrop#g' \
		$(addprefix $(SBINDIR)/,$(notdir $(SBIN))) $(addprefix $(BINDIR)/,$(notdir $(BIN))) $(patsubst lib/%,$(SHAREDIR)/%,$(MODULES)) \
		$(SHAREDIR)/layout $(SHAREDIR)/certspotter/mail-foreign $(addprefix $(THEIRS)/,$(PROFILES)) $(THEIRS)/apparmor.d/abstractions/certdrop \
		$(foreach page,$(MAN),$(MANDIR)/man$(subst .,,$(suffix $(page)))/$(notdir $(page))) $(THEIRS)/sudoers.d/certdrop $(THEIRS)/cron.d/certdrop

# What the package certdrop-fleet has.
install-fleet:
	install -d $(SBINDIR) $(SHAREDIR)/certdrop/fleet $(SHAREDIR)/fleet $(BASHDIR) $(FISHDIR) $(THEIRS)/cron.d $(THEIRS)/nginx/snippets
	install -m 755 $(addprefix bin/,$(FLEET_PROGRAMS)) $(SBINDIR)
	install -m 644 $(FLEET_MODULES) $(SHAREDIR)/certdrop/fleet
	install -m 644 share/fleet/schema.sql $(SHAREDIR)/fleet
	install -m 755 setup/setup-fleet $(SHAREDIR)/fleet
	install -m 644 cron.d/certdrop-fleet $(THEIRS)/cron.d
	sed 's#/var/spool/certdrop/#/var/spool/certdrop-fleet/#g; s#certdrop-challenge.conf#certdrop-desk.conf#; s#^    return 404;#    location = /.well-known/acme-challenge/certdrop-desk { return 200 certdrop-desk; }      \# for certdrop-check on the hosts\n&#' nginx/certdrop-challenge.conf >$(THEIRS)/nginx/snippets/certdrop-desk.conf
	chmod 644 $(THEIRS)/nginx/snippets/certdrop-desk.conf
	for page in $(FLEET_MAN); do install -D -m 644 $$page $(MANDIR)/man$${page##*.}/$${page##*/} || exit 1; done
	made=$$(mktemp -d) && mkdir $$made/bash $$made/zsh $$made/fish && completions/make completions/table $$made/bash $$made/zsh $$made/fish && \
		for name in $(FLEET_PROGRAMS); do install -m 644 $$made/bash/$$name $(BASHDIR); install -m 644 $$made/fish/$$name.fish $(FISHDIR); done; rm -r $$made
	[ "$(PREFIX)$(SYSCONFDIR)" = /usr/etc ] || sed -i 's#/usr/\(sbin\|bin\|share\)/certdrop#$(PREFIX)/\1/certdrop#g; s#/etc/certdrop#$(SYSCONFDIR)/certdrop#g' \
		$(addprefix $(SBINDIR)/,$(FLEET_PROGRAMS)) $(patsubst lib/%,$(SHAREDIR)/%,$(FLEET_MODULES)) $(SHAREDIR)/fleet/setup-fleet \
		$(foreach page,$(FLEET_MAN),$(MANDIR)/man8/$(notdir $(page))) $(THEIRS)/cron.d/certdrop-fleet

# The package leaves this to ucf, which asks before it replaces what an administrator edited.
install-snippets:
	install -d $(THEIRS)/nginx/snippets
	install -m 644 $(SNIPPETS) $(THEIRS)/nginx/snippets

# The package leaves this to dh_installsystemd.
install-units:
	install -d $(UNITDIR)
	install -m 644 $(UNITS) $(UNITDIR)
	sed -i 's#/usr/sbin/certdrop#$(PREFIX)/sbin/certdrop#; s#/etc/certdrop#$(SYSCONFDIR)/certdrop#g' $(addprefix $(UNITDIR)/,$(notdir $(UNITS)))
	@[ -n "$(DESTDIR)" ] || [ ! -d /run/systemd/system ] || echo "Now run systemctl daemon-reload && systemctl enable --now certdrop-watch.timer"

uninstall:
	rm -f $(addprefix $(SBINDIR)/,$(FLEET_PROGRAMS)) $(THEIRS)/cron.d/certdrop-fleet $(THEIRS)/nginx/snippets/certdrop-desk.conf
	rm -f $(foreach page,$(FLEET_MAN),$(MANDIR)/man8/$(notdir $(page))) $(addprefix $(BASHDIR)/,$(FLEET_PROGRAMS))
	rm -f $(addsuffix .fish,$(addprefix $(FISHDIR)/,$(FLEET_PROGRAMS)))
	rm -f $(addprefix $(SBINDIR)/,$(notdir $(SBIN)) certdrop-check) $(addprefix $(BINDIR)/,$(notdir $(BIN)))
	rm -f $(THEIRS)/sudoers.d/certdrop $(THEIRS)/cron.d/certdrop $(THEIRS)/logrotate.d/certdrop $(TMPFILESDIR)/certdrop.conf
	rm -f $(foreach page,$(MAN),$(MANDIR)/man$(subst .,,$(suffix $(page)))/$(notdir $(page)))
	rm -f $(addprefix $(BASHDIR)/,$(notdir $(SBIN) $(BIN))) $(addsuffix .fish,$(addprefix $(FISHDIR)/,$(notdir $(SBIN) $(BIN)))) $(ZSHDIR)/_certdrop
	rm -f $(addprefix $(UNITDIR)/,$(notdir $(UNITS))) $(addprefix $(THEIRS)/,$(PROFILES)) $(THEIRS)/apparmor.d/abstractions/certdrop
	rm -rf $(SHAREDIR) $(DOCDIR)
	@echo "These stay, because services may use them: $(THEIRS)/nginx/snippets/certdrop-*.conf, /etc/certdrop, /var/lib/certdrop, /var/spool/certdrop,"
	@echo "/var/log/certdrop, and the users _certdrop, _certdrop-judge and _certdrop-watch."

clean:
	rm -rf dist build/deb.* .mypy_cache .pytest_cache .hypothesis
	find lib tests -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "build/stage, the cache of the stage, stays; rm -rf build removes it too"
