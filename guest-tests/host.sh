# shellcheck shell=bash
# What guest-tests/run needs of the host: the daemon, guests, their consoles. Sourced by run.
#
# One daemon (DAEMON_PID) and one guest (GUEST_PID) at a time. Only these are ever signalled.

# shellcheck disable=SC2034 # run, host.sh and tests.sh share their variables

DAEMON_PID='' GUEST_PID='' CONSOLE='' SEQ=0 MARK=0
ANSWER=''
# Seconds that things may take are times this: a busy machine is no failure, and a hang has no end.
PATIENCE=4
# How often QEMU looks for a daemon that went away.
RECONNECT_MS=1000
# More for run-guest, and what the daemon is told of queues.
GUEST_ARGS=() QUEUE_ARGS=(--num-queues 2)
# QEMU's monitor, if the guest was started with one: $RUN/monitor.in and .out.
MONITOR=''

# --- the daemon -----------------------------------------------------------------------------------

start_daemon() { # ALGORITHM [OPTION...]
    spawn_daemon "$@"
    wait_line "$DAEMON_LOG" '^ready: ' $((30 * PATIENCE)) "$DAEMON_PID" && return
    ANSWER="the daemon did not get ready: $(tail -n 1 "$DAEMON_LOG")"
    stop_daemon || true
    return 1
}

# Waits for nothing: how long a daemon is away is what some tests are about.
spawn_daemon() { # ALGORITHM [OPTION...]
    local algorithm=$1
    shift
    DAEMON_LOG=$LOGS/daemon-$((++DAEMON_COUNT)).log
    "$DAEMON" --socket-path "$SOCKET" --size "$SIZE" --algorithm "$algorithm" \
        ${QUEUE_ARGS[@]+"${QUEUE_ARGS[@]}"} --serial "$SERIAL" "$@" >"$DAEMON_LOG" 2>&1 </dev/null &
    DAEMON_PID=$!
}

# By SIGKILL. Waited for at once, or the shell comments on it.
kill_daemon() {
    { kill -KILL "$DAEMON_PID" && wait "$DAEMON_PID"; } 2>/dev/null || true
    DAEMON_PID=
}

# Sets DAEMON_STATUS.
stop_daemon() {
    local late=
    [ -n "$DAEMON_PID" ] || return 0
    stop_pid "$DAEMON_PID" $((10 * PATIENCE)) || late=1
    DAEMON_STATUS=0
    wait "$DAEMON_PID" 2>/dev/null || DAEMON_STATUS=$?
    DAEMON_PID=
    [ -z "$late" ]
}

# stat NAME...: values of the daemon now, in one line; fails where there are none.
stat_of() {
    local line n out=''
    line=$(daemon_stats "$DAEMON_PID" "$DAEMON_LOG") || return 1
    for n in "$@"; do
        out+=" $(field "$n" "$line")"
    done
    echo "$out"
}

# --- guests ---------------------------------------------------------------------------------------

start_guest() {
    launch_guest
    expect_ready
}

# Waits for nothing.
launch_guest() {
    stop_guest
    GUEST_LOG=$LOGS/guest-$((++GUEST_COUNT)).log
    rm -f "$RUN/console"
    mkfifo "$RUN/console"
    # Read and write, so that neither opening it nor QEMU's first read waits for the other side.
    exec {CONSOLE}<>"$RUN/console"
    QEMU=$QEMU "$VUZ_SCRIPTS/run-guest" --socket "$SOCKET" --kernel "$KERNEL" --initrd "$INITRD" \
        --mem "$MEM" --cpus 2 --queues "$QUEUES" --reconnect-ms "$RECONNECT_MS" ${GUEST_ARGS[@]+"${GUEST_ARGS[@]}"} \
        >"$GUEST_LOG" 2>&1 <"$RUN/console" &
    GUEST_PID=$!
    # Else the shell comments on each QEMU that was killed.
    disown
    MARK=0
    BOOTS=$((BOOTS + 1))
}

expect_ready() {
    if ! expect '^@@ ready ' "$BOOT_SECONDS"; then
        ANSWER="guest did not boot: $ANSWER"
        BOOT_FAILURES=$((BOOT_FAILURES + 1))
        stop_guest
        return 1
    fi
    BOOT_FAILURES=0
}

