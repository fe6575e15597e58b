# shellcheck shell=bash
# Disk images as other people make them, and a disk that a BIOS boots from. Sourced by run.
#
# They are made without root's mounts: each mkfs takes its files from a directory.

# shellcheck disable=SC2034,SC2153,SC2154 # shares variables with run, host.sh and tests.sh

# name: partition table, file system, what else mkfs is told. All but the last two mean nothing on a
# disk whose logical block is 4096.
IMAGES=("gpt-ext4 gpt ext4" "mbr-ext4 dos ext4" "ext4-1k none ext4 -b 1024" "vfat none vfat" "xfs none xfs"
    "ext4-4k none ext4 -b 4096" "btrfs none btrfs")
# What the guest's kernel needs for them; some kernels have a part of it built in.
IMAGE_MODULES=(ext4 vfat nls_cp437 nls_ascii nls_utf8 nls_iso8859-1 xfs btrfs)
# Of each file system; the two at the end do not make smaller ones.
IMAGE_MIB=64 XFS_MIB=320 BTRFS_MIB=144
# Where partitions begin.
PARTITION_MIB=1

# Daemons beside the one that all tests have.
SIDE_PIDS=()
stop_side_daemons() {
    local pid
    for pid in ${SIDE_PIDS[@]+"${SIDE_PIDS[@]}"}; do
        stop_pid "$pid" || true
        wait "$pid" 2>/dev/null || true
    done
    SIDE_PIDS=()
}

# make_content DIR: real files under short names, and their check sums.
make_content() {
    local f n=0
    mkdir -p "$1" "$RUN/extracted"
    tar -C "$RUN/extracted" -xf "$RUN/corpus.tar"
    while IFS= read -r -d '' f; do
        cp "$f" "$1/file$((++n))"
        [ $n -lt 150 ] || break
    done < <(find "$RUN/extracted" -type f -size -256k -print0 | sort -z)
    rm -rf "$RUN/extracted"
    (cd "$1" && md5sum file*) >"$RUN/sums"
    mv "$RUN/sums" "$1/sums"
}

# make_fs TYPE FILE DIR [OPTION...]: a file system with the files of DIR.
make_fs() {
    local type=$1 file=$2 dir=$3 f
    shift 3
    case $type in
    ext4)
        truncate -s ${IMAGE_MIB}M "$file"
        mkfs.ext4 -q -F "$@" -d "$dir" "$file"
        ;;
    vfat)
        truncate -s ${IMAGE_MIB}M "$file"
        mkfs.vfat "$@" "$file" >/dev/null
        mcopy -i "$file" "$dir"/* ::
        ;;
    xfs)
        truncate -s ${XFS_MIB}M "$file"
        {
            printf '/dev/null\n0 0\nd--755 0 0\n'
            for f in "$dir"/*; do printf '%s ---644 0 0 %s\n' "${f##*/}" "$f"; done
            printf '$\n'
        } >"$RUN/proto"
        mkfs.xfs -q "$@" -p "$RUN/proto" "$file"
        ;;
    btrfs)
        truncate -s ${BTRFS_MIB}M "$file"
        mkfs.btrfs -q "$@" --rootdir "$dir" "$file"
        ;;
    esac
}

# make_disk LABEL PART FILE [SFDISK-FIELD]: a partition table before the file system PART.
make_disk() {
    local mib
    mib=$(($(stat -c %s "$2") >> 20))
    # One more for the copy of a GPT at the end.
    truncate -s $((PARTITION_MIB + mib + 1))M "$3"
    printf 'label: %s\nstart=%d, size=%d%s\n' "$1" $((PARTITION_MIB << 11)) $((mib << 11)) "${4:+, $4}" |
        sfdisk -q "$3"
    dd if="$2" of="$3" bs=1M seek=$PARTITION_MIB conv=notrunc,sparse status=none
}

# make_image NAME LABEL TYPE [OPTION...]: $RUN/images/NAME.img.
make_image() {
    local name=$1 label=$2 type=$3
    shift 3
    make_fs "$type" "$RUN/images/$name.fs" "$RUN/content" "$@" || return
    if [ "$label" = none ]; then
        mv "$RUN/images/$name.fs" "$RUN/images/$name.img"
    else
        make_disk "$label" "$RUN/images/$name.fs" "$RUN/images/$name.img" || return
        rm "$RUN/images/$name.fs"
    fi
}

# A guest with seven more disks, each filled from an image by --load alone.
t_images() {
    local rc=0
    stop_guest
    need mkfs.xfs=xfsprogs mkfs.btrfs=btrfs-progs mkfs.vfat=dosfstools mcopy=mtools sfdisk=fdisk
    load_images && ask_images || rc=$?
    stop_guest
    stop_side_daemons
    rm -rf "$RUN/images" "$RUN/content"
    return $rc
}

