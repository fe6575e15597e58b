//! In-flight tracking: the region that a front end keeps, what a daemon makes of one that another has
//! left, and what it does with one that no daemon can have left.

mod common;

use std::{process::Command, sync::Arc};

use common::{
    daemon::{BINARY, Daemon, TempDir, client_options, session_options},
    disk::{expect_pattern, expect_served, expect_zeroes, mark, pattern, submit},
    memfd,
    raw::{GPA, MEMORY, SIZE},
    wait_until,
};
use nix::sys::signal::Signal;
use vhost::vhost_user::message::VhostUserInflight;
use vhost_user_zram_frontend::{
    Client, ClientOptions, Desc, Inflight, Queue, Random, Region, Result, Session, Status,
    inflight::{Entry, Header, stride},
    spec::{HEADER_LEN, T_OUT},
};

/// Where the ring of a daemon that died stands.
const STAND: u16 = 100;
/// Status byte of a request that was not answered.
const UNANSWERED: u8 = 0xee;

/// A ring with requests laid out by hand, and a region that says what is in flight. Request `n` is a
/// write of a page whose chain begins at descriptor `3 n`.
struct Hand {
    session: Session,
    region: Arc<Region>,
    queue: Queue,
    inflight: Inflight,
    /// Headers and status bytes, 64 bytes a request; data, 4 KiB a request.
    headers: u64,
    data: u64,
    /// First sector of request 0.
    sector: u64,
}

impl Hand {
    fn new(daemon: &Daemon, sector: u64) -> Self {
        let session = daemon.session();
        let inflight = session.take_inflight(1, SIZE).expect("GET_INFLIGHT_FD").expect("offered");
        let region = Region::new(GPA, MEMORY).expect("memory");
        let queue = Queue::new(0, &region, SIZE, true).expect("queue");
        let headers = region.alloc(4096, 4096).expect("headers");
        let data = region.alloc(5 * 4096, 4096).expect("data");
        let hand = Self { session, region, queue, inflight, headers, data, sector };
        (0..5).for_each(|n| hand.lay(n));
        hand
    }

    fn sector(&self, n: u16) -> u64 {
        self.sector + 8 * u64::from(n)
    }

    fn lay(&self, n: u16) {
        let (header, data) = (self.headers + 64 * u64::from(n), self.data + 4096 * u64::from(n));
        let mut bytes = [0; HEADER_LEN as usize];
        bytes[..4].copy_from_slice(&T_OUT.to_le_bytes());
        bytes[8..].copy_from_slice(&self.sector(n).to_le_bytes());
        self.region.write(header, &bytes).expect("header");
        self.region.write(header + 32, &[UNANSWERED]).expect("status");
        self.region.write(data, &pattern(self.sector(n), 8, 1)).expect("data");
        let chain = [
            Desc::readable(header, HEADER_LEN).then(3 * n + 1),
            Desc::readable(data, 4096).then(3 * n + 2),
            Desc::writable(header + 32, 1),
        ];
        for (at, desc) in (3 * n..).zip(chain) {
            self.queue.ring().set_desc(at, desc).expect("descriptor");
        }
    }

    /// Makes requests available behind `at`.
    fn offer(&self, at: u16, requests: &[u16]) {
        let ring = self.queue.ring();
        for (place, n) in requests.iter().enumerate() {
            ring.set_avail(at.wrapping_add(place as u16), 3 * n).expect("available ring");
        }
        ring.set_avail_idx(at.wrapping_add(requests.len() as u16)).expect("available index");
    }

    /// Has the region say that requests are in flight, taken in this order.
    fn mark(&self, requests: &[u16]) {
        let header = Header { version: 1, desc_num: SIZE, used_idx: STAND, ..Header::default() };
        self.inflight.set_header(0, header);
        for (counter, n) in (21..).zip(requests) {
            self.inflight.set_entry(0, 3 * n, Entry { in_flight: 1, next: 0, counter });
        }
    }

    fn start(&mut self, base: u16) -> Result<()> {
        let wiring = self.queue.wiring();
        self.session.give_inflight(&self.inflight)?;
        self.session.set_mem_table(&[Arc::clone(&self.region)])?;
        self.session.wire_up(wiring, base)?;
        self.session.enable(0, true)
    }

