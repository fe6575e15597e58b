# shellcheck shell=bash
# The tests of disks that outlive their daemon. Sourced by run.
#
# Each has a state directory of its own on a tmpfs. Which of their moments are hit is random; a
# run can be had again with VUZ_SEED=, as far as the machine's timing allows.

# shellcheck disable=SC2034,SC2153,SC2154 # shares variables with run, host.sh and tests.sh

# Daemons keep their state here; removed by run when it ends.
STATE_ROOT='' STATE_GUEST='' STATE_NUMBER=0
# What all daemons on one state are started with: nothing of it changes when one comes back.
STATE_ARGS=()
# What must have been in flight when a daemon was killed, and in how many of 30 kills: there are more until
# that is so, up to three times as many.
MIN_IN_FLIGHT=8 MIN_GOOD=25
# What four rows of fio passes fill at most (guest-churn); nobody else writes to their disk.
CHURN_BYTES=$((14 << 20))

# new_state [OPTION...]: a fresh place for a disk; OPTIONs are for all of its daemons.
new_state() {
    local free
    STATE_GUEST=
    if [ -z "$STATE_ROOT" ]; then
        # What the daemon frees it gives back, so this is far more than a test ever has stored.
        free=$(df -B1 --output=avail /dev/shm 2>/dev/null | tail -n 1)
        if [ "${free:-0}" -lt $((256 << 20)) ]; then
            ANSWER="/dev/shm has less than 256 MiB free"
            return 77
        fi
        STATE_ROOT=$(mktemp -d /dev/shm/vuz.XXXXXX)
    fi
    rm -rf "$STATE_ROOT"/disk*
    STATE_ARGS=(--state-dir "$STATE_ROOT/disk$((++STATE_NUMBER))" --create "$@")
    mkdir "${STATE_ARGS[1]}"
}

# A guest on a daemon with a state, both new unless the test before left them. The engine is slower
# than a guest under TCG, so that the queues are full, and answers in any order.
ensure_state_guest() {
    if [ -n "$STATE_GUEST" ] && [ "$STATE_GUEST" = "$GUEST_PID" ] && alive "$GUEST_PID" &&
        [ -n "$DAEMON_PID" ] && alive "$DAEMON_PID"; then
        return
    fi
    stop_guest
    stop_daemon || true
    new_state --engine offload --engine-workers 2 --engine-model "latency=4ms,reorder=8,seed=$SEED" || return
    start_daemon "$ALGORITHM" "${STATE_ARGS[@]}" || return
    RECONNECT_MS=100
    start_guest || { RECONNECT_MS=1000; return 1; }
    RECONNECT_MS=1000
    STATE_GUEST=$GUEST_PID
}

# A daemon on the state of the last one, at once. Returns when it has completed a request.
next_daemon() {
    spawn_daemon "$ALGORITHM" "${STATE_ARGS[@]}"
    wait_line "$DAEMON_LOG" "$FIRST_COMPLETION" $((15 * PATIENCE)) "$DAEMON_PID" && return
    if alive "$DAEMON_PID"; then
        ANSWER="the guest's requests are not taken up again within $((15 * PATIENCE)) s"
    else
        ANSWER="the daemon does not come back: $(tail -n 1 "$DAEMON_LOG")"
    fi
    return 1
}
FIRST_COMPLETION='the first request is completed [0-9]+ ms after the start'
gap_ms() { grep -aoEm1 "$FIRST_COMPLETION" "$DAEMON_LOG" | tr -dc 0-9; }

# found_in_flight: "REQUESTS LATER" as the new daemon read them in the in-flight region.
found_in_flight() {
    sed -n 's/.*queue \([0-9]*\): takes up again \([0-9]*\) requests\{0,1\} in flight, \([0-9]*\) later.*/\1 \2 \3/p' "$DAEMON_LOG" |
        awk '!seen[$1]++ { n += $2; later += $3 } END { print n + 0, later + 0 }'
}

# Up to 0.9 s, from a generator with a known seed.
random_moment() { sleep "0.$(printf %03d $((RANDOM % 900)))"; }

# start_churn SEED: returns when requests flow.
start_churn() {
    local i before now
    read -r before < <(stat_of writes) || no_stats || return
    ask 10 churn_start "$1" || return
    for ((i = 0; i < 120 * PATIENCE; i++)); do
        sleep 0.5
        read -r now < <(stat_of writes) || no_stats || return
        [ "$now" -lt $((before + 300)) ] || return 0
    done
    ANSWER="no load within $PATIENCE minutes"
    return 1
}

churn_well() {
    ANSWER=$(tr -d '\r' <"$GUEST_LOG" | grep -am1 '^churn: failed' || true)
    [ -z "$ANSWER" ]
}

# end_churn SEED [BYTES]: the final verification, the guest's own opinion, and whether restarts left objects
# behind that belong to no page. BYTES are what else is on the disk.
end_churn() {
    local verified rc=0
    ask 240 churn_stop "$1" || rc=$?
    verified=$ANSWER
    [ -n "$GUEST_PID" ] || return $rc
    if ! ask 20 kernel_log "$COMPLAINTS"; then
        ANSWER="$verified; kernel: $ANSWER"
        return 1
    fi
    if [ $rc != 0 ]; then
        ANSWER=$verified
        return 1
    fi
    until_upkeep tidy "$verified" "${2:-0}"
}

# tidy VERIFIED BYTES: nothing is stored that no page names, and no request failed.
tidy() {
    local orig compr mem fr fw
    read -r orig compr mem fr fw < <(stat_of orig_data_size compr_data_size mem_used_total failed_reads failed_writes) ||
        no_stats || return
    ANSWER="$1; stored $(mb "$orig"), compressed $(mb "$compr"), arena $(mb "$mem"), failed requests $fr + $fw"
    [ "$orig" -le $((CHURN_BYTES + $2)) ] && [ "$mem" -le $((compr + compr / 10 + (512 << 10))) ] &&
        [ "$fr" = 0 ] && [ "$fw" = 0 ]
}

