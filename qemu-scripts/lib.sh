# shellcheck shell=bash
# Shared by qemu-scripts/ and guest-tests/: messages, packages, QEMU, KVM, processes.
# Sourced, never run.

VUZ_SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck disable=SC2034 # for scripts that source this
VUZ_ROOT=$(dirname "$VUZ_SCRIPTS")
VUZ_CACHE=${VUZ_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/vhost-user-zram}

# mkfs, depmod and blkdiscard live in sbin, which a plain user's PATH lacks.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH

# Messages go to stderr: the stdout of get-kernel and others is their result.
say() { printf '%s\n' "$*" >&2; }
step() { printf '\n== %s (%s s after the start)\n' "$*" "$SECONDS" >&2; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# The comment block at the top of a script is its help text: one place to keep right.
usage_from_header() {
    sed -n '2,/^[^#]/{/^#/!d;s/^# \{0,1\}//;p}' "$1"
}

have() { command -v "$1" >/dev/null 2>&1; }

# --- packages ---------------------------------------------------------------------------------

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        die "root is needed for: $* (no sudo here)"
    fi
}

# The package lists may be absent in a fresh container, where every package is unknown.
apt_update_once() {
    [ -z "${VUZ_APT_UPDATED:-}" ] || return 0
    VUZ_APT_UPDATED=1
    say "apt-get update"
    # A broken third-party source must not stop us: what we need comes from the distribution.
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update >&2 || warn "apt-get update had errors"
}

# apt_install PACKAGE...: never removes anything from the machine.
apt_install() {
    have apt-get || die "please install these yourself (this is not Debian or Ubuntu): $*"
    local p known=1
    for p in "$@"; do
        apt-cache show "$p" >/dev/null 2>&1 || known=
    done
    [ -n "$known" ] || apt_update_once
    say "installing: $*"
    if ! apt_install_now "$@"; then
        # Old lists name versions that the mirror no longer has: refresh and try once more.
        apt_update_once
        apt_install_now "$@"
    fi
}

# dpkg says a line or two on each of a hundred packages; they matter only if it fails.
apt_install_now() {
    local log status=0
    log=$(mktemp)
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends --no-remove \
        -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 install "$@" >"$log" 2>&1 </dev/null || status=1
    [ $status = 0 ] || tail -n 15 "$log" >&2
    rm -f "$log"
    return $status
}

# apt_would_fit PACKAGE: can it be installed with nothing being removed? Asked before, as the
# refusal of apt-get itself reads like an accident.
apt_would_fit() {
    apt-cache show "$1" >/dev/null 2>&1 || apt_update_once
    apt-get -s -qq --no-install-recommends --no-remove install "$1" >/dev/null 2>&1
}

