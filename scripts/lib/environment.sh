# shellcheck shell=sh
# shellcheck disable=SC2086  # $hashed, $locked, $quiet and $inputs: none or several words
# What scripts/run and scripts/test share: the environment in .venv, made once and kept true.
#
# Sourced with $root (the checkout) and $steps (how many steps the caller announces) set. All
# output goes to stderr, because stdout belongs to the program that is started afterwards.
#
# How an interrupted try is noticed: .venv/.shammah-FLAVOUR is written last. It holds the
# digest of the inputs below, and its time says when they were last looked at, so that "nothing
# has changed" is answered by the shell alone, without starting a process.

: "${root:?}" "${steps:?}"
venv=$root/.venv
servers=$root/.venv-servers
log=$root/.setup.log
rest_log=$venv/.shammah-rest.log
installing=$venv/.shammah-installing
program=scripts/${0##*/}
starter=$venv/share/shammah/starter/shammah-manifest.json
gguf=$venv/share/shammah/SmolLM2-135M-Instruct.Q4_1.gguf
inputs='pyproject.toml constraints.txt scripts/servers-requirements.txt
    workers/starter/making.py workers/starter/conversion.py scripts/lib/environment.sh
    scripts/supply/run.lock scripts/supply/rest.lock scripts/supply/mlx.lock scripts/supply/test.lock
    scripts/supply/servers.lock'
step=0

say() { printf '%s\n' "$@" >&2; } # one argument is one line

next_step() {
    step=$((step + 1))
    say "[$step/$steps] $*"
}

# fail WHAT WHY NEXT
fail() {
    say "" "$program: $1."
    say "  why:  $2"
    say "  next: $3"
    [ -f "$log" ] && say "  log:  $log"
    exit 1
}

# The network or the disk if the log names it, else the last error that it has.
reason_in_log() {
    {
        grep -m 1 -E 'Could not fetch URL|\[Errno' "$log" || grep 'ERROR: ' "$log" | tail -n 1
    } | sed 's/^[^ ]* *//' | cut -c 1-300 | grep . || echo 'its own message is above'
}

# --- Is everything there? ----------------------------------------------------------------------

# is_current FLAVOUR, where "run" is a person's environment and "test" that and the tools.
is_current() {
    # -x follows links: an interpreter that was uninstalled counts as missing.
    for needed in "$venv/bin/python" "$venv/bin/shammah"; do
        [ -x "$needed" ] || return 1
    done
    [ -f "$starter" ] && [ -f "$venv/.shammah-$1" ] || return 1
    if [ "$1" = test ]; then
        [ -f "$gguf" ] && [ -x "$servers/bin/python" ] || return 1
    fi
    for input in $inputs; do
        [ "$root/$input" -nt "$venv/.shammah-$1" ] && return 1
    done
    # Scripts in .venv/bin name the checkout by its absolute path: it may have been moved.
    read -r stamped_root <"$venv/.shammah-$1" && [ "$stamped_root" = "$root" ]
}

# --- Python ------------------------------------------------------------------------------------

# Written for any Python, however old. Prints the interpreter itself (a pyenv shim costs 0.1 s at
# each start), or the reason why this one will not do.
probe='
import os, sys
if sys.version_info < (3, 11):
    print("is Python %d.%d" % sys.version_info[:2]); sys.exit(1)
try:
    import ensurepip, venv
except ImportError:
    print("has no venv module (Debian, Ubuntu: apt install python%d.%d-venv)"
          % sys.version_info[:2]); sys.exit(1)
print(os.path.realpath(sys.executable))
'

find_python() {
    if [ -n "${SHAMMAH_PYTHON:-}" ]; then
        set -- "$SHAMMAH_PYTHON"
    else
        set -- python3 python3.13 python3.12 python3.11 python
    fi
    reasons=
    for candidate in "$@"; do
        command -v "$candidate" >/dev/null 2>&1 || continue
        if answer=$("$candidate" -c "$probe" 2>/dev/null); then
            python=$answer
            return
        fi
        reasons="$reasons; $candidate ${answer:-does not start}"
    done
    reasons=${reasons#; }
    fail 'found no usable Python' "${reasons:-there is no $*}" \
        "Install Python 3.11 or newer, or name one: SHAMMAH_PYTHON=/path/to/python3 $program"
}

# The lock belongs to the open file, which this shell keeps, not to the process that takes it; it
# lasts while anything started from here still writes, and the kernel drops it with the last.
lock='
import fcntl, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.stderr.write("Another scripts/run or scripts/test is setting up; waiting for it.\n")
    fcntl.flock(9, fcntl.LOCK_EX)
'
take_lock() {
    exec 9<"$root"
    "$python" -c "$lock" || fail 'could not lock the checkout' 'flock failed' 'Run it from a local disk.'
}

digest='
import hashlib, sys
print(hashlib.sha256(b"".join(open(name, "rb").read() for name in sys.argv[1:])).hexdigest())
'
write_stamp_draft() {
    {
        printf '%s\n' "$root"
        (cd "$root" && "$python" -c "$digest" $inputs)
    } >"$1"
}

# --- The steps ---------------------------------------------------------------------------------

# pip writes INSTALLER after the last file of a distribution, so one without it is half there.
# pip would call it installed all the same.
remove_half_installed() {
    for distribution in "$venv"/lib/python3*/site-packages/*.dist-info; do
        [ -f "$distribution/INSTALLER" ] || rm -rf "$distribution"
    done
    rm -rf "$venv"/lib/python3*/site-packages/~*
}

# Exits 0 if the environment can be used and has the pip that constraints.txt wants, 3 if it can
# be used and has another pip.
is_usable='
import importlib.metadata, sys
prefix, wanted = sys.argv[1:]
if sys.version_info < (3, 11) or sys.prefix != prefix:
    sys.exit(1)
pip = importlib.metadata.distribution("pip")
if not pip.read_text("INSTALLER"):
    sys.exit(1)
sys.exit(0 if pip.version == wanted else 3)
'
make_venv() {
    wanted=$(sed -n 's/^pip==//p' "$root/constraints.txt")
    next_step "Python environment: $venv"
    "$venv/bin/python" -I -c "$is_usable" "$venv" "$wanted" 2>/dev/null
    case $? in
    0) return ;;
    3) ;;
    *)
        [ -e "$venv" ] && say "      it is incomplete or broken: making it again"
        "$python" -m venv --clear "$venv" >>"$log" 2>&1 ||
            fail 'could not make .venv' "$(reason_in_log)" "Free some disk space, or delete
        $venv yourself, then run $program again."
        ;;
    esac
    rm -f "$venv/.shammah-run" "$venv/.shammah-test"
    # A recent pip writes start scripts that do not import re, which doubles their start-up time.
    pip install --quiet $hashed "$root/scripts/supply/pip.lock" || pip_failed "pip $wanted"
}