    fn used_idx(&self) -> u16 {
        self.queue.ring().used_idx().expect("used index")
    }

    /// Requests in the used ring from `from` on.
    fn used(&self, from: u16) -> Vec<u16> {
        let count = self.used_idx().wrapping_sub(from);
        let at = |n: u16| self.queue.ring().used(from.wrapping_add(n)).expect("used ring");
        (0..count).map(|n| at(n).id as u16 / 3).collect()
    }

    fn wait_used(&self, index: u16) {
        wait_until("the used index", || self.used_idx() == index);
    }

    fn status(&self, n: u16) -> u8 {
        self.region.read_vec(self.headers + 64 * u64::from(n) + 32, 1).expect("status")[0]
    }

    /// Insists that of the five requests those in `done` were done and no other.
    fn expect_done(self, daemon: &Daemon, done: &[u16]) {
        let statuses: Vec<u8> = (0..5).map(|n| self.status(n)).collect();
        let sectors: Vec<u64> = (0..5).map(|n| self.sector(n)).collect();
        drop(self);
        let mut client = daemon.client();
        for n in 0..5_u16 {
            let at = sectors[usize::from(n)];
            if done.contains(&n) {
                assert_eq!(statuses[usize::from(n)], 0, "request {n}");
                expect_pattern(client.blk(), at, 8, 1);
            } else {
                assert_eq!(statuses[usize::from(n)], UNANSWERED, "request {n}");
                expect_zeroes(client.blk(), at, 8);
            }
        }
    }
}

#[test]
fn requests_in_flight_are_done_first_in_their_order_and_once() {
    let mut daemon = Daemon::start("16M", &[]);
    mark(&daemon);
    let mut hand = Hand::new(&daemon, 4096);
    hand.queue.ring().set_used_idx(STAND).unwrap();
    // The daemon that died had done 3, the last that it took, and had not seen 1.
    hand.offer(STAND - 1, &[3, 4, 0, 2, 1]);
    hand.mark(&[4, 0, 2]);
    hand.inflight.set_entry(0, 9, Entry { in_flight: 0, next: 0, counter: 24 });
    hand.start(STAND).unwrap();
    hand.wait_used(STAND + 4);
    assert_eq!(hand.used(STAND), [4, 0, 2, 1]);
    wait_until("the region", || hand.inflight.header(0).used_idx == STAND + 4);
    assert_eq!(hand.inflight.in_flight(0), [0; 0]);
    assert!(hand.inflight.entry(0, 3).counter > 24, "it counts on");
    let line = "queue 0: resubmits 3 requests in flight, 1 later ones had been completed";
    daemon.wait_for_log(line);
    hand.expect_done(&daemon, &[0, 1, 2, 4]);
    expect_served(&mut daemon);
}

/// A region that has no room for larger rings is one of a daemon of the version before, or of another one.
#[test]
fn a_region_of_just_the_size_that_was_asked_for_is_taken_over() {
    let mut daemon = Daemon::start("16M", &[]);
    mark(&daemon);
    let mut hand = Hand::new(&daemon, 4096);
    let info = VhostUserInflight::new(stride(SIZE), 0, 1, SIZE);
    hand.inflight = Inflight::new(info, memfd(stride(SIZE))).unwrap();
    hand.queue.ring().set_used_idx(STAND).unwrap();
    hand.offer(STAND, &[3, 1, 0]);
    hand.mark(&[3, 1]);
    hand.start(STAND).unwrap();
    hand.wait_used(STAND + 3);
    assert_eq!(hand.used(STAND), [3, 1, 0]);
    daemon.wait_for_log("queue 0: resubmits 2 requests in flight, 0 later ones");
    hand.session.stop(0).unwrap();
    let header = hand.inflight.header(0);
    assert_eq!((header.version, header.desc_num, header.used_idx), (1, SIZE, STAND + 3));
    assert_eq!(hand.inflight.in_flight(0), [0; 0]);
    hand.expect_done(&daemon, &[0, 1, 3]);
    expect_served(&mut daemon);
}

