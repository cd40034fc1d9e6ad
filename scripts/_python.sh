# Sourced by the scripts beside it: sets $python to an interpreter that has numba_swap.
#
#   prepare_python EXTRAS    makes or updates the virtual environment, with these extras
#
# NUMBA_SWAP_PYTHON  use this interpreter as it is, install nothing
# NUMBA_SWAP_VENV    where the virtual environment is (default: .venv in the repository)

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# The newest Python on the path that is new enough.
find_python() {
    local candidate
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
        if command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "No Python 3.11 or later was found on the path; please install one." >&2
    return 1
}

# The CUDA extra for the driver of this machine: cu13, cu12, or nothing where there is none.
# A driver answers its version without a GPU and before it is initialised.
cuda_extra() {
    "$1" - <<'PYTHON'
import ctypes
import sys

version = ctypes.c_int(0)
try:
    library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    if library.cuDriverGetVersion(ctypes.byref(version)):
        version.value = 0
except (OSError, AttributeError):
    pass
print("cu13" if version.value >= 13000 else "cu12" if version.value >= 12000 else "")
PYTHON
}

prepare_python() {
    local extras=$1 venv stamp base state installed missing extra
    if [ -n "${NUMBA_SWAP_PYTHON:-}" ]; then
        python=$NUMBA_SWAP_PYTHON
        export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
        return
    fi
    venv=${NUMBA_SWAP_VENV:-$root/.venv}
    base=$(find_python)
    if [ ! -x "$venv/bin/python" ]; then
        if [ -e "$venv" ]; then
            echo "$venv exists and is no virtual environment; remove it, or set NUMBA_SWAP_VENV" \
                "to another path." >&2
            return 1
        fi
        echo "Making a virtual environment in $venv" >&2
        if ! "$base" -m venv "$venv"; then
            rm -rf "$venv" # made just now
            echo "No virtual environment could be made in $venv (see above). If the folder cannot" \
                "be written, set NUMBA_SWAP_VENV; if ensurepip is missing, install the package" \
                "python3-venv." >&2
            return 1
        fi
    fi
    python=$venv/bin/python
    stamp=$venv/.numba_swap_installed
    # What was installed: the state of pyproject.toml, the place, then the extras.
    state="$(cksum <"$root/pyproject.toml") $root"
    installed=
    if [ -f "$stamp" ] && [ "$(head -n 1 "$stamp")" = "$state" ]; then
        installed=$(tail -n +2 "$stamp")
        missing=
        for extra in ${extras//,/ }; do
            case " $installed " in *" $extra "*) ;; *) missing=1 ;; esac
        done
        if [ -z "$missing" ]; then
            return
        fi
    fi
    echo "Installing numba_swap${extras:+[$extras]} and what it needs" >&2
    "$python" -m pip install --quiet --disable-pip-version-check \
        -e "$root${extras:+[$extras]}" >&2
    printf '%s\n%s\n' "$state" "$installed ${extras//,/ }" >"$stamp"
}
