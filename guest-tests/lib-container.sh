# shellcheck shell=bash
# A container with systemd and the Debian package, for tests. Sourced after lib.sh and lib-apt.sh.
#
#   in_namespaces     starts the script again, without arguments, in namespaces of its own
#   start_container   a clean system of the machine's release with systemd, $PACKAGES (an array) and $DEB
#
# What they make is in $RUN, and goes with the script: $ROOT is the container's root, $SOCKETS its directory
# /run/vhost-user-zram. $LOGS stays. The container has a network of its own, with nothing in it.

# in_namespaces: what is started in there ends with it.
in_namespaces() {
    need systemd-nspawn=systemd-container mmdebstrap=mmdebstrap nsenter=util-linux pgrep=procps
    [ -n "${DEB:-}" ] || DEB=$("$VUZ_ROOT/dist/build-deb")
    DEB=$(readlink -f "$DEB")
    [ -r "$DEB" ] || die "no package at $DEB"
    export DEB VUZ_IN_NAMESPACES=1
    exec unshare --mount --propagation private --pid --fork --mount-proc --kill-child "$0"
}

container='' RUN=''
stop_container() {
    [ -n "$RUN" ] || return 0
    [ -z "$container" ] || {
        in_container systemctl poweroff --force >/dev/null 2>&1 || true
        wait_gone "$container" 20 || stop_pid "$container" || true
    }
    echo $$ >/sys/fs/cgroup/cgroup.procs || true
    find "$CGROUP" -depth -type d -exec rmdir {} + 2>/dev/null || true
    umount -l "$SOCKETS" || true
    rm -rf "$RUN"
}

start_container() {
    local suite include
    suite=$(os_field VERSION_CODENAME)
    RUN=$(mktemp -d "${TMPDIR:-/var/tmp}/vuz.XXXXXX")
    ROOT=$RUN/root SOCKETS=$RUN/sockets CGROUP=/sys/fs/cgroup/vuz.${RUN##*.}
    LOGS=${CARGO_TARGET_DIR:-$VUZ_ROOT/target}/guest-tests/${0##*/}
    mkdir -p "$SOCKETS" "$LOGS"
    rm -f "$LOGS"/*
    chmod 755 "$RUN"
    # As below /run: systemd removes directories of units from nothing but a tmpfs.
    mount -t tmpfs -o mode=755 sockets "$SOCKETS"

    step "A clean $suite with systemd and ${DEB##*/}"
    suite_sources "$suite" >"$RUN/machine.sources"
    include=$(printf ',%s' systemd systemd-sysv udev ${PACKAGES[@]+"${PACKAGES[@]}"})
    mmdebstrap --quiet --variant=essential --include="${include#,}" --format=directory \
        --customize-hook="copy-in '$DEB' /root" \
        --customize-hook="chroot \"\$1\" dpkg -i /root/${DEB##*/}" \
        "$suite" "$ROOT" "$RUN/machine.sources" >"$LOGS/mmdebstrap" 2>&1 || {
        tail -n 20 "$LOGS/mmdebstrap" >&2
        die "mmdebstrap failed"
    }
    # So small a system has no such file.
    echo '127.0.0.1 localhost' >"$ROOT/etc/hosts"

    step "The container"
    # The machine may have its control groups in the older layout; the container gets the newer one, as
    # systemd has it by default.
    [ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ] || mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mkdir "$CGROUP"
    (
        echo "$BASHPID" >"$CGROUP/cgroup.procs"
        exec systemd-nspawn --quiet --register=no --keep-unit --directory="$ROOT" --console=pipe --boot \
            --private-network --bind="$SOCKETS:/run/vhost-user-zram" --hostname=host >"$LOGS/container" 2>&1 </dev/null
    ) &
    container=$!
    until_ok 120 is_up || die "the container does not come up: $(tail -n 5 "$LOGS/container")"
}
is_up() { in_container systemctl is-system-running | grep -qE '^(running|degraded)$'; }

in_container() {
    local leader
    leader=$(pgrep -P "$container" | head -n 1)
    [ -n "$leader" ] && nsenter --target "$leader" --mount --uts --ipc --net --pid --cgroup --root --wd -- \
        /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 "$@"
}

# host COMMAND...: says what is done in the container, and does it.
host() {
    say "# $*"
    in_container "$@"
}

# until_ok SECONDS COMMAND...: repeats a command until it succeeds.
until_ok() {
    local end=$((SECONDS + $1))
    shift
    until "$@" 2>/dev/null; do
        alive "$container" || die "the container ended: $(tail -n 3 "$LOGS/container")"
        [ $SECONDS -lt $end ] || return 1
        sleep 0.2
    done
}

property() { in_container systemctl show -P "$1" "$2"; }
is_active() { [ "$(property ActiveState "$1")" = active ]; }

passed=0 failed=0
check() { # WHAT COMMAND...
    local what=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
        say "ok: $what"
    else
        failed=$((failed + 1))
        say "FAILED: $what"
        in_container journalctl --no-pager -n 30 >&2 || true
    fi
}
