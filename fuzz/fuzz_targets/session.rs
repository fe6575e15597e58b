//! What a client can send on the socket.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vhost_user_zram::internals::fuzzing::session(input));