# Starts a daemon on each image, and a guest with all of them; IMAGE_LIST is what it is told.
load_images() {
    local image name fields log args=()
    IMAGE_LIST=()
    mkdir -p "$RUN/images"
    make_content "$RUN/content"
    for image in "${IMAGES[@]}"; do
        read -r -a fields <<<"$image"
        name=${fields[0]}
        make_image "${fields[@]}" >"$RUN/make.log" 2>&1 || { ANSWER="cannot make $name: $(tail -n 1 "$RUN/make.log")"; return 1; }
        log=$LOGS/daemon-$name.log
        "$DAEMON" --socket-path "$RUN/$name.sock" --size "$(stat -c %s "$RUN/images/$name.img")" --algorithm "$ALGORITHM" \
            --load "$RUN/images/$name.img" --serial "$name" >"$log" 2>&1 </dev/null &
        SIDE_PIDS+=($!)
        wait_line "$log" '^ready: ' $((60 * PATIENCE)) $! || { ANSWER="no daemon for $name: $(tail -n 1 "$log")"; return 1; }
        args+=(-chardev "socket,id=$name,path=$RUN/$name.sock"
            -device "vhost-user-blk-pci,chardev=$name,num-queues=1")
        IMAGE_LIST+=("$name:${fields[1]}:${fields[2]}")
    done
    GUEST_ARGS=(-- "${args[@]}")
    start_guest || { GUEST_ARGS=(); return 1; }
    GUEST_ARGS=()
}

ask_images() {
    ask 120 images "${IMAGE_LIST[@]}" || return
    local images=$ANSWER
    ask 20 kernel_log "$COMPLAINTS" || return
    ANSWER=$images
}

# A disk as an installer leaves it: a boot loader, and a kernel on a partition. The firmware finds all of
# it by itself. GRUB, as it loads nothing over code that ran: syslinux's MBR, which does, hangs here under
# TCG and boots with a disk of QEMU's own. TCG seems not to see that a back end wrote there.
t_bios() {
    local rc=0
    stop_guest
    stop_daemon || true
    need sfdisk=fdisk grub-mkimage=grub-common
    [ -r "$GRUB/boot.img" ] || apt_install grub-pc-bin || die "cannot install grub-pc-bin"
    { make_boot_disk && boot_disk; } || rc=$?
    stop_guest
    stop_daemon || true
    rm -rf "$RUN"/boot*
    return $rc
}
GRUB=/usr/lib/grub/i386-pc

# The boot loader's two parts lie before the partition: its first sector is the disk's first, up to where
# the table is, and the rest follows.
make_boot_disk() {
    local m args=(--bare --modules "$modules" --main "$HERE/boot-main" -o "$RUN/boot/initrd")
    for m in "${IMAGE_MODULES[@]}"; do args+=(--later "$m"); done
    mkdir -p "$RUN/boot"
    cp "$KERNEL" "$RUN/boot/vmlinuz"
    "$VUZ_SCRIPTS/make-initramfs" "${args[@]}" 2>/dev/null
    make_fs ext4 "$RUN/boot.fs" "$RUN/boot" || return
    make_disk dos "$RUN/boot.fs" "$RUN/boot.img" bootable || return
    printf '%s\n' 'set root=(hd0,msdos1)' 'linux /vmlinuz console=ttyS0 panic=-1 quiet loglevel=5' 'initrd /initrd' boot >"$RUN/boot.cfg"
    grub-mkimage -d "$GRUB" -O i386-pc -p '(hd0,msdos1)/' -c "$RUN/boot.cfg" -o "$RUN/boot.core" biosdisk part_msdos ext2 linux boot || return
    dd if="$GRUB/boot.img" of="$RUN/boot.img" bs=440 count=1 conv=notrunc status=none
    dd if="$RUN/boot.core" of="$RUN/boot.img" bs=512 seek=1 conv=notrunc status=none
}

boot_disk() {
    local sum size=$SIZE rc=0
    sum=$(md5sum <"$KERNEL")
    SIZE=$(stat -c %s "$RUN/boot.img")
    start_daemon "$ALGORITHM" --load "$RUN/boot.img" || rc=1
    SIZE=$size
    [ $rc = 0 ] || return
    GUEST_ARGS=(--bios)
    start_guest || rc=1
    GUEST_ARGS=()
    [ $rc = 0 ] || return
    expect '^@@ booted ' 30 || return
    ANSWER="${ANSWER#@@ }"
    [ "${ANSWER##* }" = "${sum%% *}" ] || { ANSWER="the kernel on the disk is not what was put there: $ANSWER"; return 1; }
}