/// What the daemon does for a batch of two, 2 and then 0, stopped behind each of its stores.
#[test]
fn a_batch_that_was_given_back_by_half_is_finished_once() {
    type Step = fn(&Hand);
    let steps: [(&str, Step); 9] = [
        ("marked", |_| {}),
        ("the first is chained", |hand| {
            let entry = hand.inflight.entry(0, 6);
            hand.inflight.set_entry(0, 6, Entry { next: 12, ..entry });
            hand.inflight.set_header(0, Header { last_batch_head: 6, ..hand.inflight.header(0) });
        }),
        ("the second has its next", |hand| {
            let entry = hand.inflight.entry(0, 0);
            hand.inflight.set_entry(0, 0, Entry { next: 6, ..entry });
        }),
        ("the second is chained", |hand| {
            hand.inflight.set_header(0, Header { last_batch_head: 0, ..hand.inflight.header(0) });
        }),
        ("the elements are written", |hand| {
            let used = hand.queue.ring().addresses().2;
            for (at, head) in [(STAND, 6_u32), (STAND + 1, 0)] {
                let place = used + 4 + 8 * u64::from(at % SIZE);
                hand.region.write(place, &head.to_le_bytes()).unwrap();
            }
        }),
        ("the index is stored", |hand| hand.queue.ring().set_used_idx(STAND + 2).unwrap()),
        ("the first is unmarked", |hand| {
            let entry = hand.inflight.entry(0, 6);
            hand.inflight.set_entry(0, 6, Entry { in_flight: 0, ..entry });
        }),
        ("the second is unmarked", |hand| {
            let entry = hand.inflight.entry(0, 0);
            hand.inflight.set_entry(0, 0, Entry { in_flight: 0, ..entry });
        }),
        ("the index is noted", |hand| {
            let header = hand.inflight.header(0);
            hand.inflight.set_header(0, Header { used_idx: STAND + 2, ..header });
        }),
    ];
    let daemon = Daemon::start("16M", &[]);
    mark(&daemon);
    for (last, (name, _)) in steps.iter().enumerate() {
        let mut hand = Hand::new(&daemon, 4096 + 64 * last as u64);
        hand.queue.ring().set_used_idx(STAND).unwrap();
        hand.offer(STAND, &[0, 1, 2, 3, 4]);
        hand.mark(&[0, 1, 2, 3, 4]);
        steps[..=last].iter().for_each(|(_, step)| step(&hand));
        let published = hand.used_idx() - STAND;
        hand.start(STAND).unwrap();
        hand.wait_used(STAND + 5);
        let left: &[u16] = if published == 0 { &[0, 1, 2, 3, 4] } else { &[1, 3, 4] };
        assert_eq!(hand.used(STAND + published), left, "{name}");
        hand.session.stop(0).unwrap();
        assert_eq!(hand.inflight.in_flight(0), [0; 0], "{name}");
        assert_eq!(hand.inflight.header(0).used_idx, STAND + 5, "{name}");
        hand.expect_done(&daemon, left);
    }
    let lines = daemon.log();
    let count = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    assert_eq!(count("resubmits 5 requests in flight, 0 later"), 5, "{lines:?}");
    assert_eq!(count("resubmits 3 requests in flight, 1 later"), 4, "{lines:?}");
}

/// A part that was never used says nothing of a ring that was, and must not do so the next time.
#[test]
fn a_fresh_region_of_a_used_ring_begins_at_its_used_index() {
    let daemon = Daemon::start("16M", &[]);
    mark(&daemon);
    let mut hand = Hand::new(&daemon, 4096);
    hand.queue.ring().set_used_idx(STAND).unwrap();
    hand.offer(STAND, &[0]);
    hand.start(STAND).unwrap();
    hand.wait_used(STAND + 1);
    hand.session.stop(0).unwrap();
    let header = hand.inflight.header(0);
    assert_eq!((header.version, header.desc_num, header.used_idx), (1, SIZE, STAND + 1));
    assert_eq!(hand.inflight.entry(0, 0).counter, 1);
    // With the first head in flight again; as of an index of 0 it would be taken for given back.
    hand.offer(STAND + 1, &[0]);
    hand.inflight.set_entry(0, 0, Entry { in_flight: 1, next: 0, counter: 2 });
    hand.start(STAND + 1).unwrap();
    hand.wait_used(STAND + 2);
    assert_eq!(hand.used(STAND), [0, 0]);
}

