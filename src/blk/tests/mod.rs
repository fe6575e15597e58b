//! Requests, queues and their threads against hand-laid guest memory.

mod latency;
mod leave;
mod lost;
mod memory;
mod poll;
mod put_back;
mod queue;
mod refused;
mod request;
mod resume;
pub(crate) mod rig;
mod throttle;
mod unanswerable;
mod watchdog;
mod worker;

use crate::virtq::tests::{Desc, INDIRECT_FLAG, NEXT, TABLE, WRITE, desc, put};
