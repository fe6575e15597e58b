//! Contents that can be recognized: each sector says where it is and of which generation.

use vhost_user_zram_frontend::{Blk, Op, Random, Shape, spec::SECTOR};

use super::daemon::Daemon;

/// Bytes of a sector as an index.
pub const SECTOR_LEN: usize = SECTOR as usize;

/// `sectors` sectors as generation `generation` has them from `sector` on: half a sector is its own
/// number again and again, the other half is random, so that pages are compressible, but not trivially.
pub fn pattern(sector: u64, sectors: usize, generation: u64) -> Vec<u8> {
    let mut data = vec![0; sectors * SECTOR_LEN];
    for (i, bytes) in data.chunks_mut(SECTOR_LEN).enumerate() {
        let number = sector + i as u64;
        let mut random = Random::new(number.wrapping_mul(0x1_0001) ^ generation << 40);
        let (plain, noise) = bytes.split_at_mut(SECTOR_LEN / 2);
        for word in plain.chunks_mut(16) {
            word[..8].copy_from_slice(&number.to_le_bytes());
            word[8..].copy_from_slice(&generation.to_le_bytes());
        }
        random.fill(noise);
    }
    data
}

/// Writes generation `generation` to `sectors` sectors.
pub fn write_pattern(blk: &mut Blk, sector: u64, sectors: usize, generation: u64) {
    blk.write(sector, &pattern(sector, sectors, generation)).expect("write");
}

/// Reads `sectors` sectors and insists on generation `generation`.
pub fn expect_pattern(blk: &mut Blk, sector: u64, sectors: usize, generation: u64) {
    let got = blk.read_vec(sector, sectors * SECTOR_LEN).expect("read");
    expect_same(sector, &got, &pattern(sector, sectors, generation));
}

/// Reads `sectors` sectors and insists on zeroes.
pub fn expect_zeroes(blk: &mut Blk, sector: u64, sectors: usize) {
    let got = blk.read_vec(sector, sectors * SECTOR_LEN).expect("read");
    expect_same(sector, &got, &vec![0; sectors * SECTOR_LEN]);
}

/// Compares without printing megabytes.
pub fn expect_same(sector: u64, got: &[u8], expected: &[u8]) {
    assert_eq!(got.len(), expected.len());
    let pairs = got.chunks(SECTOR_LEN).zip(expected.chunks(SECTOR_LEN)).enumerate();
    for (i, (got, expected)) in pairs {
        let at = got.iter().zip(expected).position(|(a, b)| a != b);
        if let Some(at) = at {
            let to = (at + 16).min(got.len());
            panic!(
                "sector {}, byte {at}: {:02x?} in place of {:02x?}",
                sector + i as u64,
                &got[at..to],
                &expected[at..to]
            );
        }
    }
}

/// First sector of what [`mark`] writes.
pub const MARK_AT: u64 = 64;
/// Sectors of it.
pub const MARK_LEN: usize = 256;

/// Writes what [`expect_served`] will look for.
pub fn mark(daemon: &Daemon) {
    write_pattern(daemon.client().blk(), MARK_AT, MARK_LEN, 1);
}

/// Insists that a good client is served, finds what [`mark`] wrote, and can write.
pub fn expect_served(daemon: &mut Daemon) {
    assert!(daemon.is_alive(), "the daemon is dead");
    let mut client = daemon.client();
    expect_pattern(client.blk(), MARK_AT, MARK_LEN, 1);
    // Beyond the mark; the generation is another each time.
    let again = client.blk().read_vec(8, 8).map_or(0, |b| u64::from(b[0])) + 2;
    write_pattern(client.blk(), 1000, 24, again);
    expect_pattern(client.blk(), 1000, 24, again);
    client.blk().flush().expect("flush");
}

/// Submits a write of a page of generation `generation` if there is a slot; the page is its `user`.
pub fn submit(blk: &mut Blk, page: u64, generation: u64) -> bool {
    let Some(tag) = blk.acquire() else { return false };
    let buffer = blk.buffer(tag);
    blk.region().write(buffer, &pattern(page * 8, 8, generation)).unwrap();
    blk.submit_shaped(tag, Op::Out, page * 8, 4096, &Shape::default(), page).unwrap();
    true
}
