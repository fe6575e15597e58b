//! What can happen to a state while no process has it.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    vhost_user_zram::internals::fuzzing::damaged_state(input);
});