# spread NUMBER...: "least to greatest, median M".
spread() {
    printf '%s\n' "$@" | sort -n | awk '{ v[NR] = $1 } END { printf "%d to %d, median %d", v[1], v[NR], v[int((NR + 1) / 2)] }'
}

# SIGKILL at random moments under load; a new daemon on the same state at once. Where QEMU can be
# made to look for it early, every fifth newcomer is killed as well before it has served anything.
t_kills() {
    local i n later good=0 wanted twice=0 verified kills=$KILLS fast='' gaps=() flight=() seed=100
    if reconnects_by_ms "$QEMU"; then fast=1; fi
    [ -n "$kills" ] || kills=$(full_or 30 6)
    # Each takes seconds there.
    [ -n "$KILLS" ] || [ -n "$fast" ] || kills=$(full_or 10 3)
    ensure_state_guest || return
    RANDOM=$SEED
    start_churn $seed || return
    wanted=$(((kills * MIN_GOOD + 29) / 30))
    # Between two passes of fio there is little in flight: such a kill does not count.
    for ((i = 1; i <= kills || (good < wanted && i <= 3 * kills); i++)); do
        random_moment
        kill_daemon
        if [ -n "$fast" ] && [ $((i % 5)) = 0 ]; then
            twice=$((twice + 1))
            spawn_daemon "$ALGORITHM" "${STATE_ARGS[@]}"
            sleep "0.$(printf %03d $((RANDOM % 250)))"
            kill_daemon
        fi
        if ! next_daemon || ! churn_well; then
            ANSWER="kill $i (seed $SEED): $ANSWER"
            stop_guest
            return 1
        fi
        read -r n later < <(found_in_flight)
        flight+=("$n")
        gaps+=("$(gap_ms)")
        if [ "$n" -ge $MIN_IN_FLIGHT ] && [ "$later" -ge 1 ]; then good=$((good + 1)); fi
        [ -z "${PROGRESS:-}" ] || say "    kill $i of $kills: $n in flight, $later later ones completed, ${gaps[-1]} ms"
    done
    end_churn $seed || { ANSWER="after $((i - 1)) kills (seed $SEED): $ANSWER"; return 1; }
    verified=$ANSWER
    ANSWER="$((i - 1)) SIGKILLs (seed $SEED, $twice more before the first request): $good with >= $MIN_IN_FLIGHT in flight and out of order"
    ANSWER+=" (in flight $(spread "${flight[@]}")), first completion after ms $(spread "${gaps[@]}"); $verified"
    [ $good -ge $wanted ]
}

# SIGTERM under the same load: the daemon publishes all that it took, so the next one finds nothing
# in flight.
t_terms() {
    local i n rest gaps=() seed=500 terms=${TERMS:-$(full_or 20 4)}
    ensure_state_guest || return
    RANDOM=$SEED
    start_churn $seed || return
    for ((i = 1; i <= terms; i++)); do
        random_moment
        if ! stop_daemon; then
            ANSWER="SIGTERM $i: the daemon did not end within $((10 * PATIENCE)) s"
        elif [ "$DAEMON_STATUS" != 0 ] || ! grep -aq '^summary: ' "$DAEMON_LOG"; then
            ANSWER="SIGTERM $i: exit status $DAEMON_STATUS, $(grep -ac '^summary: ' "$DAEMON_LOG" || true) summary line(s)"
        elif ! next_daemon || ! churn_well; then
            ANSWER="SIGTERM $i: $ANSWER"
        else
            read -r n rest < <(found_in_flight)
            gaps+=("$(gap_ms)")
            [ "$n" != 0 ] || continue
            ANSWER="SIGTERM $i left $n requests in flight"
        fi
        ANSWER+=" (seed $SEED)"
        stop_guest
        return 1
    done
    end_churn $seed || { ANSWER="after $terms SIGTERMs (seed $SEED): $ANSWER"; return 1; }
    ANSWER="$terms SIGTERMs (seed $SEED), each with status 0, a summary and nothing left in flight; first completion after ms $(spread "${gaps[@]}"); $ANSWER"
}

# Nobody is left who knew the disk: neither QEMU nor daemon. Once after a clean shutdown of the
# guest, once with both killed under load.
t_state-cold() {
    local last seed=1
    stop_guest
    stop_daemon || true
    new_state || return
    start_daemon "$ALGORITHM" "${STATE_ARGS[@]}" || return
    start_guest || return
    ask 40 pattern_write 7 || return
    tell poweroff
    if ! wait_gone "$GUEST_PID" $((20 * PATIENCE)); then
        ANSWER="QEMU does not end after poweroff"
        stop_guest
        return 1
    fi
    forget_guest
    kill_daemon
    start_daemon "$ALGORITHM" "${STATE_ARGS[@]}" || return
    start_guest || return
    ask 40 pattern_verify 7 || return
    ask 10 load_start $seed || return
    expect "^blkgen: done $((seed + 1))" 60 || return
    random_moment
    kill_daemon
    stop_guest
    last=$(last_done)
    start_daemon "$ALGORITHM" "${STATE_ARGS[@]}" || return
    start_guest || return
    ask 40 pattern_verify 7 || return
    # Three ahead: "done" lines on their way out of the serial port die with QEMU.
    ask 40 load_verify "$last" $((last + 3)) || return
    stop_guest
    stop_daemon || true
    ANSWER="the pattern outlives QEMU and daemon twice, and all of pass $last of the load that was killed"
}