/// Whatever a region says that cannot be of its ring, nothing is done for it.
#[test]
fn a_region_that_cannot_be_of_its_ring_is_refused() {
    type Spoil = fn(&Hand);
    let head = |hand: &Hand, change: fn(&mut Header)| {
        let mut header = hand.inflight.header(0);
        change(&mut header);
        hand.inflight.set_header(0, header);
    };
    let spoils: [Spoil; 10] = [
        |hand| hand.queue.ring().set_used_idx(STAND + SIZE + 1).unwrap(),
        |hand| hand.queue.ring().set_used_idx(STAND - 1).unwrap(),
        // A chain that leads to itself, and one that leads outside.
        |hand| {
            hand.queue.ring().set_used_idx(STAND + 2).unwrap();
            hand.inflight.set_entry(0, 0, Entry { in_flight: 1, next: 0, counter: 21 });
        },
        |hand| {
            hand.queue.ring().set_used_idx(STAND + 2).unwrap();
            hand.inflight.set_entry(0, 0, Entry { in_flight: 1, next: SIZE, counter: 21 });
        },
        |hand| hand.inflight.set_entry(0, 5, Entry { in_flight: 2, next: 0, counter: 30 }),
        // More than the guest waits for.
        |hand| hand.offer(STAND, &[0]),
        |hand| hand.inflight.set_header(0, Header { features: 1, ..hand.inflight.header(0) }),
        |hand| hand.inflight.set_header(0, Header { version: 2, ..hand.inflight.header(0) }),
        |hand| hand.inflight.set_header(0, Header { version: 0, ..hand.inflight.header(0) }),
        |hand| hand.inflight.set_header(0, Header { desc_num: 128, ..hand.inflight.header(0) }),
    ];
    let mut daemon = Daemon::start("16M", &[]);
    mark(&daemon);
    for (number, spoil) in spoils.iter().enumerate() {
        let mut hand = Hand::new(&daemon, 4096);
        hand.queue.ring().set_used_idx(STAND).unwrap();
        hand.offer(STAND, &[0, 1]);
        hand.mark(&[0, 1]);
        head(&hand, |header| header.last_batch_head = 0);
        spoil(&hand);
        let before = (hand.used_idx(), hand.inflight.bytes());
        assert!(hand.start(STAND).is_err(), "spoil {number}");
        hand.session.wire().wait_closed(common::LIMIT).unwrap();
        assert_eq!((hand.used_idx(), hand.inflight.bytes()), before, "spoil {number}");
        hand.expect_done(&daemon, &[]);
    }
    daemon.wait_for_log("its in-flight region does not match the ring");
    expect_served(&mut daemon);
}

/// Also what looks right, and is not, leads to nothing that the ring does not have room for.
#[test]
fn a_region_of_garbage_does_no_harm() {
    let mut daemon = Daemon::start("16M", &[]);
    mark(&daemon);
    let mut random = Random::new(5);
    let mut served = 0;
    for round in 0..60 {
        let mut hand = Hand::new(&daemon, 4096);
        hand.queue.ring().set_used_idx(STAND).unwrap();
        hand.offer(STAND, &[2, 0, 1, 3, 4]);
        hand.mark(&[2, 0]);
        let mut bytes = hand.inflight.bytes();
        match round % 3 {
            0 => random.fill(&mut bytes),
            1 => random.fill(&mut bytes[16..]),
            _ => {
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] = random.next_u64() as u8;
            }
        }
        hand.inflight.set_bytes(&bytes);
        if hand.start(STAND).and_then(|()| hand.session.stop(0)).is_ok() {
            served += 1;
            // A lie about what is in flight has that done, but no more than was made available.
            let used = hand.used(STAND);
            assert!(used.len() <= 5, "{used:?}");
            assert!(hand.inflight.in_flight(0).is_empty());
        }
    }
    assert!(served > 0);
    expect_served(&mut daemon);
}

