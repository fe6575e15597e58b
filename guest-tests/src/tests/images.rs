//! Disk images as other people make them, and a disk that a BIOS boots from.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    artifacts::{md5, output},
    machine::{Machine, sized},
};

/// Name, partition table, file system, what else mkfs is told. All but the last two mean nothing on a disk
/// whose logical block is 4096.
const IMAGES: [(&str, &str, &str, &[&str]); 7] = [
    ("gpt-ext4", "gpt", "ext4", &[]),
    ("mbr-ext4", "dos", "ext4", &[]),
    ("ext4-1k", "none", "ext4", &["-b", "1024"]),
    ("vfat", "none", "vfat", &[]),
    ("xfs", "none", "xfs", &[]),
    ("ext4-4k", "none", "ext4", &["-b", "4096"]),
    ("btrfs", "none", "btrfs", &[]),
];

/// Makes an image by `make-image.sh`.
fn make_image(machine: &Machine<'_>, out: &Path, content: &Path, args: &[&str]) -> Result<()> {
    let mut command = Command::new(machine.setup.here.join("make-image.sh"));
    command.arg("-o").arg(out).arg("--content").arg(content).args(args);
    output(&mut command).map(drop)
}

/// A guest with seven more disks, each filled from an image by `--load` alone.
pub fn images(machine: &mut Machine<'_>) -> Result<String> {
    machine.setup.need(&[
        "mkfs.xfs=xfsprogs",
        "mkfs.btrfs=btrfs-progs",
        "mkfs.vfat=dosfstools",
        "mcopy=mtools",
        "sfdisk=fdisk",
    ])?;
    let content = machine.path("content");
    let (corpus, here) = (machine.setup.corpus.clone(), machine.setup.here.clone());
    let mut make = Command::new(here.join("make-image.sh"));
    output(make.arg("--make-content").arg(&content).arg("--corpus").arg(corpus))?;
    machine.start_daemon()?;
    let mut told = Vec::new();
    for (name, label, kind, more) in IMAGES {
        let image = machine.path(&format!("{name}.img"));
        let mut args = vec!["--label", label, "--type", kind, "--"];
        args.extend(more);
        make_image(machine, &image, &content, &args).with_context(|| format!("image {name}"))?;
        let mut args = sized(fs::metadata(&image)?.len(), None);
        args.extend(["--load".into(), image.clone().into()]);
        let socket = machine.start_beside(name, args)?;
        // It is in memory now, twice.
        fs::remove_file(&image)?;
        let more: [OsString; 4] = [
            "-chardev".into(),
            format!("socket,id={name},path={}", socket.display()).into(),
            "-device".into(),
            format!("vhost-user-blk-pci,chardev={name},num-queues=1").into(),
        ];
        machine.shape.more.extend(more);
        told.push(format!("{name}:{label}:{kind}"));
    }
    machine.start_guest()?;
    let told: Vec<_> = told.iter().map(String::as_str).collect();
    let mounted = machine.ask("images", &told)?.number("images")?;
    ensure!(mounted == IMAGES.len() as u64, "{mounted} images of {}", IMAGES.len());
    Ok(format!("{mounted} images mounted, read and written"))
}

/// A disk as an installer leaves it: a boot loader, and a kernel on a partition. The firmware finds all of
/// it by itself.
pub fn bios(machine: &mut Machine<'_>) -> Result<String> {
    let setup = machine.setup;
    setup.need(&["sfdisk=fdisk", "grub-mkimage=grub-common"])?;
    if !Path::new("/usr/lib/grub/i386-pc/boot.img").is_file() {
        let _one = setup.installing.lock();
        setup.shell("apt_install grub-pc-bin", &[])?;
    }
    let kernel = &machine.combination.kernel;
    let (content, image) = (machine.path("content"), machine.path("boot.img"));
    fs::create_dir(&content)?;
    fs::copy(&kernel.path, content.join("vmlinuz"))?;
    setup.make_boot_initrd(kernel, &content.join("initrd"))?;
    make_image(machine, &image, &content, &["--label", "dos", "--type", "ext4", "--grub"])?;
    machine.daemon_args = sized(fs::metadata(&image)?.len(), Some(2));
    machine.daemon_args.extend(["--load".into(), PathBuf::from(&image).into()]);
    machine.shape.bios = true;
    machine.start_daemon()?;
    machine.start_guest()?;
    let found = machine.event("booted", |_| true)?;
    let (block, sum) = (found.number("block")?, found.word("md5")?);
    let wanted = md5(&machine.combination.kernel.path)?;
    ensure!(sum == wanted, "the kernel on the disk has MD5 {sum}, not {wanted}");
    ensure!(block == 512, "a loaded disk has blocks of {block} bytes");
    Ok("booted from blocks of 512 bytes, its kernel is as it was put there".to_owned())
}
