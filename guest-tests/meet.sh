# shellcheck shell=bash
# The tests of what the daemon meets in the world: front ends with their default options, disks that
# come and go, images that others made. Sourced by run.

# shellcheck disable=SC2034,SC2153,SC2154 # shares variables with run, host.sh, tests.sh and state.sh

# SIGKILLs that a guest on a front end with default options goes through.
DEFAULT_KILLS=3

# default_guest [RUN-GUEST-OPTION...]: a daemon with a state and a guest, neither of which is told
# anything about queues. The engine is slow and answers in any order, so that much is in flight.
default_guest() {
    local rc=0
    stop_guest
    stop_daemon || true
    new_state --engine offload --engine-workers 2 --engine-model "latency=4ms,reorder=8,seed=$SEED" || return
    QUEUE_ARGS=() GUEST_ARGS=(--defaults "$@") RECONNECT_MS=100
    start_daemon "$ALGORITHM" "${STATE_ARGS[@]}" && start_guest || rc=$?
    GUEST_ARGS=() RECONNECT_MS=1000
    return $rc
}

# survive SEED [BYTES]: the daemon is killed under load, and its guest sees a pause. BYTES
# are what else is on the disk.
survive() {
    local i n later flight=()
    RANDOM=$SEED
    start_churn "$1" || return
    for ((i = 1; i <= DEFAULT_KILLS; i++)); do
        random_moment
        kill_daemon
        if ! next_daemon || ! churn_well; then
            ANSWER="kill $i (seed $SEED): $ANSWER"
            stop_guest
            return 1
        fi
        read -r n later < <(found_in_flight)
        flight+=("$n")
    done
    end_churn "$1" "${2:-0}" || { ANSWER="after $DEFAULT_KILLS kills (seed $SEED): $ANSWER"; return 1; }
    ANSWER="$DEFAULT_KILLS SIGKILLs with ${flight[*]} in flight, $ANSWER"
}

end_default_guest() {
    stop_guest
    stop_daemon || true
    QUEUE_ARGS=(--num-queues "$QUEUES")
}

t_defaults() {
    local rc=0
    make_monitor
    { default_guest --monitor "$RUN/monitor" && open_monitor && meet_defaults; } || rc=$?
    end_default_guest
    return $rc
}

# A queue for each of the two CPUs is QEMU's choice for a disk on PCI.
meet_defaults() {
    local limits survived
    ask 20 limits "$(bytes "$SIZE")" 2 "$SERIAL" || return
    limits=${ANSWER%%, max_seg*}
    ask 40 pattern_write 8 || return
    survive 700 $((32 << 20)) || return
    survived=$ANSWER
    detach || { ANSWER="detach: $ANSWER"; return 1; }
    attach || { ANSWER="attach: $ANSWER"; return 1; }
    ask 40 pattern_verify 8 || return
    ask 40 pattern_write 9 || return
    ask 40 pattern_verify 9 || return
    ask 20 kernel_log "$COMPLAINTS" || return
    ANSWER="$limits; $survived; detached and attached"
}

# As libvirt does it: the device, and when the guest let go of it its connection.
detach() {
    qmp '{"execute": "device_del", "arguments": {"id": "disk0"}}' || return
    await_qmp DEVICE_DELETED 60 || return
    ask 20 disk_gone || return
    qmp '{"execute": "chardev-remove", "arguments": {"id": "disk0"}}'
}

attach() {
    local reconnect='"reconnect": 1'
    if reconnects_by_ms "$QEMU"; then reconnect='"reconnect-ms": 100'; fi
    qmp '{"execute": "chardev-add", "arguments": {"id": "disk0", "backend": {"type": "socket", "data":
        {"addr": {"type": "unix", "data": {"path": "'"$SOCKET"'"}}, "server": false, '"$reconnect"'}}}}' || return
    qmp '{"execute": "device_add", "arguments": {"driver": "vhost-user-blk-pci", "id": "disk0", "chardev": "disk0",
        "bus": "port0"}}' || return
    ask 30 disk_there
}

# The disk is behind virtio-mmio, where rings have 1024 entries whatever QEMU asks for, and there is
# one queue.
t_microvm() {
    local rc=0
    { default_guest --machine microvm && ask 20 limits "$(bytes "$SIZE")" 1 "$SERIAL" && meet_microvm "$ANSWER"; } || rc=$?
    end_default_guest
    return $rc
}

meet_microvm() { # LIMITS
    survive 800 || return
    ANSWER="${1%%, max_seg*}; $ANSWER"
}

# Guest memory that is not shared: what the guest puts into its rings is not there for the daemon. All
# that can be done is to say so. The guest waits for its disk before it gets to its first command.
t_unshared() {
    local rc=0
    stop_guest
    stop_daemon || true
    start_daemon "$ALGORITHM" || return
    GUEST_ARGS=(--unshared)
    launch_guest
    GUEST_ARGS=()
    wait_line "$DAEMON_LOG" 'WARN.*share=on' $((60 * PATIENCE)) "$DAEMON_PID" || rc=1
    ANSWER=$(grep -am1 'share=on' "$DAEMON_LOG" | sed 's/^[^]]*\] *//') || ANSWER="no warning that names share=on"
    stop_guest
    # The next guest, whose memory is, is served.
    if [ $rc = 0 ]; then
        start_guest && ask 40 pattern_write 1 && ask 40 pattern_verify 1 || rc=1
        ANSWER="warned; the next guest is served"
    fi
    stop_guest
    stop_daemon || true
    return $rc
}
