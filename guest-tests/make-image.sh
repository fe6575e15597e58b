#!/bin/bash
# Makes a disk image as other people make them, without root's mounts: each mkfs takes its files from a
# directory.
#
# usage: make-image.sh -o OUT --content DIR --type TYPE [--label LABEL] [--grub] [-- MKFS-OPTION...]
#        make-image.sh --make-content DIR --corpus TAR
#
#   -o OUT               file to write
#   --content DIR        the files that it has
#   --type TYPE          ext4, vfat, xfs or btrfs
#   --label LABEL        a partition table, gpt or dos, with one partition; default: none
#   --grub               it boots: GRUB, and on the partition /vmlinuz and /initrd
#   --make-content DIR   makes a directory of real files under short names, out of a tar, and "sums", their
#                        MD5 sums
set -eu -o pipefail
# shellcheck source=qemu-scripts/lib.sh
. "$(dirname "$0")/../qemu-scripts/lib.sh"

# Where partitions begin.
PARTITION_MIB=1
GRUB=/usr/lib/grub/i386-pc

out='' content='' type='' label=none grub='' make='' corpus=''
while [ $# -gt 0 ]; do
    case $1 in
    -o) out=${2:?-o needs a value}; shift 2 ;;
    --content) content=${2:?--content needs a value}; shift 2 ;;
    --type) type=${2:?--type needs a value}; shift 2 ;;
    --label) label=${2:?--label needs a value}; shift 2 ;;
    --grub) grub=1; shift ;;
    --make-content) make=${2:?--make-content needs a value}; shift 2 ;;
    --corpus) corpus=${2:?--corpus needs a value}; shift 2 ;;
    --) shift; break ;;
    -h | --help) usage_from_header "$0"; exit 0 ;;
    *) die "unknown option '$1' (see --help)" ;;
    esac
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ -n "$make" ]; then
    n=0
    mkdir -p "$make"
    tar -C "$work" -xf "$corpus"
    while IFS= read -r -d '' f; do
        cp "$f" "$make/file$((++n))"
        [ $n -lt 150 ] || break
    done < <(find "$work" -type f -size -256k -print0 | sort -z)
    (cd "$make" && md5sum file*) >"$work/sums"
    mv "$work/sums" "$make/sums"
    exit 0
fi

# make_fs FILE [OPTION...]: the file system. xfs and btrfs do not make smaller ones.
make_fs() {
    local file=$1 f
    shift
    case $type in
    ext4)
        truncate -s 64M "$file"
        mkfs.ext4 -q -F "$@" -d "$content" "$file"
        ;;
    vfat)
        truncate -s 64M "$file"
        mkfs.vfat "$@" "$file" >/dev/null
        mcopy -i "$file" "$content"/* ::
        ;;
    xfs)
        truncate -s 320M "$file"
        {
            printf '/dev/null\n0 0\nd--755 0 0\n'
            for f in "$content"/*; do printf '%s ---644 0 0 %s\n' "${f##*/}" "$f"; done
            printf '$\n'
        } >"$work/proto"
        mkfs.xfs -q "$@" -p "$work/proto" "$file"
        ;;
    btrfs)
        truncate -s 144M "$file"
        mkfs.btrfs -q "$@" --rootdir "$content" "$file"
        ;;
    *) die "--type takes ext4, vfat, xfs or btrfs, not '$type'" ;;
    esac
}

# add_table FIELD: a partition table in front of the file system.
add_table() {
    local mib
    mib=$(($(stat -c %s "$work/fs") >> 20))
    # One more for the copy of a GPT at the end.
    truncate -s $((PARTITION_MIB + mib + 1))M "$out"
    printf 'label: %s\nstart=%d, size=%d%s\n' "$label" $((PARTITION_MIB << 11)) $((mib << 11)) "$1" |
        sfdisk -q "$out"
    dd if="$work/fs" of="$out" bs=1M seek=$PARTITION_MIB conv=notrunc,sparse status=none
}

# The boot loader's two parts lie before the partition: its first sector is the disk's first, up to where
# the table is, and the rest follows. GRUB, as it loads nothing over code that ran: syslinux's MBR, which
# does, hangs here under TCG and boots with a disk of QEMU's own. TCG seems not to see that a back end wrote
# there.
add_grub() {
    printf '%s\n' 'set root=(hd0,msdos1)' 'linux /vmlinuz console=ttyS0 panic=-1 quiet loglevel=5 no_timer_check' \
        'initrd /initrd' boot >"$work/boot.cfg"
    grub-mkimage -d "$GRUB" -O i386-pc -p '(hd0,msdos1)/' -c "$work/boot.cfg" -o "$work/core" \
        biosdisk part_msdos ext2 linux boot
    dd if="$GRUB/boot.img" of="$out" bs=440 count=1 conv=notrunc status=none
    dd if="$work/core" of="$out" bs=512 seek=1 conv=notrunc status=none
}

for v in "$out" "$content" "$type"; do
    [ -n "$v" ] || die "-o, --content and --type are needed (see --help)"
done
make_fs "$work/fs" "$@"
if [ "$label" = none ]; then
    mv "$work/fs" "$out"
else
    add_table "${grub:+, bootable}"
fi
[ -z "$grub" ] || add_grub