# need PROGRAM=PACKAGE...: installs the packages whose program is not on the PATH.
need() {
    local pair missing=()
    for pair in "$@"; do
        have "${pair%%=*}" || missing+=("${pair#*=}")
    done
    [ ${#missing[@]} = 0 ] || apt_install "${missing[@]}" || die "cannot install: ${missing[*]}"
    for pair in "$@"; do
        have "${pair%%=*}" || die "still no '${pair%%=*}' after installing ${pair#*=}"
    done
}

# The guest has no C library of its own, so its shell has to be static.
find_static_busybox() {
    local b
    for b in /bin/busybox /usr/bin/busybox; do
        if [ -x "$b" ] && ! ldd "$b" >/dev/null 2>&1; then
            echo "$b"
            return
        fi
    done
    return 1
}

# Sets BUSYBOX.
# shellcheck disable=SC2034 # for scripts that source this
need_busybox() {
    BUSYBOX=$(find_static_busybox) && return
    # It may have to replace the dynamic busybox package: the one removal we accept.
    if apt_would_fit busybox-static; then
        apt_install busybox-static
    else
        say "installing: busybox-static (in place of busybox)"
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y install busybox-static >/dev/null 2>&1
    fi || die "cannot install busybox-static"
    BUSYBOX=$(find_static_busybox) || die "no static busybox after installing busybox-static"
}

# --- QEMU -------------------------------------------------------------------------------------

# Sets QEMU. QEMU= in the environment wins; then the PATH; then the package; then a private copy,
# because the package may only be installable by removing others (Debian 12 with qemu-utils 10).
find_qemu() {
    if [ -n "${QEMU:-}" ]; then
        QEMU=$(command -v "$QEMU") || die "QEMU=$QEMU is not a program"
    elif have qemu-system-x86_64; then
        QEMU=$(command -v qemu-system-x86_64)
    elif have apt-get && apt_would_fit qemu-system-x86 && apt_install qemu-system-x86 && have qemu-system-x86_64; then
        QEMU=$(command -v qemu-system-x86_64)
    else
        say "no QEMU, and the package does not fit with what is installed here: taking a private copy"
        QEMU=$("$VUZ_SCRIPTS/get-qemu") || die "no QEMU: install qemu-system-x86 or set QEMU="
    fi
    export QEMU
    qemu_version "$QEMU" >/dev/null || die "$QEMU does not run"
}

# Prints MAJOR.MINOR.
qemu_version() {
    local v
    v=$(qemu_release "$1") && echo "$v" | cut -d. -f1,2
}

# Prints MAJOR.MINOR.MICRO: two of one minor version may differ in what they ask of a back end.
qemu_release() {
    local v
    v=$("$1" --version 2>/dev/null | sed -n 's/.*version \([0-9]*\.[0-9]*[0-9.]*\).*/\1/p' | head -n 1)
    [ -n "$v" ] && echo "$v"
}

version_at_least() { # HAVE WANT, both MAJOR.MINOR
    [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

# reconnect_option MS: the chardev option that makes QEMU come back after the daemon went away. 9.2
# renamed it and the two exclude each other; the older one knows whole seconds only.
reconnect_option() {
    if reconnects_by_ms "$QEMU"; then
        echo "reconnect-ms=$1"
    else
        echo "reconnect=$((($1 + 999) / 1000))"
    fi
}
reconnects_by_ms() { version_at_least "$(qemu_version "$1")" 9.2; }

# QEMU arguments that have to be the same for the probe and for a real boot.
accel_args() {
    case $1 in
    kvm) echo "-accel kvm -cpu host" ;;
    tcg)
        # QEMU 7.2 emulates cmpxchg16b with wrong flags, and kernels from 6.12 on, which use it in
        # their allocator, panic. Without the feature they take another way.
        if version_at_least "$(qemu_version "$QEMU")" 8.0; then
            echo "-accel tcg,thread=multi -cpu max"
        else
            echo "-accel tcg,thread=multi -cpu max,-cx16"
        fi
        ;;
    *) die "unknown accelerator '$1' (kvm or tcg)" ;;
    esac
}

# pick_accel KERNEL: sets and exports VUZ_ACCEL. /dev/kvm may exist and still be unable to run an
# ordinary guest (nested virtualisation of some kinds hangs the kernel), so only a boot counts.
# The verdict is exported: one probe serves all boots of a run.
pick_accel() {
    if [ -n "${VUZ_ACCEL:-}" ]; then
        accel_args "$VUZ_ACCEL" >/dev/null
        return
    fi
    VUZ_ACCEL=tcg
    if [ ! -w /dev/kvm ]; then
        say "no usable /dev/kvm: guests run under TCG (slow, but the same code paths)"
    elif kvm_boots "$1"; then
        VUZ_ACCEL=kvm
        say "KVM works: a probe guest booted"
    else
        say "/dev/kvm is there but a probe guest did not boot on it: guests run under TCG"
    fi
    export VUZ_ACCEL
}

kvm_boots() {
    local dir ok=1
    dir=$(mktemp -d)
    printf '#!/bin/sh\necho VUZ-PROBE-OK\nreboot -f\n' >"$dir/main"
    "$VUZ_SCRIPTS/make-initramfs" --bare --main "$dir/main" -o "$dir/initrd" 2>/dev/null
    # In a subshell of its own: QEMU may abort, and neither a core file nor the shell's remark
    # on it is wanted.
    # shellcheck disable=SC2046
    (
        ulimit -c 0
        timeout -k 2 "${KVM_PROBE_SECONDS:-15}" "$QEMU" -nodefaults -no-user-config -display none \
            -machine q35 $(accel_args kvm) -m 256M -smp 2 -no-reboot -serial stdio -kernel "$1" \
            -initrd "$dir/initrd" -append "console=ttyS0 panic=-1 quiet" \
            >"$dir/log" 2>&1 </dev/null || true
    ) 2>/dev/null
    grep -aq VUZ-PROBE-OK "$dir/log" || ok=
    rm -rf "$dir"
    [ -n "$ok" ]
}

# --- processes --------------------------------------------------------------------------------

# alive PID: bash reaps its children by itself, so a dead child is not mistaken for a living one.
alive() { kill -0 "$1" 2>/dev/null; }

# wait_gone PID SECONDS
wait_gone() {
    local end=$((SECONDS + $2))
    while alive "$1"; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.1
    done
}

# stop_pid PID [SECONDS]: asks, then insists. Only ever called with the pid of our own child.
stop_pid() {
    alive "$1" || return 0
    kill "$1" 2>/dev/null || true
    if ! wait_gone "$1" "${2:-5}"; then
        kill -KILL "$1" 2>/dev/null || true
        wait_gone "$1" 5 || true
        return 1
    fi
}

# wait_line FILE REGEX SECONDS PID: waits for a line while PID lives; 0 found, 1 time over, 2 dead.
wait_line() {
    local end=$((SECONDS + $3))
    until grep -aqE -- "$2" "$1" 2>/dev/null; do
        if ! alive "$4"; then
            # The last words may have been written just before the end.
            grep -aqE -- "$2" "$1" 2>/dev/null && return 0
            return 2
        fi
        [ $SECONDS -lt $end ] || return 1
        sleep 0.1
    done
}

# --- what guests need -------------------------------------------------------------------------

# compile SOURCE.c OUT: static, as the guest has no C library.
compile() {
    [ -e /usr/include/stdlib.h ] || apt_install libc6-dev || die "no C library headers (libc6-dev)"
    cc -O2 -static -pthread -o "$2" "$1" || die "cannot compile ${1##*/} (a static C library is needed: libc6-dev)"
}

# --- the daemon's figures -----------------------------------------------------------------------

# daemon_stats PID LOG: sends SIGUSR1 and prints the new stats line.
daemon_stats() { daemon_says USR1 stats "$@"; }

# daemon_says SIGNAL WORD PID LOG: sends the signal and prints the new line that begins with WORD.
daemon_says() {
    local before i
    before=$(grep -ac "^$2: " "$4" || true)
    kill -"$1" "$3" 2>/dev/null || return 1
    for ((i = 0; i < 200; i++)); do
        if [ "$(grep -ac "^$2: " "$4" || true)" -gt "$before" ]; then
            grep -a "^$2: " "$4" | tail -n 1
            return
        fi
        sleep 0.05
    done
    return 1
}

# field NAME "stats: a=1 b=2": prints the value, nothing if there is none.
field() {
    local w
    for w in $2; do
        if [ "${w%%=*}" = "$1" ]; then
            echo "${w#*=}"
            return
        fi
    done
}

# bytes 512M: plain number of bytes.
bytes() {
    local n=${1%[KMGTkmgt]}
    case $n in '' | *[!0-9]*) die "not a size: '$1'" ;; esac
    case $1 in
    *[Kk]) echo $((n << 10)) ;;
    *[Mm]) echo $((n << 20)) ;;
    *[Gg]) echo $((n << 30)) ;;
    *[Tt]) echo $((n << 40)) ;;
    *) echo "$n" ;;
    esac
}

# --- data -------------------------------------------------------------------------------------

# make_corpus OUT.tar MIB: a tar of real files of this machine. What a disk compresses to means
# something only with data that people really have, and every machine has these folders.
make_corpus() {
    local list total=0 max=$(($2 << 20)) size path
    list=$(mktemp)
    # An even mix: every n-th file of the sorted list, so that no one folder makes up the whole.
    { find /usr/lib /usr/share /usr/bin -xdev -type f -size -2048k -size +0 -readable -printf '%s %p\n' 2>/dev/null || true; } |
        LC_ALL=C sort -k2 | awk '{ slot = NR % 61; print slot, $0 }' | sort -s -n -k1,1 | cut -d' ' -f2- |
        while read -r size path; do
            total=$((total + size + 512))
            [ $total -le $max ] || break
            printf '%s\n' "${path#/}"
        done >"$list" || true
    tar -C / -cf "$1" --no-recursion -T "$list" 2>/dev/null || true
    rm -f "$list"
    [ -s "$1" ] || die "could not collect files into $1"
}