ensure_guest() {
    if [ -n "$GUEST_PID" ] && alive "$GUEST_PID"; then
        return
    fi
    start_guest
}

# end_guest SIGNAL: how QEMU goes is what some tests are about.
end_guest() {
    [ -n "$GUEST_PID" ] || return 0
    kill "-$1" "$GUEST_PID" 2>/dev/null || true
    if ! wait_gone "$GUEST_PID" 15; then
        kill -KILL "$GUEST_PID" 2>/dev/null || true
        wait_gone "$GUEST_PID" 5 || true
    fi
    forget_guest
}

stop_guest() { end_guest KILL; }

forget_guest() {
    GUEST_PID=
    [ -z "$CONSOLE" ] || exec {CONSOLE}>&-
    CONSOLE=
    [ -z "$MONITOR" ] || exec {MONITOR}>&-
    MONITOR=
}

# --- QEMU's monitor -------------------------------------------------------------------------------

# To be called before a guest is started with --monitor.
make_monitor() {
    rm -f "$RUN"/monitor.*
    mkfifo "$RUN/monitor.in" "$RUN/monitor.out"
}

open_monitor() {
    exec {MONITOR}<>"$RUN/monitor.out"
    qmp '{"execute": "qmp_capabilities"}'
}

# qmp JSON: runs a command.
qmp() {
    printf '%s\n' "$1" >"$RUN/monitor.in"
    await_qmp '"return"' 30
}

# await_qmp WORD SECONDS: waits for a line with WORD; an error is none.
await_qmp() {
    local end=$((SECONDS + $2 * PATIENCE)) line
    while [ $SECONDS -lt $end ]; do
        IFS= read -r -t 1 -u "$MONITOR" line || continue
        case $line in
        *"$1"*) return ;;
        *'"error"'*) ANSWER="QEMU: $line"; return 1 ;;
        esac
    done
    ANSWER="QEMU's monitor did not say $1 within $(($2 * PATIENCE)) s"
    return 1
}

# expect REGEX SECONDS: waits for a line in what the guest said since MARK; sets ANSWER to it.
expect() {
    local end=$((SECONDS + $2 * PATIENCE)) dead=
    while :; do
        # A dead guest's last words still count, so death is looked at first.
        alive "$GUEST_PID" || dead=1
        ANSWER=$(tail -c "+$((MARK + 1))" "$GUEST_LOG" 2>/dev/null | tr -d '\r' | grep -aEm1 -- "$1" || true)
        [ -z "$ANSWER" ] || return 0
        if tail -c "+$((MARK + 1))" "$GUEST_LOG" | grep -aq 'Kernel panic'; then
            ANSWER="kernel panic in the guest"
            return 1
        elif [ -n "$dead" ]; then
            ANSWER="QEMU ended: $(tail -n 1 "$GUEST_LOG" | tr -d '\r')"
            return 1
        elif ! alive "$DAEMON_PID"; then
            ANSWER="the daemon died: $(tail -n 1 "$DAEMON_LOG")"
            return 1
        elif [ $SECONDS -ge $end ]; then
            ANSWER="nothing after $(($2 * PATIENCE)) s: a request that is never answered, or a hang"
            return 1
        fi
        sleep 0.1
    done
}

# tell STEP ARGUMENT...: sends a command, waits for nothing.
tell() {
    SEQ=$((SEQ + 1))
    MARK=$(stat -c %s "$GUEST_LOG")
    # To a dead QEMU's fifo this still succeeds; the answer is what is waited for.
    printf '%s %s\n' "$SEQ" "$*" >&"$CONSOLE"
}

# ask SECONDS STEP ARGUMENT...: 0 pass, 1 fail, 77 skip; ANSWER says more. A guest that gave no
# answer is killed: it cannot be trusted with the next test.
ask() {
    local limit=$1
    shift
    tell "$@"
    if ! expect "^@@ $SEQ (pass|fail|skip)" "$limit"; then
        ANSWER="$1: $ANSWER"
        stop_guest
        return 1
    fi
    set -- "$ANSWER"
    ANSWER=${1#@@ * * }
    [ "$ANSWER" != "$1" ] || ANSWER=
    case $1 in
    "@@ $SEQ pass"*) return 0 ;;
    "@@ $SEQ skip"*) return 77 ;;
    *) return 1 ;;
    esac
}
