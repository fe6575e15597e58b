//! Answers of daemons, for tests.

use serde_json::{Value, json};
use vhost_user_zram::internals::api::Disk;

/// A disk that nobody uses, as its daemon describes it.
pub fn disk(name: &str) -> Disk {
    serde_json::from_value(value(name)).expect("an answer of the API")
}

fn latency() -> Value {
    json!({ "count": 0, "sum_us": 0, "buckets": [] })
}

fn rate() -> Value {
    json!({ "operations_per_second": 0, "bytes_per_second": 0, "burst_ms": 100 })
}

fn value(name: &str) -> Value {
    json!({
        "name": name,
        "daemon": {
            "version": "0.1.0", "pid": 100, "uptime_seconds": 200, "ready": true,
            "socket": format!("/run/{name}.sock"),
        },
        "size_bytes": 4_u64 << 30,
        "block_size_bytes": 4096,
        "origin": "new",
        "algorithm": "zstd(level=1)",
        "read_only": false,
        "settings": { "mem_limit_bytes": 1_u64 << 30, "host_reserve_bytes": 256 << 20, "rates": { "read": rate(), "write": rate() } },
        "session": { "connected": false, "front_end_pid": null, "connected_seconds": 0, "begun": 2 },
        "memory": {
            "pages_bytes": 3 << 20, "objects_bytes": 1 << 20, "arena_bytes": 1_110_016,
            "arena_max_bytes": 2 << 20, "metadata_bytes": 48332, "table_bytes": 40960,
            "table_index_bytes": 1024, "spans_bytes": 2048, "caches_bytes": 4096, "state_bytes": 204,
            "worst_case_bytes": 1_u64 << 30,
        },
        "pages": {
            "stored": 768, "same": 7, "huge": 5, "huge_written": 9, "compacted": 3, "freed": 11,
        },
        "requests": {
            "reads": 1000, "writes": 500, "discards": 4, "write_zeroes": 1, "flushes": 2,
            "failed_reads": 0, "failed_writes": 0, "invalid": 0, "stalled": 0, "expired": 0,
            "broken_queues": 0, "blind_queues": 0, "throttled": 0, "throttled_us": 0,
        },
        "engine": {
            "workers": 2, "jobs": 40, "submissions": 10, "completed": 40, "refused": 0, "fallbacks": 0,
            "failed": 0, "corrupted": 0, "timed_out": 0, "replaced_workers": 0, "queued": 0,
            "queued_max": 8, "service": [{ "up_to_us": 16, "count": 30 }, { "up_to_us": null, "count": 10 }],
        },
        "latency": {
            "read": latency(), "write": latency(), "discard": latency(), "write_zeroes": latency(),
            "flush": latency(),
        },
        "polls": { "hits": 10, "misses": 5, "time_us": 700 },
    })
}