#[test]
fn a_region_that_is_cut_short_ends_the_session_and_nothing_else() {
    let mut daemon = Daemon::start("16M", &[]);
    mark(&daemon);
    let before = daemon.open_fds();
    // While its ring runs, and before it does.
    for running in [true, false] {
        let mut hand = Hand::new(&daemon, 4096);
        let file = memfd(4096);
        let info = VhostUserInflight::new(4096, 0, 1, SIZE);
        hand.inflight = Inflight::new(info, file.try_clone().unwrap()).unwrap();
        if running {
            hand.start(0).unwrap();
            file.set_len(0).unwrap();
            hand.offer(0, &[0]);
            hand.queue.kick().unwrap();
        } else {
            hand.session.give_inflight(&hand.inflight).unwrap();
            file.set_len(0).unwrap();
            hand.session.set_mem_table(&[Arc::clone(&hand.region)]).unwrap();
            let started = hand.session.wire_up(hand.queue.wiring(), 0);
            assert!(started.is_err(), "it was served");
        }
        hand.session.wire().wait_closed(common::LIMIT).unwrap();
        let status = hand.status(0);
        assert!(status == UNANSWERED || running && status == 0, "{status}");
        drop(hand);
    }
    wait_until("descriptors to be closed", || daemon.open_fds() <= before);
    expect_served(&mut daemon);
}

/// QEMU over virtio-mmio has rings of 1024 and asks for a region of 128. What such a ring has in flight
/// is known to the next daemon all the same.
#[test]
fn a_ring_larger_than_its_region_was_asked_for_is_taken_over() {
    let dir = TempDir::in_memory();
    let state = dir.join("state");
    let start = |crash: Option<&str>, dir: TempDir| {
        let mut command = Command::new(BINARY);
        command.arg("--socket-path").arg(dir.join("socket")).args(["--size", "16M"]);
        command.arg("--state-dir").arg(&state).arg("--create");
        command.envs(crash.map(|step| ("VUZ_CRASH_AT", step)));
        Daemon::spawn(command, dir)
    };
    let dying = start(Some("ring.index:3"), TempDir::new());
    let options = ClientOptions {
        queue_size: 1024,
        inflight_size: Some(128),
        depth: 400,
        max_bytes: 4096,
        ..client_options()
    };
    let mut client = dying.client_with(&options);
    for page in 0..300 {
        assert!(submit(client.blk(), page, 1));
    }
    client.blk().publish().unwrap();
    assert!(!dying.wait().0.success());
    // A batch was published and not ended, so the ring alone does not say what is done.
    let daemon = start(None, TempDir::new());
    client.reconnect(daemon.socket()).unwrap();
    while client.blk().busy() > 0 {
        assert_eq!(client.blk().wait(common::LIMIT).unwrap().status, Status::Ok);
    }
    expect_pattern(client.blk(), 0, 300 * 8, 1);
    let lines = daemon.log();
    assert!(!lines.iter().any(|line| line.contains("too few")), "{lines:?}");
}

/// A region that another back end made may be too small for a ring. Then the ring does without it,
/// unless something is in flight in it.
#[test]
fn a_region_too_small_for_its_ring_is_not_used_and_loses_nothing() {
    for with_state in [false, true] {
        let dir = TempDir::in_memory();
        let mut command = Command::new(BINARY);
        command.arg("--socket-path").arg(dir.join("socket")).args(["--size", "16M"]);
        if with_state {
            command.arg("--state-dir").arg(dir.join("state")).arg("--create");
        }
        let mut daemon = Daemon::spawn(command, dir);
        mark(&daemon);
        let small = || {
            let info = VhostUserInflight::new(stride(4), 0, 1, 4);
            Inflight::new(info, memfd(stride(4))).unwrap()
        };
        let mut hand = Hand::new(&daemon, 4096);
        hand.inflight = small();
        hand.offer(0, &[3, 1, 0]);
        hand.start(0).unwrap();
        hand.wait_used(3);
        assert_eq!(hand.used(0), [3, 1, 0]);
        assert_eq!(hand.inflight.bytes(), small().bytes(), "it is not written to");
        let order = if with_state { ", and completes requests in order" } else { "" };
        let line = "queue 0: the in-flight region has 4 entries, too few for this ring, which continues \
                    without it";
        daemon.wait_for_log(&format!("{line}{order}"));
        hand.expect_done(&daemon, &[0, 1, 3]);
        // What another process has left in flight there is not forgotten.
        let mut hand = Hand::new(&daemon, 8192);
        hand.inflight = small();
        let header = Header { version: 1, desc_num: 4, used_idx: STAND, ..Header::default() };
        hand.inflight.set_header(0, header);
        hand.inflight.set_entry(0, 3, Entry { in_flight: 1, next: 0, counter: 1 });
        hand.queue.ring().set_used_idx(STAND).unwrap();
        hand.offer(STAND, &[1]);
        let before = hand.inflight.bytes();
        assert!(hand.start(STAND).is_err(), "it is served");
        assert_eq!((hand.used_idx(), hand.inflight.bytes()), (STAND, before));
        daemon
            .wait_for_log("it has requests in flight of a ring that does not have 16 descriptors");
        hand.expect_done(&daemon, &[]);
        expect_served(&mut daemon);
    }
}

