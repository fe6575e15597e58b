//! vhost-user-blk socket as a target.

use std::{path::Path, sync::Arc, time::Duration};

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_zram_frontend::{
    Blk, Client, ClientOptions, Op, Options, Segment, Session, Status, spec::SECTOR,
};

use crate::target::{Done, Io, Lane, Need, Result, Target, TargetError, Wait};

/// A server that is silent for so long has failed.
const TIMEOUT: Duration = Duration::from_secs(60);

struct VhostLane {
    blk: Blk,
    // The rings stop when the connection does.
    _session: Arc<Session>,
    segment: u32,
    segments: Vec<Segment>,
}

impl Lane for VhostLane {
    #[inline]
    fn submit(&mut self, slot: usize, io: &Io) -> Result<()> {
        let Some(tag) = self.blk.acquire() else {
            return Err(TargetError::Unfit("more operations than slots".into()));
        };
        self.segments.clear();
        let (mut addr, mut left) = (io.addr, io.len);
        while left > 0 {
            let len = left.min(self.segment);
            self.segments.push(Segment { addr, len });
            (addr, left) = (addr + u64::from(len), left - len);
        }
        let op = if io.write { Op::Out } else { Op::In };
        self.blk.submit(tag, op, io.offset / SECTOR, &self.segments, slot as u64)?;
        Ok(())
    }

    #[inline]
    fn publish(&mut self) -> Result<()> {
        self.blk.publish()?;
        Ok(())
    }

    #[inline]
    fn reap(&mut self, wait: Wait, done: &mut Vec<Done>) -> Result<()> {
        loop {
            while let Some(completion) = self.blk.reap()? {
                done.push(Done {
                    slot: completion.user as usize,
                    ok: completion.status == Status::Ok,
                });
            }
            if !done.is_empty() {
                return Ok(());
            }
            match wait {
                Wait::Irq => self.blk.queue_mut().wait_used(TIMEOUT)?,
                Wait::Poll => self.blk.queue_mut().spin_used(TIMEOUT)?,
            }
        }
    }
}

/// Connects to the socket at `path`.
pub fn open(path: &Path, need: &Need) -> Result<Target> {
    let per_request = need.block.div_ceil(need.segment) + 2;
    let direct = u32::from(need.depth) * 3;
    let entries = per_request.max(direct).max(128).next_power_of_two();
    let mut session = Options { timeout: Duration::from_secs(10), ..Options::default() };
    session.protocol.set(VhostUserProtocolFeatures::INFLIGHT_SHMFD, !need.no_inflight);
    let options = ClientOptions {
        session,
        queues: need.queues,
        queue_size: u16::try_from(entries.min(1024)).unwrap_or(1024),
        depth: need.depth,
        // Data is in the spare memory; the slots' own buffers stay unused.
        max_bytes: 0,
        spare_memory: need.memory + (4 << 20),
        ..ClientOptions::default()
    };
    let client = Client::connect(path, &options)?;
    let config = client.session.blk_config()?;
    let mut segment = need.segment;
    if config.size_max != 0 {
        segment = segment.min(config.size_max);
    }
    if config.seg_max != 0 && need.block.div_ceil(segment) > config.seg_max {
        let most = u64::from(segment) * u64::from(config.seg_max);
        return Err(TargetError::Unfit(format!("the server takes at most {most} bytes a request")));
    }
    let segments = || Vec::with_capacity(need.block.div_ceil(segment) as usize);
    let session = Arc::new(client.session);
    let lane = |blk| {
        let _session = Arc::clone(&session);
        Box::new(VhostLane { blk, _session, segment, segments: segments() }) as Box<dyn Lane>
    };
    Ok(Target {
        lanes: client.queues.into_iter().map(lane).collect(),
        region: client.region,
        capacity: config.capacity * SECTOR,
    })
}

/// Discards the whole disk behind the socket at `path`.
pub fn discard(path: &Path) -> Result<()> {
    let mut client = Client::connect(path, &ClientOptions::default())?;
    let Some(queue) = client.queues.first_mut() else {
        return Err(TargetError::Unfit("there is no queue".into()));
    };
    let sectors = client.session.blk_config()?.capacity;
    let most = u64::from(u32::MAX / 2);
    let mut at = 0;
    while at < sectors {
        let count = (sectors - at).min(most);
        queue.discard(at, count as u32)?;
        at += count;
    }
    Ok(())
}
