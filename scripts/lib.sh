# Sourced by the scripts beside it: an interpreter, its virtual environment, and tools from Debian.
#
# Promises:
# - everything is made inside the checkout: `.venv`, or `.venv-<version>` when PYTHON names an interpreter;
# - a second run installs nothing unless pyproject.toml, setup.py or the C sources have changed;
# - what Debian has is installed only by root; otherwise a missing tool is a sentence that says what to install, and with
#   CI=true a failure.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
ROOT=$PWD
NATIVE=transports/civitas_shm_transports/shm
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() { printf '\n== %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# --- Debian ------------------------------------------------------------------------------------------------------

# apt_install PACKAGE...: true when they are installed afterwards; false when that is not ours to do.
apt_install() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    say "apt-get install $*"
    { [ -n "${APT_UPDATED:-}" ] || apt-get update -qq; } && APT_UPDATED=1
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}

# want WHAT CHECK PACKAGE...: make CHECK (a command) true. Where it cannot be: with CI=true an end, else a sentence.
want() {
    local what=$1 check=$2
    shift 2
    $check && return
    apt_install "$@" && $check && return
    [ "${CI:-}" = true ] && die "$what: missing; on Debian: apt-get install $*"
    printf 'skipped: %s: missing; on Debian: apt-get install %s\n' "$what" "$*" >&2
}

# need WHAT CHECK PACKAGE...: as want, but nothing goes on without it.
need() { CI=true want "$@"; }

has_compiler() { printf '#include <stdio.h>\nint main(void){return 0;}\n' | gcc -x c -o /dev/null - 2>/dev/null; }
has_redis() { command -v redis-server >/dev/null; }
has_spin() { command -v spin >/dev/null; }
has_clang() { command -v clang >/dev/null; }
has_cross_compilers() { command -v aarch64-linux-gnu-gcc >/dev/null && command -v musl-gcc >/dev/null; }
has_sanitizers() {
    local compiler flag
    for compiler in gcc clang; do
        for flag in thread address undefined; do
            printf 'int main(void){return 0;}\n' | $compiler -fsanitize=$flag -x c -o /dev/null - 2>/dev/null || return 1
        done
    done
}

# --- Python ------------------------------------------------------------------------------------------------------

is_supported() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
has_venv() { "$BASE" -c 'import ensurepip, venv' 2>/dev/null; }
has_headers() { "$BASE" -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'; }

# Sets BASE, the interpreter that environments are made from.
find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        is_supported "$PYTHON" || die "PYTHON=$PYTHON does not run, or is older than Python 3.11."
        BASE=$PYTHON
        return
    fi
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        if is_supported "$candidate"; then
            BASE=$candidate
            return
        fi
    done
    die "No Python 3.11 or later found; name one: PYTHON=/path/to/python $0"
}

native_imports() { "$PY" -c 'import civitas_shm_transports.shm._shm'; }

# True when the C part that lies in the checkout is not older than any of its sources, and serves this Python.
native_is_current() {
    [ "$(uname -s)" = Linux ] || return 0
    local built=$NATIVE/_shm.abi3.so
    [ -e "$built" ] && [ -z "$(find "$NATIVE"/_shm*.[ch] "$NATIVE/native" setup.py -newer "$built" -print -quit)" ] &&
        native_imports 2>/dev/null
}

# make_venv EXTRA: sets PY to the interpreter of an environment that has the project, editable, with that extra ("" = none).
make_venv() {
    local extra=$1 version venv stamp key
    find_python
    version=$("$BASE" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    venv=.venv${PYTHON:+-$version}
    PY=$ROOT/$venv/bin/python

    if ! "$PY" -m pip --version >/dev/null 2>&1; then
        need "Python's venv and ensurepip" has_venv "python$version-venv"
        say "$venv from $BASE ($version)"
        rm -rf "$venv"
        "$BASE" -m venv "$venv"
    fi

    # One stamp for each extra: what was installed, and what for.
    stamp=$venv/installed-${extra:-core}
    key=$(cat pyproject.toml setup.py | sha256sum)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$key" ] || ! native_is_current; then
        need "a C compiler" has_compiler gcc libc6-dev
        need "Python's headers" has_headers "python$version-dev"
        say "install into $venv: civitas-shm${extra:+[$extra]}"
        rm -f "$venv"/installed-* "$NATIVE"/_shm*.so # a build that fails leaves nothing old to be taken for new
        "$PY" -m pip install -qq --editable ".${extra:+[$extra]}"
        echo "$key" >"$stamp"
    fi
    if [ "$(uname -s)" = Linux ]; then
        native_imports || die "The C part was built but cannot be imported."
    fi
}
