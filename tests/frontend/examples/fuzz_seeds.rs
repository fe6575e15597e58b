//! First inputs of the fuzz targets, made by code so that a reader sees what each of them is.
//!
//! `cargo run -p vhost-user-zram-frontend --example fuzz_seeds -- DIR` writes `DIR/TARGET/NAME`.
//! Without them libFuzzer would have to find a ring with a valid request, or a sequence of valid
//! messages, by chance. The layouts are those of `src/*/fuzzing.rs`.

use std::error::Error;
use std::fs;
use std::path::Path;

use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures};
use vhost_user_zram_frontend::ring::Desc;
use vhost_user_zram_frontend::spec::{
    DESC_LEN, HEADER_LEN, T_DISCARD, T_FLUSH, T_GET_ID, T_IN, T_OUT, T_WRITE_ZEROES, feature,
};
use vhost_user_zram_frontend::wire::{
    FLAG_NEED_REPLY, FLAG_VERSION, header, memory_region, vring_addr, vring_state,
};

/// Where the fuzzed guest's available ring lies; its descriptors start at 0.
const AVAIL: usize = 0x100;
/// Where request headers lie, one behind the other.
const HEADERS: usize = 0x300;
/// Where status bytes and the segments of discards lie.
const STATUS: u64 = 0x400;
const SEGMENT: u64 = 0x500;
/// Where an indirect table lies.
const TABLE: usize = 0x600;
/// A page of the guest's memory that is not part of the input.
const PAGE: u64 = 0x2000;
const PAGE_LEN: u32 = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args_os().nth(1).ok_or("usage: fuzz_seeds DIR")?;
    for (target, seeds) in
        [("virtqueue", virtqueues()), ("session", sessions()), ("state", states())]
    {
        let dir = Path::new(&dir).join(target);
        fs::create_dir_all(&dir)?;
        for (name, bytes) in seeds {
            fs::write(dir.join(name), bytes)?;
        }
    }
    Ok(())
}

