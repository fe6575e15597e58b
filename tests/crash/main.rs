//! The daemon dies by SIGKILL under load, and what a new one on the same state finds is compared
//! with a model of all that was acknowledged.

#[path = "../common/mod.rs"]
mod common;
mod contents;
mod load;
mod model;

use common::daemon::{Daemon, client_options};
use load::Load;
use vhost_user_zram_frontend::ClientOptions;

const SECTORS: usize = 8 << 10;
const SECTOR: u64 = 512;

/// Without a death: the load and the model alone.
#[test]
fn overlapping_requests_match_the_model() {
    let size = (SECTORS as u64 * SECTOR).to_string();
    let mut daemon = Daemon::start(&size, &["--num-queues", "2"]);
    let mut load = Load::new(1, SECTORS);
    for depth in [1, 8, 32] {
        let options = ClientOptions { queues: 2, depth, max_bytes: 64 << 10, ..client_options() };
        let mut client = daemon.client_with(&options);
        load.begin(&client);
        assert!(load.run(&mut client, 5000, || daemon.is_alive()));
        eprintln!("{:?}", load.in_flight());
        load.drain(&mut client);
        load.verify(client.blk()).expect("the disk of the model");
        let stats = daemon.stats();
        eprintln!("{:?} {stats:?}", load.model.stored_pages());
        daemon.signal(nix::sys::signal::Signal::SIGUSR2);
        daemon.stdout.wait_for("compacted:", 0, common::LIMIT);
        eprintln!("{:?}", daemon.stdout.all());
    }
}