/// Rings that are running continue in the log of a region that comes late.
#[test]
fn a_region_may_come_while_rings_run() {
    let daemon = Daemon::start("16M", &[]);
    let mut hand = Hand::new(&daemon, 4096);
    hand.session.set_mem_table(&[Arc::clone(&hand.region)]).unwrap();
    hand.session.start(&hand.queue).unwrap();
    hand.offer(0, &[0, 1]);
    hand.queue.kick().unwrap();
    hand.wait_used(2);
    assert_eq!(hand.inflight.header(0).version, 0);
    hand.session.give_inflight(&hand.inflight).unwrap();
    assert_eq!((hand.inflight.header(0).version, hand.inflight.header(0).used_idx), (1, 2));
    hand.offer(2, &[2]);
    hand.queue.kick().unwrap();
    hand.wait_used(3);
    wait_until("the region", || hand.inflight.header(0).used_idx == 3);
    assert_eq!(hand.inflight.entry(0, 6).counter, 1);
    hand.expect_done(&daemon, &[0, 1, 2]);
}

/// A front end that hangs up under load and comes back with all it had, without a kick.
#[test]
fn a_front_end_that_comes_back_continues_where_it_was() {
    let daemon = Daemon::start("64M", &["--num-queues", "2", "--engine-workers", "1"]);
    for tracked in [true, false] {
        let session = match tracked {
            true => session_options(),
            false => session_options().untracked(),
        };
        let options = ClientOptions { queues: 2, session, ..client_options() };
        let mut client: Client = daemon.client_with(&options);
        assert_eq!(client.inflight.is_some(), tracked);
        let mut generation = 0;
        for _ in 0..20 {
            generation += 1;
            for (queue, blk) in (0..).zip(&mut client.queues) {
                let mut page = 1000 * queue;
                while submit(blk, page, generation) {
                    page += 1;
                }
                blk.publish().unwrap();
            }
            client.reconnect(daemon.socket()).unwrap();
            for blk in &mut client.queues {
                while blk.busy() > 0 {
                    assert_eq!(blk.wait(common::LIMIT).unwrap().status, Status::Ok);
                }
            }
            wait_until("nothing in flight", || client.left_behind().0 == 0);
        }
        for (queue, blk) in (0..).zip(&mut client.queues) {
            let depth = blk.depth();
            expect_pattern(blk, 8000 * queue, 8 * depth, generation);
        }
    }
    let lines = daemon.log();
    let first = lines.iter().filter(|line| line.contains("the first request is completed"));
    assert_eq!(first.count(), 1, "{lines:?}");
}

#[test]
fn a_daemon_that_ends_leaves_nothing_in_flight() {
    for _ in 0..5 {
        let daemon = Daemon::start("64M", &[]);
        let mut client = daemon.client();
        let mut page = 0;
        while submit(client.blk(), page, 1) {
            page += 1;
        }
        client.blk().publish().unwrap();
        daemon.signal(Signal::SIGTERM);
        let (status, ..) = daemon.wait();
        assert!(status.success());
        assert_eq!(client.left_behind(), (0, 0));
        let used = client.blk().queue().ring().used_idx().unwrap();
        let header = client.inflight.as_ref().unwrap().header(0);
        assert!(header.version == 0 && used == 0 || header.used_idx == used, "{header:?} {used}");
    }
}
