use vm_memory::{GuestAddress, GuestAddressSpace};

use super::*;
use crate::virtq::chain::{Chain, ChainError, Segment, total, trim_front, trim_last_byte};
use crate::virtq::memory::for_tests;

fn read(size: u16, direct: &[Desc], indirect: &[Desc]) -> Result<Chain, ChainError> {
    let map = for_tests(0, 1 << 20);
    let shared = map.shared();
    let memory = shared.memory();
    put(&memory, TABLE, direct);
    put(&memory, INDIRECT, indirect);
    let mut chain = Chain::default();
    chain.read(&memory, table(size), 0).map(|()| chain)
}

fn segment(addr: u64, len: u32) -> Segment {
    Segment { addr: GuestAddress(addr), len }
}

#[test]
fn segments_come_in_order_and_by_direction() {
    let chain = read(
        8,
        &[
            desc(0x5000, 16, NEXT, 3),
            desc(0, 0, 0, 0),
            desc(0x7000, 1, WRITE, 0),
            desc(0x6000, 512, NEXT | WRITE, 2),
        ],
        &[],
    )
    .unwrap();
    assert_eq!(chain.readable, [segment(0x5000, 16)]);
    assert_eq!(chain.writable, [segment(0x6000, 512), segment(0x7000, 1)]);
    assert!(!chain.misordered);
}

#[test]
fn an_indirect_table_may_end_a_direct_chain_and_its_write_flag_means_nothing() {
    let chain = read(
        8,
        &[desc(0x5000, 16, NEXT, 1), desc(INDIRECT, 32, INDIRECT_FLAG | WRITE, 0)],
        &[desc(0x6000, 4096, NEXT, 1), desc(0x7000, 1, WRITE, 9)],
    )
    .unwrap();
    assert_eq!(chain.readable, [segment(0x5000, 16), segment(0x6000, 4096)]);
    assert_eq!(chain.writable, [segment(0x7000, 1)]);
}

#[test]
fn an_indirect_table_may_be_longer_than_the_ring() {
    let indirect: Vec<_> = (0..20).map(|at| desc(0x5000, 8, u16::from(at < 19), at + 1)).collect();
    let chain = read(8, &[desc(INDIRECT, 320, INDIRECT_FLAG, 0)], &indirect).unwrap();
    assert_eq!(total(&chain.readable), 160);
}

#[test]
fn every_broken_chain_is_told_apart_from_a_short_one() {
    let cases = [
        (ChainError::Loop, vec![desc(0x5000, 16, NEXT, 0)], vec![]),
        (ChainError::NextOutOfRange, vec![desc(0x5000, 16, NEXT, 8)], vec![]),
        (
            ChainError::IndirectWithNext,
            vec![desc(INDIRECT, 16, INDIRECT_FLAG | NEXT, 1)],
            vec![desc(0x5000, 16, 0, 0)],
        ),
        (ChainError::IndirectLength, vec![desc(INDIRECT, 0, INDIRECT_FLAG, 0)], vec![]),
        (ChainError::IndirectLength, vec![desc(INDIRECT, 24, INDIRECT_FLAG, 0)], vec![]),
        (ChainError::IndirectLength, vec![desc(INDIRECT, 16 * 1025, INDIRECT_FLAG, 0)], vec![]),
        (ChainError::IndirectLength, vec![desc(INDIRECT, u32::MAX - 15, INDIRECT_FLAG, 0)], vec![]),
        (ChainError::Unreachable, vec![desc((1 << 20) - 8, 16, INDIRECT_FLAG, 0)], vec![]),
        (ChainError::Unreachable, vec![desc(u64::MAX - 7, 16, INDIRECT_FLAG, 0)], vec![]),
        (
            ChainError::NestedIndirect,
            vec![desc(INDIRECT, 16, INDIRECT_FLAG, 0)],
            vec![desc(INDIRECT, 16, INDIRECT_FLAG, 0)],
        ),
        (
            ChainError::Loop,
            vec![desc(INDIRECT, 32, INDIRECT_FLAG, 0)],
            vec![desc(0x5000, 1, NEXT, 1), desc(0x5000, 1, NEXT, 0)],
        ),
        (
            ChainError::NextOutOfRange,
            vec![desc(INDIRECT, 32, INDIRECT_FLAG, 0)],
            vec![desc(0x5000, 1, NEXT, 2)],
        ),
    ];
    for (at, (error, direct, indirect)) in cases.into_iter().enumerate() {
        assert_eq!(read(8, &direct, &indirect).err(), Some(error), "case {at}");
    }
}

#[test]
fn a_readable_segment_after_a_writable_one_is_noted() {
    let chain = read(8, &[desc(0x5000, 1, WRITE | NEXT, 1), desc(0x6000, 16, 0, 0)], &[]).unwrap();
    assert!(chain.misordered);
}

#[test]
fn trimming_goes_over_segment_borders() {
    let mut segments = vec![segment(0x100, 10), segment(0x200, 0), segment(0x300, 10)];
    assert!(trim_front(&mut segments, 16));
    assert_eq!(segments, [segment(0x306, 4)]);
    assert!(trim_front(&mut segments, 4));
    assert!(segments.is_empty());
    assert!(!trim_front(&mut segments, 1));

    let mut segments = vec![segment(0x100, 2), segment(0x200, 1), segment(0x300, 0)];
    assert_eq!(trim_last_byte(&mut segments), Some(GuestAddress(0x200)));
    assert_eq!(trim_last_byte(&mut segments), Some(GuestAddress(0x101)));
    assert_eq!(trim_last_byte(&mut segments), Some(GuestAddress(0x100)));
    assert_eq!(trim_last_byte(&mut segments), None);
}
