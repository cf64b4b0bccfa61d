# Every target installs what it needs; on Debian as root (or with sudo) that includes the system packages.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BACKEND := build/backend
SBOM := build/sbom
DIST := dist
RUN := $(VENV)/bin
PIP := $(RUN)/python -m pip install -q --disable-pip-version-check
# What the demo needs, and what the tests need besides.
DEMO_PROGRAMS := docker-registry skopeo umoci sshd ssh ip nft sysctl curl
DEMO_PACKAGES := docker-registry skopeo umoci openssh-server openssh-client iproute2 nftables procps curl
PROGRAMS := $(DEMO_PROGRAMS) wget busybox dash shellcheck \
	podman buildah dockerd autossh psql faketime pandoc mmdebstrap ubuntu-distro-info minisign groovyc java promtool chromium /usr/bin/python3 \
	logrotate rsyslogd $(if $(wildcard /usr/lib/*/rsyslog/lmnsd_ossl.so),,rsyslog-openssl)
PACKAGES := $(DEMO_PACKAGES) wget busybox dash shellcheck \
	podman buildah docker.io autossh postgresql faketime pandoc mmdebstrap distro-info minisign \
	groovy default-jre-headless prometheus chromium logrotate rsyslog rsyslog-openssl python3
# More than the two cores of a small machine, because most tests wait for something.
WORKERS := 3
# By folder instead of by the number of tests: so the files that take longest are not the last ones.
ORDER := --no-loadscope-reorder
# pytest exits with 5 if ARGS selects no test of a part.
NONE_SELECTED := || test $$? = 5
HOST_SUITE := $(shell . /etc/os-release && echo $$VERSION_CODENAME)
# The programs of `make bench`, with arguments for a short run; without them, some measure longer.
define BENCHMARKS
gate
manifests
throughput --rounds 2
docker_pull
cache
scale --steps 1000 --peers 50 --seconds 15
storm
starvation --cuts 10
churn
reconnect --resets 2 --cuts 1
fairness
endef
# Those of `make bench-faults`: ends of controllers, floods, and readers.
define FAULT_BENCHMARKS
readers --seconds 2
flood --seconds 3
restart --rounds 2
failover
members --agents 200 --rounds 1
endef
SUDO := $(shell test "$$(id -u)" = 0 || command -v sudo)

.PHONY: help demo pictures test lint acceptance fast differential abuse-full soak cluster newest install wheel packages deb image packages-check wheelhouse ansible-full dashboard lock bench clean

help: ## Show the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: install .demo-packages ## Show the main job with real parts; KEEP=1 keeps everything running
	$(RUN)/python -m lab $(if $(KEEP),--keep)

pictures: install .packages ## Take the pictures in docs/pictures of the demo while it runs; as root
	$(RUN)/python -m lab.pictures docs/pictures

test: install .packages lint ## Run every test and every check; ARGS="-k gate" selects tests
	$(RUN)/python -m pytest -n $(WORKERS) --dist loadfile $(ORDER) -m "not serial" --cov --cov-report= $(ARGS) $(NONE_SELECTED)
	$(RUN)/python -m pytest -m serial --cov --cov-append --cov-report=term:skip-covered $(ARGS) $(NONE_SELECTED)
	$(RUN)/coverage report --include='tunnelmgr/core/*,tunnelmgr/gate/*,tunnelmgr/cache/*' --fail-under=100 --skip-covered

lint: install ## Check style, types and layers
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy
	$(RUN)/mypy packaging
	$(RUN)/lint-imports

fast: install ## Run the tests that need neither root nor other programs
	$(RUN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not acceptance and not serial" $(ARGS) $(NONE_SELECTED)
	$(RUN)/python -m pytest -m "not acceptance and serial" $(ARGS) $(NONE_SELECTED)

acceptance: install .packages ## Run the tests with the real sshd, registry, skopeo and cloud API
	$(RUN)/python -m pytest -n $(WORKERS) --dist loadfile $(ORDER) -m "acceptance and not serial" $(ARGS) $(NONE_SELECTED)
	$(RUN)/python -m pytest -m "acceptance and serial" $(ARGS) $(NONE_SELECTED)

differential: install .packages ## Compare the gate with the real registry, request by request; CASES=100000
	CASES=$(or $(CASES),100000) $(RUN)/python -m pytest -q -rP tests/differential

abuse-full: install .packages ## Run the tests with hostile agents at full size: a million opens, 100,000 requests
	OPENS=1000000 REQUESTS=100000 HOSTILE=32 PROBE_INTERVAL=15 $(RUN)/python -m pytest tests/abuse --timeout=0 -rP

soak: install .packages ## Stop, kill and cut each part repeatedly while clients pull, and count what they see; as root
	$(RUN)/python benchmarks/kills.py --times $(or $(TIMES),20)

cluster: install .packages ## Let the parts of a cluster fail by turns while agents are watched; as root; SECONDS=600 SEED=1 AGENTS=200
	$(RUN)/python benchmarks/cluster.py --seconds $(or $(SECONDS),600) --seed $(or $(SEED),1) --agents $(or $(AGENTS),200)

newest: ## Test the tunnel with asyncssh's newest release, which pyproject.toml does not allow until it is verified
	$(MAKE) VENV=.venv-newest install
	.venv-newest/bin/python -m pip install -q --disable-pip-version-check --no-deps --upgrade asyncssh
	TRY_NEWEST_ASYNCSSH=1 .venv-newest/bin/python -m pytest -q tests/dataplane tests/ssh tests/tunnel

bench bench-faults: install .packages
	$(PIP) --require-hashes --only-binary=:all: -r requirements-bench.lock
	while read -r name arguments; do \
		$(RUN)/python benchmarks/$$name.py $$arguments --json build/bench/$$name.json </dev/null || exit 1; \
	done <<< "$$CHOSEN_BENCHMARKS"
	$(RUN)/python benchmarks/plots.py build/bench docs/performance

bench: export CHOSEN_BENCHMARKS = $(BENCHMARKS)
bench: plan-time ## Compare with ssh, autossh and asyncssh: as root; JSON in build/bench, plots in docs/performance

bench-faults: export CHOSEN_BENCHMARKS = $(FAULT_BENCHMARKS)
bench-faults: ## Measure ends of controllers, floods and readers: as root; JSON in build/bench

plan-time: install
	$(RUN)/python benchmarks/plan.py

wheel: $(BACKEND)/.installed ## Build dist/tunnelmgr-*.whl, with a build backend that is pinned by its hash
	rm -f dist/tunnelmgr-*.whl
	$(BACKEND)/bin/python -m pip wheel -q --disable-pip-version-check --no-index --no-deps --no-build-isolation -w dist .

packages: deb ## Build wheel, sdist, Debian package, container image and their SBOMs; as root; DIST=dist DEBIAN_SUITE=trixie
	$(MAKE) image

ifneq ($(or $(DEBIAN_SUITE),$(HOST_SUITE)),$(HOST_SUITE))
deb: .packages
	sh packaging/in_suite.sh $(DEBIAN_SUITE) deb DIST=$(DIST)
else
deb: $(BACKEND)/.installed $(SBOM)/.installed .packages ## Build the same without the image
	$(BACKEND)/bin/python packaging/build.py debian --output $(DIST) --sbom-tool $(SBOM)/bin/cyclonedx-py
endif

image: $(BACKEND)/.installed $(SBOM)/.installed .packages ## Build dist/tunnelmgr-*.oci.tar of the Debian package in dist
	$(BACKEND)/bin/python packaging/build.py image --output $(DIST) --sbom-tool $(SBOM)/bin/cyclonedx-py

packages-check: install .packages packages ## Test the packages, building everything twice, and run lintian; as root
	TWO_IMAGES=1 $(RUN)/python -m pytest -q tests/packaging
	command -v lintian >/dev/null || DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends lintian
	lintian --fail-on error,warning $(DIST)/tunnelmgr_*.deb

wheelhouse: $(BACKEND)/.installed ## Collect dist/wheelhouse, from which pip installs without a network; PYTHON=python3.11
	$(BACKEND)/bin/python packaging/build.py wheelhouse --output $(DIST) --python $(PYTHON)

$(BACKEND)/.installed: requirements-build.lock
	$(PYTHON) -m venv $(BACKEND)
	$(BACKEND)/bin/python -m pip install -q --disable-pip-version-check --require-hashes --only-binary=:all: \
		-r requirements-build.lock
	touch $@

$(SBOM)/.installed: requirements-sbom.lock
	$(PYTHON) -m venv $(SBOM)
	$(SBOM)/bin/python -m pip install -q --disable-pip-version-check --require-hashes --only-binary=:all: \
		-r requirements-sbom.lock
	touch $@

ansible-full: install .packages $(BACKEND)/.installed $(SBOM)/.installed ## Test the Ansible roles further than `make test`, on Debian 12 and 13 and Ubuntu: as root; SUITES="trixie noble"
	failed=; for suite in $(or $(SUITES),bookworm trixie noble); do \
		files=$$(test $$suite = $(HOST_SUITE) && echo tests/ansible || ls tests/ansible/test_roles*.py); \
		ANSIBLE_FULL=1 DEBIAN_SUITE=$$suite $(RUN)/python -m pytest -q -rP --durations=10 $$files $(ARGS) || failed+=" $$suite"; \
	done; test -z "$$failed" || { echo "failed on:$$failed"; exit 1; }

dashboard: install ## Write packaging/grafana/tunnelmgr.json, which packaging/panels.py describes
	$(RUN)/python packaging/dashboard.py packaging/grafana/tunnelmgr.json

lock: ## Pin every dependency again, with hashes (and extras, which pip would otherwise take from the newest release)
	uv pip compile pyproject.toml -q --all-extras --generate-hashes --no-strip-extras --no-emit-index-url --no-header \
		--no-annotate -o requirements.lock
	uv pip compile pyproject.toml -q --all-extras --group dev --generate-hashes --no-strip-extras --no-emit-index-url --no-header \
		--no-annotate -o requirements-dev.lock
	uv pip compile pyproject.toml -q --group bench -c requirements-dev.lock --generate-hashes --no-strip-extras \
		--no-emit-index-url --no-header --no-annotate -o requirements-bench.lock
	uv pip compile --group pyproject.toml:sbom -q -c requirements-dev.lock --generate-hashes --no-strip-extras \
		--no-emit-index-url --no-header --no-annotate -o requirements-sbom.lock
	uv pip compile --group pyproject.toml:build -q -c requirements-dev.lock --generate-hashes --no-strip-extras \
		--no-emit-index-url --no-header --no-annotate -o requirements-build.lock

install: $(VENV)/.installed .version

$(VENV)/.installed: requirements-build.lock requirements-dev.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) --require-hashes --only-binary=:all: -r requirements-build.lock
	$(PIP) --require-hashes --only-binary=:all: --no-binary=www-authenticate --no-build-isolation -r requirements-dev.lock
	$(PIP) --no-index --no-deps --no-build-isolation -e .
	touch $@

# Without it, the version of an editable installation would be that of the commit at its installation.
.PHONY: .version
.version: $(VENV)/.installed
	@$(RUN)/hatchling build -t wheel --hooks-only

# Installed if a program is missing and this user may install packages; otherwise the demo names what it cannot show.
.PHONY: .packages .demo-packages
.packages: PROGRAMS_NEEDED = $(PROGRAMS)
.packages: PACKAGES_NEEDED = $(PACKAGES)
.demo-packages: PROGRAMS_NEEDED = $(DEMO_PROGRAMS)
.demo-packages: PACKAGES_NEEDED = $(DEMO_PACKAGES)
.packages .demo-packages:
	@missing=; for program in $(PROGRAMS_NEEDED); do \
		PATH="$$PATH:/usr/sbin:/sbin" command -v $$program >/dev/null || missing="$$missing $$program"; done; \
	if [ -n "$$missing" ]; then \
		if command -v apt-get >/dev/null && { [ "$$(id -u)" = 0 ] || [ -n "$(SUDO)" ]; }; then \
			echo "installing the Debian packages of:$$missing"; \
			$(SUDO) apt-get update -qq && DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq \
				--no-install-recommends $(PACKAGES_NEEDED) >/dev/null; \
		else echo "missing:$$missing; install the packages: $(PACKAGES_NEEDED)"; fi; fi

clean: ## Remove the files that these targets made
	rm -rf $(VENV) .venv-newest build dist .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