pip() { "$venv/bin/python" -m pip "$@" >&2; }

# pip downloads what the lock names and refuses a file that is not the recorded one.
hashed='--require-hashes --no-deps --requirement'

# What pip cannot check (constraints have no hashes, and torch has several builds of one version) is
# compared before it is installed. Its arguments are those of `pip install`.
check_others() {
    report=$venv/.shammah-report.json
    "$venv/bin/python" -m pip install --quiet --dry-run --report "$report" \
        --constraint constraints.txt "$@" &&
        "$venv/bin/python" -I scripts/check_supply.py "$report" scripts/supply/torch.lock
}

pip_failed() {
    differing=$(sed -n 's/^.*ERROR: another file/another file/p
        /DO NOT MATCH THE HASHES/{n;s/^[^ ]* *//p;}' "$log" | head -n 1 | cut -c 1-300)
    [ -z "$differing" ] || fail "refused $1: a file is not the recorded one" "$differing" \
        "Ask whoever runs the package index that pip uses. If you trust it, docs/DEVELOPING.md says
        how to install without the check."
    fail "could not install $1" "$(reason_in_log)" "Check the network connection and the disk \
(3 GB must be free), then run
        $program again: what has been done is kept."
}

install_packages() {
    next_step "Packages (the first time takes a while)"
    rm -f "$venv/.shammah-run" "$venv/.shammah-test" # nothing is complete until this has ended
    remove_half_installed
    # What builds the project is installed too, rather than fetched by pip for each build: that
    # works without a network, and when something fails pip names it.
    (
        cd "$root" || exit 1
        pip install $hashed scripts/supply/run.lock || exit 1
        quiet=--quiet # but where torch comes, whose progress is to be seen
        if [ -n "$1" ]; then
            quiet=
            for lock in rest mlx test; do
                pip install $hashed "scripts/supply/$lock.lock" || exit 1
            done
            told=$(check_others --no-build-isolation ".$1" 2>&1)
            matches=$?
            [ -z "$told" ] || printf '%s\n' "$told" | tee -a "$log" >&2
            [ $matches = 0 ] || exit 1
        fi
        pip install $quiet --constraint constraints.txt --no-build-isolation --editable ".$1"
    ) || pip_failed 'the packages'
}

make_starter() {
    next_step "Starter model"
    "$venv/bin/python" -P -m workers.starter "$@" >&2 ||
        fail 'could not make the starter model' 'its own message is above' \
            "Follow that message, then run $program again."
}

# In an environment of their own: their dependencies are not ours.
make_servers() {
    next_step "Servers that only the tests use: $servers"
    cmp -s "$root/scripts/supply/servers.lock" "$servers/.complete" &&
        [ -x "$servers/bin/python" ] && return
    "$python" -m venv --clear --without-pip "$servers" >>"$log" 2>&1 ||
        fail 'could not make .venv-servers' "$(reason_in_log)" 'Free some disk space.'
    pip --python "$servers/bin/python" install $hashed "$root/scripts/supply/servers.lock" ||
        pip_failed 'the servers'
    cp "$root/scripts/supply/servers.lock" "$servers/.complete"
}

# --- What comes behind the prompt --------------------------------------------------------------

# Training, and the engines that the starter can do without: ten times as much as the rest.
# mlx: 190 MB where it makes answers fast. (Its wheels are for macOS 14 and newer.)
rest_extras() {
    printf 'train,llamacpp'
    [ "$(uname -sm)" = 'Darwin arm64' ] &&
        [ "$(sw_vers -productVersion | cut -d. -f1)" -ge 14 ] && printf ',mlx'
}

# The packages of extras. Not the project with them: for a moment there would be no `shammah`.
requirements='
import sys, tomllib
with open("pyproject.toml", "rb") as file:
    extras = tomllib.load(file)["project"]["optional-dependencies"]
print(*(line for extra in sys.argv[1].split(",") for line in extras[extra]), sep="\n")
'
try_lock='
import fcntl
fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
'

tell_rest() { printf 'installing training and more engines%s\n' "$1" >"$installing"; }

# What pip says becomes one line that tells how far it is, for the prompt to show. (Not awk: some
# read a pipe only when a block is full.)
follow_pip() {
    last=
    while read -r word rest; do
        # shellcheck disable=SC2086  # its words
        set -- $rest
        case $word in
        Progress)
            [ "${3:-0}" -gt 0 ] || continue
            share=$((100 * $1 / $3))
            [ "$share" = "$last" ] || tell_rest ": $name $share%"
            last=$share
            continue
            ;;
        Downloading) name=${1%%-*} ;;
        Installing) tell_rest ': unpacking' ;;
        esac
        printf '%s %s\n' "$word" "$rest"
    done >"$rest_log"
}

