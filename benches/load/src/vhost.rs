//! vhost-user-blk socket as a target.

use std::{path::Path, sync::Arc, time::Duration};

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_zram_frontend::{
    Blk, Client, ClientOptions, Op, Options, Region, Segment, Session, Status, client::range,
    spec::SECTOR,
};

use crate::target::{Done, Io, Kind, Lane, Need, Result, Target, TargetError, Wait};

/// A server that is silent for so long has failed.
const TIMEOUT: Duration = Duration::from_secs(60);

struct VhostLane {
    blk: Blk,
    // The rings stop when the connection does.
    _session: Arc<Session>,
    segment: u32,
    segments: Vec<Segment>,
    region: Arc<Region>,
    /// Address of the ranges of discards, one for each slot.
    ranges: u64,
}

/// Bytes of a discard's range.
const RANGE: u32 = 16;

impl Lane for VhostLane {
    #[inline]
    fn submit(&mut self, slot: usize, io: &Io) -> Result<()> {
        let Some(tag) = self.blk.acquire() else {
            return Err(TargetError::Unfit("more operations than slots".into()));
        };
        self.segments.clear();
        if io.kind == Kind::Discard {
            let addr = self.ranges + u64::from(RANGE) * slot as u64;
            self.region.write(addr, &range(io.offset / SECTOR, io.len / SECTOR as u32, 0))?;
            let data = [Segment { addr, len: RANGE }];
            self.blk.submit(tag, Op::Discard, 0, &data, slot as u64)?;
            return Ok(());
        }
        let (mut addr, mut left) = (io.addr, io.len);
        while left > 0 {
            let len = left.min(self.segment);
            self.segments.push(Segment { addr, len });
            (addr, left) = (addr + u64::from(len), left - len);
        }
        let op = if io.kind == Kind::Write { Op::Out } else { Op::In };
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
    let pieces = if need.discard { 1 } else { need.block.div_ceil(need.segment) };
    let per_request = pieces + 2;
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
    let most = u64::from(config.max_discard_sectors) * SECTOR;
    if need.discard && most != 0 && u64::from(need.block) > most {
        return Err(TargetError::Unfit(format!(
            "the server discards at most {most} bytes a request"
        )));
    }
    if !need.discard && config.seg_max != 0 && need.block.div_ceil(segment) > config.seg_max {
        let most = u64::from(segment) * u64::from(config.seg_max);
        return Err(TargetError::Unfit(format!("the server takes at most {most} bytes a request")));
    }
    let segments = || Vec::with_capacity(pieces as usize);
    let ranges = u64::from(RANGE) * u64::from(need.depth);
    let session = Arc::new(client.session);
    let region = client.region;
    let lane = |blk| {
        let (_session, region) = (Arc::clone(&session), Arc::clone(&region));
        let ranges = region.alloc(ranges, 16)?;
        let segments = segments();
        Ok(Box::new(VhostLane { blk, _session, segment, segments, region, ranges })
            as Box<dyn Lane>)
    };
    Ok(Target {
        lanes: client.queues.into_iter().map(lane).collect::<Result<_>>()?,
        region,
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