type Seeds = Vec<(&'static str, Vec<u8>)>;

/// The first bytes of a guest's memory.
struct Guest(Vec<u8>);

impl Guest {
    fn new() -> Self {
        Self(vec![0; TABLE + 8 * DESC_LEN as usize])
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn chain(&mut self, first: u16, descriptors: &[Desc]) {
        for (at, desc) in descriptors.iter().enumerate() {
            let last = at + 1 == descriptors.len();
            let index = first + at as u16;
            let desc = if last { *desc } else { desc.then(index + 1) };
            self.put(usize::from(index) * DESC_LEN as usize, &desc.bytes());
        }
    }

    /// The request header with this number; returns its descriptor.
    fn header(&mut self, number: usize, kind: u32, sector: u64) -> Desc {
        let at = HEADERS + number * HEADER_LEN as usize;
        self.put(at, &kind.to_le_bytes());
        self.put(at + 8, &sector.to_le_bytes());
        Desc::readable(at as u64, HEADER_LEN)
    }

    /// Makes these chains available.
    fn offer(mut self, heads: &[u16]) -> Vec<u8> {
        self.put(AVAIL + 2, &(heads.len() as u16).to_le_bytes());
        for (at, head) in heads.iter().enumerate() {
            self.put(AVAIL + 4 + 2 * at, &head.to_le_bytes());
        }
        self.0
    }
}

/// A discard or write-zeroes segment: sector, sectors, flags.
fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

fn virtqueues() -> Seeds {
    let status = |number: u64| Desc::writable(STATUS + number, 1);
    let one = |kind, sector, data: Desc| {
        let mut guest = Guest::new();
        let header = guest.header(0, kind, sector);
        guest.put(SEGMENT as usize, &segment(8, 16, 0));
        guest.chain(0, &[header, data, status(0)]);
        guest.offer(&[0])
    };
    let mut flush = Guest::new();
    let header = flush.header(0, T_FLUSH, 0);
    flush.chain(0, &[header, status(0)]);

    // A write, a write of a part of the page, and a read of it, all available at once.
    let mut three = Guest::new();
    for (number, (kind, data)) in [
        (T_OUT, Desc::readable(0, PAGE_LEN)),
        (T_OUT, Desc::readable(PAGE, 512)),
        (T_IN, Desc::writable(PAGE, PAGE_LEN)),
    ]
    .into_iter()
    .enumerate()
    {
        let header = three.header(number, kind, 8);
        three.chain(number as u16 * 4, &[header, data, status(number as u64)]);
    }

    let mut indirect = Guest::new();
    let header = indirect.header(0, T_OUT, 16);
    let parts = [header.then(1), Desc::readable(0, PAGE_LEN).then(2), status(0)];
    for (at, desc) in parts.iter().enumerate() {
        indirect.put(TABLE + at * DESC_LEN as usize, &desc.bytes());
    }
    indirect.chain(0, &[Desc::indirect(TABLE as u64, parts.len() as u32 * DESC_LEN as u32)]);

    let mut cycle = Guest::new();
    let header = cycle.header(0, T_IN, 0);
    cycle.chain(0, &[header, Desc::writable(PAGE, PAGE_LEN).then(0)]);
    cycle.put(DESC_LEN as usize, &Desc::writable(PAGE, PAGE_LEN).then(0).bytes());

    vec![
        ("read", one(T_IN, 0, Desc::writable(PAGE, PAGE_LEN))),
        ("read-past-the-end", one(T_IN, 2047, Desc::writable(PAGE, PAGE_LEN))),
        ("write", one(T_OUT, 8, Desc::readable(0, PAGE_LEN))),
        ("write-part", one(T_OUT, 9, Desc::readable(0, 512))),
        ("get-id", one(T_GET_ID, 0, Desc::writable(PAGE, 20))),
        ("discard", one(T_DISCARD, 0, Desc::readable(SEGMENT, 16))),
        ("write-zeroes", one(T_WRITE_ZEROES, 0, Desc::readable(SEGMENT, 16))),
        ("flush", flush.offer(&[0])),
        ("three", three.offer(&[0, 4, 8])),
        ("indirect", indirect.offer(&[0])),
        ("cycle", cycle.offer(&[0])),
    ]
}

fn message(code: FrontendReq, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = header(u32::from(code), FLAG_VERSION | flags, body.len() as u32).to_vec();
    bytes.extend_from_slice(body);
    bytes
}

fn ask(code: FrontendReq, body: &[u8]) -> Vec<u8> {
    message(code, FLAG_NEED_REPLY, body)
}

fn sessions() -> Seeds {
    use FrontendReq as Req;
    use VhostUserProtocolFeatures as Protocol;
    let protocol = Protocol::MQ
        | Protocol::CONFIG
        | Protocol::REPLY_ACK
        | Protocol::CONFIGURE_MEM_SLOTS
        | Protocol::INFLIGHT_SHMFD;
    // A session ends at the first feature that was not offered.
    let features = feature::ALL & !feature::RO;
    let hello = [
        message(Req::GET_FEATURES, 0, &[]),
        message(Req::GET_PROTOCOL_FEATURES, 0, &[]),
        message(Req::SET_PROTOCOL_FEATURES, 0, &protocol.bits().to_le_bytes()),
        message(Req::SET_OWNER, 0, &[]),
        ask(Req::SET_FEATURES, &features.to_le_bytes()),
    ]
    .concat();
    // Offset, size and flags, and room for the answer.
    let config = [&0_u32.to_le_bytes()[..], &60_u32.to_le_bytes(), &[0; 4], &[0; 60]].concat();
    let ring = [
        ask(Req::SET_VRING_NUM, &vring_state(0, 16)),
        ask(Req::SET_VRING_BASE, &vring_state(0, 0)),
        ask(Req::SET_VRING_ADDR, &vring_addr(0, 0, 0, 0x200, 0x100, 0)),
        // Bit 8 says that no descriptor comes with it.
        ask(Req::SET_VRING_CALL, &0x100_u64.to_le_bytes()),
        ask(Req::SET_VRING_ERR, &0x100_u64.to_le_bytes()),
        ask(Req::SET_VRING_KICK, &0x100_u64.to_le_bytes()),
        ask(Req::SET_VRING_ENABLE, &vring_state(0, 1)),
        ask(Req::GET_VRING_BASE, &vring_state(0, 0)),
    ]
    .concat();
    // Size and offset of the region, number and size of the queues.
    let inflight = [
        &0_u64.to_le_bytes()[..],
        &0_u64.to_le_bytes(),
        &2_u16.to_le_bytes(),
        &64_u16.to_le_bytes(),
        &[0; 4],
    ]
    .concat();
    let region = memory_region(0, 0x1_0000, 0, 0);
    let with = |more: &[Vec<u8>]| [hello.clone(), more.concat()].concat();
    vec![
        ("hello", hello.clone()),
        ("config", with(&[ask(Req::GET_CONFIG, &config), ask(Req::SET_CONFIG, &config)])),
        ("queues", with(&[ask(Req::GET_QUEUE_NUM, &[])])),
        ("ring", with(&[ring])),
        ("inflight", with(&[ask(Req::GET_INFLIGHT_FD, &inflight)])),
        ("inflight-without-file", with(&[ask(Req::SET_INFLIGHT_FD, &inflight)])),
        (
            "memory-without-files",
            with(&[ask(
                Req::SET_MEM_TABLE,
                &[&1_u32.to_le_bytes()[..], &[0; 4], &region].concat(),
            )]),
        ),
        (
            "memory-slots",
            with(&[
                ask(Req::GET_MAX_MEM_SLOTS, &[]),
                ask(Req::ADD_MEM_REG, &[&[0; 8][..], &region].concat()),
                ask(Req::REM_MEM_REG, &[&[0; 8][..], &region].concat()),
            ]),
        ),
        ("reset", with(&[ask(Req::RESET_OWNER, &[]), ask(Req::RESET_DEVICE, &[])])),
    ]
}

/// Each kind of damage alone, and some of them together.
fn states() -> Seeds {
    let step = |kind: u8| vec![kind, 17 * kind, kind, 5 * kind, kind & 6];
    let mut seeds: Seeds = [
        "superblock",
        "superblock-and-sum",
        "intents",
        "table",
        "swap",
        "arena",
        "hole",
        "cut",
        "locks",
    ]
    .into_iter()
    .zip((0..).map(step))
    .collect();
    seeds.push(("arena-and-locks", [step(5), step(8)].concat()));
    seeds.push(("table-and-hole", [step(3), step(6), step(6)].concat()));
    seeds
}