# install_rest: in the background. Whoever has the lock does it.
install_rest() {
    exec 9<"$root"
    "$venv/bin/python" -c "$try_lock" 2>/dev/null || return
    [ -f "$venv/.shammah-rest" ] && {
        rm -f "$installing" # scripts/test has done it meanwhile
        return
    }
    cd "$root" || return
    cp "$venv/.shammah-run" "$venv/.shammah-rest-draft"
    tell_rest ''
    remove_half_installed
    "$venv/bin/python" -c "$requirements" "$(rest_extras)" >"$venv/.shammah-rest-packages"
    {
        (
            export PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PROGRESS_BAR=raw
            locked=scripts/supply/rest.lock
            case $(rest_extras) in *mlx*) locked="$locked --requirement scripts/supply/mlx.lock" ;; esac
            "$venv/bin/python" -m pip install $hashed $locked &&
                check_others --requirement "$venv/.shammah-rest-packages" &&
                "$venv/bin/python" -m pip install --constraint constraints.txt \
                    --requirement "$venv/.shammah-rest-packages"
        ) 2>&1
        echo "status $?"
    } | follow_pip
    if tail -n 1 "$rest_log" | grep -qx 'status 0'; then
        mv "$venv/.shammah-rest-draft" "$venv/.shammah-rest"
        rm -f "$installing" "$rest_log"
    else
        printf 'training and more engines could not be installed (%s)\n' "$rest_log" >"$installing"
    fi
}

# Away from the terminal, which it must survive: the next start would take it up again.
begin_rest() {
    [ -f "$venv/.shammah-rest" ] && return
    export SHAMMAH_INSTALLING="$installing"
    tell_rest ''
    (
        trap '' INT HUP
        nice sh -c 'root=$0 steps=1; . "$0/scripts/lib/environment.sh"; install_rest' "$root"
    ) </dev/null >/dev/null 2>&1 &
}

set_up() {
    find_python
    take_lock
    is_current "$1" && return # someone else has just finished it
    started=$(date +%s)
    export PIP_LOG="$log" PIP_DISABLE_PIP_VERSION_CHECK=1
    : >"$log"
    say "Setting up Shammah in $root with $python"
    make_venv
    draft=$venv/.shammah-draft
    # Taken before the work: inputs that change meanwhile are newer than the stamp will be.
    write_stamp_draft "$draft"
    if [ -x "$venv/bin/shammah" ] && cmp -s "$draft" "$venv/.shammah-$1"; then
        next_step 'Packages: unchanged'
    elif [ "$1" = test ]; then
        install_packages '[train,int4,llamacpp,mlx,dev]'
    else
        install_packages ''
    fi
    if [ "$1" = test ]; then
        make_starter --gguf-too
        make_servers
        for flavour in run rest; do
            cp -p "$draft" "$draft-copy" && mv "$draft-copy" "$venv/.shammah-$flavour"
        done
        rm -f "$installing" # a prompt that has waited for the lock shows it no longer
    else
        make_starter
        cmp -s "$draft" "$venv/.shammah-rest" || rm -f "$venv/.shammah-rest"
    fi
    mv "$draft" "$venv/.shammah-$1"
    rm -f "$log" # pip writes tens of megabytes, of use to nobody after a success
    say "Set up in $(($(date +%s) - started)) s."
}

# ensure_environment FLAVOUR
ensure_environment() {
    is_current "$1" && return
    trap 'say "" "$program: interrupted. Run it again to go on."; exit 130' INT
    set_up "$1"
    trap - INT
    exec 9<&-
}
